"""Garments in memory: crops follow the crop rule, augmentation the seed; batches pair consumer with shop."""

import dataclasses

import numpy as np
import pytest
import torch

from retrieval.crops import crop
from retrieval.training_crops import Augmentation, Garments, canvas_side, packed
from tests.retrieval.cached import SPEC, cached, chance, one, smooth_photo


@pytest.mark.parametrize("box", [
    (10, 20, 50, 100),    # tall, inside
    (0, 0, 90, 40),       # wide, at the photo's edges
    (60, 80, 90, 120),    # in the corner
    (40, 40, 52, 52),     # smaller than the crop
])  # fmt: skip
def test_without_augmentation_a_cached_crop_is_the_crop_rules(box):
    photo = smooth_photo()
    garments = Garments([cached(photo, box)], SPEC)
    got = garments.images(np.array([0]))[0].permute(1, 2, 0).numpy()
    want = crop(photo, np.array([box]), 40)[0].astype(np.float32)
    inner = np.s_[3:-3, 3:-3]
    white = (want == 255).all(axis=-1)
    assert np.abs((got == 255).all(axis=-1).mean() - white.mean()) < 0.05
    both = ~white & ~(got == 255).all(axis=-1)
    assert np.abs(got - want)[inner][both[inner]].max() < 5  # a ramp, sampled twice


def test_augmented_crops_differ_and_follow_the_seed():
    garments = Garments([cached(smooth_photo(), (10, 20, 60, 100))], SPEC)
    a, again, b = (garments.images(np.array([0, 0]), chance(2, seed)) for seed in (1, 1, 2))
    assert torch.equal(a, again) and not torch.equal(a, b) and not torch.equal(a[0], a[1])
    assert a.shape == (2, 3, 40, 40) and a.min() >= 0 and a.max() <= 255


def test_a_crop_is_changed_alike_in_any_company():
    garments = Garments([cached(smooth_photo(), (10, 20, 60, 100)), cached(smooth_photo(), (0, 0, 90, 60))], SPEC)
    u = chance(4, 3)
    whole = garments.images(np.array([0, 1, 1, 0]), u)
    torch.testing.assert_close(garments.images(np.array([1, 0]), u[2:]), whole[2:])


def test_nothing_changes_when_every_part_is_off():
    still = Augmentation(jitter=0, turn=0, flip=0, light=0, colour=0, erase=0)
    garments = Garments([cached(smooth_photo(), (10, 20, 60, 100))], SPEC, still)
    torch.testing.assert_close(garments.images(np.array([0]), chance(1, 0)), garments.images(np.array([0])))


def test_something_is_erased_on_every_crop_when_asked():
    hidden = Augmentation(jitter=0, turn=0, flip=0, light=0, colour=0, erase=1)
    garments = Garments([one(100, None, True)], SPEC, hidden)
    changed = (garments.images(np.zeros(20, int), chance(20, 0)) - garments.images(np.zeros(20, int))).abs().amax(
        1
    ) > 0.5
    shares = changed.float().mean((1, 2))
    assert shares.min() > 0.15**2 * 0.8 and shares.max() < 0.45**2 * 1.2


@pytest.mark.parametrize("wrong", [{"jitter": 0.2}, {"erase": 1.5}, {"flip": -0.1}])
def test_impossible_changes_are_refused(wrong):
    with pytest.raises(ValueError, match="augmentation: want"):
        Augmentation(**wrong)


def test_a_canvas_as_jpeg_is_nearly_the_same():
    plain = cached(smooth_photo(), (10, 20, 60, 100))
    small = dataclasses.replace(plain, canvas=packed(plain.canvas))
    a, b = (Garments([item], SPEC).images(np.array([0])) for item in (plain, small))
    assert small.canvas.nbytes < plain.canvas.nbytes / 2 and (a - b).abs().mean() < 2


def test_a_heavier_set_is_drawn_more_often():
    items = [one(i, (i % 2, 1 + i // 4, 1), shop=i % 4 > 1, weight=(1.0, 3.0)[i % 2]) for i in range(80)]
    garments = Garments(items, SPEC)
    drawn = np.concatenate([garments.batch(2, 2, np.random.default_rng((7, seed)))[0] for seed in range(2000)])
    assert 2.7 < (drawn % 2 == 1).sum() / (drawn % 2 == 0).sum() < 3.3


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


@pytest.mark.parametrize("share, n", [(1.0, 10), (0.5, 5), (0.25, 2), (0.01, 0)])
def test_a_share_of_the_identities_is_learnt_from_and_the_others_stay_in_the_gallery(share, n):
    items = [one(i, (0, 1 + i // 2, 1), shop=i % 2 > 0) for i in range(20)]
    garments = Garments(items, SPEC, share=share)
    assert len(garments.classes) == n and len(garments) == 20
    whole = Garments(items, SPEC).classes
    assert all(any(np.array_equal(rows, one) for one in whole) for rows in garments.classes)


def test_a_cached_canvas_has_one_size_whatever_the_box():
    for box in ((0, 0, 90, 120), (0, 0, 3, 120), (50, 50, 51, 51)):
        item = cached(smooth_photo(), box)
        assert item.canvas.shape == (canvas_side(40), canvas_side(40), 3)
        assert (
            0 <= item.box[0] < item.box[2] <= item.extent[0] + 1e-6
            and 0 <= item.box[1] < item.box[3] <= item.extent[1] + 1e-6
        )
