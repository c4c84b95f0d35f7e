"""Training photos: boxes and outlines move with their pixels; a photo is a function of seed, step and place."""

import io
import itertools

import numpy as np
import pyarrow as pa
import pytest

from detection import training_photos as photos_of
from detection.models import ATSS_TINY
from detection.training_photos import Batches, PhotoAugmentation, Photos, Sample, augment, copy_paste, mosaic, sample

ZOOM = (0.8, 1.25)


def a_sample(
    height: int = 100,
    width: int = 60,
    *,
    at: tuple[int, int, int, int] = (10, 20, 30, 60),
    label: int = 3,
    channel: int = 0,
) -> Sample:
    """Black, with one rectangle of a colour (red) and a box and outline around exactly that."""
    x1, y1, x2, y2 = at
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2, channel] = 255
    box = np.array([at], np.float32)
    return Sample(image, box, np.array([label]), [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32)]])


def extent(found: np.ndarray) -> list[int]:
    """x1 y1 x2 y2 around the true pixels of a mask."""
    ys, xs = np.nonzero(found)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def reddish(image: np.ndarray) -> np.ndarray:
    return image[..., 0].astype(int) - image[..., 1] > 60


def batches(samples: list[Sample], size: int = 4, seed: int = 0, **changes: object) -> Batches:
    return Batches(Photos.of(samples, ATSS_TINY), ATSS_TINY, size, seed, PhotoAugmentation(**changes))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ one photo


@pytest.mark.parametrize("seed", range(25))
def test_boxes_and_outlines_move_with_the_pixels(seed: int) -> None:
    seen = augment(a_sample(), np.random.default_rng(seed), (128, 96), ZOOM)
    assert seen.image.shape == (128, 96, 3) and len(seen.boxes) == 1
    np.testing.assert_allclose(seen.boxes[0], extent(reddish(seen.image)), atol=2)
    ring = seen.polygons[0][0].reshape(-1, 2)
    np.testing.assert_allclose([*ring.min(0), *ring.max(0)], seen.boxes[0], atol=1e-3)


def test_a_box_mostly_off_the_canvas_is_dropped() -> None:
    small_canvas = (40, 30)  # the photo is far larger: most placements cut the garment
    kept = [len(augment(a_sample(), np.random.default_rng(s), small_canvas, (1.2, 1.2)).boxes) for s in range(40)]
    assert 0 in kept and 1 in kept


def test_items_of_a_row_are_scaled_with_the_photo() -> None:
    row = [
        {
            "category_id": 8,
            "bbox": [10.0, 20.0, 110.0, 220.0],
            "segmentation": [[10.0, 20.0, 110.0, 20.0, 110.0, 220.0]],
        }
    ]
    one = sample(np.zeros((640, 480, 3), np.uint8), row, ATSS_TINY)  # long side 640 -> 320: half
    np.testing.assert_allclose(one.boxes, [[5, 10, 55, 110]])
    np.testing.assert_allclose(one.polygons[0][0], [5, 10, 55, 10, 55, 110])
    assert one.labels.tolist() == [7] and one.image.shape == (320, 240, 3)


# ------------------------------------------------------------------------------------- four photos, two photos


@pytest.mark.parametrize("seed", range(12))
def test_a_mosaic_has_each_box_and_outline_where_its_pixels_are(seed: int) -> None:
    four = [a_sample(label=k) for k in range(4)]
    seen = mosaic(four, np.random.default_rng(seed), (128, 96), (1.0, 1.0))
    assert seen.image.shape == (128, 96, 3) and len(seen.boxes) == len(seen.labels) == len(seen.polygons) > 0
    red = reddish(seen.image)
    for box, rings in zip(seen.boxes, seen.polygons, strict=True):
        x1, y1, x2, y2 = box.round().astype(int)
        assert red[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean() > 0.9
        ring = rings[0].reshape(-1, 2)
        np.testing.assert_allclose([*ring.min(0), *ring.max(0)], box, atol=1e-3)
    covered = np.zeros_like(red)
    for x1, y1, x2, y2 in seen.boxes.round().astype(int):
        covered[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
    assert len(seen.boxes) < 4 or not (red & ~covered).any()  # a garment mostly cut off leaves pixels and no box


def test_a_mosaic_keeps_the_order_of_its_quarters() -> None:
    sizes = [(30, 30)] * 4
    four = [
        Sample(np.full((*size, 3), 60 * k, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
        for k, size in enumerate(sizes)
    ]
    image = mosaic(four, np.random.default_rng(0), (100, 100), (20.0, 20.0)).image.astype(int)  # zoomed in: no grey
    top_left, top_right, bottom_left, bottom_right = image[10, 10], image[10, 90], image[90, 10], image[90, 90]
    assert top_left.mean() < top_right.mean() < bottom_left.mean() < bottom_right.mean()


def pasted(onto: Sample, source: Sample) -> Sample:
    """`copy_paste` of the one garment there is."""
    return copy_paste(onto, source, np.random.default_rng(0))


def test_a_pasted_garment_brings_pixels_box_and_outline() -> None:
    red, green = a_sample(at=(10, 20, 30, 60)), a_sample(at=(35, 5, 55, 15), label=7, channel=1)
    seen = pasted(red, green)
    np.testing.assert_array_equal(seen.boxes, [[10, 20, 30, 60], [35, 5, 55, 15]])
    assert seen.labels.tolist() == [3, 7]
    assert extent(seen.image[..., 1] > 0) == [35, 5, 55, 15] and extent(seen.image[..., 0] > 0) == [10, 20, 30, 60]
    np.testing.assert_array_equal(seen.polygons[1][0], green.polygons[0][0])


@pytest.mark.parametrize(
    ("over", "left"),
    [
        ((0, 40, 60, 70), [10, 20, 30, 40]),  # the lower half hidden: 20 of 40 rows remain
        ((20, 0, 60, 100), [10, 20, 20, 60]),  # the right half
        ((0, 30, 60, 70), None),  # three quarters hidden: 10 of 40 rows are less than 40 %
        ((31, 20, 50, 60), [10, 20, 30, 60]),  # beside it
        ((15, 30, 25, 50), [10, 20, 30, 60]),  # in its middle: the box stays, the outline gets a hole
    ],
)
def test_what_a_pasted_garment_hides_is_hidden(over: tuple[int, int, int, int], left: list[int] | None) -> None:
    seen = pasted(a_sample(), a_sample(at=over, label=7, channel=1))
    boxes = {int(label): box.tolist() for label, box in zip(seen.labels, seen.boxes, strict=True)}
    assert boxes.pop(7) == list(over) and boxes == ({} if left is None else {3: left})
    if left is not None:  # the outline covers the red pixels that are left, but for the cut that opens a hole
        mask, red = photos_of._mask(seen.polygons[0], (100, 60)), seen.image[..., 0] > 0
        assert (mask & red).sum() / (mask | red).sum() > 0.97


def test_without_outlines_nothing_is_pasted_and_boxes_stay_whole() -> None:
    bare = Sample(a_sample().image, a_sample().boxes, np.array([3]), [[]])
    assert pasted(a_sample(), bare).labels.tolist() == [3]
    seen = pasted(bare, a_sample(at=(0, 40, 60, 70), label=7, channel=1))
    np.testing.assert_array_equal(seen.boxes, [[10, 20, 30, 60], [0, 40, 60, 70]])
    assert pasted(bare, a_sample(at=(0, 30, 60, 70), label=7, channel=1)).labels.tolist() == [7]


@pytest.mark.parametrize(
    ("ring", "want"),
    [
        ([(1, 1), (5, 1), (5, 5)], [(1, 1), (5, 1), (5, 5)]),  # inside
        ([(-4, 2), (4, 2), (4, 6), (-4, 6)], [(0, 2), (4, 2), (4, 6), (0, 6)]),  # over the left edge
        ([(8, 8), (12, 8), (12, 12), (8, 12)], [(8, 8), (10, 8), (10, 10), (8, 10)]),  # over a corner
        ([(20, 20), (30, 20), (30, 30)], []),  # outside
    ],
)
def test_outlines_end_at_the_edge_of_the_canvas(ring: list[tuple[int, int]], want: list[tuple[int, int]]) -> None:
    found = photos_of._within(np.array(ring, np.float64), (10, 10))
    assert sorted(map(tuple, found.tolist())) == sorted(want)


# ------------------------------------------------------------------------------------------------ batches


def same(one: list[Sample], other: list[Sample]) -> bool:
    return all(
        np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes) for a, b in zip(one, other, strict=True)
    )


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    samples = [a_sample(100, 60), a_sample(90, 90), a_sample(64, 64)]
    one, other = (
        batches(samples, seed=5, mosaic=0.3, copy_paste=0.5),
        batches(samples, seed=5, mosaic=0.3, copy_paste=0.5),
    )
    for step in (7, 0, 3):
        (a, shape_a), (b, shape_b) = one[step], other[step]
        assert shape_a == shape_b and same(a, b)
    assert any(not np.array_equal(one[step][0][0].image, one[step + 1][0][0].image) for step in range(3))
    assert not np.array_equal(one[0][0][0].image, one[0][0][1].image)


def test_workers_parts_make_up_the_batch_and_threads_change_nothing() -> None:
    made = batches([a_sample(64, 64), a_sample(64, 60)], size=6, mosaic=0.5, copy_paste=0.5)
    whole = [made[step] for step in range(5)]
    halves = [list(made.ahead(range(5), part, threads=3)) for part in (slice(0, 3), slice(3, 6))]
    for (photos, shape), (step, left, shape_left), (_, right, _) in zip(whole, *halves, strict=True):
        assert shape == shape_left and same(photos, left + right) and 0 <= step < 5


def test_a_batch_holds_photos_of_one_padded_shape() -> None:
    made = batches([a_sample(100, 60), a_sample(90, 90)])
    for step in range(6):
        photos, shape = made[step]
        assert {p.image.shape[:2] for p in photos} == {shape}
        assert all(side % ATSS_TINY.pad_multiple_px == 0 for side in shape)


def test_rare_shapes_join_the_common_one_of_like_proportions() -> None:
    common = [a_sample(128, 96)] * 60 + [a_sample(96, 128)] * 60
    made = batches([*common, a_sample(160, 96), a_sample(64, 160, at=(1, 1, 9, 9))])
    assert made.shapes == [(96, 128), (128, 96)]
    assert [len(members) for members in made._members] == [61, 61]


def test_weights_decide_how_often_a_photo_comes() -> None:
    white = a_sample(64, 64)
    white.image[:] = 255
    photos = Photos.of([a_sample(64, 64), white], ATSS_TINY, [1.0, 0.0])
    seen, _ = Batches(photos, ATSS_TINY, 16, seed=0)[0]
    assert all(p.image[:, :, 1].mean() < 200 for p in seen)


def table_of(files: list[bytes], width: int = 64, height: int = 48) -> pa.Table:
    items = [[{"category_id": 2, "bbox": [8.0, 8.0, 32.0, 40.0], "segmentation": []}]] * len(files)
    return pa.table({"image": files, "width": [width] * len(files), "height": [height] * len(files), "items": items})


def a_file(width: int = 64, height: int = 48) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (240 * 320 * 3, 1), (10**9, 3)])
def test_decoded_photos_are_kept_up_to_a_budget(budget: int, kept: int) -> None:
    photos, table = Photos(ATSS_TINY, budget), table_of([a_file()] * 3)
    for row in range(3):
        photos.add(table, row, 1.0)
    assert photos.sizes == [(240, 320)] * 3 and len(photos) == 3
    first = [photos[number] for number in range(3)]
    again = [photos[number] for number in range(3)]
    assert sum(a is b for a, b in zip(first, again, strict=True)) == kept and same(first, again)
    np.testing.assert_allclose(first[0].boxes, [[40, 40, 160, 200]])  # 64 -> 320: times five


def test_a_photo_that_cannot_be_decoded_is_grey_and_counted() -> None:
    photos, table = Photos(ATSS_TINY, 10**9), table_of([a_file(), b"no picture"])
    for row in range(2):
        photos.add(table, row, 1.0)
    one = photos[1]
    assert one.image.shape == (240, 320, 3) and np.ptp(one.image) == 0 and len(one.boxes) == 0
    assert photos.broken == {1} and len(photos[0].boxes) == 1


def test_batches_ahead_stop_when_they_are_left() -> None:
    made = batches([a_sample(64, 64)])
    steps = made.ahead(itertools.count(), threads=2)
    assert next(steps)[0] == 0
    steps.close()  # type: ignore[attr-defined]
