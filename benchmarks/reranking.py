"""Neighbours, re-ranking, diffusion and rank fusion, each beside what a user would take instead, in the same run.

    python benchmarks/reranking.py                                   # all but the last two: some fifteen minutes
    python benchmarks/reranking.py --only nearest published          # beside faiss, beside the published algorithm
    OMP_NUM_THREADS=1 python benchmarks/reranking.py --only published      # on one thread CPU seconds are wall seconds
    python benchmarks/reranking.py --only large                      # 12,500 x 37,000 x 1,024: neighbours, then all

Random unit rows around centres, eight to a centre, as garments are. The results of both sides are compared before they
are timed. Times are medians, the sides taking turns; peak memory is that of a fresh process for each case (VmHWM,
Linux), its rows included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from postproc.diffusion import diffuse
from postproc.kreciprocal import rerank
from postproc.neighbours import nearest
from postproc.rank_fusion import fuse_lists

SIZES = (1_000, 10_000, 37_000)
QUERIES, WIDTH = 2_000, 512


def drawn(n: int, width: int, seed: int = 0) -> np.ndarray:
    """(n, width) float32 unit rows, eight to a centre."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 8), width), np.float32)
    rows = np.empty((n, width), np.float32)
    for start in range(0, n, 4096):
        block = rows[start : start + 4096]
        block[:] = centres[rng.integers(len(centres), size=len(block))]
        block += np.float32(0.7) * rng.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def published(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """(Q, G) final distances by the steps of the authors' code, as published: full N x N matrices, a loop over rows."""
    rows, n_query = np.concatenate([query, gallery]), len(query)
    n = len(rows)
    distance = (2 - 2 * (rows @ rows.T)).astype(np.float32)
    distance = np.transpose(distance / np.max(distance, axis=0))
    weights = np.zeros_like(distance)
    ranked = np.argsort(distance).astype(np.int32)
    half = int(np.around(k1 / 2))
    for i in range(n):
        forward = ranked[i, : k1 + 1]
        mutual = forward[np.where(ranked[forward, : k1 + 1] == i)[0]]
        expanded = mutual
        for candidate in mutual:
            ahead = ranked[candidate, : half + 1]
            theirs = ahead[np.where(ranked[ahead, : half + 1] == candidate)[0]]
            if len(np.intersect1d(theirs, mutual)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        near = np.exp(-distance[i, expanded])
        weights[i, expanded] = near / np.sum(near)
    distance = distance[:n_query]
    if k2 != 1:
        averaged = np.zeros_like(weights)
        for i in range(n):
            averaged[i] = np.mean(weights[ranked[i, :k2]], axis=0)
        weights = averaged
    holders = [np.where(weights[:, i] != 0)[0] for i in range(n)]
    jaccard = np.zeros_like(distance)
    for i in range(n_query):
        shared = np.zeros((1, n), np.float32)
        for column in np.where(weights[i] != 0)[0]:
            those = holders[column]
            shared[0, those] += np.minimum(weights[i, column], weights[those, column])
        jaccard[i] = 1 - shared / (2 - shared)
    return (jaccard * (1 - lambda_value) + distance * lambda_value)[:, n_query:]


# ----------------------------------------------------------------------------------------------------------------------
# Beside others.


def against_faiss(repeats: int) -> None:
    import faiss

    print(
        f"\nnearest beside faiss {faiss.__version__} IndexFlatIP.search, {QUERIES:,} queries of {WIDTH}; wall seconds\n"
    )
    print("| gallery | k | faiss | nearest | nearest / faiss |")
    print("|--:|--:|--:|--:|--:|")
    rows = drawn(QUERIES + max(SIZES), WIDTH)
    for n_gallery in SIZES:
        query, gallery = rows[:QUERIES], rows[QUERIES : QUERIES + n_gallery]
        index = faiss.IndexFlatIP(WIDTH)
        index.add(gallery)
        for k in (20, 100):
            theirs, ours = in_turn([partial(index.search, query, k), partial(nearest, query, gallery, k)], repeats)
            np.testing.assert_allclose(ours.answer[0], theirs.answer[0], atol=1e-5)
            ratio = ours.wall_s / theirs.wall_s
            print(f"| {n_gallery:,} | {k} | {theirs.wall_s:.3f} | {ours.wall_s:.3f} | {ratio:.2f} |", flush=True)


def against_published(repeats: int) -> None:
    print("\nrerank, top 100, beside the published algorithm, distances included on both sides; CPU (wall) seconds\n")
    print("| queries | gallery | width | published | rerank | its neighbour pass alone | published / rerank |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for n_query, n_gallery, width in ((1000, 3000, 256), (2000, 6000, 256)):
        rows = drawn(n_query + n_gallery, width)
        query, gallery = rows[:n_query], rows[n_query:]
        works: list[Callable[[], Any]] = [
            partial(published, query, gallery),
            partial(rerank, query, gallery),
            partial(nearest, rows, rows, 21),
        ]
        theirs, ours, neighbours = in_turn(works, repeats)
        compare_distances(ours.answer, theirs.answer)
        print(
            f"| {n_query:,} | {n_gallery:,} | {width} | {theirs} | {ours} | {neighbours} | "
            f"{theirs.cpu_s / ours.cpu_s:.1f} ({theirs.wall_s / ours.wall_s:.1f}) |",
            flush=True,
        )


def compare_distances(ours: tuple[np.ndarray, np.ndarray], theirs: np.ndarray) -> None:
    """Stop where a distance is off by more than 1e-5, unless neighbours tie within rounding (1 query in 200)."""
    indices, distances = ours
    want = np.sort(theirs, axis=1)[:, : indices.shape[1]]
    off = np.abs(distances - want).max(axis=1) > 1e-5
    off |= np.abs(np.take_along_axis(theirs, indices, axis=1) - want).max(axis=1) > 2e-5
    if off.mean() > 1 / 200:
        raise SystemExit(
            f"the two disagree for {off.sum()} of {len(off)} queries, by up to {np.abs(distances - want).max()}"
        )


def against_ranx(repeats: int) -> None:
    import ranx

    n_queries, n_lists, length = 12_000, 3, 100
    rng = np.random.default_rng(0)
    lists = [
        (
            np.argsort(rng.random((n_queries, 300)), axis=1)[:, :length],
            -np.sort(-rng.random((n_queries, length)), axis=1).astype(np.float32),
        )
        for _ in range(n_lists)
    ]
    names = [f"q{q:05d}" for q in range(n_queries)]
    runs = [
        ranx.Run(
            {
                q: dict(zip(map(str, one), scores.tolist(), strict=True))
                for q, one, scores in zip(names, ids.tolist(), values, strict=True)
            }
        )
        for ids, values in lists
    ]
    print(
        f"\nfuse_lists beside ranx, {n_queries:,} queries x {n_lists} lists x {length}, functions compiled before; "
        "wall seconds\n"
    )
    print("| method | ranx | fuse_lists, top 100 | ranx / fuse_lists |")
    print("|---|--:|--:|--:|")
    for method, name, norm in (("rrf", "rrf", None), ("combsum", "sum", "min-max"), ("combmnz", "mnz", "min-max")):
        few = [ranx.Run({q: dict(run[q]) for q in names[:2]}) for run in runs]
        ranx.fuse(few, norm=norm, method=name)  # compiles
        works: list[Callable[[], Any]] = [
            partial(ranx.fuse, runs, norm=norm, method=name),
            partial(fuse_lists, lists, method),
        ]
        theirs, ours = in_turn(works, repeats)
        for q in range(0, n_queries, 100):
            best = sorted(theirs.answer.run[names[q]].values(), reverse=True)[:100]
            np.testing.assert_allclose(ours.answer[1][q], best, rtol=1e-5, atol=1e-6)
        print(f"| {method} | {theirs.wall_s:.2f} | {ours.wall_s:.2f} | {theirs.wall_s / ours.wall_s:.1f} |", flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# As the gallery grows.


def neighbour_pass(rows: np.ndarray) -> None:
    """What re-ranking needs to begin with: the k1 + 1 nearest of all rows among all rows."""
    nearest(rows, rows, 21)


CASES: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "rows alone": lambda query, gallery: None,
    "nearest, k 20": lambda query, gallery: nearest(query, gallery, 20),
    "neighbour pass": lambda query, gallery: nearest(
        np.concatenate([query, gallery]), np.concatenate([query, gallery]), 21
    ),
    "rerank": lambda query, gallery: rerank(query, gallery),
    "diffuse": lambda query, gallery: diffuse(query, gallery),
    "diffuse, truncate 1,000": lambda query, gallery: diffuse(query, gallery, truncate=1000),
}


def growth() -> None:
    print(f"\nAs the gallery grows: {QUERIES:,} queries, {WIDTH} wide; CPU (wall) seconds and peak MB, one run each\n")
    print("| | " + " | ".join(f"{n:,} rows" for n in SIZES) + " |")
    print("|---|" + "--:|" * len(SIZES))
    for name in CASES:
        print(f"| {name} | " + " | ".join(measured(name, QUERIES, n, WIDTH) for n in SIZES) + " |", flush=True)


def large(scale: float) -> None:
    n_query, n_gallery = round(12_500 * scale), round(37_000 * scale)
    print(
        f"\n{n_query:,} queries, {n_gallery:,} gallery rows, 1,024 wide; CPU (wall) seconds and peak MB, one run each\n"
    )
    print("| | s, MB |")
    print("|---|--:|")
    for name in ("rows alone", "neighbour pass", "rerank"):
        print(f"| {name} | {measured(name, n_query, n_gallery, 1_024)} |", flush=True)


def measured(name: str, n_query: int, n_gallery: int, width: int) -> str:
    """The case in a process of its own: seconds and peak memory."""
    arguments = ["--case", json.dumps([name, n_query, n_gallery, width])]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    cpu_s, wall_s, peak_mb = json.loads(done.stdout)
    return f"{cpu_s:.1f} ({wall_s:.1f}) s, {peak_mb:,.0f} MB"


def case(name: str, n_query: int, n_gallery: int, width: int) -> None:
    rows = drawn(n_query + n_gallery, width)
    start, cpu_start = time.perf_counter(), time.process_time()
    CASES[name](rows[:n_query], rows[n_query:])
    taken = [time.process_time() - cpu_start, time.perf_counter() - start]
    lines = Path("/proc/self/status").read_text().splitlines()
    print(json.dumps([*taken, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024]))


# ----------------------------------------------------------------------------------------------------------------------
# Measuring.


@dataclass
class Taken:
    """Medians, and the last answer."""

    wall_s: float
    cpu_s: float
    answer: Any

    def __str__(self) -> str:
        return f"{self.cpu_s:.2f} ({self.wall_s:.2f})"


def in_turn(works: list[Callable[[], Any]], repeats: int) -> list[Taken]:
    """Each of the works `repeats` times, taking turns, so that what else the machine does falls on all."""
    wall: list[list[float]] = [[] for _ in works]
    cpu: list[list[float]] = [[] for _ in works]
    answers: list[Any] = [None] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            start, cpu_start = time.perf_counter(), time.process_time()
            answers[number] = work()
            wall[number].append(time.perf_counter() - start)
            cpu[number].append(time.process_time() - cpu_start)
    return [Taken(statistics.median(wall[n]), statistics.median(cpu[n]), answers[n]) for n in range(len(works))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("nearest", "published", "growth", "fusion", "large")
    parser.add_argument(
        "--only", nargs="+", choices=parts, default=parts[:-1], help="which tables (default all but large)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the median counts (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the large case's rows (default 1.0)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return case(*json.loads(args.case))
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(
        f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads}, load {os.getloadavg()[0]:.1f} at the start; "
        f"NumPy {np.__version__}"
    )
    tables: dict[str, Callable[[], None]] = {
        "nearest": lambda: against_faiss(args.repeats),
        "published": lambda: against_published(args.repeats),
        "growth": growth,
        "fusion": lambda: against_ranx(args.repeats),
        "large": lambda: large(args.scale),
    }
    for name in args.only:
        tables[name]()


if __name__ == "__main__":
    main()
