"""What the network is shown: boxes must move with their pixels, and a step must be a function of seed and number."""

import numpy as np
import pytest

from detection import models, training
from detection.models import ATSS_TINY


def a_sample(height: int = 100, width: int = 60) -> training.Sample:
    """Black, with one red rectangle at x 10-30, y 20-60 and a box and outline around exactly that."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:60, 10:30, 0] = 255
    box = np.array([[10, 20, 30, 60]], np.float32)
    outline = [[np.array([10, 20, 30, 20, 30, 60, 10, 60], np.float32)]]
    return training.Sample(image, box, np.array([3]), outline)


@pytest.mark.parametrize("seed", range(25))
def test_boxes_move_with_the_pixels(seed: int) -> None:
    seen = training.augment(a_sample(), np.random.default_rng(seed), (128, 96), (0.8, 1.25))
    assert seen.image.shape == (128, 96, 3) and len(seen.boxes) == 1
    red = seen.image[..., 0].astype(int) - seen.image[..., 1] > 60
    ys, xs = np.nonzero(red)
    around_red = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(seen.boxes[0], around_red, atol=2)
    ring = seen.polygons[0][0].reshape(-1, 2)
    np.testing.assert_allclose(np.clip([*ring.min(0), *ring.max(0)], 0, [96, 128, 96, 128]), seen.boxes[0], atol=1e-3)


def test_a_box_mostly_off_the_canvas_is_dropped() -> None:
    small_canvas = (40, 30)  # the photo is far larger: most placements cut the garment
    kept = [
        len(training.augment(a_sample(), np.random.default_rng(s), small_canvas, (1.2, 1.2)).boxes) for s in range(40)
    ]
    assert 0 in kept and 1 in kept


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    samples = [a_sample(100, 60), a_sample(90, 90), a_sample(64, 64)]
    one, other = training.Batches(samples, ATSS_TINY, 4, seed=5), training.Batches(samples, ATSS_TINY, 4, seed=5)
    for step in (7, 0, 3):
        (a, shape_a), (b, shape_b) = one[step], other[step]
        assert shape_a == shape_b and all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(one[step][0][0].image, one[step + 1][0][0].image) for step in range(3))


def test_a_batch_holds_photos_of_one_padded_shape() -> None:
    batches = training.Batches([a_sample(100, 60), a_sample(90, 90)], ATSS_TINY, 4, seed=0)
    for step in range(6):
        photos, shape = batches[step]
        assert {p.image.shape[:2] for p in photos} == {shape} and all(
            side % ATSS_TINY.pad_multiple_px == 0 for side in shape
        )


def test_weights_decide_how_often_a_photo_comes() -> None:
    often, never = a_sample(64, 64), a_sample(64, 64)
    never.image[:] = 255
    samples = [
        training.Sample(often.image, often.boxes, often.labels, often.polygons, 1.0),
        training.Sample(never.image, never.boxes, never.labels, never.polygons, 0.0),
    ]
    photos, _ = training.Batches(samples, ATSS_TINY, 16, seed=0)[0]
    assert all(p.image[:, :, 1].mean() < 200 for p in photos)


def test_items_of_a_row_are_scaled_with_the_photo() -> None:
    row = [
        {
            "category_id": 8,
            "bbox": [10.0, 20.0, 110.0, 220.0],
            "segmentation": [[10.0, 20.0, 110.0, 20.0, 110.0, 220.0]],
        }
    ]
    one = training.sample(np.zeros((640, 480, 3), np.uint8), row, ATSS_TINY)  # long side 640 -> 320: half
    np.testing.assert_allclose(one.boxes, [[5, 10, 55, 110]])
    np.testing.assert_allclose(one.polygons[0][0], [5, 10, 55, 10, 55, 110])
    assert one.labels.tolist() == [7] and one.image.shape == (320, 240, 3)


@pytest.mark.parametrize("spec", models.PROFILES["tiny"], ids=lambda spec: spec.name)
def test_every_architecture_has_a_finite_loss_and_learns(spec: models.DetectorSpec) -> None:
    import torch

    from detection import detector

    model = detector.build(spec)
    training.freeze(model)
    model.train()
    optimiser = torch.optim.AdamW(training.parameter_groups(model, 1e-3, 0.3, 0.0))
    samples = [a_sample(128, 96)] * 2
    batches = training.Batches(samples, spec, 2, seed=0, zoom=(1.0, 1.0))
    seen = []
    for step in range(8):
        torch.manual_seed(step)
        photos, shape = batches[step]
        parts = training.losses(model, *training.to_model(photos, shape, spec, torch.device("cpu")))
        loss = torch.stack(list(parts.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
    assert np.isfinite(seen).all() and np.mean(seen[-2:]) < np.mean(seen[:2])
    frozen = [p for p in model.backbone.conv_stem.parameters()]
    assert all(p.grad is None for p in frozen)


def test_tensors_of_like_name_and_shape_are_taken_over() -> None:
    import torch

    from detection import detector

    giver, taker = detector.build(models.ATSS_TINY), detector.build(models.RETINANET_LITE0_TINY)
    tensors = {key: torch.full_like(value, 0.5) for key, value in giver.state_dict().items()}
    taken = training.take_matching(taker, tensors)
    own = taker.state_dict()
    assert taken > 100
    assert (own["backbone.blocks.5.0.conv_pw.weight"] == 0.5).all() and (
        own["bbox_head.cls_convs.0.conv.weight"] == 0.5
    ).all()
    assert not (own["bbox_head.retina_cls.weight"] == 0.5).any()
