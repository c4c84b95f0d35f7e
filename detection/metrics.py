"""COCO average precision of detected garments: true and detected boxes (or masks) in, metrics.json's figures out.

The AP is pycocotools': `detection.matching` matches as it does, `detection.average_precision` makes the figures, and
the tests compare both with `COCOeval`. Source: the COCO detection evaluation, 101-point AP averaged over IoU
0.50:0.05:0.95, at most 100 detections a photo; small, medium and large are areas under 32², up to 96² and above, in
square pixels. Ours: AP10, the mean over the ten of DeepFashion2's categories in `AP10_IDS`; and areas of polygons
wherever there are any, as in COCO. DeepFashion2's own conversion to COCO takes the box, which moves items between
small, medium and large.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as rle

from detection.average_precision import JudgedBoxes
from detection.matching import Arrays, TrueBoxes
from store.categories import DEEPFASHION2


def evaluate_boxes(
    truth: Arrays, detections: Arrays, image_ids: np.ndarray, categories: Sequence[str] = DEEPFASHION2
) -> dict[str, Any]:
    """Box AP of one detector over the judged photos.

    Args:
        truth: image_id (G,) int, bbox (G, 4) x1 y1 x2 y2 in pixels, category_id (G,) from 1 up, area (G,) of the
            garment in square pixels, which decides small, medium, large.
        detections: image_id (N,) int, bbox (N, 4) likewise, score (N,), category_id (N,). Equal scores: input order.
        image_ids: the photos to judge by, those without any true item included. Items in others are left out.
        categories: names, of category id 1 first.

    Returns:
        `{"AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50", "images", "per_category": {name: {"AP", "AP50",
        "items"}}}`, all names listed. Fractions in [0, 1]; None where no true item can be judged. AP10 and AP10_50
        average over those of the ten categories that have a true item, and are None unless the categories are
        DeepFashion2's.

    Raises:
        ValueError: when columns differ in length, a category id is unknown or a score is not a number.
    """
    judged = JudgedBoxes()
    judged.add_boxes(TrueBoxes(truth, image_ids, len(categories)), truth, detections)
    return judged.figures(image_ids, categories)


def evaluate_masks(
    truth: Arrays,
    detections: Arrays,
    image_ids: np.ndarray,
    sizes: Mapping[int, tuple[int, int]],
    categories: Sequence[str] = DEEPFASHION2,
) -> dict[str, Any]:
    """Mask AP, in the same shape as `evaluate_boxes`.

    Args:
        truth: as there, and segmentation: G lists of polygons [x1, y1, x2, y2, …]; an item without any is its box.
        detections: image_id, score, category_id as there; mask: N run-length masks {"size": [h, w], "counts": bytes}.
        image_ids: as there.
        sizes: height and width in pixels of each judged photo.
        categories: as there.
    """
    inside = np.isin(truth["image_id"], image_ids)  # only photos that judge have a size to draw masks in
    outlines = [polygons if judges else None for polygons, judges in zip(truth["segmentation"], inside, strict=True)]
    masks = true_masks(truth, outlines, sizes)
    judged = JudgedBoxes()
    judged.add_boxes(TrueBoxes(truth, image_ids, len(categories)), truth, detections, masks)
    return judged.figures(image_ids, categories)


def true_masks(
    truth: Arrays, segmentation: Iterable[Sequence[Any] | None], sizes: Mapping[int, tuple[int, int]]
) -> list[Any]:
    """A run-length mask of each true item, of its polygons or of its box without any; None stays None.

    `truth` and `sizes` as `evaluate_masks` takes them.
    """
    masks = []
    for image_id, box, polygons in zip(truth["image_id"].tolist(), truth["bbox"], segmentation, strict=True):
        if polygons is not None:
            outline = [[float(c) for c in polygon] for polygon in polygons or [_box_polygon(box)]]
            masks.append(rle.merge(rle.frPyObjects(outline, *sizes[image_id])))
        else:
            masks.append(None)
    return masks


def judged_ids(truth: pa.Table, only: str | None = None) -> np.ndarray:
    """(I,) int64, the ids of the photos to judge by: without those whose boxes are too loose for it (`weak_box`).

    In: columns image_id, weak_box and, with `only`, source; `only` is `user` or `shop` to judge by these alone.
    """
    judged: np.ndarray = truth["image_id"].filter(_to_judge(truth, only)).to_numpy()
    return judged


def _to_judge(truth: pa.Table, only: str | None) -> pa.ChunkedArray:
    keep = pc.invert(truth["weak_box"])
    return keep if only is None else pc.and_(keep, pc.equal(truth["source"], only))


def truth_arrays(truth: pa.Table, only: str | None = None, *, areas: bool = True) -> dict[str, np.ndarray]:
    """The true boxes of an image set on the photos to judge by.

    In: columns image_id, source, weak_box and items, as `store.imageset` describes them; `only` as `judged_ids` takes
    it. Out: image_id (G,) int64, bbox (G, 4) float64 x1 y1 x2 y2 in pixels, category_id (G,) int64 and area (G,)
    float64, of the polygons, of the box where an item has none: what `evaluate_boxes` takes; and `judged` (I,) int64,
    the ids of all photos to judge by, those without items included. Polygons take time: without `areas` the areas are
    those of the boxes.
    """
    photos = truth.select(["image_id", "items"]).filter(_to_judge(truth, only))
    nested = photos["items"].combine_chunks()
    items, judged = nested.flatten(), photos["image_id"].to_numpy()
    bbox = items.field("bbox").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
    area = (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1])
    for row, polygons in enumerate(_polygons(items.field("segmentation")) if areas else ()):
        if polygons:
            area[row] = polygon_area(polygons)
    return {
        "image_id": judged[pc.list_parent_indices(nested).to_numpy()],
        "bbox": bbox,
        "category_id": items.field("category_id").to_numpy(zero_copy_only=False).astype(np.int64),
        "area": area,
        "judged": judged,
    }


def polygon_area(segmentation: Sequence[Sequence[float] | np.ndarray]) -> float:
    """Square pixels covered by the polygons of one item, each [x1, y1, x2, y2, …], counted as in COCO's masks.

    Pixels under several polygons count once; a polygon of fewer than three corners covers nothing.

    >>> polygon_area([[0, 0, 4, 0, 4, 3, 0, 3], [10, 10, 12, 10, 12, 12, 10, 12], [10, 10, 12, 10, 12, 12, 10, 12]])
    16.0
    """
    polygons = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return 0.0
    width, height = (int(max(max(polygon[axis::2]) for polygon in polygons)) + 2 for axis in (0, 1))
    masks = rle.frPyObjects(polygons, height, width)
    return float(rle.area(masks[0] if len(masks) == 1 else rle.merge(masks)))


def _box_polygon(box: Sequence[float] | np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(c) for c in box)
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _polygons(column: pa.Array) -> Iterable[list[np.ndarray]]:
    """Each item's polygons as views of one array, so that no coordinate becomes a Python object."""
    inner = column.values
    corners, coordinates = np.asarray(inner.offsets), inner.values.to_numpy(zero_copy_only=False)
    for start, end in pairwise(column.offsets.to_pylist()):
        yield [coordinates[corners[p] : corners[p + 1]] for p in range(start, end)]
