"""What the steps on embeddings and on lists cost as the gallery grows, beside what a user would write instead.

    OMP_NUM_THREADS=2 python benchmarks/features.py

Gallery embeddings have 512 dimensions and lie in clusters, so that they have true neighbours; expansion has 2,000
queries, techniques on lists have lists of 200. The peers: scikit-learn's PCA for projections; for augmentation and
expansion the few lines with the whole N x N or Q x N matrix that one writes first; for lists a loop over the queries.
Every figure is measured in a process of its own: seconds are the median of the rounds, megabytes its peak memory
besides the embeddings. Results are compared before anything is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

DIM, N_QUERIES, POOL = 512, 2000, 200


def drawn(n: int, seed: int) -> np.ndarray:
    """(n, DIM) float32 unit rows about n / 4 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 4), DIM)).astype(np.float32)
    rows = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.normal(size=(n, DIM)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# --- ours, and the peer -----------------------------------------------------------------------------------------------


def whiten(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.features import in_blocks
    from postproc.whiten import learn

    return learn(in_blocks(gallery), 256).apply(gallery)


def sklearn_pca(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    rows = PCA(256, whiten=True, svd_solver="covariance_eigh").fit_transform(gallery)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def power(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.power import power_normalise

    return power_normalise(gallery)


def plain_power(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    rows = np.sign(gallery) * np.sqrt(np.abs(gallery))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dba(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.dba import augment

    return augment(gallery, 5)


def plain_dba(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    similarity = gallery @ gallery.T
    np.fill_diagonal(similarity, -2)
    best = np.argsort(-similarity, axis=1)[:, :5]
    rows = gallery + np.einsum("k,nkd->nd", np.arange(5, 0, -1) / 6, gallery[best])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def alpha_qe(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.query_expansion import alpha

    return alpha(queries, gallery, 10)


def plain_alpha_qe(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    similarity = queries @ gallery.T
    best = np.argsort(-similarity, axis=1)[:, :10]
    share = np.maximum(np.take_along_axis(similarity, best, axis=1), 0) ** 3
    rows = queries + np.einsum("qk,qkd->qd", share, gallery[best])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def average_qe(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.query_expansion import average

    return average(queries, gallery, 10)


def plain_average_qe(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    best = np.argsort(-(queries @ gallery.T), axis=1)[:, :10]
    rows = queries + gallery[best].sum(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def models_of(gallery: np.ndarray) -> list[np.ndarray]:
    """Three models' rows of the same items, or three views."""
    return [gallery, gallery[::-1], np.roll(gallery, 1, axis=0)]


def concat(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.concat import concat as together

    return together(models_of(gallery), [1.0, 2.0, 1.0])


def plain_concat(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    shares = np.sqrt(np.array([0.25, 0.5, 0.25], np.float32))
    return np.concatenate([share * rows for share, rows in zip(shares, models_of(gallery), strict=True)], axis=1)


def views(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.views import average_views

    return average_views(models_of(gallery))


def plain_views(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    rows = np.mean(models_of(gallery), axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def lists_of(gallery: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Q, POOL) positions and similarities, best first; position p has category p % 13 and product p // 3."""
    rows = (np.arange(len(queries))[:, None] * 31 + np.arange(POOL) * 7) % len(gallery)
    return rows, np.broadcast_to(np.linspace(0.9, 0.1, POOL, dtype=np.float32), rows.shape)


def category(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.category_rule import category_rule
    from postproc.hypotheses import Hypotheses

    of_query, of_item = (Hypotheses.own(np.arange(len(s)) % 13 + 1, np.ones(len(s))) for s in (queries, gallery))
    return category_rule(*lists_of(gallery, queries), of_query, of_item, "soft", 0.1)[1]


def plain_category(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    found = []
    for query, (rows, similarity) in enumerate(zip(*lists_of(gallery, queries), strict=True)):
        told = [s - 0.1 * (row % 13 != query % 13) for row, s in zip(rows.tolist(), similarity.tolist(), strict=True)]
        found.append(sorted(told, reverse=True))
    return np.array(found, np.float32)


def detector_score(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.detector_score import with_detector_score

    return with_detector_score(*lists_of(gallery, queries), np.linspace(0, 1, len(gallery)), 0.1)[1]


def plain_detector_score(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    score, found = np.linspace(0, 1, len(gallery)).tolist(), []
    for rows, similarity in zip(*lists_of(gallery, queries), strict=True):
        told = [s + 0.1 * score[row] for row, s in zip(rows.tolist(), similarity.tolist(), strict=True)]
        found.append(sorted(told, reverse=True))
    return np.array(found, np.float32)


def grouping(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from postproc.grouping import group

    return np.maximum(group(*lists_of(gallery, queries), np.arange(len(gallery)) // 3)[1], 0)


def plain_grouping(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    found = np.zeros((len(queries), POOL), np.float32)
    for line, rows, similarity in zip(found, *lists_of(gallery, queries), strict=True):
        best: dict[int, float] = {}
        for row, s in zip(rows.tolist(), similarity.tolist(), strict=True):
            best.setdefault(row // 3, s)
        line[: len(best)] = list(best.values())
    return found


Technique = Callable[[np.ndarray, np.ndarray], np.ndarray]
PAIRS: dict[str, tuple[Technique, Technique]] = {
    "power normalisation": (power, plain_power),
    "whiten to 256": (whiten, sklearn_pca),
    "augmentation, 5 neighbours": (dba, plain_dba),
    "alpha query expansion, 10": (alpha_qe, plain_alpha_qe),
    "average query expansion, 10": (average_qe, plain_average_qe),
    "concatenation of 3": (concat, plain_concat),
    "3 views averaged": (views, plain_views),
    "category rule, soft": (category, plain_category),
    "detector score": (detector_score, plain_detector_score),
    "grouping by product": (grouping, plain_grouping),
}
WHOLE_MATRIX, LARGEST_MATRIX = ("augmentation, 5 neighbours",), 15_000


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(name: str, side: int, n: int, rounds: int) -> dict[str, float]:
    """In this process: seconds, and MB besides the embeddings."""
    from jobs.runs import events

    gallery, queries = drawn(n, 0), drawn(N_QUERIES, 1)
    technique = PAIRS[name][side]
    technique(gallery[:600], queries[:10])  # imports
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = events.memory()["rss_mb"], []
    for _ in range(rounds):
        start = time.perf_counter()
        technique(gallery, queries)
        seconds.append(time.perf_counter() - start)
    return {"s": statistics.median(seconds), "mb": events.memory()["peak_mb"] - before}


def apart(name: str, side: int, n: int, rounds: int) -> dict[str, float] | None:
    """`measure` in a process of its own; None where it failed."""
    line = [sys.executable, __file__, "--one", name, str(side), str(n), str(rounds)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 37_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS), help="these techniques")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], *map(int, args.one[1:]))))
        return
    gallery, queries = drawn(600, 0), drawn(50, 1)
    for name, (ours, theirs) in PAIRS.items():
        one, other = ours(gallery, queries), theirs(gallery, queries)
        signs = np.sign((one * other).sum(axis=0)) if name.startswith("whiten") else 1.0  # an axis has no direction
        np.testing.assert_allclose(one * signs, other, atol=2e-3, err_msg=name)
    print(f"| {'technique':27} | gallery | s | MB | peer's s | peer's MB | peer's s / ours |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in args.only:
        for n in args.sizes:
            whole = name in WHOLE_MATRIX and n > LARGEST_MATRIX  # the peer would want 16 GB and more
            mine, peer = apart(name, 0, n, args.rounds), None if whole else apart(name, 1, n, args.rounds)
            assert mine is not None
            cells = ["not tried", "–", "–"] if peer is None else [
                f"{peer['s']:.3f}", f"{peer['mb']:.0f}", f"{peer['s'] / mine['s']:.2f}"]  # fmt: skip
            print(f"| {name:27} | {n:,} | {mine['s']:.3f} | {mine['mb']:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
