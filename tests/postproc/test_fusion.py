"""Small decisions of fusing, with boxes one can check by eye."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from postproc.boxes import iou_with
from postproc.fusion import METHODS, Boxes, FusionRule, ItemRule, fuse_members, rank_within, worth_embedding

WBF = FusionRule(
    method="wbf", iou_threshold=0.55, conf_type="avg", weights=None, thresholds=None, skip_box_threshold=0.01,
    score_threshold=0.01, sigma=0.5, min_votes=1, max_per_image=100,
)  # fmt: skip
ITEMS = ItemRule(
    score_threshold=0.1, iou_threshold=0.7, max_per_image=12, hypotheses=5, hypothesis_iou=0.5, hypothesis_score=0.02
)


def rule(**changes: Any) -> FusionRule:
    return replace(WBF, **changes)


def boxes(rows: list[tuple]) -> Boxes:
    """From rows (x1, y1, x2, y2, score, label, image)."""
    table = np.array(rows, float).reshape(-1, 7)
    numbers = table[:, 5:].astype(np.int64)
    return Boxes(table[:, :4], table[:, 4], numbers[:, 0], numbers[:, 1], np.ones(len(table), np.int64))


@pytest.mark.parametrize("groups, want", [([], []), ([5], [0]), ([1, 1, 2, 2, 2, 7], [0, 1, 0, 1, 2, 0])])
def test_rank_within(groups: list[int], want: list[int]) -> None:
    assert rank_within(np.array(groups, int)).tolist() == want


@pytest.mark.parametrize("rows, changes, want", [
    ([], {}, []),                                                                          # nothing detected
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 9, .8, 2, 0)], {}, [.9]),                       # IoU 0.9: one garment
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 9, .8, 2, 1)], {}, [.9, .8]),                   # in two photos: two
    ([(0, 0, 10, 10, .9, 1, 0), (0, 0, 10, 7, .8, 2, 0)], {}, [.9, .8]),                   # IoU 0.7 exactly stays
    ([(0, 0, 9, 9, .3, 1, 0), (20, 0, 29, 9, .29, 1, 0)], {"score_threshold": .3}, [.3]),  # at 0.3 stays, below goes
    ([(20 * i, 0, 20 * i + 9, 9, .9 - i / 10, 1, 0) for i in range(4)], {"max_per_image": 2}, [.9, .8]),
])  # fmt: skip
def test_items_worth_embedding(rows: list[tuple], changes: dict[str, Any], want: list[float]) -> None:
    items, hypotheses = worth_embedding(boxes(rows), replace(ITEMS, **changes))
    assert items.scores.tolist() == pytest.approx(want) and hypotheses.score[:, 0].tolist() == pytest.approx(want)
    assert hypotheses.category_id[:, 0].tolist() == items.labels.tolist()


def test_boxes_too_weak_for_an_item_say_what_another_may_be() -> None:
    found = boxes([(0, 0, 10, 10, 0.5, 1, 0), (0, 0, 10, 9, 0.05, 2, 0), (20, 0, 29, 9, 0.05, 3, 0)])
    items, hypotheses = worth_embedding(found, ITEMS)
    assert items.scores.tolist() == [0.5] and hypotheses.category_id.tolist() == [[1, 2]]


@pytest.mark.parametrize("method, scores, votes", [
    ("wbf", [(.9 + .5) / 2, .4 / 2], [2, 1]),              # the mean of both; one of two detectors
    ("nms", [.9, .4], [2, 1]),                             # the best stays as it is
    ("voting", [.9, .4], [2, 1]),
    ("nmw", [.9, .4], [2, 1]),
    ("soft_nms_linear", [.9, .4, 0], [2, 1, 2]),           # 0.5 * (1 - 1): the same box again is worth nothing
    ("soft_nms_gaussian", [.9, .4, .5 * np.exp(-1 / .5)], [2, 1, 2]),
])  # fmt: skip
def test_all_ways_of_fusing_count_the_detectors_that_agree(method: str, scores: list[float], votes: list[int]) -> None:
    detected = boxes([(0, 0, 10, 10, 0.9, 1, 0), (30, 0, 40, 10, 0.4, 1, 0), (0, 0, 10, 10, 0.5, 1, 0)])
    fused = fuse_members(detected, np.array([0, 0, 1]), 2, rule(method=method, score_threshold=0)).boxes
    assert fused.scores.tolist() == pytest.approx(scores) and fused.votes.tolist() == votes
    agreed = fuse_members(detected, np.array([0, 0, 1]), 2, rule(method=method, score_threshold=0, min_votes=2)).boxes
    want = [score for score, n in zip(scores, votes, strict=True) if n == 2]
    assert agreed.scores.tolist() == pytest.approx(want)


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_for_each_detector(method: str) -> None:
    detected = boxes([(0, 0, 9, 9, 0.3, 1, 0), (20, 0, 29, 9, 0.3, 1, 0), (40, 0, 49, 9, 0.1, 1, 0)])
    model = np.array([0, 1, 1])
    assert len(fuse_members(detected, model, 2, rule(method=method)).boxes) == 3
    fused = fuse_members(detected, model, 2, rule(method=method, thresholds=(0.4, 0.3), skip_box_threshold=1))
    assert fused.boxes.boxes[:, 0].tolist() == [20] and fused.row.tolist() == [1]  # at the threshold stays


@pytest.mark.parametrize("method", METHODS)
def test_nothing_detected(method: str) -> None:
    fused = fuse_members(boxes([]), np.zeros(0, int), 2, rule(method=method))
    assert fused.boxes.boxes.shape == (0, 4) and len(fused.place) == len(fused.row) == 0


def random_boxes(n: int = 120) -> tuple[Boxes, np.ndarray]:
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 40, (n, 2))
    rows = np.concatenate(
        [corner, corner + rng.uniform(20, 60, (n, 2)), rng.uniform(0, 1, (n, 1)), rng.integers(0, 3, (n, 2))], axis=1
    )
    return boxes(rows.tolist()), rng.integers(0, 4, n)


@pytest.mark.parametrize("method", ["nms", "voting"])
def test_who_votes_for_a_kept_box_by_the_plain_rule(method: str) -> None:
    detected, model = random_boxes()
    by_weight = rule(method=method, weights=(1, 2, 4, 1), iou_threshold=0.4, skip_box_threshold=0.2)
    fused = fuse_members(detected, model, 4, by_weight)
    for place, score in enumerate(fused.boxes.scores):
        own = np.flatnonzero(detected.scores * np.array([1, 2, 4, 1])[model] / 4 == score)
        assert len(own) == 1
        alike = iou_with(detected.boxes, detected.boxes[own]) > 0.4
        alike &= (
            (detected.image == detected.image[own])
            & (detected.labels == detected.labels[own])
            & (detected.scores >= 0.2)
        )
        assert np.flatnonzero(alike).tolist() == fused.row[fused.place == place].tolist()
        assert fused.boxes.votes[place] == len(set(model[alike].tolist()))


@pytest.mark.parametrize("method", METHODS)
def test_members_are_of_the_photo_and_category_and_as_many_as_vote(method: str) -> None:
    detected, model = random_boxes()
    fused = fuse_members(detected, model, 4, rule(method=method, max_per_image=5, iou_threshold=0.4))
    assert set(fused.place.tolist()) == set(range(len(fused.boxes.scores)))
    for place in range(len(fused.boxes.scores)):
        rows = fused.row[fused.place == place]
        assert set(detected.image[rows]) == {fused.boxes.image[place]}
        assert set(detected.labels[rows]) == {fused.boxes.labels[place]}
        assert len(set(model[rows].tolist())) == fused.boxes.votes[place]


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("label", [300, 1001, 32767])
def test_a_high_category_id_is_no_other_photos_category(method: str, label: int) -> None:
    """Category `label` of photo 0 and category 1 of photo 1 never compete, however their numbers are joined."""
    found = boxes([(0, 0, 10, 10, 0.9, label, 0), (0, 0, 10, 10, 0.8, 1, 1), (0, 0, 10, 9, 0.7, label, 0)])
    fused = fuse_members(found, np.array([0, 0, 1]), 2, rule(method=method)).boxes
    assert fused.image.tolist()[0] == 0 and fused.labels.tolist()[0] == label
    assert (fused.image == 1).sum() == 1 and fused.labels[fused.image == 1].tolist() == [1]
