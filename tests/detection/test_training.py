"""A detector learns: losses are finite and fall, parts of a batch add up, other weights are taken where they fit."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection import detector, held_out, models, training
from detection.training import DetectorLearner, InitError
from detection.training_photos import Batches, PhotoAugmentation, Photos, Sample, blank
from networks import checkpoints
from store.imageset import Photo
from tests.marks import first_is_fast

CPU = torch.device("cpu")


def a_sample(height: int = 100, width: int = 60) -> Sample:
    """Black, with one red rectangle at x 10-30, y 20-60 and a box and outline around exactly that."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:60, 10:30, 0] = 255
    box = np.array([[10, 20, 30, 60]], np.float32)
    outline = [[np.array([10, 20, 30, 20, 30, 60, 10, 60], np.float32)]]
    return Sample(image, box, np.array([3]), outline)


def learner(spec: models.DetectorSpec, **more: Any) -> DetectorLearner:
    model = detector.build(spec)
    training.freeze(model)
    return DetectorLearner(model, spec, **{"rate": 1e-3, "weight_decay": 0.0, **more})


@pytest.mark.parametrize("spec", first_is_fast(models.PROFILES["tiny"]), ids=lambda spec: spec.name)
def test_every_architecture_has_a_finite_loss_and_learns(spec: models.DetectorSpec) -> None:
    one = learner(spec)
    batches = Batches(
        Photos.of([a_sample(128, 96)] * 2, spec), spec, 2, seed=0, augmentation=PhotoAugmentation(zoom=(1.0, 1.0))
    )
    seen = []
    for step in range(8):
        photos, shape = batches[step]
        seen.append(one.gradients(photos, shape, seed=step)["loss"])
        one.update(1.0)
    assert np.isfinite(seen).all() and np.mean(seen[-2:]) < np.mean(seen[:2])
    backbone: Any = one.model.backbone
    assert all(p.grad is None for p in backbone.conv_stem.parameters())
    assert ("s2.loss_mask" in one.gradients(photos, shape, seed=0)) == ("mask" in spec.name)


@pytest.mark.parametrize("spec", first_is_fast(models.PROFILES["tiny"]), ids=lambda spec: spec.name)
def test_a_batch_without_garments_and_bfloat16_do_no_harm(spec: models.DetectorSpec) -> None:
    one = learner(spec, precision="bf16")
    for samples in ([blank((128, 96))] * 2, [a_sample(128, 96), blank((128, 96))]):
        figures = one.gradients(samples, (128, 96), seed=0)
        assert np.isfinite(list(figures.values())).all()
        assert all(torch.isfinite(p.grad).all() for p in one.model.parameters() if p.grad is not None)
        one.update(1.0)


def test_bfloat16_is_near_single_precision_and_its_boxes_are_not_rounded() -> None:
    images = [a_sample(128, 96)] * 2
    exact, rough = (
        learner(models.RETINANET_LITE0_TINY, precision=p).gradients(images, (128, 96), seed=0) for p in ("fp32", "bf16")
    )
    assert exact != rough and rough["loss"] == pytest.approx(exact["loss"], rel=0.03)

    one = learner(models.CENTERNET_TINY, precision="bf16")
    model: Any = one.model
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.bbox_head(model.extract_feat(torch.zeros(1, 3, 64, 64)))
    assert {m.dtype for kind in maps for m in kind} == {torch.float32}


def test_parts_of_a_batch_give_the_mean_of_their_gradients() -> None:
    """CenterNet normalises by the garments of a part: with one in each photo, halves add up to the whole."""
    spec = models.CENTERNET_TINY
    samples = [a_sample(128, 96), a_sample(128, 96)]
    samples[1].image[:] = 255 - samples[1].image
    grads = []
    for accumulate in (1, 2):
        one = learner(spec)
        one.gradients(samples, (128, 96), seed=0, accumulate=accumulate)
        grads.append(torch.cat([p.grad.reshape(-1) for p in one.model.parameters() if p.grad is not None]))
    assert (grads[1] - grads[0]).norm() < 1e-4 * grads[0].norm()


def test_averaged_weights_lag_behind_and_without_decay_they_do_not() -> None:
    for decay in (0.9, 0.0):
        one = learner(models.CENTERNET_TINY, ema_decay=decay)
        name, before = next(
            (n, p.detach().clone()) for n, p in one.model.named_parameters() if n.startswith("bbox_head")
        )
        for step in range(2):
            one.gradients([a_sample(128, 96)] * 2, (128, 96), seed=step)
            one.update(1.0)
        now, kept = one.model.state_dict()[name], one.average.tensors[name]
        assert torch.equal(now, kept) == (decay == 0) and not torch.equal(kept, before)


def test_a_learner_goes_on_from_its_state_to_the_bit() -> None:
    def steps(one: DetectorLearner, numbers: range) -> dict[str, torch.Tensor]:
        for step in numbers:
            one.gradients([a_sample(128, 96)] * 2, (128, 96), seed=step)
            one.update(0.5)
        return one.average.tensors

    straight = steps(learner(models.ATSS_TINY), range(4))
    first = learner(models.ATSS_TINY)
    steps(first, range(2))
    second = learner(models.ATSS_TINY)
    second.load({**first.state(), "step": 2})
    assert all(torch.equal(straight[name], tensor) for name, tensor in steps(second, range(2, 4)).items())


# ------------------------------------------------------------------------------------------------ other weights


def test_tensors_of_like_name_and_shape_are_taken_over() -> None:
    giver, taker = detector.build(models.ATSS_TINY), detector.build(models.RETINANET_LITE0_TINY)
    tensors = {key: torch.full_like(value, 0.5) for key, value in giver.state_dict().items()}
    taken, whole = training.take_matching(taker, tensors)
    own = taker.state_dict()
    assert 100 < taken < whole == len(own)
    assert (own["backbone.blocks.5.0.conv_pw.weight"] == 0.5).all()
    assert (own["bbox_head.cls_convs.0.conv.weight"] == 0.5).all()
    assert not (own["bbox_head.retina_cls.weight"] == 0.5).any()


def coco(spec: models.DetectorSpec, n_classes: int = 80) -> models.DetectorSpec:
    """The same detector for COCO's classes, as mmdetection publishes it."""
    head = {**spec.model["bbox_head"], "num_classes": n_classes}
    return dataclasses.replace(spec, model={**spec.model, "bbox_head": head})


def test_a_coco_checkpoint_of_mmdetection_leaves_its_classifier_behind(tmp_path: Path) -> None:
    theirs = detector.build(coco(models.RETINANET_LITE0_TINY)).state_dict()
    theirs = {key: torch.full_like(value, 0.25) for key, value in theirs.items()}
    torch.save({"meta": {"epoch": 12, "CLASSES": ("person",)}, "state_dict": theirs}, tmp_path / "retinanet_coco.pth")
    model = detector.build(models.RETINANET_LITE0_TINY)
    taken, whole = training.take_matching(model, checkpoints.read(tmp_path / "retinanet_coco.pth", model="own"))
    assert taken == whole - 2  # weight and bias of retina_cls
    assert (model.state_dict()["bbox_head.retina_reg.weight"] == 0.25).all()
    assert not (model.state_dict()["bbox_head.retina_cls.weight"] == 0.25).any()


def test_an_imagenet_classifier_fills_the_backbone(tmp_path: Path) -> None:
    import torchvision

    theirs = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    model = detector.build(models.CENTERNET_R18)
    taken, _ = training.take_matching(model, checkpoints.read(tmp_path / "resnet18.pth", model="own"))
    assert taken == len(theirs) - 2  # all but fc.weight and fc.bias
    assert torch.equal(model.state_dict()["backbone.layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])


def test_timm_s_own_names_fill_the_tiny_backbone(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from networks import efficientnet_lite

    published = efficientnet_lite.state_dict("tf_efficientnet_lite0")
    save_file({name: tensor.contiguous() for name, tensor in published.items()}, tmp_path / "lite0.safetensors")
    model = detector.build(models.ATSS_TINY)
    taken, _ = training.take_matching(model, checkpoints.read(tmp_path / "lite0.safetensors", model="own"))
    assert taken == sum(name.startswith("backbone.") for name in model.state_dict())


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ({"epoch": 3}, "no tensors by name"),
        ({"state_dict": {}, "hook": Malice()}, "holds more than tensors"),
    ],
)
def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, content: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(InitError, match=reason):
        training.start_from(torch.nn.Linear(1, 1), models.ATSS_TINY, path)
    assert "executed" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(InitError, match=r"none of its 1 tensors fits .* begins with stages\.0\.weight"):
        training.take_matching(detector.build(models.ATSS_TINY), {"stages.0.weight": torch.zeros(3, 3)})


# ---- slow: to the end, and at the paper's size ------------------------------------------------------------------


def handful(spec: models.DetectorSpec) -> list[Sample]:
    """Six synthetic images: 11 garments of 5 categories, no two centres in one cell of 8 pixels."""
    from detection.training_photos import sample
    from sources.drawn import source
    from store.decode import decode

    rows = [row for row in source.read(users=3, shops=3, seed=6, size_px=160) if isinstance(row, Photo)]
    return [sample(decode(row.image), [vars(item) for item in row.items], spec) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("spec", models.PROFILES["tiny"], ids=lambda spec: spec.name)
def test_every_architecture_overfits_a_handful_of_pictures(spec: models.DetectorSpec) -> None:
    """40 steps of the same six pictures, backbone from ImageNet; the averaged float16 weights find all garments."""
    from jobs.training.run import rate_share, shipped

    spec, steps = dataclasses.replace(spec, scale_px=(160, 160)), 40
    samples = handful(spec)
    model = detector.build(spec, pretrained_backbone=True)
    training.freeze(model)
    one = DetectorLearner(model.to(memory_format=torch.channels_last), spec, rate=2e-3, weight_decay=0.0)  # type: ignore[call-overload]
    for step in range(steps):
        one.gradients(samples, (160, 160), seed=step)
        one.update(rate_share(step, steps, warm_up=10))
    judged = held_out.detect(shipped(one.average.tensors), spec, Photos.of(samples, spec), device="cpu")
    figures: Any = held_out.figures_of(judged)
    assert figures["images"] == 6 and figures["AP50"] > 0.9
    assert ("mask_AP50" in figures) == ("mask" in spec.name) and figures.get("mask_AP50", 1.0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("spec", models.PROFILES["paper"], ids=lambda spec: spec.name)
def test_a_step_of_every_detector_of_the_paper_s_size_moves_backbone_neck_and_head(spec: models.DetectorSpec) -> None:
    model = detector.build(spec)
    training.freeze(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = DetectorLearner(model, spec, rate=1e-4)
    figures = one.gradients([a_sample(128, 96)], (128, 96), seed=0)
    one.update(1.0)
    assert np.isfinite(list(figures.values())).all()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    for part in ("backbone.layer4.", "neck.", "roi_head.mask_head." if "mask" in spec.name else "bbox_head."):
        assert any(name.startswith(part) for name in moved), part
    still = {name for name in before if name.endswith("running_mean")} - moved
    trains_norm = spec.name == "centernet_r18-dcnv2"  # as mmdetection trains it: BatchNorm learns, no stage is frozen
    assert bool(still) != trains_norm and ("backbone.conv1.weight" in moved) == trains_norm


# ------------------------------------------------------------------------------------------------ other categories


@pytest.mark.parametrize("names, anew", [
    (("cape", "kilt"), 0),          # the same: all of the network is taken
    (("kilt", "cape"), 2),          # as many others: they fit by shape, and would tell apart the wrong ones
    (("cape", "kilt", "hood"), 2),  # more of them
])  # fmt: skip
def test_what_tells_other_categories_apart_starts_anew(tmp_path: Path, names: tuple[str, ...], anew: int) -> None:
    from safetensors.torch import save_file

    from networks.weight_header import metadata_of

    theirs = models.with_categories(models.RETINANET_LITE0_TINY, ("cape", "kilt"))
    tensors = {key: torch.full_like(value, 0.25) for key, value in detector.build(theirs).state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata_of(theirs.categories))
    spec = models.with_categories(models.RETINANET_LITE0_TINY, names)
    model = detector.build(spec)
    taken, whole, started = training.start_from(model, spec, tmp_path / "theirs.safetensors")
    assert (whole - taken, started) == (anew, anew)
    own = model.state_dict()
    assert (own["bbox_head.retina_reg.weight"] == 0.25).all()
    assert (own["bbox_head.retina_cls.bias"] == 0.25).all() == (not anew)


def test_weights_without_names_are_of_deepfashion2(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = detector.build(models.RETINANET_LITE0_TINY).state_dict()
    save_file(theirs, tmp_path / "theirs.safetensors")
    renamed = models.with_categories(models.RETINANET_LITE0_TINY, [f"c{i}" for i in range(13)])
    for spec, anew in ((models.RETINANET_LITE0_TINY, 0), (renamed, 2)):
        assert training.start_from(detector.build(spec), spec, tmp_path / "theirs.safetensors")[2] == anew
