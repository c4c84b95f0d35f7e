"""Heads that we read ourselves: mmdetection's own `predict` of the same batches is the oracle."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detection import decode, detector, families, models
from detection.models import DetectorSpec
from tests.detection import oracle
from tests.detection.test_detector import WEIGHTS, drawn_photos, real_photos

TINY = models.PROFILES["tiny"]
LARGE = [*models.PROFILES["paper"], models.CENTERNET_HOURGLASS]
DECIDING = ("retina_cls", "atss_cls", "rpn_cls", "fc_cls", "conv_logits", "heatmap_head.2")


def stirred(model: nn.Module) -> nn.Module:
    """Random weights with which boxes differ in score: those of an untrained head are alike everywhere."""
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if name.endswith(DECIDING):
            weight: Any = module.weight
            weight.data = torch.randn(weight.shape, generator=generator) * (3 / weight[0].numel()) ** 0.5
            nn.init.constant_(module.bias, -1.0)  # type: ignore[arg-type]
    return model


def shipped(spec: DetectorSpec, **options: Any) -> Any:
    return detector.load(spec, "cpu", weights=WEIGHTS / spec.weights, **options)


@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.name)
def test_boxes_and_masks_are_those_of_mmdetection(spec: DetectorSpec) -> None:
    ours = shipped(spec)
    assert ours.path == "batched"
    total = 0
    for found, theirs in oracle.both(ours, drawn_photos(4)):
        oracle.assert_same(found, theirs)
        total += len(found)
    assert total >= 10


@pytest.mark.slow
@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.name)
def test_boxes_and_masks_of_real_photos(spec: DetectorSpec, ccp_df2: Path) -> None:
    for options in ({}, {"score_threshold": 0.3, "max_per_image": 3}):
        for found, theirs in oracle.both(shipped(spec, **options), real_photos(ccp_df2, 30)):
            oracle.assert_same(found, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("spec", LARGE, ids=lambda spec: spec.name)
def test_paper_models(spec: DetectorSpec) -> None:
    small = dataclasses.replace(spec, scale_px=(256, 160))
    ours = detector.Detector(small, stirred(detector.build(small)), "cpu", 0.05, 40)
    assert ours.path == "batched"
    total = 0
    for found, theirs in oracle.both(ours, drawn_photos(3)):
        oracle.assert_same(found, theirs)
        total += len(found)
    assert total >= 20


def test_boxes_of_each_class_and_proposals_without_masks() -> None:
    """A Cascade R-CNN that mmdetection allows and the shipped ones do not use."""
    config: Any = detector.build_config(models.CASCADE_MASK_RCNN_TINY).to_dict()
    config["roi_head"].update(mask_head=None, mask_roi_extractor=None)
    for head in config["roi_head"]["bbox_head"]:
        head["reg_class_agnostic"] = False
    spec = dataclasses.replace(models.CASCADE_MASK_RCNN_TINY, model=config)
    ours = detector.Detector(spec, stirred(detector.build(spec)), "cpu", 0.02, 50)
    assert ours.path == "batched"
    for found, theirs in oracle.both(ours, drawn_photos(2)):
        assert found.masks is None and len(found) > 5
        oracle.assert_same(found, theirs)


def test_a_photo_with_fewer_proposals_than_the_rest() -> None:
    spec = models.CASCADE_MASK_RCNN_TINY
    ours = shipped(spec)
    ours._family.rpn.test_cfg.nms.iou_threshold = 0.05
    for found, theirs in oracle.both(ours, [np.full((96, 96, 3), 128, np.uint8), drawn_photos(1)[0][:200, :200]]):
        oracle.assert_same(found, theirs)


@pytest.mark.parametrize("spec", [s for s in TINY if "mask" not in s.name], ids=lambda spec: spec.name)
def test_a_photo_is_decoded_alike_with_any_others(spec: DetectorSpec) -> None:
    """To the last bit, from the same maps; the cascade's second stage computes, and rounds, with all boxes at once."""
    ours = shipped(spec)
    photos = [photo[:200, :150] for photo in drawn_photos(3)]
    prepared = [ours._prepare(photo) for photo in photos]
    batch, samples = ours._inputs(prepared, [(200, 150)] * 3, ours._padded(prepared[0]))
    with torch.inference_mode():
        outputs = ours._family.dense(batch)
        together = ours._family.decode(outputs, families.PhotoSizes.of(samples, batch))
        for n in range(3):
            sizes = families.PhotoSizes.of(samples[n : n + 1], batch)
            alone = ours._family.decode([one[n : n + 1] for one in outputs], sizes)
            part = together.take(together.photos == n)
            assert len(part.scores) == len(alone.scores) > 5
            assert all(torch.equal(a, b) for a, b in zip(part[:3], alone[:3], strict=True))


@pytest.mark.parametrize("spec", TINY[:4], ids=lambda spec: spec.name)
def test_nothing_is_found_above_every_score(spec: DetectorSpec) -> None:
    found = shipped(spec, score_threshold=1.0).detect(drawn_photos(2))
    assert [len(one) for one in found] == [0, 0]
    assert found[0].masks == ([] if "mask" in spec.name else None)


@pytest.mark.parametrize("spec", TINY[:4], ids=lambda spec: spec.name)
def test_classes_that_are_left_out(spec: DetectorSpec) -> None:
    """The boxes of the other classes are as they were, and more of them have a place."""
    ids = [0, 5, 0, 6, *range(7, 16)]
    photos = drawn_photos(3)
    every, few = shipped(spec), shipped(spec, category_ids=ids)
    for each in (every, few):
        each._family.head.test_cfg.nms_pre = 100_000  # there, too, the others get the places
    for whole, part in zip(every.detect(photos), few.detect(photos), strict=True):
        rows = np.flatnonzero(~np.isin(whole.categories, (1, 3)))
        assert len(part) >= len(rows)
        np.testing.assert_allclose(part.scores[: len(rows)], whole.scores[rows], atol=1e-6)
        assert part.categories[: len(rows)].tolist() == [ids[label - 1] for label in whole.categories[rows]]


@pytest.mark.parametrize(
    "change",
    [
        {"nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"nms": {"type": "nms", "iou_threshold": 0.5, "class_agnostic": True}},
        {"min_bbox_size": 8},
        {"nms_pre": -1},
    ],
)
def test_other_limits_are_left_to_mmdetection(change: dict[str, Any]) -> None:
    config: Any = detector.build_config(models.RETINANET_LITE0_TINY).to_dict()
    config["test_cfg"].update(change)
    spec = dataclasses.replace(models.RETINANET_LITE0_TINY, model=config)
    assert families.family_of(detector.build(spec)) is None


def test_a_head_of_ones_own_is_left_to_mmdetection() -> None:
    model: Any = detector.build(models.ATSS_TINY)

    class Own(type(model.bbox_head)):  # type: ignore[misc]
        def _bbox_post_process(self, *args: Any, **kwargs: Any) -> Any:
            return super()._bbox_post_process(*args, **kwargs)

    model.bbox_head.__class__ = Own
    theirs = detector.Detector(models.ATSS_TINY, model, "cpu", 0.01, 20)
    assert theirs.path == "mmdetection"
    photos = drawn_photos(2)
    found = theirs.detect(photos)
    model.bbox_head.__class__ = Own.__base__
    ours = detector.Detector(models.ATSS_TINY, model, "cpu", 0.01, 20)
    assert ours.path == "batched"
    for a, b in zip(found, ours.detect(photos), strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_what_stands_in_for_the_network_is_called_once_a_batch() -> None:
    ours, shapes = shipped(models.ATSS_TINY), []
    photos = [photo[:200, :150] for photo in drawn_photos(4)]
    want, network = ours.detect(photos, batch_size=2), ours._family.dense

    def engine(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(batch.shape))
        return network(batch)

    ours._family.dense = engine
    for a, b in zip(ours.detect(photos, batch_size=2), want, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert shapes == [(2, 3, 320, 256)] * 2


def test_photos_are_read_from_mmdetections_records() -> None:
    from mmdet.structures import DetDataSample

    whole = DetDataSample(metainfo=dict(img_shape=(30, 40), ori_shape=(60, 80, 3), scale_factor=(0.5, 0.5)))
    centred = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(50, 60), border=np.array([7, 57, 2, 62])))
    sizes = families.PhotoSizes.of([whole, centred], torch.zeros(2, 3, 64, 96))
    assert sizes.fitted.tolist() == [[40, 30], [64, 64]] and sizes.original.tolist() == [[80, 60], [60, 50]]
    assert sizes.scale.tolist() == [[0.5, 0.5], [1, 1]] and sizes.border.tolist() == [[0, 0], [2, 7]]
    assert sizes.padded == (96, 64)


@given(st.lists(st.tuples(*[st.floats(-6, 6, width=32)] * 4), min_size=1, max_size=8))
def test_deltas_are_decoded_as_by_mmdetection(rows: list[tuple[float, ...]]) -> None:
    from detection import mmcv_ops

    mmcv_ops.install()
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

    deltas, boxes = torch.tensor(rows), torch.tensor([[3.0, 4.0, 20.0, 11.0]]).repeat(len(rows), 1)
    numbers = (0.0, 0.1, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2)
    got = decode.from_deltas(boxes, deltas, *numbers, torch.tensor([[32.0, 24.0]]).repeat(len(rows), 1))
    torch.testing.assert_close(got, delta2bbox(boxes, deltas, *numbers, max_shape=(24, 32)), rtol=0, atol=1e-5)
