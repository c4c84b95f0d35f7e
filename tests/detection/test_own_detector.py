"""Detectors after mmdetection's configurations: its own `DetInferencer`, of the same files, is the oracle."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detection import models, own_config, own_detector
from detection.own_config import MmdetectionSpec
from tests.detection import own_configs
from tests.detection.test_detector import drawn_photos, real_photos

pytestmark = pytest.mark.slow
SIDES = (224, 224)
CCP = Path(os.environ.get("CCP_DF2", Path(__file__).resolve().parents[3] / "shared" / "data" / "ccp_df2"))


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two drawn ones, and two real ones where there are any; of several shapes."""
    real = real_photos(CCP, 2) if (CCP / "val" / "image").is_dir() else []
    return [*drawn_photos(2), *real]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def made(name: str, folder: Path) -> tuple[MmdetectionSpec, Path]:
    """The spec of a configuration, and a checkpoint as mmengine writes it."""
    import torch

    config, checkpoint = own_configs.write(name, folder), folder / f"{name}.pth"
    entry = {"name": name, "config": str(config), "checkpoint": str(checkpoint), "scale_px": list(SIDES)}
    spec = own_config.from_fields(entry)
    if not checkpoint.exists():
        untrained = own_detector.load(spec, "cpu", weights=None, allow_random_weights=True)
        meta = {"dataset_meta": {"classes": own_configs.NAMES}}
        torch.save({"meta": meta, "state_dict": own_configs.lively(untrained.model)}, checkpoint)
    return spec, checkpoint


def loaded(spec: MmdetectionSpec, checkpoint: Path, **options: Any) -> Any:
    limits = {"score_threshold": 0.0, "max_per_image": 1000} | options
    return own_detector.load(spec, "cpu", weights=checkpoint, **limits)


def inferred(name: str, folder: Path, photos: list[np.ndarray]) -> list[Any]:
    """What mmdetection's users get for the photos, one by one."""
    from mmdet.apis import DetInferencer
    from mmengine.config import Config

    config = Config.fromfile(folder / f"{name}.py")
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = SIDES
        elif step.type == "Pad" and "size" in step:
            step.size = SIDES
    theirs = DetInferencer(config, str(folder / f"{name}.pth"), device="cpu", show_progress=False)
    bgr = [np.ascontiguousarray(photo[..., ::-1]) for photo in photos]
    answers = theirs(bgr, return_datasamples=True, no_save_vis=True)["predictions"]
    return [answer.pred_instances.numpy() for answer in answers]


@pytest.mark.parametrize("name", own_configs.CONFIGS)
def test_boxes_and_masks_are_those_of_mmdetection(name: str, folder: Path, photos: list[np.ndarray]) -> None:
    spec, checkpoint = made(name, folder)
    detector = loaded(spec, checkpoint)
    found = detector.detect(photos, batch_size=2)
    assert detector.path == ("batched" if name in own_configs.BATCHED else "mmdetection")
    matched = total = 0
    for photo, ours, theirs in zip(photos, found, inferred(name, folder, photos), strict=True):
        height, width = photo.shape[:2]
        boxes = np.clip(theirs.bboxes, 0, [width, height, width, height])
        for row in np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1)):
            near = (np.abs(ours.boxes - boxes[row]).max(1) <= 1) & (np.abs(ours.scores - theirs.scores[row]) <= 0.01)
            near &= ours.categories == theirs.labels[row] + 1
            total += 1
            if near.any() and ours.masks is not None:
                mask = coco_mask.decode(ours.masks[int(near.argmax())])
                near &= (mask != theirs.masks[row]).sum() <= 0.01 * max(100, theirs.masks[row].sum())
            matched += bool(near.any())
        assert (ours.masks is not None) == ("mask" in name or "ins" in name)
        assert len(ours) <= len(theirs.bboxes)
    assert total >= 10 * len(photos) and matched >= 0.99 * total, f"{matched} of {total}"


def test_a_photo_does_not_depend_on_those_with_it(folder: Path, photos: list[np.ndarray]) -> None:
    for name in ("yolox", "deformable-detr", "mask-rcnn"):
        ours = loaded(*made(name, folder))
        together, alone = ours.detect(photos, batch_size=4), [ours.detect([photo])[0] for photo in photos]
        for a, b in zip(together, alone, strict=True):
            assert len(a) == len(b) > 0
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["faster-rcnn", "fcos", "deformable-detr"])
def test_classes_that_are_left_out_take_no_place(name: str, folder: Path, photos: list[np.ndarray]) -> None:
    """The second class alone, as category 7: its boxes with the rest of the answer, and others that had no place."""
    spec, checkpoint = made(name, folder)
    every = loaded(spec, checkpoint).detect(photos[:2])
    ours = loaded(spec, checkpoint, category_ids=[0, 7, 0]).detect(photos[:2])
    more = 0
    for whole, part in zip(every, ours, strict=True):
        want = whole.scores[whole.categories == 2]
        assert set(part.categories) == {7}
        np.testing.assert_allclose(part.scores[: len(want)], want, atol=1e-5)
        more += len(part) - len(want)
    assert more > 0


def test_limits_cut_what_the_configuration_leaves(folder: Path, photos: list[np.ndarray]) -> None:
    spec, checkpoint = made("fcos", folder)
    whole, few = loaded(spec, checkpoint).detect(photos[:1])[0], loaded(spec, checkpoint, max_per_image=3)
    assert len(whole) == 100  # of the configuration's test_cfg
    np.testing.assert_allclose(few.detect(photos[:1])[0].scores, whole.scores[:3], atol=1e-5)
    strict = loaded(spec, checkpoint, score_threshold=float(whole.scores[5])).detect(photos[:1])[0]
    assert 5 <= len(strict) <= 7


def test_the_mirrored_view_finds_the_same_in_a_mirrored_photo(folder: Path, photos: list[np.ndarray]) -> None:
    spec, checkpoint = made("mask-rcnn", folder)
    plain = loaded(spec, checkpoint)
    flipped = plain.view(models.viewed(spec, "flip"))
    assert flipped.model is plain.model and flipped.spec.name == "mask-rcnn@flip"
    mirrored = np.ascontiguousarray(photos[0][:, ::-1])
    a, b = plain.detect([photos[0]])[0], flipped.detect([mirrored])[0]
    width = photos[0].shape[1]
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_allclose(a.boxes[:, 0], width - b.boxes[:, 2], atol=0.01)
    masks = [coco_mask.decode(found.masks[0]) for found in (a, b)]
    assert (masks[0] != masks[1][:, ::-1]).sum() <= 2


def test_a_smaller_view_sees_smaller_photos(folder: Path, photos: list[np.ndarray]) -> None:
    spec, checkpoint = made("rtmdet", folder)
    half = loaded(models.viewed(spec, "0.5"), checkpoint)
    assert half._prepare(photos[0])["inputs"].shape == (3, 128, 128)  # its Pad to a fixed size follows
    assert len(half.detect(photos[:1])) == 1


def test_what_is_not_a_photo_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="uint8 photo"):
        loaded(*made("yolox", folder)).detect([np.zeros((5, 5), np.uint8)])


def test_checkpoints_of_another_model_are_told_by_name(folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from networks.weight_files import WeightsError

    spec, checkpoint = made("fcos", folder)
    tensors = torch.load(checkpoint, weights_only=True)["state_dict"]
    key = "bbox_head.conv_cls.weight"
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "missing": ({k: v for k, v in tensors.items() if k != key}, f"{key} is missing; is the checkpoint of this"),
        "unknown": (tensors | {"head.x": torch.zeros(2)}, "head.x is not the model's"),
        "shape": (tensors | {key: torch.zeros(80, 256, 3, 3)}, f"size mismatch for {key}"),
        "nan": (tensors | {key: tensors[key] * torch.nan}, f"{key} is not all finite"),
        "none": ({}, "no tensors by name in it"),
    }
    for name, (wrong, reason) in cases.items():
        torch.save({"state_dict": wrong}, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match=reason):
            loaded(spec, tmp_path / f"{name}.pth")
    with pytest.raises(WeightsError, match="no checkpoint given"):
        own_detector.load(spec, "cpu", weights=None)
    with pytest.raises(WeightsError, match="has sha256"):
        loaded(dataclasses.replace(spec, sha256="0" * 64), checkpoint)
    averaged = {f"module.{k}": v for k, v in tensors.items() if "num_batches_tracked" not in k}
    torch.save({"ema_state_dict": averaged | {"steps": torch.tensor(7)}}, tmp_path / "average.pth")
    save_file(tensors, tmp_path / "same.safetensors")
    photo = drawn_photos(1)
    want = loaded(spec, checkpoint).detect(photo)[0].scores
    for same in ("average.pth", "same.safetensors"):
        np.testing.assert_array_equal(loaded(spec, tmp_path / same).detect(photo)[0].scores, want)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "NoSuchDetector"}, "NoSuchDetector is not in the"),
        ({"neck": {"type": "FPN", "in_channels": 64, "out_channels": 256, "num_outs": 5}}, "AssertionError"),
    ],
)
def test_a_model_that_cannot_be_built_is_told_in_one_line(change: dict[str, Any], reason: str, folder: Path) -> None:
    from networks.weight_files import WeightsError

    spec, checkpoint = made("fcos", folder)
    with pytest.raises(WeightsError, match=f"fcos: building the model of .*{reason}"):
        loaded(dataclasses.replace(spec, model={**spec.model, **change}), checkpoint)
