"""LookBench's figures at its size: `retrieval.lookbench` beside the package look-bench on the same embeddings.

Fine and coarse Recall and nDCG at 1, 5, 10 and 20, from embeddings to figures: both compare all queries with the whole
gallery. The package sorts the gallery anew for each query, figure and length, so its part takes a minute or two. On the
package's own order our figures must be its own but for the two decimals of percent to which it rounds, or the benchmark
stops; our own order differs where float32 cannot tell two similarities apart. Seconds are of CPU time, of one thread.

    OMP_NUM_THREADS=1 python benchmarks/lookbench.py        # 1,000 queries, 60,000 shop photos, 512 numbers each
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from look_bench.metrics import NDCGEvaluator, RankEvaluator

from postproc.neighbours import nearest
from retrieval.lookbench import KS, label_figures

Labels = dict[str, tuple[np.ndarray, np.ndarray]]  # grade -> those of the queries, those of the gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1_000, help="(1,000)")
    parser.add_argument("--gallery", type=int, default=60_000, help="shop photos (60,000)")
    parser.add_argument("--dim", type=int, default=512, help="numbers of an embedding (512)")
    parser.add_argument("--seed", type=int, default=0, help="of the embeddings and labels (0)")
    args = parser.parse_args()
    for name in ("look_bench.metrics.base", "look_bench.metrics.factory"):
        logging.getLogger(name).setLevel(logging.WARNING)

    queries, gallery, labels = made_up(args.queries, args.gallery, args.dim, args.seed)
    ours_s, figures = timed(lambda: ours(queries, gallery, labels))
    their_s, theirs = timed(lambda: package(queries, gallery, labels))
    same_order = flat({grade: label_figures(their_order(queries, gallery), *sides) for grade, sides in labels.items()})
    furthest = max(abs(theirs[name] - value) for name, value in same_order.items())
    if furthest > 0.005 + 1e-9:
        raise SystemExit(f"the figures differ by {furthest:.4f} percentage points, more than rounding explains")
    print(f"{args.queries:,} queries, {args.gallery:,} shop photos, {args.dim} numbers; seed {args.seed}\n")
    print("| | CPU s | faster by |\n|---|--:|--:|")
    print(f"| look-bench {version('look-bench')} | {their_s:.1f} | – |")
    print(f"| `retrieval.lookbench` | {ours_s:.2f} | {their_s / ours_s:.0f}x |")
    names = ("fine recall@1", "fine recall@20", "fine ndcg@5", "coarse recall@1", "coarse ndcg@5")
    apart = max(abs(theirs[name] - value) for name, value in flat(figures).items())
    print(
        f"\nboth say: {', '.join(f'{name} {theirs[name]:.2f} %' for name in names)}; {apart:.3f} points apart at most"
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def ours(queries: np.ndarray, gallery: np.ndarray, labels: Labels) -> dict[str, Any]:
    _, ranked = nearest(queries, gallery, max(KS))
    return {grade: label_figures(ranked, *sides) for grade, sides in labels.items()}


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """Percent, by "GRADE MEASURE@K"."""
    return {
        f"{grade} {measure}@{k}": 100 * value
        for grade, parts in figures.items()
        for measure in ("recall", "ndcg")
        for k, value in parts[measure].items()
    }


def package(queries: np.ndarray, gallery: np.ndarray, labels: Labels) -> dict[str, float]:
    answers: dict[str, float] = {}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bars
        for grade, (asked, held) in labels.items():
            for evaluator in (RankEvaluator(list(KS)), NDCGEvaluator(list(KS))):
                figures = evaluator.evaluate(torch.from_numpy(queries), asked, torch.from_numpy(gallery), held)
                answers |= {f"{grade} {name}": value for name, value in figures.items()}
    return answers


def their_order(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q, 20) rows of the gallery as the package sorts them."""
    sides = (torch.nn.functional.normalize(torch.from_numpy(rows), dim=1) for rows in (queries, gallery))
    products = torch.mm(next(sides), next(sides).t())
    return np.stack([torch.argsort(row, descending=True)[: max(KS)].numpy() for row in products])


def made_up(n: int, n_gallery: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, Labels]:
    """Unit embeddings around their label's own direction: 30 categories of 20 main attributes each."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((600, dim))
    sides, numbers = [], []
    for size in (n, n_gallery):
        number = rng.integers(0, 600, size)
        rows = 0.3 * directions[number] + rng.standard_normal((size, dim))
        sides.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        numbers.append(number)
    return sides[0], sides[1], {"fine": (numbers[0], numbers[1]), "coarse": (numbers[0] // 20, numbers[1] // 20)}


if __name__ == "__main__":
    main()
