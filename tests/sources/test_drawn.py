"""The drawn data set keeps its promises: same bytes, true boxes, a shop picture for every consumer garment."""

from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.drawn import source as drawn
from store.decode import decode
from store.imageset import Photo

USERS, SHOPS, SEED, SIZE = 60, 120, 11, 192


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return list(drawn.read(USERS, SHOPS, SEED, SIZE))


def unmatched(photos: list[Photo]) -> list[tuple[int, int]]:
    """(pair_id, style) of the consumer garments that no shop picture shows."""
    sold = {(p.pair_id, item.style) for p in photos if p.source == "shop" for item in p.items}
    return [
        (p.pair_id, i.style) for p in photos if p.source == "user" for i in p.items if (p.pair_id, i.style) not in sold
    ]


def test_ids_sources_and_sizes(photos):
    assert [p.image_id for p in photos] == list(range(1, USERS + SHOPS + 1))
    assert [p.source for p in photos] == ["user"] * USERS + ["shop"] * SHOPS
    for p in photos:
        assert decode(p.image).shape == (p.height, p.width, 3)
        assert max(p.width, p.height) == SIZE
        assert p.image[:2] == b"\xff\xd8" and p.file_name == f"{p.image_id:06d}.jpg"


def test_same_arguments_give_the_same_bytes(photos):
    assert list(islice(drawn.read(USERS, SHOPS, SEED, SIZE), USERS + 6)) == photos[: USERS + 6]
    assert next(iter(drawn.read(1, 1, SEED + 1, SIZE))).image != photos[0].image


def test_a_picture_does_not_depend_on_those_before_it_nor_a_consumer_photo_on_the_counts(photos):
    plan = drawn.LookPlan(USERS, SHOPS)
    assert drawn.consumer(plan, 17, SEED, SIZE) == photos[17]
    assert drawn.shop(plan, 33, SEED, SIZE) == photos[USERS + 33]
    assert list(drawn.read(5, 0, SEED, SIZE)) == photos[:5]


def test_consumers_and_shops_drawn_apart_go_together():
    consumers, shops = list(drawn.read(8, 0, SEED, SIZE)), list(drawn.read(0, 6, SEED, SIZE))
    assert {photo.source for photo in consumers} == {"user"} and {photo.source for photo in shops} == {"shop"}
    assert [photo.image_id - drawn.SHOPS_ALONE for photo in shops] == [1, 2, 3, 4, 5, 6]
    assert [photo.pair_id for photo in shops] == [1, 2, 3, 4, 5, 6] == sorted({photo.pair_id for photo in consumers})
    missing = unmatched(consumers + shops)
    assert len(missing) < sum(len(photo.items) for photo in consumers)


def test_more_shop_pictures_with_as_many_views_keep_the_earlier_ones(photos):
    plan, more = drawn.LookPlan(USERS, SHOPS), drawn.LookPlan(USERS, SHOPS + 4)  # 45 looks: 2 views of each, both times
    assert more.views == plan.views == 2
    for index in (0, 44, 45, 89, 90, 119):
        assert drawn.shop(more, index, SEED, SIZE) == photos[USERS + index]


def test_all_categories_occur_on_both_sides(photos):
    for source in ("user", "shop"):
        assert {item.category_id for p in photos if p.source == source for item in p.items} == set(range(1, 14))
    assert all(p.items for p in photos if p.source == "shop")
    assert np.mean([len(p.items) for p in photos if p.source == "user"]) > 1.4  # several garments a photo


def test_boxes_lie_in_the_picture_tight_around_their_polygons(photos):
    for p in photos:
        for item in p.items:
            x1, y1, x2, y2 = item.bbox
            assert 0 <= x1 < x2 <= p.width and 0 <= y1 < y2 <= p.height
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in item.segmentation])
            slack = np.abs(np.concatenate([points.min(0) - (x1, y1), (x2, y2) - points.max(0)]))
            assert slack.max() <= 0.5 + 0.8  # half a pixel, and the simplification


def test_boxes_are_those_of_the_visible_pixels():
    """Oracle: paint one square garment by hand, cover its left third, and ask for the truth."""
    canvas = drawn.Canvas(np.zeros((100, 80, 3), np.uint8), np.eye(2, 3), np.random.default_rng(0))
    garment = drawn.garment(1, np.random.default_rng(0))
    canvas.owner[20:60, 10:40] = 1
    canvas.whole[1] = canvas.owner == 1
    canvas.owner[20:60, 10:20] = 255
    (item,) = drawn._items(canvas, {1: garment}, {1: 2})
    assert item.bbox == (20, 20, 40, 60)
    assert (item.scale, item.occlusion, item.zoom_in, item.viewpoint) == (
        2,
        2,
        1,
        2,
    )  # 10 % of the picture, 1/3 covered
    assert np.reshape(item.segmentation[0], (-1, 2)).min(0).tolist() == [20.5, 20.5]


def test_attributes_vary_and_follow_the_rule(photos):
    items = [(p, item) for p in photos for item in p.items]
    assert {item.scale for _, item in items} == {1, 2, 3} == {item.occlusion for _, item in items}
    assert {item.zoom_in for _, item in items} >= {1, 2}
    assert {item.viewpoint for p, item in items if p.source == "user"} == {2}
    assert {item.viewpoint for p, item in items if p.source == "shop"} == {1, 2}
    for p, item in items:
        x1, y1, x2, y2 = item.bbox
        share = (x2 - x1) * (y2 - y1) / (p.width * p.height)
        assert item.scale == 1 + (share >= 0.1) + (share >= 0.4)


@pytest.mark.parametrize("users, shops", [(20, 20), (20, 40), (20, 75), (5, 40), (1, 1)])
def test_every_consumer_garment_has_a_shop_picture(users, shops):
    rows = list(drawn.read(users, shops, 5, 128))
    assert unmatched(rows) == []
    assert all(item.style >= 1 for p in rows for item in p.items)


@given(users=st.integers(0, 10**6), shops=st.integers(0, 10**7), share=st.floats(0, 1, exclude_max=True))
def test_the_plan_covers_looks_before_it_adds_distractors(users, shops, share):
    plan = drawn.LookPlan(users, shops)
    assert users * 3 / 4 - 1 < plan.looks <= users and plan.views <= drawn.VIEWS
    if shops:
        pair, view = plan.shop_look(int(share * shops))
        assert (view is None) == (pair > plan.looks)
    if 0 < plan.looks <= shops:
        first = [plan.shop_look(i) for i in range(min(plan.looks, 50))]
        assert first == [(i + 1, 0) for i in range(len(first))]


@pytest.mark.parametrize(
    "arguments, told",
    [
        ((-1, 2, 0), "users is -1"),
        ((1, -2, 0), "shops is -2"),
        ((1, 1, -3), "seed is -3"),
        ((1, 1, 0, 20), "size_px is 20"),
    ],
)
def test_impossible_arguments_are_refused_at_once(arguments, told):
    with pytest.raises(ValueError, match=told):
        drawn.read(*arguments)


def test_the_smallest_pictures_are_drawn_too():
    assert all(max(p.width, p.height) == 64 for p in drawn.read(40, 40, 1, 64))


def test_zero_pictures():
    with pytest.raises(ValueError, match="0 users and 0 shops; want one of them above 0"):
        drawn.read(0, 0, 0)
    assert [p.source for p in drawn.read(0, 2, 0, 96)] == ["shop", "shop"]


def test_colour_alone_helps_but_does_not_solve_it(photos):
    """Top-1 and top-10 of colour histograms on true boxes, any category: over chance, well below 1."""
    rows = [(p, item, _histogram(p, item.bbox)) for p in photos for item in p.items]
    queries = [row for row in rows if row[0].source == "user"]
    gallery = [row for row in rows if row[0].source == "shop"]
    similarity = np.array([q[2] for q in queries]) @ np.array([g[2] for g in gallery]).T
    right = np.array([[(q[0].pair_id, q[1].style) == (g[0].pair_id, g[1].style) for g in gallery] for q in queries])
    ranked = np.take_along_axis(right, np.argsort(-similarity, axis=1, kind="stable"), axis=1)
    top1, top10, chance10 = ranked[:, 0].mean(), ranked[:, :10].any(1).mean(), 1 - np.mean((1 - right.mean(1)) ** 10)
    print(
        f"{len(queries)} queries, {len(gallery)} in shops: top-1 {top1:.3f}, top-10 {top10:.3f}, chance {chance10:.3f}"
    )
    assert top10 > 2 * chance10
    assert top1 < 0.6 and top10 < 0.9


def _histogram(photo: Photo, bbox: tuple[float, ...]) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in bbox)
    counts = cv2.calcHist([decode(photo.image)[y1:y2, x1:x2]], [0, 1, 2], None, [4, 4, 4], [0, 256] * 3).ravel()
    return np.sqrt(counts / counts.sum())
