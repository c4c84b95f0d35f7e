"""Stand-ins for a gallery: unit rows around centres, with ids that are no positions, and an index over them."""

from pathlib import Path

import numpy as np

from retrieval import ann_build
from retrieval.ann import AnnIndex
from retrieval.ann_plan import IndexPlan, plan


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def gallery(n: int, n_queries: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """vectors (n, dim), ids (n,) far from 0 … n - 1 and in no order, queries (n_queries, dim) of the same kind."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, dim))
    rows = unit(centres[rng.integers(0, 60, n + n_queries)] + 0.5 * rng.normal(size=(n + n_queries, dim)))
    return rows[:n], rng.choice(1 << 62, n, replace=False).astype(np.int64), rows[n:]


def built(folder: Path, kind: str, vectors: np.ndarray, ids: np.ndarray, **settings: bool) -> AnnIndex:
    ann_build.write_vectors(folder, vectors, ids, **settings)
    plan_ = planned(kind, *vectors.shape)
    ann_build.build(plan_, folder, seed=3)
    return AnnIndex.open(folder, plan_)


def planned(kind: str, rows: int, dim: int) -> IndexPlan:
    return plan(kind, rows, dim, budget_mb=500)


def brute_force(vectors: np.ndarray, ids: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All inner products in float64, rounded once; sorted by similarity, then id; padded with -inf and -1."""
    similarity, found = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(queries.astype(np.float64)):
        products = (vectors.astype(np.float64) @ query).astype(np.float32)
        order = sorted(range(len(ids)), key=lambda row: (-products[row], ids[row]))[:k]
        found[i, : len(order)], similarity[i, : len(order)] = ids[order], products[order]
    return similarity, found


def damaged(data: bytes, damage: str) -> bytes:
    middle = len(data) // 2
    return {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "foreign": b"PK\x03\x04" + b"not ours at all" * 40,
        "empty": b"",
    }[damage]
