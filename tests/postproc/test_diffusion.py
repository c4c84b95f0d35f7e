"""Diffusion beside a plain oracle: the graph by a loop over pairs, the scores by solving the full system."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import postproc.diffusion
from postproc.diffusion import diffuse, graph


def plain_graph(rows, k, gamma):
    rows = rows.astype(float)
    n, cosine = len(rows), np.array([np.vecdot(rows, row) for row in rows]).astype(np.float32)
    near = []
    for i in range(n):
        order = sorted(range(n), key=lambda j, i=i: (-cosine[i, j], j))[: k + 1]
        near.append([j for j in order if j != i][:k])
    joined = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            if i in near[j]:
                joined[i, j] = max(float(cosine[i, j]), 0) ** gamma
    sums = joined.sum(axis=1)
    root = np.where(sums > 0, np.sqrt(np.where(sums > 0, sums, 1)), np.inf)
    return joined / root[:, None] / root


def plain(query, gallery, k, query_k, alpha, gamma, truncate=None):
    """(Q, N) scores; `truncate` cuts the system to the query's nearest rows."""
    flow, scores = plain_graph(gallery, k, gamma), np.zeros((len(query), len(gallery)))
    for line, row in enumerate(query.astype(float)):
        cosine = np.vecdot(gallery.astype(float), row).astype(np.float32)
        near = np.argsort(-cosine, kind="stable")
        wanted = np.zeros(len(gallery))
        wanted[near[:query_k]] = np.maximum(cosine[near[:query_k]].astype(float), 0) ** gamma
        inside = near[:truncate]
        system = np.eye(len(inside)) - alpha * flow[np.ix_(inside, inside)]
        scores[line, inside] = np.linalg.solve(system, wanted[inside])
    return scores


def same(got, want, cosine, top_k):
    """Scores within 1e-4 of the best; the plain order wherever scores differ by more; what has 0 by falling cosine."""
    indices, scores = got
    assert indices.shape == scores.shape == (len(want), min(top_k, want.shape[1]))
    assert (indices.dtype, scores.dtype) == (np.int64, np.float32)
    for line, mine in enumerate(indices):
        slack = 1e-4 * max(float(want[line].max()), 1e-30)
        assert len(set(mine.tolist())) == len(mine)
        np.testing.assert_allclose(scores[line], -np.sort(-want[line])[: len(mine)], atol=slack, rtol=0)
        np.testing.assert_allclose(want[line, mine], scores[line], atol=slack, rtol=0)
        assert (scores[line] >= 0).all() and (np.diff(scores[line]) <= 0).all()
        unreached = mine[scores[line] == 0]
        assert (np.diff(cosine[line, unreached]) <= 1e-6).all()


def drawn(n_queries, n_gallery, width, seed, groups=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_queries + n_gallery, width))
    if groups:
        rows = rng.normal(size=(groups, width))[rng.integers(groups, size=len(rows))] + 0.6 * rows
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:n_queries], rows[n_queries:]


@pytest.mark.parametrize("truncate", [None, 1, 15, 60, 1000])
@pytest.mark.parametrize("k, query_k, alpha, gamma", [
    (5, 3, 0.9, 3.0), (50, 10, 0.99, 3.0), (1, 1, 0.5, 1.0), (10, 500, 0.0, 2.0), (500, 4, 0.99, 0.5),
    (4, 2, 0.9, 80.0),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(9, 150, 8, 20), (3, 40, 4, 0), (70, 1, 4, 0)])
def test_against_solving_the_full_system(shape, k, query_k, alpha, gamma, truncate):
    query, gallery = drawn(*shape[:3], seed=k, groups=shape[3])
    want = plain(query, gallery, k, query_k, alpha, gamma, truncate)
    for top_k in (1, 25, 1000):
        got = diffuse(
            query,
            gallery,
            k=k,
            query_k=query_k,
            alpha=alpha,
            gamma=gamma,
            top_k=top_k,
            truncate=truncate,
            tolerance=1e-6,
        )
        same(got, want, query @ gallery.T, top_k)


def test_by_hand():
    """Rows 0, 1, 2 in a chain, row 3 alone; the query stands on row 0."""
    angles = np.radians([0, 30, 70, 200])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # k = 2: 0 and 1 name each other, so do 1 and 2, 0 and 2; row 3's nearest are 2 and 1, which do not name it.
    a, b, c = np.cos(np.radians([30, 40, 70]))  # weights 0-1, 1-2, 0-2; sums a + c, a + b, b + c
    joined = np.array([[0, a, c, 0], [a, 0, b, 0], [c, b, 0, 0], [0, 0, 0, 0]])
    root = np.sqrt([a + c, a + b, b + c, 1])
    np.testing.assert_allclose(
        graph(gallery.astype(np.float32), 2, 1.0).toarray(), joined / np.outer(root, root), atol=1e-6
    )
    indices, scores = diffuse(gallery[:1], gallery, k=2, query_k=1, alpha=0.5, gamma=1.0)
    want = np.linalg.solve(np.eye(4) - 0.5 * joined / np.outer(root, root), [1, 0, 0, 0])
    assert indices.tolist() == [[0, *sorted((1, 2), key=lambda row: -want[row]), 3]]
    np.testing.assert_allclose(scores[0], want[indices[0]], atol=1e-5)


def test_it_follows_a_curve_where_the_cosine_cuts_across():
    """Two half turns in space: rows along the query's own come before nearer ones of the other."""
    turn = np.linspace(0, np.pi, 60)
    rows = np.concatenate([np.stack([np.cos(turn), np.sin(turn), lift + 0 * turn], axis=1) for lift in (0.0, 0.6)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    nearest = np.argsort(-(rows[0] @ rows.T))[:40]
    indices, _ = diffuse(rows[:1], rows, k=6, query_k=2, top_k=40)
    assert (nearest >= 60).sum() >= 10
    assert (indices < 60).all()


def test_a_query_does_not_depend_on_the_others(monkeypatch):
    query, gallery = drawn(40, 200, 8, 3, groups=20)
    for truncate in (None, 50):
        want = diffuse(query, gallery, top_k=30, k=10, truncate=truncate)
        monkeypatch.setattr(postproc.diffusion, "QUERIES_AT_ONCE", 7)
        got = diffuse(query[::-1], gallery, top_k=30, k=10, truncate=truncate)
        monkeypatch.undo()
        np.testing.assert_allclose(got[1][::-1], want[1], rtol=1e-4)


def test_nothing_to_rank():
    row = np.array([[0.6, 0.8]], np.float32)
    assert [part.shape for part in diffuse(row, row[:0])] == [(1, 0), (1, 0)]
    assert [part.shape for part in diffuse(row[:0], row)] == [(0, 1), (0, 1)]
    indices, scores = diffuse(row, np.concatenate([-row, -row]))  # no cosine above 0: nothing flows
    assert (indices.tolist(), scores.tolist()) == ([[0, 1]], [[0, 0]])


@given(
    st.integers(0, 8), st.integers(0, 25), st.integers(1, 30), st.integers(1, 12), st.floats(0, 0.99),
    st.floats(0.1, 50),
    st.integers(1, 40), st.none() | st.integers(1, 30), st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=60)
def test_any_rows(n_queries, n_gallery, k, query_k, alpha, gamma, top_k, truncate, seed):
    rows = np.random.default_rng(seed).integers(-2, 3, (n_queries + n_gallery, 3)).astype(float)  # many copies and ties
    rows[~rows.any(axis=1)] = 1
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    query, gallery = rows[:n_queries], rows[n_queries:]
    got = diffuse(
        query, gallery, k=k, query_k=query_k, alpha=alpha, gamma=gamma, top_k=top_k, truncate=truncate, tolerance=1e-6
    )
    if n_queries and n_gallery:
        same(got, plain(query, gallery, k, query_k, alpha, gamma, truncate), query @ gallery.T, top_k)


@pytest.mark.parametrize("change, message", [
    ({"k": 0}, "k 0"), ({"query_k": 0}, "query_k 0"), ({"alpha": 1.0}, "alpha 1.0"), ({"alpha": np.nan}, "alpha nan"),
    ({"gamma": 0}, "gamma 0"), ({"top_k": 0}, "top_k 0"), ({"truncate": 0}, "truncate 0"),
    ({"tolerance": 0}, "tolerance 0"),
    ({"max_steps": 0}, "max_steps 0"), ({"max_steps": 1, "alpha": 0.9, "k": 3}, "is left after 1 steps"),
])  # fmt: skip
def test_wrong_arguments_are_refused(change, message):
    query, gallery = drawn(2, 30, 3, 0)
    with pytest.raises(ValueError, match=message):
        diffuse(query, gallery, **change)


def test_wrong_rows_are_refused():
    query, gallery = drawn(2, 30, 3, 0)
    with pytest.raises(ValueError, match="gallery row 0 has length 2"):
        diffuse(query, 2 * gallery)
    with pytest.raises(ValueError, match="query row 0 has length nan"):
        diffuse(query * np.nan, gallery)
    with pytest.raises(ValueError, match="one width"):
        diffuse(query[:, :2], gallery)
