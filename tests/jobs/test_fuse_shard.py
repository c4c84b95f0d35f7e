"""Small decisions of the fuse stage, with boxes one can check by eye."""

import numpy as np
import pyarrow as pa
import pytest

from detection.rle import from_lengths, lengths
from jobs import tables
from jobs.config import Fusion, Items
from jobs.fuse_shard import METHODS, Boxes, Fused, fuse, fuse_members, fused_masks, rank_within, worth_embedding
from postproc.boxes import iou_with


def boxes(rows: list[tuple]) -> Boxes:
    """From rows (x1, y1, x2, y2, score, label, image)."""
    table = np.array(rows, float).reshape(-1, 7)
    numbers = table[:, 5:].astype(np.int64)
    return Boxes(table[:, :4], table[:, 4], numbers[:, 0], numbers[:, 1], np.ones(len(table), np.int64))


@pytest.mark.parametrize("groups, want", [([], []), ([5], [0]), ([1, 1, 2, 2, 2, 7], [0, 1, 0, 1, 2, 0])])
def test_rank_within(groups: list[int], want: list[int]) -> None:
    assert rank_within(np.array(groups, int)).tolist() == want


@pytest.mark.parametrize("rows, settings, want", [
    ([], Items(), []),                                                                                   # nothing found
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 9, .8, 2, 0)], Items(), [.9]),                                # IoU 0.9, other category: one garment
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 9, .8, 2, 1)], Items(), [.9, .8]),                            # in two photos: two
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 7, .8, 2, 0)], Items(), [.9, .8]),                            # IoU 0.7 exactly stays
    ([(0, 0, 9, 9, .3, 1, 0), (20, 0, 29, 9, .29, 1, 0)], Items(score_threshold=.3), [.3]),              # at the score stays, below goes
    ([(20 * i, 0, 20 * i + 9, 9, .9 - i / 10, 1, 0) for i in range(4)], Items(max_per_image=2), [.9, .8]),
])  # fmt: skip
def test_items_worth_embedding(rows: list[tuple], settings: Items, want: list[float]) -> None:
    assert worth_embedding(boxes(rows), settings).scores.tolist() == pytest.approx(want)


@pytest.mark.parametrize("method, scores, votes", [
    ("wbf", [(.9 + .5) / 2, .4 / 2], [2, 1]),              # the mean of both; one of two detectors
    ("nms", [.9, .4], [2, 1]),                             # the best stays as it is
    ("voting", [.9, .4], [2, 1]),
    ("nmw", [.9, .4], [2, 1]),
    ("soft_nms_linear", [.9, .4, 0], [2, 1, 2]),           # 0.5 * (1 - 1): the same box again is worth nothing
    ("soft_nms_gaussian", [.9, .4, .5 * np.exp(-1 / .5)], [2, 1, 2]),
])  # fmt: skip
def test_all_ways_of_fusing_count_the_detectors_that_agree(method: str, scores: list[float], votes: list[int]) -> None:
    found = boxes([(0, 0, 10, 10, 0.9, 1, 0), (30, 0, 40, 10, 0.4, 1, 0), (0, 0, 10, 10, 0.5, 1, 0)])
    fused = fuse(found, np.array([0, 0, 1]), 2, Fusion(method=method, score_threshold=0))
    assert fused.scores.tolist() == pytest.approx(scores) and fused.votes.tolist() == votes
    agreed = fuse(found, np.array([0, 0, 1]), 2, Fusion(method=method, score_threshold=0, min_votes=2))
    want = [score for score, n in zip(scores, votes, strict=True) if n == 2]
    assert agreed.scores.tolist() == pytest.approx(want)


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_for_each_detector(method: str) -> None:
    found = boxes([(0, 0, 9, 9, 0.3, 1, 0), (20, 0, 29, 9, 0.3, 1, 0), (40, 0, 49, 9, 0.1, 1, 0)])
    model = np.array([0, 1, 1])
    assert len(fuse(found, model, 2, Fusion(method=method)).scores) == 3
    fused = fuse_members(found, model, 2, Fusion(method=method, thresholds=(0.4, 0.3), skip_box_threshold=1))
    assert fused.boxes.boxes[:, 0].tolist() == [20] and fused.row.tolist() == [1]  # at the threshold stays


@pytest.mark.parametrize("method", METHODS)
def test_nothing_found(method: str) -> None:
    fused = fuse_members(boxes([]), np.zeros(0, int), 2, Fusion(method=method))
    assert fused.boxes.boxes.shape == (0, 4) and len(fused.place) == len(fused.row) == 0


def drawn(n: int = 120) -> tuple[Boxes, np.ndarray]:
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 40, (n, 2))
    rows = np.concatenate([corner, corner + rng.uniform(20, 60, (n, 2)), rng.uniform(0, 1, (n, 1)), rng.integers(0, 3, (n, 2))], axis=1)  # fmt: skip
    return boxes(rows.tolist()), rng.integers(0, 4, n)


@pytest.mark.parametrize("method", ["nms", "voting"])
def test_who_votes_for_a_kept_box_by_the_plain_rule(method: str) -> None:
    found, model = drawn()
    fusion = Fusion(method=method, weights=(1, 2, 4, 1), iou_threshold=0.4, skip_box_threshold=0.2)
    fused = fuse_members(found, model, 4, fusion)
    for place, score in enumerate(fused.boxes.scores):
        own = np.flatnonzero(found.scores * np.array([1, 2, 4, 1])[model] / 4 == score)
        assert len(own) == 1
        alike = iou_with(found.boxes, found.boxes[own]) > 0.4
        alike &= (found.image == found.image[own]) & (found.labels == found.labels[own]) & (found.scores >= 0.2)
        assert np.flatnonzero(alike).tolist() == fused.row[fused.place == place].tolist()
        assert fused.boxes.votes[place] == len(set(model[alike].tolist()))


@pytest.mark.parametrize("method", METHODS)
def test_members_are_of_the_photo_and_category_and_as_many_as_vote(method: str) -> None:
    found, model = drawn()
    fused = fuse_members(found, model, 4, Fusion(method=method, max_per_image=5, iou_threshold=0.4))
    assert set(fused.place.tolist()) == set(range(len(fused.boxes.scores)))
    for place in range(len(fused.boxes.scores)):
        rows = fused.row[fused.place == place]
        assert set(found.image[rows]) == {fused.boxes.image[place]}
        assert set(found.labels[rows]) == {fused.boxes.labels[place]}
        assert len(set(model[rows].tolist())) == fused.boxes.votes[place]


def test_masks_are_voted_on_by_weighted_score() -> None:
    runs = [[0, 2, 4], [1, 2, 3], None, [3, 3], None]  # on at 0 1; at 1 2; none; at 3 4 5; none
    masks = [None if run is None else from_lengths(np.array(run), (2, 3)) for run in runs]
    column = pa.chunked_array([pa.array(masks, tables.MASK)])
    made = Fused(boxes([(0, 0, 1, 1, 0.5, 1, 0)] * 4), np.array([0, 0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 3, 4, 0, 3]))
    fused = fused_masks(made, column, np.array([0.6, 0.4, 9.0, 0.5, 0.5]))
    assert [None if mask is None else lengths(mask).tolist() for mask in fused] == [
        [0, 2, 4],  # 0.6 against 0.4; the box without a mask has no say
        [3, 3],  # alone
        None,  # no member has one
        [0, 2, 4],  # 0.6 against 0.5
    ]
    assert fused[1] == masks[3]


def test_no_masks_at_all() -> None:
    made = Fused(boxes([(0, 0, 1, 1, 0.5, 1, 0)]), np.array([0]), np.array([0]))
    assert fused_masks(made, pa.chunked_array([pa.nulls(1, tables.MASK)]), np.ones(1)) == [None]
