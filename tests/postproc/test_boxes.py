"""Box arithmetic against expectations one can do by hand, and the many-groups layout against plain loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import postproc.boxes
from postproc.boxes import Stacks, area, by_rank, check, chunks, edges, falling, iou_matrix, iou_with, overlapping


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),  # the same
        ((0, 0, 2, 2), (1, 0, 3, 2), 2 / (4 + 4 - 2)),  # half of each
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),  # one inside the other
        ((0, 0, 2, 2), (2, 0, 4, 2), 0),  # only an edge in common
        ((0, 0, 2, 2), (5, 5, 6, 6), 0),  # apart in both directions
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),  # no area at all
        ((-3, -3, -1, -1), (-2, -2, 0, 0), 1 / 7),  # negative coordinates
    ],
)
def test_iou(a, b, want):
    for first, second in ((a, b), (b, a)):
        np.testing.assert_allclose(iou_matrix(np.array([first]), np.array([second])), [[want]], rtol=1e-12)
        np.testing.assert_allclose(iou_with(np.array([first]), np.array(second)), [want], rtol=1e-12)


def test_shapes_and_types():
    a, b = np.zeros((3, 4), np.float32), np.ones((0, 4))
    assert iou_matrix(a, b).shape == (3, 0)
    assert iou_with(b, a[0]).shape == (0,)
    assert area(a).dtype == iou_matrix(a, a).dtype == np.float64
    assert area(np.array([0, 0, 2, 3])) == 6


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 1, 1], [0, np.nan, 1, 1]], "row 1"),
        ([[0, 0, np.inf, 1]], "row 0"),
        ([[0, 0, 1, 1], [0, 0, 1, 1], [5, 0, 4, 1]], "row 2 .* ends before it begins"),
        ([[0, 5, 1, 4]], "row 0"),
        ([[0, 0, 1]], r"\(N, 4\)"),
    ],
)
def test_what_is_no_box_is_refused_by_row(boxes, message):
    with pytest.raises(ValueError, match=message):
        check(np.array(boxes, dtype=float))


def test_nothing_is_no_boxes():
    assert check(np.array([])).shape == (0, 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-300, 5), st.integers(0, 2)), max_size=30))
def test_by_rank_is_the_groups_sorted_side_by_side(rows):
    scores, one, two = (np.array([row[k] for row in rows], dtype=d) for k, d in enumerate((float, np.int16, np.int64)))
    order, steps = by_rank(scores, one, two)
    groups = {}
    for row in sorted(range(len(rows)), key=lambda row: -rows[row][0]):
        groups.setdefault(rows[row][1:], []).append(row)
    assert sorted(order) == list(range(len(rows)))
    for r, (begin, end) in enumerate(pairwise(steps)):
        assert sorted(order[begin:end]) == sorted(group[r] for group in groups.values() if len(group) > r)
        assert [rows[row][1:] for row in order[begin:end]] == [rows[row][1:] for row in order[: end - begin]]
    assert falling(scores).tolist() == sorted(range(len(rows)), key=lambda row: -rows[row][0])


@pytest.mark.parametrize(
    ("keys", "most", "want"),
    [
        ([], 3, []),
        ([1, 1, 1, 1], 3, [4]),
        ([1, 2, 3], 1, [1, 1, 1]),
        ([1, 1, 2, 2, 3], 4, [4, 1]),
        ([1, 2, 2, 2, 3], 2, [1, 3, 1]),
    ],
)
def test_chunks_never_cut_a_key(keys, most, want):
    assert [len(np.array(keys)[part]) for part in chunks(np.array(keys), most)] == want


def test_stacks_grow_and_compare_like_iou_with():
    rng = np.random.default_rng(5)
    stacks, held = Stacks(7), [[] for _ in range(7)]
    for n in [7] * 9 + [4] * 20 + [1] * 20:
        corner = rng.uniform(-1, 1, (n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0, 1, (n, 2))], axis=1)
        got = np.maximum(stacks.overlap(edges(boxes)), 0)
        for column in range(n):
            want = iou_with(np.array(held[column]).reshape(-1, 4), boxes[column])
            np.testing.assert_allclose(got[: len(want), column], want, rtol=1e-12)
            assert not got[len(want) :, column].any()
        some = np.flatnonzero(rng.random(n) < 0.8)
        stacks.put(stacks.height[some], some, edges(boxes[some]), some)
        for column in some:
            held[column].append(boxes[column])


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 5), max_size=20), st.sampled_from([0.0, 1 / 3, 1.0]), st.data())
def test_what_stands_behind_a_kept_box(rows, threshold, data):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], float).reshape(-1, 4)
    groups = np.array([row[4] for row in rows], int)
    kept = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True)) if rows else [], int)
    place, row = overlapping(boxes, groups, kept, threshold)
    overlap = iou_matrix(boxes, boxes)
    want = [
        (k, other)
        for k, own in enumerate(kept.tolist())
        for other in range(len(rows))
        if other == own or (groups[other] == groups[own] and overlap[own, other] > threshold)
    ]
    assert list(zip(place.tolist(), row.tolist(), strict=True)) == want


def test_pairs_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 1, (200, 2))
    boxes, groups = np.concatenate([corner, corner + 0.5], axis=1), rng.integers(0, 4, 200)
    whole = overlapping(boxes, groups, np.arange(200), 0.2)
    for most in (1, 70, 1000):
        monkeypatch.setattr(postproc.boxes, "PAIRS_IN_MEMORY", most)
        for got, want in zip(overlapping(boxes, groups, np.arange(200), 0.2), whole, strict=True):
            np.testing.assert_array_equal(got, want)
