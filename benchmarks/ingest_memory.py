"""Does memory grow with the image set? Ingest many small JPEGs, made on the spot, and print the process's memory.

    python benchmarks/ingest_memory.py                     # 50,000 images, 1,024 distinct pictures of 96 x 96 px
    python benchmarks/ingest_memory.py --images 200000

Rows pass through the same `write_imageset` as those of `jobs/ingest.py`. Resident memory is read from /proc (Linux).
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

if __name__ == "__main__":  # import from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from store.imageset import Item, Photo
from store.imageset_write import write_imageset

SIDE_PX = 96
EVERY = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of ingestion against the number of images.")
    parser.add_argument("--images", type=int, default=50_000, help="how many (default 50,000)")
    args = parser.parse_args()
    started = time.monotonic()
    print(f"{'images':>10} {'resident MB':>12} {'images/s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_imageset(told(photos(args.images), started), folder, source={"adapter": "benchmark"})
    print(f"{manifest.images:,} images, {manifest.bytes / 1e6:,.0f} MB in {len(manifest.shards)} shards")


def photos(n: int) -> Iterator[Photo]:
    pictures = [jpeg(seed) for seed in range(1024)]
    item = Item(1, 1, (10, 10, 80, 80), ((10, 10, 80, 10, 80, 80, 10, 80),))
    return (
        Photo(i, pictures[i % 1024], SIDE_PX, SIDE_PX, "shop", i, f"sku-{i}", f"{i}.jpg", False, (item,))
        for i in range(n)
    )


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def told(rows: Iterator[Photo], started: float) -> Iterator[Photo]:
    for number, row in enumerate(rows, 1):
        yield row
        if number % EVERY == 0:
            print(f"{number:>10,} {resident_mb():>12.1f} {number / (time.monotonic() - started):>9,.0f}", flush=True)


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main()
