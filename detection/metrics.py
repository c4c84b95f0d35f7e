"""COCO average precision of detected garments: true and detected boxes (or masks) in, metrics.json's figures out.

pycocotools does the matching and the precision-recall curves; this file feeds it plain arrays, keeps it silent, and
reads the figures by category. Source: the COCO detection evaluation, 101-point AP averaged over IoU 0.50:0.05:0.95, at
most 100 detections a photo; small, medium and large are areas under 32², up to 96² and above, in square pixels.
Ours: AP10, the mean over the ten categories of `AP10_IDS`; and areas of polygons wherever there are any, as in COCO,
where DeepFashion2's own conversion to COCO takes the box, which moves items between small, medium and large.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.categories import AP10_IDS, CATEGORIES

Arrays = Mapping[str, Any]


def evaluate_boxes(truth: Arrays, detections: Arrays, image_ids: np.ndarray) -> dict[str, Any]:
    """Box AP of one detector over the judged photos.

    Args:
        truth: image_id (G,) int, bbox (G, 4) x1 y1 x2 y2 in pixels, category_id (G,) 1 to 13, area (G,) of the garment
            in square pixels, which decides small, medium, large.
        detections: image_id (N,) int, bbox (N, 4) likewise, score (N,), category_id (N,). Equal scores: input order.
        image_ids: the photos to judge by, those without any true item included. What lies in others is left out.

    Returns:
        `{"AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50", "images", "per_category": {name: {"AP", "AP50",
        "items"}}}`, all 13 names listed. Fractions in [0, 1]; None where no true item can be judged. AP10 and AP10_50
        average over those of the ten categories that have a true item.

    Raises:
        ValueError: when columns differ in length, a category id is unknown or a score is not a number.
    """
    true_items, found, images = _box_records(truth, detections, image_ids)
    return _evaluate(true_items, found, images, "bbox")


def matches(truth: Arrays, detections: Arrays, image_ids: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """COCO's matching of boxes, before any curve is drawn: what a bootstrap over photos starts from.

    Args:
        truth, detections, image_ids: as in `evaluate_boxes`.

    Returns:
        For each category id: score (D,) and image_id (D,) of its boxes, at most 100 a photo; right (10, D) bool, whether
        the box stands for a true item at IoU 0.50:0.05:0.95; items (I,), true items of each photo of np.unique(image_ids).
    """
    true_items, found, images = _box_records(truth, detections, image_ids)
    place = {image["id"]: i for i, image in enumerate(images)}
    ids = range(1, len(CATEGORIES) + 1)
    gathered: dict[int, dict[str, list]] = {i: {"score": [], "image_id": [], "right": []} for i in ids}
    items = {i: np.zeros(len(images)) for i in ids}
    for item in true_items:
        items[item["category_id"]][place[item["image_id"]]] += 1
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_coco(true_items, images), _coco(found, images), "bbox")
        judge.params.catIds, judge.params.maxDets, judge.params.areaRng = list(ids), [100], [[0, 1e10]]
        judge.params.areaRngLbl = ["all"]
        judge.evaluate()
    for entry in filter(None, judge.evalImgs):
        one = gathered[entry["category_id"]]
        one["score"].append(np.asarray(entry["dtScores"], np.float64))
        one["image_id"].append(np.full(len(entry["dtScores"]), entry["image_id"], np.int64))
        one["right"].append(np.asarray(entry["dtMatches"]).reshape(10, -1) > 0)
    empty: dict[str, np.ndarray] = {
        "score": np.zeros(0),
        "image_id": np.zeros(0, np.int64),
        "right": np.zeros((10, 0), bool),
    }
    return {
        i: {name: np.concatenate([empty[name], *parts], axis=-1) for name, parts in one.items()} | {"items": items[i]}
        for i, one in gathered.items()
    }


def _box_records(
    truth: Arrays, detections: Arrays, image_ids: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """True items, found boxes and photos as COCO's records."""
    kept_truth, kept = _judged(truth, image_ids, "truth"), _judged(detections, image_ids, "detections")
    true_boxes, boxes = _xywh(truth["bbox"])[kept_truth], _xywh(detections["bbox"])[kept]
    true_area = np.asarray(truth["area"], dtype=np.float64)[kept_truth]
    true_items = _annotations(truth, kept_truth, bbox=true_boxes.tolist(), area=true_area.tolist())
    found = _annotations(detections, kept, bbox=boxes.tolist(), area=(boxes[:, 2] * boxes[:, 3]).tolist())
    return true_items, found, [{"id": int(i)} for i in np.unique(image_ids)]


def evaluate_masks(
    truth: Arrays, detections: Arrays, image_ids: np.ndarray, sizes: Mapping[int, tuple[int, int]]
) -> dict[str, Any]:
    """Mask AP, in the same shape as `evaluate_boxes`.

    Args:
        truth: as there, and segmentation: G lists of polygons [x1, y1, x2, y2, …]; an item without any is its box.
        detections: image_id, score, category_id as there; mask: N run-length masks {"size": [h, w], "counts": bytes}.
        image_ids: as there.
        sizes: height and width in pixels of each judged photo.
    """
    kept_truth, kept = _judged(truth, image_ids, "truth"), _judged(detections, image_ids, "detections")
    polygons = [truth["segmentation"][row] or [_box_polygon(truth["bbox"][row])] for row in kept_truth]
    masks = [detections["mask"][row] for row in kept]
    true_items = _annotations(
        truth,
        kept_truth,
        segmentation=[[[float(c) for c in polygon] for polygon in item] for item in polygons],
        area=np.asarray(truth["area"])[kept_truth].tolist(),
    )
    found = _annotations(detections, kept, segmentation=masks, area=[float(rle.area(mask)) for mask in masks])
    images = [{"id": int(i), "height": sizes[int(i)][0], "width": sizes[int(i)][1]} for i in np.unique(image_ids)]
    return _evaluate(true_items, found, images, "segm")


def truth_arrays(truth: pa.Table, only: str | None = None) -> dict[str, np.ndarray]:
    """The true boxes of an image set, without photos whose boxes are too loose to judge by (`weak_box`).

    Args:
        truth: columns image_id, source, weak_box and items of an image set, as `store.imageset` describes them.
        only: `user` or `shop` to judge by these photos alone; None: both.

    Returns:
        image_id (G,) int64, bbox (G, 4) float64 x1 y1 x2 y2 in pixels, category_id (G,) int64 and area (G,) float64, of
        the polygons, of the box where an item has none: what `evaluate_boxes` takes; and `judged` (I,) int64, the ids
        of all photos to judge by, those without items included.
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
    """Square pixels that the polygons of one item cover, each [x1, y1, x2, y2, …], counted as COCO's masks count them.

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
    true_items: list[dict[str, Any]], found: list[dict[str, Any]], images: list[dict[str, Any]], kind: str
) -> dict[str, Any]:
    """Run COCOeval over annotation records and read its precision table by area and category."""
    ids = range(1, len(CATEGORIES) + 1)
    precision = np.full((10, 101, len(CATEGORIES), 4, 1), -1.0)  # IoU, recall, category, area, boxes a photo
    if images and true_items:
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(_coco(true_items, images), _coco(found, images), kind)
            judge.params.catIds = list(ids)
            judge.params.maxDets = [100]
            judge.evaluate()
            judge.accumulate()
        precision = judge.eval["precision"]
    everything, at50, at75 = slice(None), slice(0, 1), slice(5, 6)

    def ap(iou: slice = everything, category: slice = everything, area: int = 0) -> float | None:
        judged = precision[iou, :, category, area, 0]
        return float(judged[judged > -1].mean()) if (judged > -1).any() else None

    n_items = Counter(item["category_id"] for item in true_items)
    category_ap = {i: (ap(category=slice(i - 1, i)), ap(at50, slice(i - 1, i)), n_items[i]) for i in ids}
    names = ("AP", "AP50", "items")
    return {
        "AP": ap(),
        "AP50": ap(at50),
        "AP75": ap(at75),
        "APs": ap(area=1),
        "APm": ap(area=2),
        "APl": ap(area=3),
        "AP10": _mean(category_ap[i][0] for i in AP10_IDS),
        "AP10_50": _mean(category_ap[i][1] for i in AP10_IDS),
        "images": len(images),
        "per_category": {CATEGORIES[i - 1]: dict(zip(names, category_ap[i], strict=True)) for i in ids},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _coco(annotations: list[dict[str, Any]], images: list[dict[str, Any]]) -> COCO:
    """An index in memory; pycocotools would read a file."""
    coco = COCO()
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    coco.createIndex()
    return coco


def _judged(columns: Arrays, image_ids: np.ndarray, what: str) -> np.ndarray:
    """Rows in judged photos, after a check that the columns agree."""
    n = len(columns["image_id"])
    for name, column in columns.items():
        if name != "judged" and len(column) != n:
            raise ValueError(f"{what}: {name} has {len(column)} rows, image_id has {n}")
    category = np.asarray(columns["category_id"])
    unknown = np.flatnonzero((category < 1) | (category > len(CATEGORIES)))
    if len(unknown):
        row = unknown[0]
        raise ValueError(f"{what}: row {row} has category id {category[row]}, want 1 to {len(CATEGORIES)}")
    if "score" in columns and np.isnan(columns["score"]).any():
        raise ValueError(f"{what}: row {int(np.isnan(columns['score']).argmax())} has score NaN")
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
    """Each item's polygons as views of one array, so that no coordinate becomes an object."""
    starts, ends = np.asarray(column.offsets[:-1]), np.asarray(column.offsets[1:])
    inner = column.values
    corners, coordinates = np.asarray(inner.offsets), inner.values.to_numpy(zero_copy_only=False)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield [coordinates[corners[p] : corners[p + 1]] for p in range(start, end)]
