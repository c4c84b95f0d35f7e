"""The held-out figures by hand and against the brute-force ranking; the surest mistakes in their order."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from retrieval import held_out
from retrieval.training_crops import Garments
from tests.retrieval.cached import SPEC, one


class ByShade(nn.Module):
    """A stand-in: the mean colour's angle as a row, so that equal shades are equal rows."""

    def forward(self, images):
        angle = images.mean(dim=(1, 2, 3)) / 255 * math.pi / 2
        return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize("query_shades, want_1, want_2", [
    ((10, 100), 2 / 2, 2 / 2),   # each nearest its own
    ((10, 14), 1 / 2, 1 / 2),    # the second lies beside the first's garment and the stranger's
    ((10, 60), 1 / 2, 2 / 2),    # the second's own comes second
])  # fmt: skip
def test_held_out_accuracy_by_hand(query_shades, want_1, want_2):
    gallery = [
        one(10, (0, 10, 1), True, True),
        one(100, (0, 20, 1), True, True),
        one(16, None, True),
        one(50, (0, 3, 1), True),
    ]
    if query_shades[1] == 60:
        gallery[3] = one(62, (0, 3, 1), True)
    queries = [one(shade, (0, pair, 1), False, True) for shade, pair in zip(query_shades, (10, 20), strict=True)]
    gallery = [dataclasses.replace(g, photo=i) for i, g in enumerate(gallery)]
    garments = Garments(gallery + [dataclasses.replace(q, photo=100 + i) for i, q in enumerate(queries)], SPEC)
    figures = held_out.evaluate(garments, held_out.rank(ByShade(), garments))
    hits = held_out.rank(ByShade(), garments).ranked[:, :2]
    right = garments.identity[hits] == garments.identity[4:][:, None]
    assert figures["top"]["1"] == want_1 and right.any(1).mean() == want_2
    assert figures["queries"] == 2 and figures["missed"] == 0


def test_without_held_out_garments_there_are_no_queries():
    garments = Garments([one(1, (0, 1, 1), True), one(1, (0, 1, 1), False)], SPEC)
    lists = held_out.rank(ByShade(), garments)
    assert (
        len(lists.queries) == 0
        and held_out.surest_mistakes(garments, lists) == []
        and not len(held_out.first_hit_ranks(garments, lists))
    )
    assert len(held_out.rank(ByShade(), garments, every=True).queries) == 1


def test_the_surest_mistake_comes_first():
    gallery = [one(10, (0, 10, 1), True, True), one(90, (0, 20, 1), True, True), one(100, None, True)]
    queries = [one(99, (0, 10, 1), False, True), one(120, (0, 20, 1), False, True), one(90, (0, 20, 1), False, True)]
    garments = Garments(gallery + queries, SPEC)
    lists = held_out.rank(ByShade(), garments)
    picked = held_out.surest_mistakes(garments, lists)
    assert [entry[:3] for entry in picked] == [(3, 2, 0), (4, 2, 1)]  # 99 beside 100, then 120 beside 100; 90 is right
    assert picked[0][3] > picked[1][3]
    assert held_out.surest_mistakes(garments, lists, n=1) == picked[:1]
