"""Soft suppression against arithmetic, the published loop, and ensemble-boxes 1.0.9's inner loop."""

import math

import numpy as np
import pytest
from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float
from hypothesis import given
from hypothesis import strategies as st

import postproc.soft_nms
from postproc.boxes import iou_with
from postproc.soft_nms import soft_nms, soft_nms_batch

WHOLE, MOST, APART = [0, 0, 4, 4], [0, 0, 4, 3], [9, 0, 12, 4]  # the first two overlap by 12 / 16


def plain(boxes, scores, kind, threshold, sigma, least):
    """The loop of the paper's figure 2: take the best, lower the rest, again."""
    left = {row: float(score) for row, score in enumerate(scores)}
    taken = []
    while left:
        best = max(left, key=lambda row: (left[row], scores[row], -row))
        score = left.pop(best)
        if score >= least:
            taken.append((best, score))
        for row in left:
            overlap = float(iou_with(boxes[[row]], boxes[best])[0])
            if kind == "gaussian":
                left[row] *= math.exp(-(overlap**2) / sigma)
            elif overlap > threshold:
                left[row] *= 1 - overlap
    return taken


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "more", "want"),
    [
        ([], [], None, {}, []),  # nothing
        ([WHOLE], [0.3], None, {}, [(0, 0.3)]),  # one box
        ([WHOLE, MOST], [0.8, 0.6], None, {"kind": "linear"}, [(0, 0.8), (1, 0.6 * (1 - 12 / 16))]),
        ([WHOLE, MOST], [0.8, 0.6], None, {"kind": "linear", "iou_threshold": 12 / 16}, [(0, 0.8), (1, 0.6)]),  # equal
        ([WHOLE, MOST], [0.8, 0.6], None, {}, [(0, 0.8), (1, 0.6 * math.exp(-((12 / 16) ** 2) / 0.5))]),
        ([WHOLE, MOST], [0.8, 0.6], None, {"sigma": 2}, [(0, 0.8), (1, 0.6 * math.exp(-((12 / 16) ** 2) / 2))]),
        ([WHOLE, MOST], [0.8, 0.6], [1, 2], {}, [(0, 0.8), (1, 0.6)]),  # labels do not compete
        ([WHOLE, MOST, APART], [0.8, 0.6, 0.4], None, {"kind": "linear"}, [(0, 0.8), (2, 0.4), (1, 0.15)]),  # new order
        ([WHOLE, MOST], [0.8, 0.6], None, {"kind": "linear", "score_threshold": 0.16}, [(0, 0.8)]),  # falls below
        ([WHOLE, WHOLE], [0.5, 0.5], None, {"kind": "linear", "score_threshold": 0}, [(0, 0.5), (1, 0)]),  # a tie
        ([[1, 1, 1, 1]] * 2, [0.5, 0.6], None, {}, [(1, 0.6), (0, 0.5)]),  # without area: overlaps nothing
    ],
)
def test_soft_nms(boxes, scores, labels, more, want):
    labels = None if labels is None else np.array(labels)
    rows, lowered = soft_nms(np.array(boxes, float), np.array(scores), labels, **more)
    assert rows.tolist() == [row for row, _ in want]
    np.testing.assert_allclose(lowered, [score for _, score in want], rtol=1e-12)
    assert (rows.dtype, lowered.dtype) == (np.int64, np.float64)


def random_group(rng, n):
    corner = rng.uniform(0, 0.5, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (n, 2))], axis=1), rng.uniform(0.01, 1, n)


@pytest.mark.parametrize("method", [1, 2])
def test_numbers_of_ensemble_boxes(method):
    rng = np.random.default_rng(method)
    for n in [1, 2, 3, 5, 8, 13, 40]:
        boxes, scores = random_group(rng, n)
        theirs = scores.copy()  # its inner loop sorts this and lowers it; what it returns to users is not lowered
        kept = cpu_soft_nms_float(boxes.copy(), theirs, 0.4, 0.5, 0.02, method)
        rows, lowered = soft_nms(
            boxes, scores, kind=("linear", "gaussian")[method - 1], iou_threshold=0.4, score_threshold=0.02
        )
        assert rows.tolist() == kept.tolist()
        np.testing.assert_allclose(lowered, theirs[theirs > 0.02], atol=1e-12)


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 6), max_size=40),
    st.sampled_from(["linear", "gaussian"]),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.9]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1, 7, 8192]),
)
def test_many_at_once_is_one_by_one(rows, kind, threshold, least, rows_at_once):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], float).reshape(-1, 4)
    scores, groups = np.array([row[4] for row in rows], float), np.array([row[5] for row in rows], int)
    more = {"kind": kind, "iou_threshold": threshold, "sigma": 0.5, "score_threshold": least}
    before, postproc.soft_nms.ROWS_AT_ONCE = postproc.soft_nms.ROWS_AT_ONCE, rows_at_once
    try:
        got, lowered = soft_nms_batch(boxes, scores, groups, **more)
    finally:
        postproc.soft_nms.ROWS_AT_ONCE = before
    want = []
    for group in range(6):
        inside = np.flatnonzero(groups == group)
        want += [
            (int(inside[row]), score)
            for row, score in plain(boxes[inside], scores[inside], kind, threshold, 0.5, least)
        ]
    assert sorted(got.tolist()) == sorted(row for row, _ in want)
    assert groups[got].tolist() == sorted(groups[got].tolist())
    np.testing.assert_allclose(lowered, [dict(want)[row] for row in got.tolist()], rtol=1e-9, atol=1e-12)
    for group in set(groups[got].tolist()):
        assert (np.diff(lowered[groups[got] == group]) <= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5]}, "2 boxes"),
        ({"scores": [0.5, np.nan]}, "row 1"),
        ({"scores": [0.5, -0.1]}, "row 1 is -0.1"),
        ({"boxes": [WHOLE, [3, 0, 1, 1]]}, "row 1"),
        ({"iou_threshold": 1.5}, "1.5"),
        ({"sigma": 0}, "sigma 0"),
        ({"score_threshold": np.nan}, "score_threshold nan"),
        ({"kind": "hard"}, "'hard'; want one of linear, gaussian"),
        ({"labels": [1]}, "2 boxes"),
    ],
)
def test_wrong_input_is_refused(change, message):
    good = {"boxes": [WHOLE, MOST], "scores": [0.5, 0.6], "labels": [1, 1]}
    arguments = {**good, **change}
    with pytest.raises(ValueError, match=message):
        soft_nms(np.array(arguments.pop("boxes"), float), arguments.pop("scores"), **arguments)
