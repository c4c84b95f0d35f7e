"""Outlines of garments in COCO's forms, as polygons.

A `segmentation` is a list of polygons x1 y1 x2 y2 …, or a mask in run lengths, {"counts", "size": [height, width]}.
The counts are a list or the text that pycocotools writes. A mask becomes the outer outlines of its parts; holes are
filled. Source: COCO's format, as documented by pycocotools.
"""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask

Polygons = tuple[tuple[float, ...], ...]


def polygons_of(segmentation: Any, width: int, height: int) -> Polygons:
    """Polygons in pixels of a picture of this size; () where there is no segmentation.

    The outline of a mask runs through the centres of its outermost pixels; parts too thin to have an area are left out.
    Raises ValueError for what is neither form, and for a mask of another size.
    """
    if segmentation is None:
        return ()
    if isinstance(segmentation, dict):
        return _outer_outlines(_mask(segmentation, width, height))
    if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
        raise ValueError("segmentation is neither a list of polygons nor run lengths")
    return tuple(tuple(map(float, polygon)) for polygon in segmentation)


def _is_polygon(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**127 for value in values
    )


def _mask(runs: dict[str, Any], width: int, height: int) -> np.ndarray:
    """(height, width) uint8, 1 on the garment."""
    counts: Any = runs.get("counts")
    size = runs.get("size")
    if size != [height, width]:
        raise ValueError(f"the mask's size {str(size)[:40]} is not that of the picture, [{height}, {width}]")
    if isinstance(counts, str):
        try:
            return mask.decode({"size": size, "counts": counts.encode()})
        except ValueError as error:
            raise ValueError(f"run lengths that cannot be read: {error}") from error
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not add up to {height} x {width} pixels")
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def _outer_outlines(drawn: np.ndarray) -> Polygons:
    outlines, _ = cv2.findContours(drawn, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = ((outline.reshape(-1, 2) + 0.5) for outline in reversed(outlines))  # OpenCV begins at the bottom
    return tuple(tuple(points.ravel().tolist()) for points in found if (np.ptp(points, axis=0) > 0).all())
