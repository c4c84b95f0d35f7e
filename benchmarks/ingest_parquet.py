"""Does memory grow with a parquet file? Ingest one with many small JPEGs, made on the spot, and print the peak.

    python benchmarks/ingest_parquet.py                        # 50,000 rows in one row group
    python benchmarks/ingest_parquet.py --rows 200000 --row-group 1000

The rows pass through `sources.parquet` and `write_imageset`, as those of `jobs/ingest.py parquet` do. The file is made
by a process of its own, so that its memory is not counted.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

if __name__ in ("__main__", "__mp_main__"):  # import from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.ingest_memory import jpeg
from sources import parquet
from store.imageset import Failure, Photo
from store.imageset_write import write_imageset

EVERY = 5_000
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("product_id", pa.string()),
        ("price", pa.float64()),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of ingestion against the rows of a parquet file.")
    parser.add_argument("--rows", type=int, default=50_000, help="how many (default 50,000)")
    parser.add_argument("--row-group", type=int, help="rows of a row group (default: all in one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photos.parquet"
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(file, args.rows, args.row_group))
        maker.start()
        maker.join()
        print(f"{file.stat().st_size / 1e6:,.0f} MB in {pq.read_metadata(file).num_row_groups:,} row groups")
        print(f"{'rows':>10} {'peak MB':>9} {'rows/s':>8}")
        reading = parquet.read([file], "shop")
        manifest = write_imageset(told(reading), Path(folder) / "set", source={"adapter": "benchmark"}, categories=())
    print(f"{manifest.images:,} images, {manifest.bytes / 1e6:,.0f} MB in {len(manifest.shards)} shards")


def make(file: Path, rows: int, row_group: int | None) -> None:
    pictures = [jpeg(seed) for seed in range(1024)]
    photos = [
        {"image": {"bytes": pictures[n % 1024], "path": f"{n}.jpg"}, "product_id": f"sku-{n}", "price": n / 100}
        for n in range(rows)
    ]
    pq.write_table(pa.Table.from_pylist(photos, SCHEMA), file, row_group_size=row_group or rows)


def told(rows: Iterable[Photo | Failure]) -> Iterator[Photo | Failure]:
    started = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if number % EVERY == 0:
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{number:>10,} {peak_mb:>9.1f} {number / (time.monotonic() - started):>8,.0f}", flush=True)


if __name__ == "__main__":
    main()
