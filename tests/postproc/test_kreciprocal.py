"""k-reciprocal re-ranking beside a plain oracle: the published algorithm on a full matrix, one row at a time."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import postproc.kreciprocal
from postproc.kreciprocal import rerank


def plain(query, gallery, k1=20, k2=6, lambda_value=0.3):
    """(Q, G) final distances, by the steps of the paper and the published code."""
    rows = np.concatenate([query, gallery]).astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype(np.float32).astype(float)  # as `unit_rows` keeps them: ties are broken by their last digits
    n, cosine = len(rows), np.array([np.vecdot(rows, row) for row in rows])
    distance = 2 - 2 * cosine
    distance[distance < 1e-6] = 0
    distance /= np.maximum(distance.max(axis=1, keepdims=True), 1e-6)
    ranked = np.argsort(-cosine.astype(np.float32), axis=1, kind="stable")

    lists = ranked.tolist()

    @functools.cache
    def mutual(i, k):
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = mutual(i, k1)
        expanded = set(own)
        for candidate in own:
            theirs = mutual(candidate, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        expanded = sorted(expanded)
        weights[i, expanded] = np.exp(-distance[i, expanded])
        weights[i] /= weights[i].sum() if expanded else 1
    if k2 > 1:
        weights = np.array([weights[ranked[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.minimum(weights[: len(query), None], weights[None, len(query) :]).sum(axis=2)
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_value) * jaccard + lambda_value * distance[: len(query), len(query) :]


def same(got, want, top_k):
    """Distances within 1e-5, and the plain order wherever distances differ by more than that."""
    indices, distances = got
    order = np.argsort(want, axis=1, kind="stable")[:, :top_k]
    assert indices.shape == distances.shape == (len(want), min(top_k, want.shape[1]))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float32)
    for line, mine in enumerate(indices):
        assert len(set(mine.tolist())) == len(mine)
        np.testing.assert_allclose(distances[line], want[line, order[line]], atol=1e-5, rtol=0)
        np.testing.assert_allclose(want[line, mine], want[line, order[line]], atol=2e-5, rtol=0)
        values = want[line, order[line]]
        apart = np.diff(np.append(values, np.sort(want[line])[len(values) : len(values) + 1])) > 2e-5
        alone = np.append(True, apart[: len(values) - 1]) & np.append(apart, True)[: len(values)]
        np.testing.assert_array_equal(mine[alone], order[line][alone])


def drawn(n_queries, n_gallery, width, seed, groups=0):
    """Unit rows; with groups, around so many centres, as garments are."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_queries + n_gallery, width))
    if groups:
        rows = rng.normal(size=(groups, width))[rng.integers(groups, size=len(rows))] + 0.6 * rows
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:n_queries], rows[n_queries:]


@pytest.mark.parametrize("k1, k2, lambda_value", [
    (20, 6, 0.3), (20, 1, 0.3), (1, 1, 0.5), (2, 3, 0.0), (2, 3, 1e-9), (5, 6, 1.0), (10, 30, 0.1),
    # k1 / 2: 10, 0.5 to 0, 1, 2.5 to 2, 5
    (3, 2, 0.3), (7, 4, 0.3), (500, 500, 0.3),  # 1.5 and 3.5 to 2 and 4; more than there are
])  # fmt: skip
@pytest.mark.parametrize("shape", [(10, 60, 8, 0), (30, 120, 16, 15), (1, 40, 4, 5), (40, 1, 4, 0)])
def test_against_the_plain_algorithm(k1, k2, lambda_value, shape):
    n_queries, n_gallery, width, groups = shape
    query, gallery = drawn(n_queries, n_gallery, width, k1 + n_queries, groups)
    want = plain(query, gallery, k1, k2, lambda_value)
    for top_k in (1, 17, 1000):
        same(rerank(query, gallery, k1, k2, lambda_value, top_k), want, top_k)


@pytest.mark.parametrize("cells, pairs", [(1, 1), (100, 40), (1 << 18, 1 << 20)])
def test_blocks_do_not_matter(cells, pairs, monkeypatch):
    query, gallery = drawn(23, 91, 8, 5, groups=9)
    want = rerank(query, gallery, 8, 4, 0.3, 30)
    monkeypatch.setattr(postproc.kreciprocal, "CELLS_AT_ONCE", cells)
    monkeypatch.setattr(postproc.kreciprocal, "PRODUCTS_AT_ONCE", 5 * cells)
    monkeypatch.setattr(postproc.kreciprocal, "SHARED_AT_ONCE", pairs)
    for mine, other in zip(rerank(query, gallery, 8, 4, 0.3, 30), want, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_by_hand():
    """Two rows that are each other's only neighbour, and one that is nobody's."""
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [-1.0, 0.0]])
    # d from the query: 2 - 2 * 0.6 = 0.8 and 4, divided by 4: 0.2 and 1. The query and row 0 are mutual within 1: V of
    # the query is (1, exp(-0.2)) / (1 + exp(-0.2)); row 0's largest is 2 - 2 * -0.6 = 3.2:
    # (exp(-0.25), 1) / (1 + exp(-0.25)).
    mine, theirs = np.array([1, np.exp(-0.2)]) / (1 + np.exp(-0.2)), np.array([np.exp(-0.25), 1]) / (1 + np.exp(-0.25))
    shared = np.minimum(mine, theirs).sum()
    indices, distances = rerank(query, gallery, k1=1, k2=1, lambda_value=0.5)
    assert indices.tolist() == [[0, 1]]
    np.testing.assert_allclose(
        distances, [[0.5 * (1 - shared / (2 - shared)) + 0.5 * 0.2, 0.5 * 1 + 0.5 * 1]], atol=1e-6
    )


def test_copies_come_in_row_order():
    query, gallery = drawn(3, 20, 6, 1)
    gallery = np.repeat(gallery, 3, axis=0)
    indices, _ = rerank(query, gallery, 6, 3, 0.3, 60)
    for line in indices.tolist():
        places = np.empty(60, int)
        places[line] = np.arange(60)
        assert (np.diff(places.reshape(20, 3), axis=1) > 0).all()


def test_rows_all_alike_and_nothing_at_all():
    row = np.array([[0.6, 0.8]], np.float32)
    indices, distances = rerank(row, np.repeat(row, 4, axis=0), 2, 1, 1.0)
    assert (indices.tolist(), distances.tolist()) == ([[0, 1, 2, 3]], [[0, 0, 0, 0]])
    assert [part.shape for part in rerank(row, row[:0])] == [(1, 0), (1, 0)]
    assert [part.shape for part in rerank(row[:0], row)] == [(0, 1), (0, 1)]


def test_equal_rows_where_k1_cuts_between_them():
    """Row 1 has room for one of the two equal embeddings and names the query, so they are not encoded alike."""
    query, gallery = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.6, 0.8], [0.28, 0.96]])
    # Within k1 = 2 the query and row 0 name both of them and row 1; row 1 names itself, row 2 and the query. With e =
    # exp(-0.8 / 1.44), V is (1, 1, e) / (2 + e) and (1, 1, 0) / 2; m = 2 / (2 + e), so the distance is e / (1 + e).
    e = np.exp(-0.8 / 1.44)
    indices, distances = rerank(query, gallery, 2, 1, 0.0)
    np.testing.assert_allclose(distances[0, indices[0] == 0], [e / (1 + e)], atol=1e-6)
    # within k1 = 3 everyone names everyone
    indices, distances = rerank(query, gallery, 3, 1, 0.0)
    assert (indices[0, 0], distances[0, 0]) == (0, 0)


@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 12), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_distances_stay_in_their_range(seed, n_gallery, k1, k2, lambda_value):
    """Rounding takes no distance out of [0, 1], among copies of the query and rows that hardly differ either."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_gallery, 16)) * 10.0 ** rng.integers(-7, 1) + rng.normal(size=16)
    gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    _, distances = rerank(gallery[:2], gallery, k1, k2, lambda_value)
    assert distances.min() >= 0 and distances.max() <= 1


@given(
    st.integers(0, 12),
    st.integers(0, 25),
    st.integers(1, 30),
    st.integers(1, 12),
    st.floats(0, 1),
    st.integers(1, 40),
    st.data(),
)
@settings(max_examples=60)
def test_any_rows(n_queries, n_gallery, k1, k2, lambda_value, top_k, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows = rng.integers(-2, 3, (n_queries + n_gallery, 3)).astype(float)  # few directions: many copies and ties
    rows[~rows.any(axis=1)] = 1
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    query, gallery = rows[:n_queries], rows[n_queries:]
    got = rerank(query, gallery, k1, k2, lambda_value, top_k)
    if n_queries and n_gallery:
        same(got, plain(query, gallery, k1, k2, lambda_value), top_k)
    assert (np.diff(got[1], axis=1) >= 0).all()


@pytest.mark.parametrize("change, message", [
    ({"k1": 0}, "k1 0"), ({"k2": 0}, "k2 0"), ({"lambda_value": 1.5}, "lambda 1.5"),
    ({"lambda_value": np.nan}, "lambda nan"),
    ({"top_k": 0}, "top_k 0"),
    ({"query": np.array([[np.nan, 1.0]])}, "query row 0 has length nan"),
    ({"gallery": np.array([[1.0, 0.0], [3.0, 0.0]])}, "gallery row 1 has length 3"),
    ({"gallery": np.array([[1.0, 0.0, 0.0]])}, "one width"),
])  # fmt: skip
def test_wrong_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rerank(**{"query": np.array([[1.0, 0.0]]), "gallery": np.array([[0.0, 1.0]]), **change})
