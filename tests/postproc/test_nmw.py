"""Non-maximum weighted against arithmetic, a plain loop, and ensemble-boxes 1.0.9 as the oracle."""

import numpy as np
import pytest
from ensemble_boxes import non_maximum_weighted as package
from hypothesis import given
from hypothesis import strategies as st

import postproc.nmw
from postproc.boxes import iou_with
from postproc.nmw import nmw_batch, nmw_batch_members, non_maximum_weighted

WHOLE, MOST = (0, 0, 10, 10), (0, 0, 10, 8)  # overlap 0.8


@pytest.mark.parametrize(
    ("per_model", "more", "want_bottom", "want_scores"),
    [
        ([], {}, [], []),  # no models
        ([[], []], {}, [], []),  # nothing seen
        ([[(*WHOLE, 0.8, 1)]], {}, [10], [0.8]),  # one box
        ([[(*WHOLE, 0.8, 1)], [(*MOST, 0.5, 1)]], {}, [(0.8 * 10 + 0.4 * 8) / 1.2], [0.8]),  # 0.4 = 0.5 * 0.8
        ([[(*WHOLE, 0.8, 1)], [(*MOST, 0.5, 2)]], {}, [10, 8], [0.8, 0.5]),  # labels never mix
        ([[(*WHOLE, 0.8, 1)], [(*MOST, 0.5, 1)]], {"iou_thr": 0.8}, [10, 8], [0.8, 0.5]),  # equal overlap does not fuse
        # 0.8 * 0.8
        ([[(*WHOLE, 0.8, 1)], [(*MOST, 0.5, 1)]], {"weights": [1, 4]}, [(2 * 8 + 0.64 * 10) / 2.64], [0.5]),
        ([[(*WHOLE, 0, 1)], [(*MOST, 0, 1)]], {}, [10], [0]),  # scores of nothing leave the leader where it is
        ([[(*WHOLE, 0.8, 1)], [(*MOST, 0.5, 1)]], {"skip_box_thr": 0.6}, [10], [0.8]),
        ([[(1, 1, 1, 5, 0.9, 1), (*WHOLE, 0.8, 1)]], {}, [10], [0.8]),  # without area
    ],
)  # fmt: skip
def test_boxes_weigh_by_score_and_overlap(per_model, more, want_bottom, want_scores):
    rows = [[[row[:4] for row in model] for model in per_model]]
    rows += [[[row[k] for row in model] for model in per_model] for k in (4, 5)]
    boxes, scores, labels = non_maximum_weighted(*rows, **more)
    np.testing.assert_allclose(boxes[:, 3], want_bottom)
    np.testing.assert_allclose(scores, want_scores)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)


def random_image(rng, n_labels):
    corner = rng.uniform(0, 0.5, (5, 20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (5, 20, 2))], axis=2)
    return boxes, rng.uniform(0.01, 1, (5, 20)), rng.integers(0, n_labels, (5, 20))


@pytest.mark.parametrize("weights", [None, [1, 4, 0.25, 1, 2]])
@pytest.mark.parametrize("n_labels", [1, 4])
def test_numbers_of_ensemble_boxes(weights, n_labels):
    rng = np.random.default_rng(n_labels)
    for threshold in (0.0, 0.3, 0.55, 0.9):
        for _ in range(8):
            image = random_image(rng, n_labels)
            want = package(*image, weights=weights, iou_thr=threshold, skip_box_thr=0.1)
            got = non_maximum_weighted(*image, weights=weights, iou_thr=threshold, skip_box_thr=0.1)
            for mine, theirs in zip(got, want, strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0)


def plain(boxes, scores, labels, threshold):
    """Rows of each leader, leaders best first."""
    clusters: list[list[int]] = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        rivals = [c for c in clusters if labels[c[0]] == labels[row]]
        overlaps = [iou_with(boxes[[c[0]]], boxes[row])[0] for c in rivals]
        if rivals and max(overlaps) > threshold:
            rivals[int(np.argmax(overlaps))].append(row)
        else:
            clusters.append([row])
    return clusters


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 5)] * 3, *[st.integers(0, 2)] * 3), max_size=40),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.9]),
    st.sampled_from([1, 7, 65_536]),
)
def test_many_at_once_is_one_by_one(rows, threshold, rows_at_once):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, *_ in rows], float).reshape(-1, 4)
    scores, labels, image, model = (np.array([row[k] for row in rows], int) for k in (4, 5, 6, 7))
    before, postproc.nmw.ROWS_AT_ONCE = postproc.nmw.ROWS_AT_ONCE, rows_at_once
    try:
        fused, confidence, _, photo, votes, members = nmw_batch_members(
            boxes, scores, labels, image, model, 3, iou_thr=threshold
        )
    finally:
        postproc.nmw.ROWS_AT_ONCE = before
    assert len(members) == len(rows) and (members >= 0).all()
    for one in set(image.tolist()):
        inside = np.flatnonzero(image == one)
        clusters = [inside[c] for c in plain(boxes[inside], scores[inside], labels[inside], threshold)]
        places = np.flatnonzero(photo == one)
        assert [sorted(c.tolist()) for c in clusters] == [np.flatnonzero(members == p).tolist() for p in places]
        for place, cluster in zip(places, clusters, strict=True):
            weight = scores[cluster] * iou_with(boxes[cluster], boxes[cluster[0]])
            np.testing.assert_allclose(fused[place], weight @ boxes[cluster] / weight.sum(), atol=1e-9)
            assert confidence[place] == scores[cluster[0]] and votes[place] == len(set(model[cluster].tolist()))


def test_an_empty_batch_keeps_its_types():
    none = nmw_batch(np.zeros((0, 4)), [], [], np.array([], np.int32), [], n_models=5)
    assert [column.dtype for column in none] == [np.float64, np.float64, np.int64, np.int32, np.int8]
    assert nmw_batch_members([WHOLE], [0.1], [1], [4], [0], 1, skip_box_thr=0.5)[5].tolist() == [-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1]}, "one weight per model"),
        ({"scores": [0.5, np.nan]}, "row 1"),
        ({"scores": [0.5, -1], "skip_box_thr": -2}, "row 1"),
        ({"boxes": [WHOLE, (0, 0, 0, -1)]}, "row 1"),
        ({"model": [0, 2]}, "row 1 is of model 2"),
        ({"n_models": 0}, "n_models is 0"),
        ({"iou_thr": 2}, "iou_thr is 2"),
        ({"image": [1]}, "2 boxes"),
    ],
)
def test_a_wrong_batch_is_refused(change, message):
    good = {
        "boxes": [WHOLE, WHOLE], "scores": [0.5, 0.6], "labels": [1, 1], "image": [1, 1], "model": [0, 1],
        "n_models": 2,
    }  # fmt: skip
    assert nmw_batch(**good)[4].tolist() == [2]
    with pytest.raises(ValueError, match=message):
        nmw_batch(**{**good, **change})
