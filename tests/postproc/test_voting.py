"""Box voting against arithmetic and the plain rule: suppress, then average what overlaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postproc.boxes import iou_with
from postproc.nms import nms
from postproc.voting import box_voting, box_voting_batch

WHOLE, MOST = [0, 0, 10, 10], [0, 0, 10, 8]  # overlap 0.8


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "more", "rows", "bottoms"),
    [
        ([], [], None, {}, [], []),  # nothing
        ([WHOLE], [0.3], None, {}, [0], [10]),  # one box
        ([WHOLE, MOST], [0.6, 0.3], None, {}, [0], [(0.6 * 10 + 0.3 * 8) / 0.9]),
        ([MOST, WHOLE], [0.5, 0.5], None, {}, [0], [9]),  # a tie: the first stays, both vote alike
        ([WHOLE, MOST], [0.6, 0.3], [1, 2], {}, [0, 1], [10, 8]),  # labels do not vote
        ([WHOLE, MOST], [0.6, 0.3], None, {"voting_threshold": 0.8}, [0], [10]),  # equal overlap does not vote
        ([WHOLE, MOST], [0.6, 0.3], None, {"iou_threshold": 0.8}, [0, 1], [28 / 3, 28 / 3]),  # both stay, each is moved
        ([WHOLE, MOST], [0, 0], None, {}, [0], [10]),  # scores of nothing move nothing
        ([[1, 1, 1, 1]] * 2, [0.5, 0.6], None, {}, [1, 0], [1, 1]),  # without area: overlaps nothing
    ],
)
def test_box_voting(boxes, scores, labels, more, rows, bottoms):
    labels = None if labels is None else np.array(labels)
    kept, moved = box_voting(np.array(boxes, float), np.array(scores), labels, **more)
    assert kept.tolist() == rows
    np.testing.assert_allclose(moved[:, 3], bottoms)


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 6), max_size=40),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.9]),
    st.sampled_from([0.0, 1 / 3, 0.5]),
)
def test_many_at_once_is_one_by_one(rows, threshold, voting):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], float).reshape(-1, 4)
    scores, groups = np.array([row[4] for row in rows], float), np.array([row[5] for row in rows], int)
    kept, moved = box_voting_batch(boxes, scores, groups, iou_threshold=threshold, voting_threshold=voting)
    start = 0
    for group in sorted(set(groups.tolist())):
        inside = np.flatnonzero(groups == group)
        stays = inside[nms(boxes[inside], scores[inside], iou_threshold=threshold)]
        part = slice(start, start + len(stays))
        assert kept[part].tolist() == stays.tolist()
        for row, got in zip(stays, moved[part], strict=True):
            near = inside[(iou_with(boxes[inside], boxes[row]) > voting) | (inside == row)]
            total = scores[near].sum()
            np.testing.assert_allclose(got, scores[near] @ boxes[near] / total if total else boxes[row], atol=1e-9)
        start += len(stays)
    assert start == len(kept) == len(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5]}, "2 boxes"),
        ({"scores": [0.5, np.nan]}, "row 1"),
        ({"scores": [0.5, -1]}, "row 1 is -1"),
        ({"boxes": [WHOLE, [3, 0, 1, 1]]}, "row 1"),
        ({"iou_threshold": 1.5}, "1.5"),
        ({"voting_threshold": -0.5}, "-0.5"),
        ({"voting_threshold": np.nan}, "nan"),
    ],
)
def test_wrong_input_is_refused(change, message):
    good = {"boxes": [WHOLE, MOST], "scores": [0.5, 0.6], "labels": [1, 1]}
    arguments = {**good, **change}
    with pytest.raises(ValueError, match=message):
        box_voting(np.array(arguments.pop("boxes"), float), arguments.pop("scores"), **arguments)
