"""The crop rule on pictures whose answer can be drawn by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.crops import FILL, areas_of, crop

RED, BLUE = (200, 0, 0), (0, 0, 200)


def halves(height: int, width: int) -> np.ndarray:
    """Left half red, right half blue."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = RED, BLUE
    return image


@pytest.mark.parametrize(
    "box, margin, want",
    [
        ((10, 20, 30, 60), 0.0, (10, 20, 30, 60)),  # whole pixels stay
        ((10.4, 20.5, 29.6, 60.49), 0.0, (10, 21, 30, 60)),  # half up
        ((10, 20, 30, 60), 0.1, (8, 16, 32, 64)),  # 10 % of 20 left and right, of 40 above and below
        ((-5, -5, 30, 60), 0.0, (0, 0, 30, 60)),  # cut to the photo
        ((90, 70, 100, 80), 0.5, (85, 65, 100, 80)),  # the margin too
        ((10, 20, 30, 60), -0.1, (12, 24, 28, 56)),  # 10 % less on each side
        ((-60, 20, 10, 60), -0.2, (2, 28, 8, 52)),  # of what the photo shows: 0 to 10
        ((50.1, 40.1, 50.2, 40.2), 0.0, (50, 40, 51, 41)),  # never less than a pixel
        ((99.9, 79.9, 100, 80), 0.0, (99, 79, 100, 80)),  # nor beyond the last one
    ],
)
def test_areas(box, margin, want):
    assert areas_of(np.array([box]), 100, 80, margin).tolist() == [list(want)]


def test_a_tall_garment_stands_in_the_middle_on_white():
    image = np.zeros((40, 20, 3), np.uint8)
    out = crop(image, np.array([[0, 0, 20, 40]]), 8)[0]
    assert (out[:, 2:6] == 0).all()  # 20 : 40 makes 4 columns of 8
    assert (out[:, :2] == FILL).all() and (out[:, 6:] == FILL).all()


def test_shrinking_averages_and_growing_interpolates():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200  # every second column
    assert np.unique(crop(stripes, np.array([[0, 0, 8, 8]]), 4)).tolist() == [100]  # (200 + 0) / 2
    grown = crop(halves(2, 2), np.array([[0, 0, 2, 2]]), 4)[0, 0, :, 0]
    assert grown.tolist() == [200, 150, 50, 0]  # places 0, 1/4, 3/4, 1 between the two columns' centres


def test_colours_and_sides_stay_where_they_are():
    out = crop(halves(60, 60), np.array([[0, 0, 60, 60], [30, 0, 60, 30]]), 10)
    assert out[0, 5, 1].tolist() == list(RED) and out[0, 5, 8].tolist() == list(BLUE)
    assert (out[1] == BLUE).all()


def test_nothing_in_nothing_out():
    assert crop(halves(4, 4), np.zeros((0, 4), np.float32), 16).shape == (0, 16, 16, 3)


@settings(max_examples=80)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 40),
    margin=st.sampled_from([-0.49, -0.2, 0.0, 0.05, 0.7]),
    corners=st.tuples(*[st.floats(-20, 90) for _ in range(4)]),
)  # fmt: skip
def test_every_box_that_touches_the_photo_gives_a_crop_of_its_pixels(width, height, size, margin, corners):
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    image = np.full((height, width, 3), 7, np.uint8)
    before = image.copy()
    boxes = np.array([[x1, y1, x2, y2]])
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        with pytest.raises(ValueError, match=r"box 0 .* covers nothing"):
            crop(image, boxes, size, margin)
        return
    out = crop(image, boxes, size, margin)
    assert out.shape == (1, size, size, 3) and set(np.unique(out)) <= {7, FILL} and (out == 7).any()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image, boxes, more, message",
    [
        (np.zeros((4, 4), np.uint8), [[0, 0, 1, 1]], {}, r"\(H, W, 3\) uint8"),  # grey
        (np.zeros((4, 4, 3)), [[0, 0, 1, 1]], {}, "float64"),  # 0..1 floats
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1, 1], [3, 0, 2, 1]], {}, "box 1"),  # x2 < x1
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, np.nan, 1]], {}, "box 0"),
        (np.zeros((4, 4, 3), np.uint8), [[4, 0, 9, 1]], {}, "photo of 4 x 4 pixels"),  # wholly outside
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1]], {}, r"boxes \(N, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1, 1]], {"margin": -0.5}, "margin"),
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1, 1]], {"size": 0}, "size"),
    ],
)
def test_wrong_input_is_refused(image, boxes, more, message):
    with pytest.raises(ValueError, match=message):
        crop(image, np.array(boxes, float), **{"size": 8, **more})
