"""Nearest rows: by hand, against sorting all products, with copies of rows, whatever the block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postproc.neighbours import (
    NO_KEY,
    NO_NAME,
    as_keys,
    as_names,
    as_scores,
    nearest,
    pair_products,
    ranked_and_lowest,
    unit_rows,
)


def plain(queries, rows, k):
    """Every product as a float64 sum rounded to float32, sorted by falling value, then by row."""
    similarity, found = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
    for i, query in enumerate(queries.astype(float)):
        products = [np.float32(np.vecdot(query, row)) for row in rows.astype(float)]
        order = sorted(range(len(rows)), key=lambda row: (-products[row], row))[:k]
        similarity[i, : len(order)], found[i, : len(order)] = [products[row] for row in order], order
    return similarity, found


def drawn(n, width, seed):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "k", "want_rows", "want"),
    [
        ([[1, 0], [0, 1], [2, 0]], 2, [2, 0], [2 * 3, 1 * 3]),  # products 3, 0, 6
        ([[1, 0], [1, 0], [1, 0]], 2, [0, 1], [3, 3]),  # copies: the lower rows
        ([[0, -1]], 3, [0, -1, -1], [0, -np.inf, -np.inf]),  # fewer than asked for
        ([], 1, [-1], [-np.inf]),  # nothing there
        ([[-1, 0], [-2, 0]], 1, [0], [-3]),  # all of them far
    ],
)
def test_by_hand(rows, k, want_rows, want):
    similarity, found = nearest(np.array([[3, 0]], np.float32), np.array(rows, np.float32).reshape(-1, 2), k)
    assert found.tolist() == [want_rows]
    assert similarity.tolist() == [want]
    assert (similarity.dtype, found.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("block_cells", [1, 7, 64, 1000, 1 << 22])
@pytest.mark.parametrize("k", [1, 5, 40, 200])
def test_against_sorting_everything(k, block_cells):
    queries, rows = drawn(9, 17, 1), drawn(150, 17, 2)
    rows[100:130] = rows[20:50]  # copies, most of them in other blocks
    queries[3] = rows[25]
    similarity, found = nearest(queries, rows, k, block_cells=block_cells)
    want, want_rows = plain(queries, rows, k)
    np.testing.assert_array_equal(found, want_rows)
    np.testing.assert_array_equal(similarity, want)


@pytest.mark.parametrize("block_cells", [300, 3000, 40_000, 1 << 22])
@pytest.mark.parametrize("k", [1, 7, 60, 400])
def test_rows_among_themselves(k, block_cells):
    """The very same array on both sides takes another way through the products."""
    rows = drawn(330, 9, 12)
    rows[200:260] = rows[20:80]
    rows[300:] = rows[5]
    want, want_rows = nearest(rows.copy(), rows, k)
    similarity, found = nearest(rows, rows, k, block_cells=block_cells)
    np.testing.assert_array_equal(similarity, want)
    np.testing.assert_array_equal(found, want_rows)
    ranked, lowest = ranked_and_lowest(rows, rows, k, block_cells=block_cells)
    np.testing.assert_array_equal(ranked, want_rows[:, : len(rows)])
    np.testing.assert_allclose(lowest, (rows @ rows.T).min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("block_cells", [100, 3000, 1 << 22])
def test_many_copies_come_in_row_order(block_cells):
    """More copies than there is room for candidates: the border of the list runs through them."""
    row, rng = drawn(1, 768, 3), np.random.default_rng(4)
    rows = np.concatenate([np.repeat(row, 300, axis=0), drawn(100, 768, 5)])[rng.permutation(400)]
    copies = np.flatnonzero((rows == row).all(axis=1))
    similarity, found = nearest(np.repeat(row, 5, axis=0), rows, 20, block_cells=block_cells)
    assert found.tolist() == [copies[:20].tolist()] * 5
    assert len(np.unique(similarity)) == 1


def test_near_copies_are_told_apart_by_the_exact_sum():
    """Rows whose products differ by less than a float32 sum is off."""
    rng = np.random.default_rng(6)
    rows = (drawn(1, 1024, 7) + rng.normal(size=(400, 1024)) * 1e-7).astype(np.float32)
    got = nearest(rows[:3], rows, 30, block_cells=5000)
    for mine, want in zip(got, plain(rows[:3], rows, 30), strict=True):
        np.testing.assert_array_equal(mine, want)
    np.testing.assert_array_equal(ranked_and_lowest(rows[:3], rows, 30)[0], got[1])


@pytest.mark.parametrize("spread", [1e-7, 1e-5, 1e-3, 0.1])
def test_the_order_alone_is_the_same_order(spread):
    """Some rows apart by less than rounding and some by more, in one list."""
    rng = np.random.default_rng(13)
    rows = np.repeat(drawn(12, 64, 14), 25, axis=0) + spread * drawn(300, 64, 15)
    rows = rows[rng.permutation(300)]
    np.testing.assert_array_equal(ranked_and_lowest(rows, rows, 40)[0], nearest(rows, rows, 40)[1])


def test_the_lowest_product_comes_with_the_same_pass():
    queries, rows = drawn(30, 8, 8), drawn(200, 8, 9)
    found, lowest = ranked_and_lowest(queries, rows, 3, block_cells=777)
    np.testing.assert_array_equal(found, nearest(queries, rows, 3)[1])
    np.testing.assert_allclose(lowest, (queries @ rows.T).min(axis=1), rtol=1e-5)
    found, lowest = ranked_and_lowest(queries, rows[:0], 1)
    assert (found.shape, lowest.tolist()) == ((30, 0), [np.inf] * 30)


def test_rows_may_be_a_file(tmp_path):
    rows = drawn(500, 12, 10)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    for mine, want in zip(nearest(rows[:20], mapped, 7, block_cells=999), nearest(rows[:20], rows, 7), strict=True):
        np.testing.assert_array_equal(mine, want)


SMALL = st.integers(0, 12).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=n, max_size=n)
)  # whole numbers: many ties


@given(SMALL, SMALL, st.integers(1, 15), st.integers(1, 60), st.randoms(use_true_random=False))
def test_order_of_rows_matters_for_ties_only(queries, rows, k, block_cells, random):
    queries, rows = (np.array(part, np.float32).reshape(-1, 3) for part in (queries, rows))
    similarity, found = nearest(queries, rows, k, block_cells=block_cells)
    for mine, want in zip((similarity, found), plain(queries, rows, k), strict=True):
        np.testing.assert_array_equal(mine, want)
    order = np.array(random.sample(range(len(rows)), len(rows)), int)
    np.testing.assert_array_equal(nearest(queries, rows[order], k)[0], similarity)


@pytest.mark.parametrize(
    ("queries", "rows", "k", "message"),
    [
        (np.ones((1, 2)), np.ones((1, 2)), 0, "k 0"),
        (np.ones((1, 2)), np.ones((1, 3)), 1, "queries of 2 numbers, rows of 3"),
        (np.ones(2), np.ones((1, 2)), 1, r"want queries \(N, D\)"),
        (np.ones((1, 0)), np.ones((1, 0)), 1, "D at least 1"),
        (np.array([[1, 0], [np.nan, 0]]), np.ones((1, 2)), 1, "query 1 has length nan"),
        (np.ones((1, 2)), np.array([[1, 0], [0, 1], [np.inf, 0]]), 1, "row 2 has length inf"),
        (np.ones((0, 2)), np.array([[1, np.nan]]), 1, "row 0 has length nan"),
        (np.ones((1, 2)), np.broadcast_to(np.float32(1), (2**32, 2)), 1, "4294967296 rows; want at most 4294967295"),
        (np.ones((1, 2)), np.array([[1e30, 0]]), 1, "row 0 has length 1e"),
        (np.ones((1, 2)), np.array([[1e300, 0]]), 1, "row 0 has length inf"),
    ],
)
def test_wrong_input_is_refused(queries, rows, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, rows, k)


@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.sampled_from([0, 1, 2, 2**31, NO_NAME - 1, NO_NAME]))),
)
def test_keys_order_as_score_then_lower_row(pairs):
    pairs += [(0.0, 3), (-0.0, 4), (0.0, 5), (-np.inf, 0), (np.inf, 1), (1e-45, 0), (-1e-45, 0)]
    scores, names = np.array([score for score, _ in pairs], np.float32), np.array([name for _, name in pairs])
    keys = as_keys(scores, names)
    np.testing.assert_array_equal(as_scores(keys), scores)
    np.testing.assert_array_equal(as_names(keys), names)
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.lexsort((-names, scores)))
    assert (keys >= NO_KEY).all() and as_keys(np.array([-np.inf], np.float32), NO_NAME) == NO_KEY


def test_unit_rows_and_single_pairs():
    rows = drawn(50, 30, 11)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    joined = unit_rows("test", rows[:20].astype(np.float16), rows[20:])
    np.testing.assert_allclose(np.linalg.norm(joined.astype(float), axis=1), 1, atol=1e-7)
    np.testing.assert_allclose(joined, rows, atol=1e-3)
    i, j = np.array([0, 3, 3]), np.array([4, 0, 5])
    np.testing.assert_allclose(pair_products(joined, rows, i, j), (joined[i] * rows[j]).sum(axis=1), atol=1e-6)
    with pytest.raises(ValueError, match="test: gallery row 1 has length 2"):
        unit_rows("test", rows, rows[:2] * np.float32([[1], [2]]))
    with pytest.raises(ValueError, match="one width"):
        unit_rows("test", rows, rows[:, :3])
