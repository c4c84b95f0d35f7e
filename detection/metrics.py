"""COCO average precision of detected garments: true and detected boxes (or masks) in, metrics.json's figures out.

The AP is pycocotools': `COCOeval` does the matching and the precision-recall curves; this file feeds it plain arrays,
keeps it silent, and reads the figures by category. Source: the COCO detection evaluation, 101-point AP averaged over
IoU 0.50:0.05:0.95, at most 100 detections a photo; small, medium and large are areas under 32², up to 96² and above, in
square pixels. Ours: AP10, the mean over the ten of DeepFashion2's categories in `AP10_IDS`; and areas of polygons
wherever there are any, as in COCO. DeepFashion2's own conversion to COCO takes the box, which moves items between
small, medium and large.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from store.categories import DEEPFASHION2

Arrays = Mapping[str, Any]

AP10_IDS: tuple[int, ...] = (1, 2, 4, 5, 7, 8, 9, 10, 11, 12)
"""Ids of DeepFashion2's categories that `AP10` averages over: the other three have too few items in ccp_df2 to mean
anything."""


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
    kept_truth = judged_rows(truth, image_ids, len(categories), "truth")
    kept = judged_rows(detections, image_ids, len(categories), "detections")
    true_boxes, boxes = _xywh(truth["bbox"])[kept_truth], _xywh(detections["bbox"])[kept]
    true_area = np.asarray(truth["area"], dtype=np.float64)[kept_truth]
    true_items = _annotations(truth, kept_truth, bbox=true_boxes.tolist(), area=true_area.tolist())
    detected = _annotations(detections, kept, bbox=boxes.tolist(), area=(boxes[:, 2] * boxes[:, 3]).tolist())
    return _evaluate(true_items, detected, [{"id": int(i)} for i in np.unique(image_ids)], categories, "bbox")


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
    kept_truth = judged_rows(truth, image_ids, len(categories), "truth")
    kept = judged_rows(detections, image_ids, len(categories), "detections")
    polygons = [truth["segmentation"][row] or [_box_polygon(truth["bbox"][row])] for row in kept_truth]
    masks = [detections["mask"][row] for row in kept]
    outlines = [[[float(c) for c in polygon] for polygon in item] for item in polygons]
    true_area = np.asarray(truth["area"])[kept_truth].tolist()
    true_items = _annotations(truth, kept_truth, segmentation=outlines, area=true_area)
    detected = _annotations(detections, kept, segmentation=masks, area=[float(rle.area(mask)) for mask in masks])
    images = [{"id": int(i), "height": sizes[int(i)][0], "width": sizes[int(i)][1]} for i in np.unique(image_ids)]
    return _evaluate(true_items, detected, images, categories, "segm")


def truth_arrays(truth: pa.Table, only: str | None = None) -> dict[str, np.ndarray]:
    """The true boxes of an image set, without photos whose boxes are too loose to judge by (`weak_box`).

    In: columns image_id, source, weak_box and items, as `store.imageset` describes them; `only` is `user` or `shop` to
    judge by these photos alone. Out: image_id (G,) int64, bbox (G, 4) float64 x1 y1 x2 y2 in pixels, category_id (G,)
    int64 and area (G,) float64, of the polygons, of the box where an item has none: what `evaluate_boxes` takes; and
    `judged` (I,) int64, the ids of all photos to judge by, those without items included.
    """
    keep = pc.invert(truth["weak_box"])
    if only is not None:
        keep = pc.and_(keep, pc.equal(truth["source"], only))
    photos = truth.select(["image_id", "items"]).filter(keep)
    nested = photos["items"].combine_chunks()
    items, judged = nested.flatten(), photos["image_id"].to_numpy()
    bbox = items.field("bbox").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
    area = (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1])
    for row, polygons in enumerate(_polygons(items.field("segmentation"))):
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
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return 0.0
    width, height = (int(max(polygon[axis::2].max() for polygon in polygons)) + 2 for axis in (0, 1))
    return float(rle.area(rle.merge(rle.frPyObjects([p.tolist() for p in polygons], height, width))))


def _evaluate(
    true_items: list[dict[str, Any]],
    detected: list[dict[str, Any]],
    images: list[dict[str, Any]],
    categories: Sequence[str],
    kind: str,
) -> dict[str, Any]:
    """Run COCOeval over annotation records and read its precision table by area and category."""
    ids = range(1, len(categories) + 1)
    precision = np.full((10, 101, len(categories), 4, 1), -1.0)  # IoU, recall, category, area, boxes a photo
    if images and true_items:
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(*(_coco(items, images, ids) for items in (true_items, detected)), kind)
            judge.params.catIds, judge.params.maxDets = list(ids), [100]
            judge.evaluate()
            judge.accumulate()
        precision = judge.eval["precision"]
    every, at50, at75 = slice(None), slice(0, 1), slice(5, 6)

    def ap(iou: slice = every, category: slice = every, area: int = 0) -> float | None:
        judged = precision[iou, :, category, area, 0]
        return float(judged[judged > -1].mean()) if (judged > -1).any() else None

    n_items = Counter(item["category_id"] for item in true_items)
    category_ap = {i: (ap(category=slice(i - 1, i)), ap(at50, slice(i - 1, i)), n_items[i]) for i in ids}
    names = ("AP", "AP50", "items")
    ten = AP10_IDS if tuple(categories) == DEEPFASHION2 else ()
    return {
        **{"AP": ap(), "AP50": ap(at50), "AP75": ap(at75), "APs": ap(area=1), "APm": ap(area=2), "APl": ap(area=3)},
        "AP10": _mean(category_ap[i][0] for i in ten),
        "AP10_50": _mean(category_ap[i][1] for i in ten),
        "images": len(images),
        "per_category": {categories[i - 1]: dict(zip(names, category_ap[i], strict=True)) for i in ids},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _coco(annotations: list[dict[str, Any]], images: list[dict[str, Any]], category_ids: Iterable[int]) -> COCO:
    """pycocotools' index of these records, which it would otherwise read from a file."""
    coco = COCO()
    categories = [{"id": i} for i in category_ids]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    coco.createIndex()
    return coco


def judged_rows(columns: Arrays, image_ids: np.ndarray, n_categories: int, what: str) -> np.ndarray:
    """Rows in judged photos, once the columns have passed the checks of `evaluate_boxes`; `what` is for messages."""
    n = len(columns["image_id"])
    for name, column in columns.items():
        if name != "judged" and len(column) != n:
            raise ValueError(f"{what}: {name} has {len(column)} rows, image_id has {n}")
    category = np.asarray(columns["category_id"])
    unknown = (category < 1) | (category > n_categories)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise ValueError(f"{what}: row {row} has category id {category[row]}, want 1 to {n_categories}")
    for name in columns.keys() & {"bbox", "score", "area"}:
        numbers = np.asarray(columns[name], np.float64).reshape(n, 4 if name == "bbox" else 1)
        if not np.isfinite(numbers).all():  # COCO takes a box of NaN for right at every IoU
            row = int(np.argmin(np.isfinite(numbers).all(axis=1)))
            raise ValueError(f"{what}: row {row} has {name} {numbers[row].tolist()}, want finite numbers")
    return np.flatnonzero(np.isin(columns["image_id"], image_ids))


def _annotations(columns: Arrays, rows: np.ndarray, **more: list) -> list[dict[str, Any]]:
    """COCO annotation records of these rows; ids count from 1, because pycocotools takes 0 for "unmatched"."""
    names = ["image_id", "category_id"] + ["score"] * ("score" in columns)
    plain = {name: np.asarray(columns[name])[rows].tolist() for name in names} | more
    records = (dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True))
    return [{"id": i, "iscrowd": 0, **record} for i, record in enumerate(records, start=1)]


def _xywh(bbox: np.ndarray) -> np.ndarray:
    boxes = np.asarray(bbox, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _box_polygon(box: Sequence[float] | np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(c) for c in box)
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _polygons(column: pa.Array) -> Iterable[list[np.ndarray]]:
    """Each item's polygons as views of one array, so that no coordinate becomes a Python object."""
    inner = column.values
    corners, coordinates = np.asarray(inner.offsets), inner.values.to_numpy(zero_copy_only=False)
    for start, end in pairwise(column.offsets.to_pylist()):
        yield [coordinates[corners[p] : corners[p + 1]] for p in range(start, end)]
