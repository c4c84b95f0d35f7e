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
        ((0, 0, 400, 300), (320, 240)),  # the whole photo, shrunk to 320
        ((-50, -50, 10, 10), (14, 14)),  # clipped: 10 px and 6 % of 60 beyond
        ((399, 299, 399, 299), (1, 1)),  # no area: one pixel
        ((500, 500, 600, 600), (1, 1)),  # outside: the nearest pixel
    ],
)
def test_crops_have_a_margin_and_stay_in_the_photo(bbox, size):
    picture = pictures.crop_garment(np.zeros((300, 400, 3), np.uint8), bbox)
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize(
    "shape, size", [((1000, 500), (320, 640)), ((500, 1000), (640, 320)), ((30, 40), (40, 30)), ((1, 4000), (640, 1))]
)
def test_photos_shrink_to_640_and_never_grow(shape, size):
    marks = [
        pictures.Mark((-5, -5, 9999, 9999), 9, "1", strong=True),
        pictures.Mark((3, 3, 3, 3), 99, "?", dashed=True),
    ]
    picture = pictures.photo_with_marks(np.zeros((*shape, 3), np.uint8), marks)
    assert (picture.width, picture.height) == size


def test_boxes_are_drawn_where_they_are():
    mark = pictures.Mark((400, 400, 800, 800), 9, strong=True)
    picture = pictures.photo_with_marks(np.zeros((1280, 1280, 3), np.uint8), [mark])
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)  # at half the size the box is 200 to 400
    assert (
        pixels[200:400, 200:208].sum(axis=2).min() > 150
        and pixels[220:380, 220:380].max() < 40
        and pixels[:190].max() < 40
    )


def test_labels_of_boxes_with_one_corner_stand_below_each_other():
    """Three boxes of one size, each in its own colour: every label's colour is seen."""
    colours = ("#ff0000", "#00ff00", "#0000ff")
    marks = [pictures.Mark((50, 50, 250, 250), 9, str(n), own_colour=colour) for n, colour in enumerate(colours, 1)]
    picture = pictures.photo_with_marks(np.full((300, 300, 3), 128, np.uint8), marks)
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)
    column = pixels[40:140, 58:60].mean(axis=1)  # through the labels, left of their digits
    tops = [int(np.flatnonzero(column[:, c] - column.sum(axis=1) / 3 > 60)[0]) for c in range(3)]
    assert tops == sorted(tops) and tops[2] - tops[0] > 20


def test_colours_repeat_after_the_thirteenth_category() -> None:
    colours = [pictures.colour_of(i) for i in range(1, 301)]
    assert colours[13:26] == colours[:13] and len(set(colours)) == 13
    assert pictures.colour_of(0) == pictures.colour_of(-1) not in colours
