"""Memory and time of `jobs/ablate.py` at the size of DeepFashion2: 12,000 queries, 37,000 gallery rows, three models.

    OMP_NUM_THREADS=1 python benchmarks/ablate_memory.py

No photo set of that size is at hand, so the run's tables are synthetic, in the contract's own files. A garment has
a centre of standard normal numbers in each model's space; an embedding is its centre plus NOISE times standard
normal numbers, brought to unit length. Every garment is in three shop photos, and some have a query; seed SEED.
Then the command itself runs on that folder with four techniques, and the proportional set sizes (Pss: shared pages
counted once) of all its processes are added up four times a second.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from jobs.runs import tables
from jobs.runs.selection import select
from jobs.runs.settings import ReportSettings, SearchSettings, record
from store.imageset import Item, Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store

SEED, NOISE, DIM = 0, 3.0, 512
MODELS = ("one", "two", "three")
TECHNIQUES = ("whiten 384", "dba 3", "alpha qe 3", "k-reciprocal 20, 6, 0.3")
BOX = (0.0, 0.0, 8.0, 8.0)


def draw(folder: Path, n_queries: int, n_gallery: int) -> None:
    """An image set of one garment a photo, and the tables of a finished run over it."""
    grey = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(grey, "JPEG")
    n_garments = max(1, n_gallery // 3)
    rng = np.random.default_rng(SEED)
    garment = np.r_[rng.permutation(np.arange(n_queries) % n_garments), np.arange(n_gallery) % n_garments]

    def photo(i: int) -> Photo:
        item = Item(1 + int(garment[i]) % 13, 1, BOX, ((0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0),))
        side = "user" if i < n_queries else "shop"
        return Photo(
            i, grey.getvalue(), 8, 8, side, 1 + int(garment[i]), f"sku-{garment[i]}", f"{i}.jpg", False, (item,)
        )

    write_imageset(
        map(photo, range(n_queries + n_gallery)), folder / "imageset", source={"adapter": "drawn"}, max_images=4096
    )
    images, store = open_imageset(folder / "imageset"), open_store(folder / "run")
    centres = {name: rng.normal(size=(n_garments, DIM)).astype(np.float32) for name in MODELS}
    for shard in images.shards:
        ids = images.read(shard.name, columns=["image_id"]).column("image_id").to_numpy()
        columns = {
            "image_id": ids, "item": np.zeros(len(ids), np.int64), "bbox": np.tile(BOX, (len(ids), 1)),
            "score": rng.uniform(0.3, 1, len(ids)), "category_id": 1 + garment[ids] % 13,
            "votes": np.ones(len(ids), np.int64),
        }  # fmt: skip
        tables.write(store, f"items/detected/{shard.name}.parquet", tables.table(tables.ITEMS, columns))
        for name in MODELS:
            embeddings = centres[name][garment[ids]] + NOISE * rng.normal(size=(len(ids), DIM)).astype(np.float32)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            columns = {"image_id": ids, "item": np.zeros(len(ids), np.int64), "embedding": embeddings}
            key = f"embeddings/detected/{name}/{shard.name}.parquet"
            tables.write(store, key, tables.table(tables.embeddings_schema(DIM, "float32"), columns))
    selected = select(images, None).as_json()
    settings = {
        "search": record(SearchSettings()), "report": record(ReportSettings()),
        "storage": {"endpoint_url": None}, "items": {},
    }  # fmt: skip
    run_record = {
        "imagesets": [{"uri": str(folder / "imageset"), "digest": images.digest}], "selected": selected,
        "embedders": [{"name": name} for name in MODELS], "detectors": [], "boxes": ["detected"],
        "settings": settings,
    }  # fmt: skip
    store.write("run.json", json.dumps(run_record).encode())
    store.write("done/rank/detected/shard-00000.json", b"{}")


def pss_mb(root: int) -> float:
    """Proportional set size of a process and all its descendants, 10^6 bytes."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0.0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=12_000)
    parser.add_argument("--gallery", type=int, default=37_000)
    parser.add_argument("--parallel", type=int, default=None, help="as of jobs/ablate.py")
    parser.add_argument("--keep", help="folder for the tables, used again if it exists (a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary)
        if not (folder / "run" / "run.json").exists():
            draw(folder, args.queries, args.gallery)
        line = [sys.executable, "jobs/ablate.py", str(folder / "run"), "--part", "retrieval"]
        line += [word for name in TECHNIQUES for word in ("--only", name)]
        line += [] if args.parallel is None else ["--parallel", str(args.parallel)]
        start, peak = time.monotonic(), 0.0
        with subprocess.Popen(line, cwd=sys.path[0]) as running:
            while running.poll() is None:
                peak = max(peak, pss_mb(running.pid))
                time.sleep(0.25)
        print(
            f"\n{args.queries:,} queries, {args.gallery:,} gallery rows, {len(MODELS)} models of {DIM}: exit status "
            f"{running.returncode}, {time.monotonic() - start:.0f} s, peak of all processes {peak / 1000:.2f} GB, "
            f"load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
