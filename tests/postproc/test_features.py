"""Power normalisation, projections, augmentation, expansion and views beside the formulas computed plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from postproc.dba import augment
from postproc.features import finite, in_blocks, unit
from postproc.power import power_normalise
from postproc.query_expansion import alpha, average
from postproc.views import average_views
from postproc.whiten import learn, moments

ROOT = 0.5**0.5


def rows(*lines: list[float]) -> np.ndarray:
    return np.array(lines, np.float32)


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


some_rows = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 9), st.integers(1, 5)), elements=st.floats(-1, 1, width=32)
)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row, exponent, want", [
    ([0.64, -0.36], 0.5, [0.8, -0.6]),                               # roots, signs kept; already of length 1
    ([3.0, 4.0], 1.0, [0.6, 0.8]),                                   # 1 changes the length only
    ([1.0, 0.0], 0.3, [1.0, 0.0]),
    ([0.0, 0.0], 0.5, [0.0, 0.0]),                                   # nothing stays nothing
    ([4.0, 1.0], 0.5, [2 / 5**0.5, 1 / 5**0.5]),
])  # fmt: skip
def test_power_takes_roots_and_keeps_signs(row: list[float], exponent: float, want: list[float]) -> None:
    np.testing.assert_allclose(power_normalise(rows(row), exponent), [want], atol=1e-6)


# --- projections ------------------------------------------------------------------------------------------------------


def test_whitening_gives_rows_without_correlation() -> None:
    mixed = np.random.default_rng(1).normal(size=(500, 4)) @ np.array(
        [[3, 1, 0, 0], [0, 1, 0, 0], [0, 0, 2, 1], [0, 0, 0, 0.5]]
    )
    one = learn([mixed])
    centred = (mixed - one.mean) @ one.axes
    np.testing.assert_allclose(centred.T @ centred / len(mixed), np.eye(4), atol=1e-9)
    assert one.kept == pytest.approx(1.0)


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    some = np.random.default_rng(2).normal(size=(60, 6)) * [5, 4, 3, 2, 1, 0.5]
    one = learn([some], 3, whiten=False)
    _, sizes, axes = np.linalg.svd(some - some.mean(axis=0))
    np.testing.assert_allclose(np.abs(one.axes.T), np.abs(axes[:3]), atol=1e-9)
    assert one.kept == pytest.approx((sizes[:3] ** 2).sum() / (sizes**2).sum())


@pytest.mark.parametrize("n, d, rank", [(50, 8, 3), (4, 8, 3), (2, 5, 1)])  # a plane in space; fewer rows than columns
def test_directions_without_variance_are_dropped(n: int, d: int, rank: int) -> None:
    rng = np.random.default_rng(n)
    flat = rng.normal(size=(n, min(rank, n))) @ rng.normal(size=(min(rank, n), d))
    one = learn([flat], 8)
    assert one.axes.shape[1] == rank
    assert np.isfinite(one.apply(flat)).all()
    assert np.abs(one.axes).max() < 1e6  # nothing was divided by rounding


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=30)
def test_blocks_do_not_matter(n: int, size: int, d: int) -> None:
    some = np.random.default_rng(n).normal(3.0, 2.0, size=(n, d))
    count, mean, scatter = moments(in_blocks(some, size))
    assert count == n
    np.testing.assert_allclose(mean, some.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(scatter, (some - some.mean(axis=0)).T @ (some - some.mean(axis=0)), atol=1e-8)


def test_a_projection_writes_where_it_is_told(tmp_path: object) -> None:
    some = drawn(30, 6)
    one, out = learn([some], 4), np.lib.format.open_memmap(f"{tmp_path}/out.npy", "w+", np.float32, (30, 4))
    assert one.apply(some, out) is out
    np.testing.assert_array_equal(out, one.apply(some))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("blocks, how, words", [
    ([], {}, "no rows"),
    ([np.ones((3, 2))], {}, "alike"),
    ([np.ones((1, 2)), np.ones((1, 3))], {}, "rows of 3 numbers after rows of 2"),
    ([np.array([[1.0, np.nan]])], {}, "row 0"),
    ([np.eye(2)], {"dim": 0}, "at least 1"),
    ([np.eye(2)], {"power": 2.0}, "0 to 1"),
])  # fmt: skip
def test_what_teaches_nothing_is_refused(blocks: list, how: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learn(blocks, **how)


# --- augmentation and expansion ---------------------------------------------------------------------------------------


def plain_augment(gallery: np.ndarray, k: int, weights: str, exponent: float) -> np.ndarray:
    """One row after the other, as the formula says."""
    result = []
    for i, row in enumerate(gallery.astype(float)):
        order = sorted((j for j in range(len(gallery)) if j != i), key=lambda j: (-float(gallery[i] @ gallery[j]), j))[
            :k
        ]
        total = row.copy()
        for place, j in enumerate(order, 1):
            share = (
                (k + 1 - place) / (k + 1) if weights == "rank" else max(float(gallery[i] @ gallery[j]), 0) ** exponent
            )
            total += share * gallery[j]
        result.append(total / max(np.linalg.norm(total), 1e-30))
    return np.array(result)


@pytest.mark.parametrize("weights", ["rank", "similarity"])
@pytest.mark.parametrize("n, k", [(1, 3), (2, 1), (12, 0), (12, 4), (3, 9)])
def test_augmentation_is_the_formula(n: int, k: int, weights: str) -> None:
    gallery = drawn(n, 7, seed=n)
    np.testing.assert_allclose(augment(gallery, k, weights=weights), plain_augment(gallery, k, weights, 3.0), atol=1e-5)


def test_copies_of_a_row_are_its_neighbours_and_not_itself() -> None:
    gallery = rows([1, 0], [1, 0], [1, 0], [0, 1])
    np.testing.assert_allclose(augment(gallery, 1)[:3], [[1, 0]] * 3, atol=1e-6)
    np.testing.assert_allclose(
        augment(gallery, 2)[3], unit(rows([2 / 3 + 1 / 3, 1]))[0], atol=1e-6
    )  # rows 0 and 1 first


def test_the_gallery_itself_cannot_be_overwritten() -> None:
    gallery = drawn(4, 3)
    with pytest.raises(ValueError, match="still needed"):
        augment(gallery, 1, out=gallery)


@pytest.mark.parametrize("query, gallery, k, exponent, want", [
    ([1, 0], [[0, 1]], 1, 0.0, [ROOT, ROOT]),                         # average: both weigh 1
    ([1, 0], [[0.6, 0.8]], 1, 2.0, unit(rows([1 + 0.36 * 0.6, 0.36 * 0.8]))[0]),   # cosine 0.6, squared
    # a negative cosine adds nothing
    ([1, 0], [[-1, 0], [0.6, 0.8]], 2, 1.0, unit(rows([1 + 0.6 * 0.6, 0.6 * 0.8]))[0]),
    ([1, 0], [[0.6, 0.8]], 0, 3.0, [1, 0]),
    ([1, 0], [[0.6, 0.8]], 9, 0.0, unit(rows([1.6, 0.8]))[0]),        # fewer rows than k
])  # fmt: skip
def test_a_query_moves_towards_what_it_found(
    query: list, gallery: list, k: int, exponent: float, want: np.ndarray
) -> None:
    np.testing.assert_allclose(alpha(rows(query), rows(*gallery), k, exponent), [want], atol=1e-6)


def test_average_expansion_is_the_mean_of_the_query_and_its_best() -> None:
    queries, gallery = drawn(5, 8, 1), drawn(40, 8, 2)
    best = np.argsort(-(queries @ gallery.T), axis=1)[:, :3]
    want = unit(queries + gallery[best].sum(axis=1))
    np.testing.assert_allclose(average(queries, gallery, 3), want, atol=1e-5)


@given(some_rows, st.integers(0, 5))
@settings(max_examples=60)
def test_any_rows_give_unit_rows_or_zeros(some: np.ndarray, k: int) -> None:
    some = unit(some).astype(np.float32)
    for moved in (augment(some, k), alpha(some, some, k), power_normalise(some), average_views([some, some])):
        lengths = np.linalg.norm(moved, axis=1)
        assert moved.shape == some.shape and moved.dtype == np.float32
        assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()


@given(st.permutations(range(8)))
@settings(max_examples=20)
def test_the_order_of_the_gallery_does_not_matter(order: list[int]) -> None:
    gallery, queries = drawn(8, 5, 3), drawn(3, 5, 4)
    np.testing.assert_allclose(augment(gallery[order], 2), augment(gallery, 2)[order], atol=1e-5)
    np.testing.assert_allclose(alpha(queries, gallery[order], 2), alpha(queries, gallery, 2), atol=1e-5)


@pytest.mark.parametrize("call", [
    lambda bad: augment(bad, 1), lambda bad: alpha(bad, drawn(2, 2), 1), lambda bad: power_normalise(bad),
    lambda bad: average_views([bad]), lambda bad: finite(bad), lambda bad: learn([bad]),
])  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_row(call: object, value: float) -> None:
    with pytest.raises(ValueError, match="row 1"):
        call(rows([1, 0], [value, 0]))  # type: ignore[operator]


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, want", [(None, [ROOT, ROOT]), ([3, 4], [0.6, 0.8]), ([1, 0], [1, 0])])
def test_views_are_weighed(weights: list | None, want: list) -> None:
    np.testing.assert_allclose(average_views([rows([1, 0]), rows([0, 1])], weights), [want], atol=1e-6)


def test_each_row_is_averaged_alone() -> None:
    """However many stand beside it, and the row that is no number is told by its place."""
    one, other = np.random.default_rng(0).normal(size=(2, 700, 5)).astype(np.float32)
    whole = average_views([one, other], [1, 3])
    alone = [average_views([a[None], b[None]], [1, 3])[0] for a, b in zip(one, other, strict=True)]
    np.testing.assert_array_equal(whole, alone)
    other[640, 2] = np.nan
    with pytest.raises(ValueError, match="row 640"):
        average_views([one, other])


@pytest.mark.parametrize("views, weights, words", [
    ([], None, "one shape"),
    ([rows([1, 0]), rows([1, 0, 0])], None, "one shape"),
    ([rows([1, 0])], [1, 2], "1 views"),
    ([rows([1, 0])], [0], "not all 0"),
])  # fmt: skip
def test_views_that_do_not_fit_are_refused(views: list, weights: list | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        average_views(views, weights)


@pytest.mark.parametrize("weights", [[1, 2, 3], [0.1, 0.2, 0.3], [3, 4, 7]])
def test_views_that_cancel_out_leave_no_rounding_behind(weights) -> None:
    """Shares such as 1/6, 2/6 and 3/6 do not add up exactly, and what was left of a row came out at unit length."""
    one = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    assert not average_views([one, one, -one], weights).any()
    # a tiny row is no rounding
    np.testing.assert_allclose(average_views([1e-30 * np.eye(2), np.zeros((2, 2))]), np.eye(2), atol=1e-7)


@pytest.mark.parametrize("seed", range(1, 20))
def test_a_row_at_the_mean_projects_to_zeros(seed) -> None:
    """The rows lie in pairs about the last one, so that this is their mean but for rounding."""
    rng = np.random.default_rng(seed)
    centre, offsets = rng.normal(size=3), rng.normal(size=(1 + seed % 3, 3))
    some = np.concatenate([centre + offsets, centre - offsets, [centre]])
    lengths = np.linalg.norm(learn([some]).apply(some), axis=1)
    np.testing.assert_allclose(lengths, [1.0] * (len(some) - 1) + [0.0], atol=1e-6)
