"""Crops from memory against the crop rule, batches, freezing, averaging and the held-out measure."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.crops import crop
from retrieval.models import LITE0_SG
from retrieval.training import Average, Cached, Garments, cache, canvas_side, freeze, held_out_accuracy

SPEC = dataclasses.replace(LITE0_SG, input_size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def smooth_photo(height: int = 120, width: int = 90) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 2, (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


def one(shade: int, identity: tuple[int, int, int] | None, shop: bool, held_out: bool = False) -> Cached:
    photo = np.full((50, 50, 3), shade, np.uint8)
    return cache(photo, np.array([5, 5, 45, 45]), SPEC.input_size, identity=identity, shop=shop, held_out=held_out)


@pytest.mark.parametrize("box", [
    (10, 20, 50, 100),    # tall, inside
    (0, 0, 90, 40),       # wide, at the photo's edges
    (60, 80, 90, 120),    # in the corner
    (40, 40, 52, 52),     # smaller than the crop
])  # fmt: skip
def test_without_augmentation_a_cached_crop_is_the_crop_rules(box):
    photo = smooth_photo()
    garments = Garments([cache(photo, np.array(box), 40, identity=None, shop=True, held_out=False)], SPEC)
    got = garments.images(np.array([0]))[0].permute(1, 2, 0).numpy()
    want = crop(photo, np.array([box]), 40)[0].astype(np.float32)
    inner = np.s_[3:-3, 3:-3]
    white = (want == 255).all(axis=-1)
    assert np.abs((got == 255).all(axis=-1).mean() - white.mean()) < 0.05
    both = ~white & ~(got == 255).all(axis=-1)
    assert np.abs(got - want)[inner][both[inner]].max() < 5  # a ramp, sampled twice


def test_augmented_crops_differ_and_follow_the_seed():
    garments = Garments(
        [cache(smooth_photo(), np.array([10, 20, 60, 100]), 40, identity=None, shop=True, held_out=False)], SPEC
    )
    a, again, b = (garments.images(np.array([0, 0]), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, again) and not torch.equal(a, b) and not torch.equal(a[0], a[1])
    assert a.shape == (2, 3, 40, 40) and a.min() >= 0 and a.max() <= 255


def test_batches_mix_consumer_and_shop_of_each_identity():
    items = [
        one(i, (0, 1 + i // 3, 1), shop=i % 3 > 0) for i in range(30)
    ]  # ten garments: a consumer's and two shop photos
    items += [one(99, None, shop=True), one(98, (0, 50, 1), shop=True)]  # unknown; without relatives
    garments = Garments(items, SPEC)
    assert len(garments.classes) == 10
    rows, classes = garments.batch(4, 4, np.random.default_rng(0))
    assert rows.shape == classes.shape == (16,)
    for start in range(0, 16, 4):
        members = rows[start : start + 4]
        assert len(set(classes[start : start + 4])) == len(set(garments.identity[members])) == 1
        assert garments.shop[members].sum() == 2
        assert len(set(members[garments.shop[members]])) == 2  # both shop photos before one comes twice
    assert len(set(classes)) == 4


def test_held_out_garments_are_never_in_a_batch():
    items = [one(i, (0, 1 + i // 2, 1), shop=i % 2 > 0, held_out=i < 4) for i in range(12)]
    garments = Garments(items, SPEC)
    rows = np.concatenate([garments.batch(4, 2, np.random.default_rng(seed))[0] for seed in range(20)])
    assert sorted(set(rows.tolist())) == list(range(4, 12))


def test_a_cached_canvas_has_one_size_whatever_the_box():
    for box in ((0, 0, 90, 120), (0, 0, 3, 120), (50, 50, 51, 51)):
        item = cache(smooth_photo(), np.array(box), 40, identity=None, shop=True, held_out=False)
        assert item.canvas.shape == (canvas_side(40), canvas_side(40), 3)
        assert (
            0 <= item.box[0] < item.box[2] <= item.extent[0] + 1e-6
            and 0 <= item.box[1] < item.box[3] <= item.extent[1] + 1e-6
        )


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
    figures = held_out_accuracy(ByShade(), Garments(gallery + queries, SPEC), ks=(1, 2))
    assert figures == {"acc@1": want_1, "acc@2": want_2, "queries": 2}


def test_nothing_held_out_measures_nothing():
    figures = held_out_accuracy(ByShade(), Garments([one(1, (0, 1, 1), True), one(1, (0, 1, 1), False)], SPEC))
    assert figures["queries"] == 0 and math.isnan(figures["acc@1"])


@pytest.mark.parametrize("timm_id, n, first_that_learns", [
    ("tf_efficientnet_lite0", 2, "body.blocks.2.0.conv_pw.weight"),
    ("tf_efficientnet_lite0", 0, "body.conv_stem.weight"),
    ("resnet18", 1, "body.layer2.0.conv1.weight"),
    ("convnext_atto", 2, "body.stages_2.downsample.0.weight"),
])  # fmt: skip
def test_freezing_stops_the_first_stages(timm_id, n, first_that_learns):
    from retrieval.cgd import fine_map

    backbone = fine_map(timm_id)
    freeze(backbone, n)
    assert next(name for name, p in backbone.named_parameters() if p.requires_grad) == first_that_learns


def test_the_average_follows_its_formula():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model, decay=0.5)
    model.weight.data.fill_(1.0)
    average.update(model)
    first = 1 - 2 / 11  # decay min(0.5, (1 + 1) / (10 + 1))
    assert average.tensors["weight"].item() == pytest.approx(first)
    average.update(model)
    assert average.tensors["weight"].item() == pytest.approx(1 - (1 - first) * 3 / 12)
