"""Neighbours, re-ranking, diffusion and rank fusion, each beside what a user would take instead, in the same run.

    python benchmarks/reranking.py                                  # everything but the last line: some fifteen minutes
    python benchmarks/reranking.py --only published --repeats 3     # k-reciprocal beside the published algorithm, full matrices
    python benchmarks/reranking.py --only large                     # 12,500 x 37,000 x 1,024 against its neighbour pass, and memory

Drawn unit rows around centres, eight to a centre, as garments are; the answers of both sides are compared before a time is told.
Wall seconds, medians, sides taking turns; peak memory is the process's own (VmHWM, Linux), each case in a fresh process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from postproc.kreciprocal import rerank
from postproc.neighbours import nearest


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


def published(query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> np.ndarray:
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


def against_published(repeats: int) -> None:
    print("\nk-reciprocal, top 100, beside the published algorithm on full matrices, distances included on both sides; seconds\n")
    print("| queries | gallery | width | published | rerank | nearest alone | published / rerank |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for n_query, n_gallery, width in ((1000, 3000, 256), (2000, 6000, 256)):
        rows = drawn(n_query + n_gallery, width)
        query, gallery = rows[:n_query], rows[n_query:]
        theirs, ours, pass_ = in_turn(
            [lambda: published(query, gallery), lambda: rerank(query, gallery), lambda: nearest(rows, rows, 21)], repeats
        )
        compare_distances(ours[1], theirs[1])
        print(
            f"| {n_query:,} | {n_gallery:,} | {width} | {theirs[0]:.1f} | {ours[0]:.2f} | {pass_[0]:.2f} | {theirs[0] / ours[0]:.1f} |",
            flush=True,
        )


def compare_distances(ours: tuple[np.ndarray, np.ndarray], theirs: np.ndarray) -> None:
    """Stops where a distance is off by more than 1e-5, but for rows whose neighbours tie within rounding (1 query in 200)."""
    indices, distances = ours
    want = np.sort(theirs, axis=1)[:, : indices.shape[1]]
    off = np.abs(distances - want).max(axis=1) > 1e-5
    off |= np.abs(np.take_along_axis(theirs, indices, axis=1) - want).max(axis=1) > 2e-5
    if off.mean() > 1 / 200:
        raise SystemExit(f"the two disagree for {off.sum()} of {len(off)} queries, by up to {np.abs(distances - want).max()}")


def in_turn(works: list[Callable[[], Any]], repeats: int) -> list[tuple[float, Any]]:
    """(median wall seconds, last answer) of each, taking turns, so that what else the machine does falls on all."""
    taken: list[list[float]] = [[] for _ in works]
    answers: list[Any] = [None] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            start = time.perf_counter()
            answers[number] = work()
            taken[number].append(time.perf_counter() - start)
    return [(statistics.median(seconds), answer) for seconds, answer in zip(taken, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    against_published(args.repeats)


if __name__ == "__main__":
    main()
