"""A gallery in one part and in four: seconds to build, memory of a build, queries a second, recall.

    python benchmarks/parts.py                  # 200,000 x 512 rows, ivf_pq, some ten minutes on two cores
    python benchmarks/parts.py --rows 20000     # a short run

The rows are random, low rank plus noise as in ann.py, and stand in a gallery's results as the models would leave them,
one garment a photo. Every build is a process of its own, whose peak memory (resident) is its own too; it builds one
part after the other, or each as a task of a Ray of this machine. Searches are of 64 queries at once and of one, in one
process, or of parts served by an actor each. Recall@10 is of 1,000 rows of the gallery moved a little.
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
from jobs.gallery.parts import build_parts
from jobs.gallery.results import PhotoResults
from jobs.gallery.serving import serve_gallery
from jobs.runs import cluster
from jobs.runs.marks import as_json
from jobs.runs.settings import Settings, record
from postproc.hypotheses import Hypotheses
from retrieval.gallery import open_gallery
from retrieval.hypotheses import as_column
from store.objects import open_store

NAME, DIM, BLOCK, K = "000001-x", 512, 20_000, 10
CASES = (("1", "one process"), ("4", "one process"), ("4", "Ray"))


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
        boxes = pa.FixedSizeListArray.from_arrays(pa.array(np.tile(np.float32([0, 0, 9, 9]), len(ids))), 4)
        items = pa.table({
            "digest": digests(ids), "bbox": boxes, "score": np.ones(len(ids), np.float32),
            "category_id": np.ones(len(ids), np.int16), "votes": np.ones(len(ids), np.int8),
            "hypotheses": as_column(none), "m": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        })  # fmt: skip
        of_photos = {"digest": digests(ids), "items": np.ones(len(ids), np.int32), "reason": [""] * len(ids)}
        results.add(pa.table(of_photos), items)


def digests(ids: np.ndarray) -> pa.Array:
    return pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16))


def build_one(folder: Path, rows: int, parts: int, kind: str, place: str) -> dict[str, Any]:
    """Build a version in a folder of its own beside the results; returns seconds and MB."""
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
    if place == "Ray":
        cluster.start_ray(wanted.settings)
    began = time.perf_counter()
    out = open_store(folder / f"{parts} {place}")
    if parts > 1:
        with build_parts(wanted, results, photos, ids, None, out, NAME) as built:
            seconds = time.perf_counter() - began
            built.write(out, about | {"files": built.files()} | built.record())
    else:
        with tempfile.TemporaryDirectory(dir=folder) as passing:
            whole = build(wanted, results, photos, None, Path(passing))
            whole.write(out, about | {"files": whole.files()} | whole.record())
            seconds = time.perf_counter() - began
    out.write("CURRENT", as_json({"version": NAME, "history": []}))
    cluster.leave_ray()
    return {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def rate(search: Callable[[np.ndarray, int], Any], queries: np.ndarray, at_once: int) -> float:
    """Queries a second, the median of five rounds."""
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        for start in range(0, len(queries), at_once):
            search(queries[start : start + at_once], K)
        rates.append(len(queries) / (time.perf_counter() - began))
    return float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--index", default="ivf_pq")
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "PARTS", "PLACE"), help="build once, as the table does")
    args = parser.parse_args()
    if args.one:
        folder, parts, place = args.one
        print(json.dumps(build_one(Path(folder), args.rows, int(parts), args.index, place)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder), args.rows)
        print("| parts | built in | build s | driver's MB | recall@10 | queries/s, 64 at once | one at a time |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for parts, place in CASES:
            line = [sys.executable, __file__, "--rows", str(args.rows), "--index", args.index]
            done = subprocess.run([*line, "--one", folder, parts, place], check=True, stdout=subprocess.PIPE, text=True)
            cost = json.loads(done.stdout.splitlines()[-1])
            gallery = open_gallery(Path(folder, f"{parts} {place}"))
            ids = np.random.default_rng(1).choice(gallery.items["id"].to_numpy(), 1_000, replace=False)
            queries = moved(gallery.vectors(ids), np.random.default_rng(2))
            exact = gallery.index.exact(queries, K)[0][:, -1:]
            recall = (gallery.search(queries, K)[0] >= exact).mean()
            searches = [(place, gallery.search)]
            told = f"{cost['seconds']:.0f} | {cost['mb']:,.0f} | {recall:.3f}"
            if place == "Ray":
                served = serve_gallery(Path(folder, f"{parts} {place}"), num_cpus=0.5)
                searches = [("Ray, served by four actors", served.search)]
            for where, search in searches:
                some, one = rate(search, queries[:512], 64), rate(search, queries[:64], 1)
                print(f"| {parts} | {where} | {told} | {some:,.0f} | {one:,.0f} |", flush=True)
        cluster.leave_ray()


if __name__ == "__main__":
    main()
