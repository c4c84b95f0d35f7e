"""A gallery in one part and in four: CPU seconds and memory of a build, CPU time of a search, recall.

    python benchmarks/parts.py                  # 200,000 x 512 rows, ivf_pq, some ten minutes
    python benchmarks/parts.py --rows 20000     # a short run

The rows are random, low rank plus noise as in ann.py, and stand in a gallery's results as the models would leave them,
one garment a photo. Every build is a process of its own, with one thread, whose peak memory (resident, mapped files
included) is its own too; it builds one part after the other. The dearest part is what a cluster waits for that builds
each part on a node. Searches are of 64 queries at once and of one, in one process, without a cache to warm: the median
of five rounds. Recall@10 is of 1,000 rows of the gallery moved a little.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa

from jobs.gallery.build import Wanted, build
from jobs.gallery.gate import moved
from jobs.gallery.parts import PartJob, build_parts
from jobs.gallery.results import PhotoResults
from jobs.runs.marks import as_json
from jobs.runs.settings import Settings, record
from postproc.hypotheses import Hypotheses
from retrieval.gallery import open_gallery
from retrieval.hypotheses import as_column
from store.objects import open_store

NAME, DIM, BLOCK, K = "000001-x", 512, 20_000, 10


def write_results(folder: Path, rows: int) -> None:
    """Garments as the models would leave them, 20,000 in a file."""
    results, rng = PhotoResults(open_store(folder).sub("results/random"), {"m": DIM}), np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((DIM, 32)))[0].T.astype(np.float32)
    for start in range(0, rows, BLOCK):
        ids = np.arange(start, min(start + BLOCK, rows))
        vectors = (
            rng.standard_normal((len(ids), 32), np.float32) * np.arange(1, 33, dtype=np.float32) ** -0.25
        ) @ basis
        vectors += 0.5 * np.linalg.norm(vectors, axis=1, keepdims=True) / DIM**0.5 * rng.standard_normal(vectors.shape)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        none = Hypotheses.own(np.ones(len(ids), np.int64), np.ones(len(ids)))
        boxes = pa.FixedSizeListArray.from_arrays(pa.array(np.tile(np.array([0, 0, 9, 9], np.float32), len(ids))), 4)
        items = pa.table({
            "digest": digests(ids), "bbox": boxes, "score": np.ones(len(ids), np.float32),
            "category_id": np.ones(len(ids), np.int16), "votes": np.ones(len(ids), np.int8),
            "hypotheses": as_column(none), "m": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        })  # fmt: skip
        of_photos = {"digest": digests(ids), "items": np.ones(len(ids), np.int32), "reason": [""] * len(ids)}
        results.add(pa.table(of_photos), items)


def digests(ids: np.ndarray) -> pa.Array:
    return pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16))


def build_one(folder: Path, rows: int, parts: int, kind: str) -> dict[str, float]:
    """Build a version in a folder of its own beside the results; returns CPU seconds and MB."""
    ids, store = np.arange(rows), open_store(folder)
    results = PhotoResults(store.sub("results/random"), {"m": DIM})
    gallery = {"parts": parts, "index": kind, "memory_mb": 16_384}
    wanted = Wanted(Settings.model_validate({"gallery": gallery, "embedders": ("m",)}), ("m",), ("top",), "never", "")
    photos = pa.table({
        "image_id": ids, "product_id": [""] * rows, "file_name": [f"{i}.jpg" for i in ids], "digest": digests(ids),
    })  # fmt: skip
    about = {
        "name": NAME, "schema": 1, "models": [{"name": "m", "dim": DIM}], "search": record(wanted.settings.search),
        "results": "random",
    }  # fmt: skip
    out, began, of_parts = open_store(folder / str(parts)), time.process_time(), []
    run = PartJob.run

    def timed(job: PartJob, *how: Any) -> Any:
        start = time.process_time()
        files = run(job, *how)
        of_parts.append(time.process_time() - start)
        return files

    PartJob.run = timed  # type: ignore[method-assign, assignment]
    if parts > 1:
        with build_parts(wanted, results, photos, None, out, NAME) as built:
            built.write(out, about | {"files": built.files()} | built.record())
    else:
        with tempfile.TemporaryDirectory(dir=folder) as passing:
            whole = build(wanted, results, photos, None, Path(passing))
            whole.write(out, about | {"files": whole.files()} | whole.record())
    cpu_s = time.process_time() - began
    out.write("CURRENT", as_json({"version": NAME, "history": []}))
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"cpu_s": cpu_s, "dearest_s": max(of_parts, default=cpu_s), "mb": mb}


def cost_ms(search: Callable[[np.ndarray, int], Any], queries: np.ndarray, at_once: int) -> float:
    """CPU milliseconds a query, the median of five rounds."""
    costs = []
    for _ in range(5):
        began = time.process_time()
        for start in range(0, len(queries), at_once):
            search(queries[start : start + at_once], K)
        costs.append(1000 * (time.process_time() - began) / len(queries))
    return float(np.median(costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--index", default="ivf_pq")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "PARTS"), help="build once, as the table does")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(build_one(Path(args.one[0]), args.rows, int(args.one[1]), args.index)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder), args.rows)
        print("| parts | build, CPU s | dearest part, CPU s | MB | recall@10 | CPU ms a query, 64 at once | one |")
        print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
        for parts in ("1", "4"):
            line = [sys.executable, __file__, "--rows", str(args.rows), "--index", args.index, "--one", folder, parts]
            cost = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            gallery = open_gallery(Path(folder, parts))
            ids = np.random.default_rng(1).choice(gallery.items["id"].to_numpy(), 1_000, replace=False)
            queries = moved(gallery.vectors(ids), np.random.default_rng(2))
            recall = (gallery.search(queries, K)[0] >= gallery.index.exact(queries, K)[0][:, -1:]).mean()
            some, one = cost_ms(gallery.search, queries[:512], 64), cost_ms(gallery.search, queries[:64], 1)
            build_cost = f"{cost['cpu_s']:.0f} | {cost['dearest_s']:.0f} | {cost['mb']:,.0f}"
            print(f"| {parts} | {build_cost} | {recall:.3f} | {some:.2f} | {one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
