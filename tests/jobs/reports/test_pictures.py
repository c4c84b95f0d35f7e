"""Small pictures for people: margins, sizes, and boxes where they are."""

import io

import numpy as np
import pytest
from PIL import Image

from jobs.reports import pictures


@pytest.mark.parametrize(
    "bbox, size",
    [
        ((100, 100, 200, 200), (112, 112)),  # 100 px and 6 % on each side
        ((0, 0, 400, 300), (160, 120)),  # the whole photo, shrunk to 160
        ((-50, -50, 10, 10), (14, 14)),  # clipped: 10 px and 6 % of 60 beyond
        ((399, 299, 399, 299), (1, 1)),  # no area: one pixel
        ((500, 500, 600, 600), (1, 1)),  # outside: the nearest pixel
    ],
)
def test_crops_have_a_margin_and_stay_in_the_photo(bbox, size):
    picture = pictures.crop_garment(np.zeros((300, 400, 3), np.uint8), bbox)
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize(
    "shape, size", [((1000, 500), (180, 360)), ((500, 1000), (360, 180)), ((30, 40), (40, 30)), ((1, 4000), (360, 1))]
)
def test_photos_shrink_to_360_and_never_grow(shape, size):
    marks = [
        pictures.Mark((-5, -5, 9999, 9999), 9, "1", strong=True),
        pictures.Mark((3, 3, 3, 3), 99, "?", dashed=True),
    ]
    picture = pictures.photo_with_marks(np.zeros((*shape, 3), np.uint8), marks)
    assert (picture.width, picture.height) == size


def test_boxes_are_drawn_where_they_are():
    mark = pictures.Mark((200, 200, 400, 400), 9, strong=True)
    picture = pictures.photo_with_marks(np.zeros((720, 720, 3), np.uint8), [mark])
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)  # at half the size the box is 100 to 200
    assert (
        pixels[100:200, 100:104].sum(axis=2).min() > 150
        and pixels[110:190, 110:190].max() < 40
        and pixels[:95].max() < 40
    )


def test_colours_repeat_after_the_thirteenth_category() -> None:
    colours = [pictures.colour_of(i) for i in range(1, 301)]
    assert colours[13:26] == colours[:13] and len(set(colours)) == 13
    assert pictures.colour_of(0) == pictures.colour_of(-1) not in colours
