"""Exact search against a plain sort of all inner products, with ties, few rows and wrong input."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import index


def brute_force(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All inner products in float64, rounded once; sorted by similarity, then row; padded with -inf and -1."""
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(queries.astype(np.float64)):
        products = (gallery.astype(np.float64) @ query).astype(np.float32)
        order = sorted(range(len(gallery)), key=lambda row: (-products[row], row))[:k]
        rows[i, : len(order)], similarity[i, : len(order)] = order, products[order]
    return similarity, rows


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 40), q=st.integers(0, 30), d=st.sampled_from([1, 3, 16, 65]), k=st.integers(1, 45),
    copies=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_search_is_a_sort_of_all_inner_products(n, q, d, k, copies, seed):
    rng = np.random.default_rng(seed)
    gallery, queries = (
        rng.integers(-2, 3, (count, d)).astype(np.float32) for count in (n, q)
    )  # small whole numbers: many ties
    if copies and n:
        gallery = gallery[rng.integers(0, n, n)]
    similarity, rows = index.search(index.build(gallery), queries, k)
    want_similarity, want_rows = brute_force(gallery, queries, k)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(similarity, want_similarity)
    assert similarity.dtype == np.float32 and rows.dtype == np.int64


@pytest.mark.parametrize(
    "n_queries", [1, 19, 20, 300]
)  # FAISS changes its way of multiplying at 20; 300 is more than a block
def test_unit_rows_give_the_same_answer_in_any_company(n_queries):
    rng = np.random.default_rng(0)
    gallery, queries = unit(rng.normal(size=(500, 96))), unit(rng.normal(size=(300, 96)))
    gallery[200:400] = gallery[:200]  # every other row twice
    alone = index.search(index.build(gallery), queries[:n_queries], 10)
    want = brute_force(gallery, queries[:n_queries], 10)
    np.testing.assert_array_equal(alone[1], want[1])
    np.testing.assert_array_equal(alone[0], want[0])


def test_more_ties_than_are_asked_for_keep_the_lowest_rows():
    gallery = np.ones((1000, 4), np.float32)
    gallery[7] = 0
    similarity, rows = index.search(index.build(gallery), np.ones((1, 4), np.float32), 8)
    assert rows[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]  # 7 is worse, the other 999 are equal
    assert similarity[0].tolist() == [4.0] * 8  # 1 + 1 + 1 + 1


def test_bytes_bring_the_same_index_back():
    gallery = unit(np.random.default_rng(1).normal(size=(50, 8)))
    data = index.save(index.build(gallery))
    assert data == index.save(index.build(gallery.copy()))
    for got, want in zip(
        index.search(index.load(data), gallery, 3), index.search(index.build(gallery), gallery, 3), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.zeros((2, 3)), "float32"),  # float64
        (np.zeros(3, np.float32), r"\(N, D\)"),  # one row, not a table
        (np.zeros((2, 0), np.float32), r"\(2, 0\)"),  # rows of nothing
        (np.array([[0, 0], [np.nan, 0]], np.float32), "row 1 has numbers that are not finite"),
        (np.array([[np.inf, 0]], np.float32), "row 0"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        index.build(rows)


def test_wrong_queries_and_bytes_are_refused():
    two = index.build(np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="made by another model"):
        index.search(two, np.eye(3, dtype=np.float32), 1)
    with pytest.raises(ValueError, match="k of at least 1, got 0"):
        index.search(two, np.eye(2, dtype=np.float32), 0)
    with pytest.raises(ValueError, match="no FAISS index"):
        index.load(b"something else")
    with pytest.raises(ValueError, match="exact inner-product"):
        index.load(index.faiss.serialize_index(index.faiss.IndexFlatL2(2)).tobytes())


def test_no_torch_comes_along():
    code = "import sys, retrieval.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=index.__file__.rsplit("/", 2)[0]).returncode == 0
