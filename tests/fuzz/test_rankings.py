"""Odd rows, lists and settings given to the ranking techniques.

The outcome is a right answer, or a ValueError that says what was wrong.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from postproc.diffusion import diffuse
from postproc.kreciprocal import rerank
from postproc.neighbours import nearest
from postproc.rank_fusion import fuse_lists
from tests.fuzz import guard

VALUES = [0.0, -0.0, 1.0, -1.0, 0.6, 0.8, 1e-30, 1e-45, 1e18, 1e30, 3e38, 1e300, np.nan, np.inf, -np.inf]
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 100, 2**31, 0.5, 1.0, 1e-9, 1e9, -0.5, np.nan, np.inf])
WHOLE = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 7, 100])


@st.composite
def matrices(draw, unit=False):
    """(N, D) rows, mostly of 2 numbers and mostly sound."""
    shape = draw(st.tuples(st.integers(0, 6), st.sampled_from([2, 2, 2, 2, 2, 0, 1, 3])))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64, np.float16, np.int64]))
    values = st.sampled_from(VALUES if draw(st.integers(0, 3)) == 0 else VALUES[:6])
    rows = np.array([draw(values) for _ in range(shape[0] * shape[1])], np.float64).reshape(shape)
    shorten = unit and rows.size and draw(st.integers(0, 5))
    with np.errstate(all="ignore"):
        if shorten:
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(lengths > 0, lengths, 1)
        rows = rows.astype(dtype)
    return rows if draw(st.integers(0, 30)) else rows.ravel()


@contextlib.contextmanager
def refused_or_silent() -> Iterator[None]:
    """A ValueError must say something; nothing else may be raised."""
    with np.errstate(all="ignore"):
        try:
            yield
        except ValueError as error:
            assert ": " in str(error) and len(str(error)) < 1000, error


@guard.fuzzed()
@given(matrices(), matrices(), WHOLE, WHOLE)
def test_nearest(queries, rows, k, block_cells):
    guard.inputs["test_nearest"] += 1
    with refused_or_silent():
        similarity, found = nearest(queries, rows, k, block_cells=block_cells)
        assert similarity.shape == found.shape == (len(queries), k)
        want = np.sort(-(queries.astype(np.float32).astype(float) @ rows.astype(np.float32).astype(float).T), axis=1)[
            :, :k
        ]
        n = want.shape[1]
        np.testing.assert_allclose(similarity[:, :n], -want, rtol=1e-6)
        assert (found[:, :n] >= 0).all() and (found[:, n:] == -1).all() and (similarity[:, n:] == -np.inf).all()


def sound(indices: np.ndarray, values: np.ndarray, n_queries: int, n_gallery: int, top_k: int) -> None:
    assert indices.shape == values.shape == (n_queries, min(top_k, n_gallery))
    assert np.isfinite(values).all()
    for line in indices.tolist():
        assert len(set(line)) == len(line)
        assert 0 <= min(line, default=0) <= max(line, default=0) < max(n_gallery, 1)


@guard.fuzzed()
@given(matrices(unit=True), matrices(unit=True), WHOLE, WHOLE, NUMBERS, WHOLE)
def test_rerank(query, gallery, k1, k2, lambda_value, top_k):
    guard.inputs["test_rerank"] += 1
    with refused_or_silent():
        indices, distances = rerank(query, gallery, k1, k2, lambda_value, top_k)
        sound(indices, distances, len(query), len(gallery), top_k)
        assert (np.diff(distances, axis=1) >= 0).all()
        assert ((distances >= 0) & (distances <= 1 + 1e-6)).all()


@guard.fuzzed()
@given(
    matrices(unit=True), matrices(unit=True), WHOLE,
    st.fixed_dictionaries({}, optional={
        "query_k": WHOLE, "alpha": NUMBERS, "gamma": NUMBERS, "truncate": WHOLE, "tolerance": NUMBERS,
    }),
)  # fmt: skip
def test_diffuse(query, gallery, top_k, how):
    guard.inputs["test_diffuse"] += 1
    with refused_or_silent():
        indices, scores = diffuse(query, gallery, top_k=top_k, **how)
        sound(indices, scores, len(query), len(gallery), top_k)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert (scores >= 0).all()


@guard.fuzzed()
@given(st.data())
def test_fuse_lists(data):
    guard.inputs["test_fuse_lists"] += 1
    n_queries = data.draw(st.integers(0, 3))
    ids, values = st.sampled_from([-1, 0, 1, 2, 3, 2**62, 2**62, -2]), st.sampled_from(VALUES[:6] + VALUES[:6] + VALUES)
    lists = []
    for _ in range(data.draw(st.integers(0, 3))):
        shape = (n_queries, data.draw(st.integers(0, 4)))
        names = [data.draw(ids if data.draw(st.booleans()) else st.integers(0, 3)) for _ in range(shape[0] * shape[1])]
        lists.append(
            (np.array(names, int).reshape(shape), np.array([data.draw(values) for _ in names], float).reshape(shape))
        )
    method = data.draw(st.sampled_from(["rrf", "combsum", "combmnz", "rrf ", ""]))
    how = data.draw(st.fixed_dictionaries({}, optional={
        "k": NUMBERS, "weights": st.lists(NUMBERS, max_size=3),
        "normalisation": st.sampled_from(["min-max", "z-score"]),
    }))  # fmt: skip
    top_k = data.draw(WHOLE)
    with refused_or_silent():
        fused, scores = fuse_lists(lists, method, top_k=top_k, **how)
        assert fused.shape == scores.shape == (n_queries, top_k)
        assert np.isfinite(scores[fused >= 0]).all() and (scores[fused < 0] == -np.inf).all()
        weights = how.get("weights") or [1] * len(lists)
        for line, found in enumerate(fused.tolist()):
            there = {
                name for (names, _), w in zip(lists, weights, strict=True) if w > 0 for name in names[line].tolist()
            } - {-1}
            kept = [name for name in found if name >= 0]
            assert len(kept) == len(set(kept)) == min(len(there), top_k) and set(kept) <= there
