"""Exact indexes of parts answer as one exact index over all their rows, to the last bit and in the same order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import ann_build
from retrieval.ann import AnnIndex
from retrieval.ann_parts import AnnParts, StackedRows, merged
from retrieval.ann_plan import plan

DIM = 5


def index_of(folder: Path, vectors: np.ndarray, ids: np.ndarray) -> AnnIndex:
    folder.mkdir(exist_ok=True)
    ann_build.write_vectors(folder, vectors, ids)
    return AnnIndex.open(folder, plan("flat", len(ids), DIM, budget_mb=100))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), distinct=st.integers(1, 60), k=st.integers(1, 80))
def test_parts_are_one_index(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, distinct: int, k: int
) -> None:
    """Copies of rows tie; parts may be empty, and smaller than k; so may all of them together be."""
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(seed)
    some = rng.normal(size=(distinct, DIM)).astype(np.float32)
    vectors = (some / np.linalg.norm(some, axis=1, keepdims=True))[rng.integers(distinct, size=n)]
    ids, part = rng.permutation(10 * n)[:n].astype(np.int64), rng.integers(4, size=n)
    parts = AnnParts([index_of(folder / f"{i}", vectors[part == i], ids[part == i]) for i in range(4)])
    whole = index_of(folder / "whole", vectors, ids)
    queries = np.concatenate([vectors[:3], some[-2:]])
    for got, want in zip(parts.search(queries, k), whole.search(queries, k), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(parts.exact(queries, k), whole.exact(queries, k), strict=True):
        np.testing.assert_array_equal(got, want)
    assert parts.rows == n and sorted(parts.ids.tolist()) == sorted(ids.tolist())


def test_dead_rows_of_a_part_are_not_found(tmp_path: Path) -> None:
    vectors = np.eye(DIM, dtype=np.float32)
    made = plan("hnsw", 3, DIM, budget_mb=100)
    (tmp_path / "0").mkdir()
    ann_build.write_vectors(tmp_path / "0", vectors[:3], np.arange(3))
    ann_build.build(made, tmp_path / "0")
    one = AnnIndex.open(tmp_path / "0", made)
    six = np.tile(vectors[3:4], (6, 1))
    one = one.with_changes(tmp_path / "1", six, np.arange(10, 16), np.array([1]))
    parts = AnnParts([index_of(tmp_path / "2", vectors[4:], np.array([7])), one])
    assert parts.dead.tolist() == [1 + 1] and parts.ids[parts.dead].tolist() == [1]
    assert parts.search(vectors[1:2], 9)[1][0].tolist() == [0, 2, 7, 10, 11, 12, 13, 14, 15]  # all of similarity 0


def test_nobody_answered() -> None:
    similarity, ids = merged([], 2, 3)
    assert np.isneginf(similarity).all() and (ids == -1).all() and ids.shape == (2, 3)


def test_stacked_rows_are_those_of_the_whole() -> None:
    rows = np.arange(28, dtype=np.float32).reshape(7, 4)
    stacked = StackedRows([rows[:2], rows[2:2], rows[2:]])
    assert (stacked.shape, len(stacked)) == ((7, 4), 7)
    for chosen in (np.array([6, 0, 2, 2]), np.array([], np.int64), rows[:, 0] > 5):
        np.testing.assert_array_equal(stacked[chosen], rows[chosen])
