"""What may stand in an image set: photos, their true items, and the polygons around these.

A photo that breaks a rule is refused whole. An item or polygon that breaks one is left out alone and told as a failure
of its own; the photo and its other items stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from store.imageset import SOURCES, Failure, Item, Photo


def problem(photo: Photo) -> str | None:
    """Why a photo may not stand in an image set, whatever its items are; or None."""
    rules = (
        (0 <= photo.image_id < 2**63, f"image_id {photo.image_id} is not within 0..2^63-1"),
        (photo.source in SOURCES, f"source {photo.source!r} is neither user nor shop"),
        (photo.width >= 1 and photo.height >= 1, f"size {photo.width} x {photo.height}"),
        (0 <= photo.pair_id < 2**63, f"pair_id {photo.pair_id} is not within 0..2^63-1"),
    )
    return next((reason for holds, reason in rules if not holds), None)


def checked(row: Photo | Failure, n_categories: int) -> Iterator[Photo | Failure]:
    """The row as it may stand in a set of so many categories, and a failure for each part of it that may not."""
    if isinstance(row, Failure):
        yield row
        return
    if (reason := problem(row)) is not None:
        yield Failure(row.image_id, row.file_name, reason)
        return
    items, reasons = [], []
    for number, item in enumerate(row.items, 1):
        if (reason := _item_problem(item, row.width, row.height, n_categories)) is not None:
            reasons.append(f"item {number} is left out: {reason}")
            continue
        polygons = []
        for place, polygon in enumerate(item.segmentation, 1):
            if isinstance(inside := _inside(polygon, row.width, row.height), str):
                reasons.append(f"item {number}: polygon {place} is left out: {inside}")
            else:
                polygons.append(inside)
        items.append(item if tuple(polygons) == item.segmentation else replace(item, segmentation=tuple(polygons)))
    yield row if tuple(items) == row.items else replace(row, items=tuple(items))
    yield from (Failure(row.image_id, row.file_name, reason) for reason in reasons)


def _item_problem(item: Item, width: int, height: int, n_categories: int) -> str | None:
    """A box must be finite, x1 < x2 and y1 < y2, and touch the picture; published boxes do reach over the edge."""
    if not 1 <= item.category_id <= n_categories:
        wanted = f" is not within 1..{n_categories}" if n_categories else ": the set has no categories"
        return f"category_id {item.category_id}{wanted}"
    if not 0 <= item.style < 2**31:
        return f"style {item.style} is not within 0..2^31-1"
    if len(item.bbox) != 4 or not all(map(_fits, item.bbox)):
        return f"box {list(item.bbox)} is not four finite numbers"
    x1, y1, x2, y2 = item.bbox
    if not (np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)):
        return f"box {list(item.bbox)} is not x1 < x2 and y1 < y2"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return f"box {list(item.bbox)} lies outside the {width} x {height} picture"
    for name in ("scale", "occlusion", "zoom_in", "viewpoint"):
        if not 0 <= getattr(item, name) <= 127:
            return f"{name} {getattr(item, name)} is not within 0..127"
    return None


def _inside(polygon: Sequence[float], width: int, height: int) -> tuple[float, ...] | str:
    """The part of a polygon x1, y1, x2, y2, … inside the picture, which may be all of it; or why there is none."""
    if len(polygon) % 2 or not all(map(_fits, polygon)):
        return "it is not pairs of finite numbers"
    if len(polygon) < 6:
        return f"it has {len(polygon) // 2} corners, want three or more"
    points = np.array(polygon, np.float64).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    if not (low < high).all():
        return "it has no area"
    if (low >= 0).all() and (high <= (width, height)).all():
        return tuple(polygon)
    for axis, bound, sign in ((0, 0, 1), (1, 0, 1), (0, width, -1), (1, height, -1)):
        points = _cut(points, axis, bound, sign)
    if len(points) < 3:
        return f"it lies outside the {width} x {height} picture"
    return tuple(points.reshape(-1).tolist())


def _cut(points: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
    """The corners (N, 2) where `sign * (coordinate - bound) >= 0`, and the points at which edges cross that bound.

    Source: one of the four cuts of Sutherland and Hodgman, Reentrant polygon clipping, 1974.
    """
    kept = []
    depth = sign * (points[:, axis] - bound)
    for i, d in enumerate(depth.tolist()):
        before = float(depth[i - 1])
        if (before < 0) != (d < 0):
            crossing = points[i - 1] + (points[i] - points[i - 1]) * (before / (before - d))
            crossing[axis] = bound
            kept.append(crossing)
        if d >= 0:
            kept.append(points[i])
    return np.array(kept).reshape(-1, 2)


def _fits(value: float) -> bool:
    """Finite, in float32 too."""
    return abs(value) < 2.0**127
