"""Small decisions of the fuse stage, with boxes one can check by eye."""

import numpy as np
import pytest

from jobs.config import Fusion, Items
from jobs.fuse_shard import Boxes, fuse, rank_within, worth_embedding


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
    ("wbf", [(.9 + .5) / 2, .4 / 2], [2, 1]),  # the mean of both; one of two detectors
    ("nms", [.9, .4], [2, 1]),                 # the best stays as it is
])  # fmt: skip
def test_both_ways_of_fusing_count_the_detectors_that_agree(method: str, scores: list[float], votes: list[int]) -> None:
    found = boxes([(0, 0, 10, 10, 0.9, 1, 0), (30, 0, 40, 10, 0.4, 1, 0), (0, 0, 10, 10, 0.5, 1, 0)])
    fused = fuse(found, np.array([0, 0, 1]), 2, Fusion(method=method))
    assert fused.scores.tolist() == pytest.approx(scores) and fused.votes.tolist() == votes
