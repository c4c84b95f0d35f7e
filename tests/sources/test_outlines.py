"""COCO's masks as polygons, drawn again and compared with the pixels."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from sources.outlines import polygons_of

SQUARE = np.zeros((8, 6), np.uint8)
SQUARE[2:6, 1:5] = 1


def run_lengths(drawn: np.ndarray) -> dict[str, Any]:
    """pycocotools' own, with the counts as the text that goes into JSON."""
    runs = mask.encode(np.asfortranarray(drawn))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def plain(drawn: np.ndarray) -> dict[str, Any]:
    """The same with a list of counts, zeros first, column by column."""
    values = drawn.T.ravel()
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    counts = np.diff([0, *ends]).tolist()
    return {"size": [*drawn.shape], "counts": [0, *counts] if values[0] else counts}


@pytest.mark.parametrize("form", [run_lengths, plain])
def test_a_square_through_its_outermost_pixels(form: Any) -> None:
    (polygon,) = polygons_of(form(SQUARE), 6, 8)
    corners = {(1.5, 2.5), (1.5, 5.5), (4.5, 5.5), (4.5, 2.5)}
    assert {*zip(polygon[::2], polygon[1::2], strict=True)} == corners


@pytest.mark.parametrize("form", [run_lengths, plain])
@given(corners=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 12)), max_size=2))
def test_outlines_drawn_again_are_the_mask(form: Any, corners: list[tuple[int, int]]) -> None:
    """Two rectangles enclose no hole."""
    drawn = np.zeros((20, 15), np.uint8)
    for y, x in corners:
        drawn[y : y + 4, x : x + 3] = 1
    again = np.zeros_like(drawn)
    for polygon in polygons_of(form(drawn), 15, 20):
        cv2.fillPoly(again, [np.array(polygon).reshape(-1, 2).astype(np.int32)], (1,))
    np.testing.assert_array_equal(again, drawn)


def test_holes_are_filled() -> None:
    ring = SQUARE.copy()
    ring[3:5, 2:4] = 0
    assert polygons_of(run_lengths(ring), 6, 8) == polygons_of(run_lengths(SQUARE), 6, 8)


def test_polygons_stay_and_nothing_is_nothing() -> None:
    assert polygons_of([[0, 0, 4, 0, 4, 4.5]], 6, 8) == ((0.0, 0.0, 4.0, 0.0, 4.0, 4.5),)
    assert polygons_of(None, 6, 8) == polygons_of([], 6, 8) == ()


def test_parts_without_an_area_are_left_out() -> None:
    line = np.zeros((8, 6), np.uint8)
    line[1:7, 3] = 1
    assert polygons_of(run_lengths(line), 6, 8) == ()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [6, 8], "counts": [48]}, "size .* is not that of the picture, \\[8, 6\\]"),
        ({"size": [8, 6], "counts": [47]}, "do not add up to 8 x 6"),
        ({"size": [8, 6], "counts": [50, -2]}, "do not add up"),
        ({"size": [8, 6], "counts": [24.0, 24.0]}, "do not add up"),
        ({"size": [8, 6]}, "do not add up"),
        ({"size": [8, 6], "counts": "zzzz"}, "cannot be read"),
        ("polygon", "neither"),
        ("", "neither"),
        (False, "neither"),
        (0, "neither"),
        ({}, "size None is not that of the picture"),
        ([1, 2, 3], "neither"),
        ([["a", 2]], "neither"),
        ([[10**400, 2]], "neither"),
    ],
)
def test_what_is_no_outline(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        polygons_of(segmentation, 6, 8)
