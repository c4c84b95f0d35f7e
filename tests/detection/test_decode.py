"""From raw outputs to boxes: brute force is the oracle, over counts and ties."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detection import decode
from detection.decode import BatchBoxes
from postproc.nms import nms

FEW = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75])  # many ties
SIDES = st.integers(0, 6).map(float)


def boxes_of(rows: list[tuple[Any, ...]]) -> BatchBoxes:
    """From rows of photo, label, score, x1, y1, x2, y2."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)
    return BatchBoxes(table[:, 3:], table[:, 2].contiguous(), table[:, 1].long(), table[:, 0].long())


def listed(found: BatchBoxes) -> list[tuple[Any, ...]]:
    return list(
        zip(
            found.photos.tolist(),
            found.labels.tolist(),
            found.scores.tolist(),
            map(tuple, found.boxes.tolist()),
            strict=True,
        )
    )


@given(st.lists(st.tuples(FEW, st.integers(0, 3)), max_size=40), st.integers(1, 5))
def test_the_best_of_each_group(rows: list[tuple[float, int]], most: int) -> None:
    want = []
    for group in range(4):
        members = [n for n in range(len(rows)) if rows[n][1] == group]
        want += sorted(members, key=lambda n: -rows[n][0])[:most]  # Python's sort keeps the order of ties
    scores = torch.tensor([score for score, _ in rows])
    groups = torch.tensor([group for _, group in rows], dtype=torch.int64)
    assert decode.best_of_groups(scores, groups, most).tolist() == want


def test_the_order_of_scores_is_that_of_floats() -> None:
    scores = torch.tensor([0.0, 1e-45, 1.1754944e-38, 1e-7, 0.3, 0.30000004, 1.0, 3.4e38])
    order = decode.best_of_groups(scores, torch.full((8,), 1000), 8)
    assert order.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@given(st.data())
def test_the_best_anchors_of_each_photo_and_level(data: st.DataObject) -> None:
    n_photos, sizes, n_classes = data.draw(st.integers(1, 3)), data.draw(st.lists(st.integers(1, 4), min_size=1)), 2
    shape = (n_photos, sum(sizes), n_classes)
    values = data.draw(st.lists(FEW, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    scores = torch.tensor(values).reshape(shape)
    most, left_out = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([[], [0], [0, 1]]))
    want = []
    for photo in range(n_photos):
        for level, size in enumerate(sizes):
            first = sum(sizes[:level])
            places = [(a, c) for a in range(first, first + size) for c in range(n_classes) if c not in left_out]
            places = [place for place in places if scores[photo][place] > 0.125]
            want += [(photo, *place) for place in sorted(places, key=lambda place: -scores[photo][place])[:most]]
    found = decode.best_anchors(scores, sizes, 0.125, most, left_out)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == want


def test_maps_become_rows_by_level_place_and_anchor() -> None:
    fine, coarse = torch.arange(24.0).reshape(1, 4, 2, 3), 100 + torch.arange(4.0).reshape(1, 4, 1, 1)
    rows = decode.as_rows([fine, coarse], 2)  # two anchors of two numbers
    assert rows.shape == (1, 14, 2)
    assert rows[0, :4].tolist() == [[0, 6], [12, 18], [1, 7], [13, 19]]  # anchors of the first place, of the next
    assert rows[0, 12:].tolist() == [[100, 101], [102, 103]]


def test_a_box_is_clipped_to_its_own_photo() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0]]).repeat(2, 1)
    clipped = decode.from_deltas(boxes, torch.zeros(2, 4), (0.0,) * 4, (1.0,) * 4, torch.tensor([[30.0, 20], [40, 60]]))
    assert clipped.tolist() == [[0, 0, 30, 20], [0, 0, 40, 50]]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), FEW, SIDES, SIDES, SIDES, SIDES), max_size=20),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.integers(1, 6),
)
def test_suppression_is_that_of_each_photo_and_class(rows: list[Any], iou: float, most: int) -> None:
    rows = [row for row in rows if row[5] > row[3] and row[6] > row[4]]  # the oracle takes no box without an area
    found, want = boxes_of(rows), []
    for photo in range(3):
        members = np.flatnonzero(found.photos.numpy() == photo)
        part = [column.numpy()[members] for column in found[:3]]
        kept = nms(*part, iou_threshold=iou)[:most]
        want += listed(found.take(torch.from_numpy(members[kept])))
    assert listed(decode.suppress(found, found.labels, iou, most)) == want


def test_suppression_drops_boxes_without_an_area() -> None:
    flat, whole = (0, 0, 0.9, 5, 5, 5, 9), (0, 0, 0.5, 5, 5, 8, 9)
    assert decode.suppress(boxes_of([flat, whole]), torch.zeros(2, dtype=torch.int64), 0.5, 1).scores.tolist() == [0.5]


def test_a_photo_far_down_the_batch_is_suppressed_alike() -> None:
    """Groups are moved apart for one call of suppression; in float32 the last photo's overlaps would be rounded."""
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 1300
    one = torch.cat([corners, corners + 1 + torch.rand(300, 2) * 200], 1)
    scores, labels = torch.rand(300), torch.randint(0, 13, (300,))
    alone = decode.suppress(BatchBoxes(one, scores, labels, torch.zeros(300, dtype=torch.int64)), labels, 0.5, 300)
    batch = BatchBoxes(one.repeat(9, 1), scores.repeat(9), labels.repeat(9), torch.arange(9).repeat_interleave(300))
    together = decode.suppress(batch, batch.labels, 0.5, 300)
    for photo in range(9):
        torch.testing.assert_close(together.boxes[together.photos == photo], alone.boxes, rtol=0, atol=0)


@given(st.lists(FEW, min_size=48, max_size=48), st.sampled_from([0.0, 0.25]), st.integers(1, 30), st.booleans())
def test_peaks_are_local_maxima(values: list[float], threshold: float, most: int, left_out: bool) -> None:
    heat = torch.tensor(values).reshape(2, 2, 3, 4)
    want = []
    for photo in range(2):
        standing = []
        for label in range(int(left_out), 2):
            for y in range(3):
                for x in range(4):
                    value = heat[photo, label, y, x]
                    around = heat[photo, label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                    if value >= threshold and value == around.max():
                        standing.append((photo, label, y, x))
        want += sorted(standing, key=lambda place: -heat[place])[:most]
    found = decode.peaks(heat, threshold, most, 3, [0] if left_out else [])
    assert list(zip(*(column.tolist() for column in found), strict=True)) == want


def test_every_photo_has_the_same_number_of_proposals() -> None:
    found = boxes_of([(0, 0, 0.9, 1, 1, 2, 2), (2, 0, 0.8, 3, 3, 4, 4), (2, 0, 0.7, 5, 5, 6, 6)])
    boxes, real = decode.padded(found, 3, 2)
    assert boxes.tolist() == [[[1, 1, 2, 2], [0] * 4], [[0] * 4] * 2, [[3, 3, 4, 4], [5, 5, 6, 6]]]
    assert real.tolist() == [[True, False], [False, False], [True, True]]


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ((0, 0, 0.5, 1, 1, 9, 9), (1, 1, 9, 9)),  # as it is
        ((0, 0, 0.5, -3, -3, 99, 99), (0, 0, 20, 10)),  # clipped to 20 x 10
        ((1, 0, 0.5, -3, -3, 99, 99), (0, 0, 10, 20)),  # each photo has its size
        ((0, 0, 0.5, 25, 1, 30, 9), None),  # outside
        ((0, 0, 0.5, 4, 4, 4, 9), None),  # no area
        ((0, 0, 0.25, 1, 1, 9, 9), (1, 1, 9, 9)),  # just at the threshold
        ((0, 0, 0.24, 1, 1, 9, 9), None),  # just below
        ((0, 0, float("nan"), 1, 1, 9, 9), None),
        ((0, 0, 0.5, float("nan"), 1, 9, 9), None),
    ],
)
def test_what_can_be_seen(row: tuple[Any, ...], want: tuple[float, ...] | None) -> None:
    sizes = torch.tensor([[20.0, 10.0], [10.0, 20.0]])
    found, rows = decode.visible(boxes_of([row]), sizes, 0.25, 5)
    assert [tuple(box) for box in found.boxes.tolist()] == ([] if want is None else [want])
    assert rows.tolist() == ([] if want is None else [0])


def test_the_best_that_can_be_seen() -> None:
    rows = [(0, 0, 0.9, 0, 0, 0, 0), (0, 1, 0.8, 0, 0, 5, 5), (0, 2, 0.7, 0, 0, 6, 6), (1, 3, 0.6, 0, 0, 7, 7)]
    found, kept = decode.visible(boxes_of(rows), torch.full((2, 2), 9.0), 0.1, 1)
    assert found.labels.tolist() == [1, 3] and kept.tolist() == [1, 3]


def test_nothing_stays_nothing() -> None:
    nothing = boxes_of([])
    assert len(decode.suppress(nothing, nothing.labels, 0.5, 5).scores) == 0
    assert len(decode.visible(nothing, torch.ones(1, 2), 0.1, 5)[1]) == 0
    assert not decode.padded(nothing, 2, 3)[1].any()
    empty: Tensor = torch.zeros(0)
    assert len(decode.best_of_groups(empty, empty.long(), 5)) == 0


def test_anchors_go_by_place_row_by_row() -> None:
    base = [[-1.0, -2.0, 1.0, 2.0], [-0.5, -0.25, 0.5, 0.25]]
    found = decode.anchors_of(base, (8, 4), (2, 2), torch.zeros(1))
    moves = [(0, 0), (8, 0), (0, 4), (8, 4)]
    assert found.tolist() == [[box[0] + x, box[1] + y, box[2] + x, box[3] + y] for x, y in moves for box in base]
