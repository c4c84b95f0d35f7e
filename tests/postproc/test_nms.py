"""Suppression against the plain rule: by falling score, keep what overlaps nothing kept by more than the threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import postproc.nms
from postproc.boxes import iou_with
from postproc.nms import nms, nms_batch


def plain(boxes, scores, labels, threshold):
    kept = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        rivals = [k for k in kept if labels[k] == labels[row]]
        if not rivals or iou_with(boxes[rivals], boxes[row]).max() <= threshold:
            kept.append(row)
    return kept


HALF = [[0, 0, 2, 2], [1, 0, 3, 2]]  # these overlap by 2 / 6


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "threshold", "want"),
    [
        ([], [], None, 0.5, []),  # nothing
        ([[0, 0, 1, 1]], [0.3], None, 0.5, [0]),  # one box
        (HALF, [0.1, 0.9], None, 0.3, [1]),  # just above the threshold
        (HALF, [0.1, 0.9], None, 2 / 6, [1, 0]),  # equal overlap stays
        (HALF, [0.1, 0.9], [1, 2], 0.0, [1, 0]),  # labels do not compete
        (HALF, [0.5, 0.5], None, 0.3, [0]),  # a tie: the first stays
        ([HALF[0]] * 3, [0.5, 0.5, 0.5], None, 1.0, [0, 1, 2]),  # at 1 nothing goes
        ([[1, 1, 1, 1]] * 2, [0.5, 0.6], None, 0.0, [1, 0]),  # without area: overlaps nothing
        (
            [[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]],
            [0.9, 0.8, 0.7],
            None,
            0.3,
            [0, 2],
        ),  # what is gone suppresses nothing
    ],
)
def test_nms(boxes, scores, labels, threshold, want):
    got = nms(
        np.array(boxes, float), np.array(scores), None if labels is None else np.array(labels), iou_threshold=threshold
    )
    assert got.tolist() == want
    assert got.dtype == np.int64


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 6), max_size=40),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9]),
    st.sampled_from([1, 7, 1000]),
)
def test_many_at_once_is_one_by_one(rows, threshold, rows_at_once):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], float).reshape(-1, 4)
    scores, groups = np.array([row[4] for row in rows], float), np.array([row[5] for row in rows], int)
    before, postproc.nms.ROWS_AT_ONCE = postproc.nms.ROWS_AT_ONCE, rows_at_once
    try:
        got = nms_batch(boxes, scores, groups, iou_threshold=threshold)
    finally:
        postproc.nms.ROWS_AT_ONCE = before
    want = []
    for group in range(6):
        inside = np.flatnonzero(groups == group)
        want += inside[plain(boxes[inside], scores[inside], np.zeros(len(inside)), threshold)].tolist()
    assert got.tolist() == want
    assert nms(boxes, scores, groups, iou_threshold=threshold).tolist() == plain(boxes, scores, groups, threshold)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5]}, "2 boxes"),
        ({"scores": [0.5, np.nan]}, "row 1"),
        ({"boxes": [[0, 0, 1, 1], [3, 0, 1, 1]]}, "row 1"),
        ({"iou_threshold": 1.5}, "1.5"),
        ({"labels": [1]}, "2 boxes"),
    ],
)
def test_wrong_input_is_refused(change, message):
    good = {"boxes": HALF, "scores": [0.5, 0.6], "labels": [1, 1], "iou_threshold": 0.5}
    arguments = {**good, **change}
    with pytest.raises(ValueError, match=message):
        nms(np.array(arguments.pop("boxes"), float), arguments.pop("scores"), **arguments)
