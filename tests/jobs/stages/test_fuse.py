"""The masks of fused boxes, small enough to check by eye. tests/postproc/test_fusion.py tests how boxes are fused."""

from dataclasses import fields

import numpy as np
import pyarrow as pa

from detection.rle import from_lengths, lengths
from jobs.runs import tables
from jobs.runs.settings import FusionSettings, record
from jobs.stages.fuse import fuse_masks
from postproc.fusion import Boxes, Fused, FusionRule


def test_the_rule_has_every_setting_but_that_of_the_masks() -> None:
    settings = FusionSettings(method="nms", iou_threshold=0.3, weights=(1.0, 2.0))
    assert set(record(settings)) - {"masks"} == {field.name for field in fields(FusionRule.of(settings))}
    assert FusionRule.of(settings).method == "nms" and FusionRule.of(settings).weights == (1.0, 2.0)


def unit_boxes(n: int) -> Boxes:
    zeros = np.zeros(n, np.int64)
    return Boxes(np.tile([0.0, 0, 1, 1], (n, 1)), np.full(n, 0.5), zeros + 1, zeros, zeros + 1)


def test_masks_are_voted_on_by_weighted_score() -> None:
    runs = [[0, 2, 4], [1, 2, 3], None, [3, 3], None]  # on at 0 1; at 1 2; none; at 3 4 5; none
    masks = [None if run is None else from_lengths(np.array(run), (2, 3)) for run in runs]
    column = pa.chunked_array([pa.array(masks, tables.MASK)])
    fused_boxes = Fused(unit_boxes(4), np.array([0, 0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 3, 4, 0, 3]))
    masks_of_boxes = fuse_masks(fused_boxes, column, np.array([0.6, 0.4, 9.0, 0.5, 0.5]))
    assert [None if mask is None else lengths(mask).tolist() for mask in masks_of_boxes] == [
        [0, 2, 4],  # 0.6 against 0.4; the box without a mask has no say
        [3, 3],  # alone
        None,  # no member has one
        [0, 2, 4],  # 0.6 against 0.5
    ]
    assert masks_of_boxes[1] == masks[3]


def test_no_masks_at_all() -> None:
    fused_boxes = Fused(unit_boxes(1), np.array([0]), np.array([0]))
    assert fuse_masks(fused_boxes, pa.chunked_array([pa.nulls(1, tables.MASK)]), np.ones(1)) == [None]
