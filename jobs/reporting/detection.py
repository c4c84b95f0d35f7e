"""How detection went, beyond its figures: precision and recall, what is taken for what, garments nobody found, garments found twice.

In: detections/ and fused/ of a run, the true boxes of its image set, a shard at a time. Out: `Detection`. Photos whose true boxes are too
loose to judge by (`weak_box`) are left out, as they are of AP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection import metrics
from detection.categories import CATEGORIES
from jobs import tables
from jobs.reporting.queries import Box, Truth
from postproc.boxes import iou_matrix
from store.imageset import ImageSet
from store.objects import ObjectStore

IOU = 0.5  # from which a box is at a true item
MIN_SCORE = 0.3  # of the fused boxes that people look at: weaker ones are in no picture and no confusion
MOST_SHOWN = 24  # misses, and as many doubles
MOST_BOXES = 100  # of a photo and category, as in COCO
RECALLS = np.linspace(0, 1, 101)
N = len(CATEGORIES)

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Miss:
    """A true item at which no fused box of MIN_SCORE lies; `best` is the score of the best weaker one there, 0 without."""

    image_id: int
    bbox: Box  # px x1 y1 x2 y2, as everywhere here
    category_id: int
    best: float


@dataclass(frozen=True)
class Double:
    """A true item with several fused boxes at it, best first."""

    image_id: int
    bbox: Box
    category_id: int
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    categories: tuple[int, ...]


@dataclass
class Detection:
    """Attributes:
    curves: detector or "fused" -> (14, 101) float64, precision at RECALLS at IoU 0.5: the mean over the categories that have items, then
        each category; NaN where it has no item. The mean of a row is its AP50.
    confusion: (14, 14) int64, fused boxes by true category (row; last: at no item) and found category (column; last: not found).
    misses: those at which nothing lies first, then by rising score of what does; larger items first.
    doubles: by falling score of the second box.
    n_misses, n_doubles: how many there are; the lists hold the first MOST_SHOWN.
    """

    curves: dict[str, np.ndarray] = field(default_factory=dict)
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((N + 1, N + 1), np.int64))
    misses: list[Miss] = field(default_factory=list)
    doubles: list[Double] = field(default_factory=list)
    n_misses: int = 0
    n_doubles: int = 0


def examine(output: ObjectStore, imageset: ImageSet, truth: Truth, detectors: Sequence[str]) -> Detection | None:
    """Look at every judged photo once.

    Args:
        detectors: names as in metrics.json, "fused" among them or not.

    Returns:
        None where the set has no true item to judge by, or no shard has boxes.
    """
    found = Detection()
    places = {name: "fused" if name == "fused" else f"detections/{name}" for name in detectors}
    gathered: dict[str, list[dict[int, Columns]]] = {name: [] for name in places}
    n_items = 0
    for shard in truth.shard_ids:
        rows = imageset.read(shard, columns=["image_id", "source", "weak_box", "items"])
        taken = pc.is_in(rows["image_id"], value_set=pa.array(truth.shard_ids[shard], pa.int64()))
        true: dict[str, Any] = dict(metrics.truth_arrays(rows.filter(taken)))
        judged = true.pop("judged")
        n_items += len(true["image_id"])
        for name, place in places.items():
            boxes = _boxes(output, f"{place}/{shard}.parquet")
            if boxes is None:
                continue
            gathered[name].append(at_half(true, boxes, judged))
            if name == "fused":
                _look(found, true, boxes, judged)
    found.curves = {name: _curves(shards) for name, shards in gathered.items() if shards}
    return found if n_items and found.curves else None


def _boxes(output: ObjectStore, key: str) -> Columns | None:
    """One shard's boxes as `detection.metrics` takes them; None where there is no such file."""
    if not output.exists(key):
        return None
    table = tables.read(output, key, ["image_id", "bbox", "score", "category_id"])
    plain = {name: table.column(name).to_numpy() for name in ("image_id", "score", "category_id")}
    return plain | {"bbox": tables.rows_of(table.column("bbox")).astype(np.float64)}


# ---- precision and recall ------------------------------------------------------------------------------------------


def at_half(true: Columns, boxes: Columns, judged: np.ndarray) -> dict[int, Columns]:
    """COCO's matching of some photos' boxes at IoU 0.5, category by category; many times faster than asking it for every threshold.

    Args:
        true, boxes: image_id, bbox, category_id, and score of the boxes, as `detection.metrics.evaluate_boxes` takes them.
        judged: (I,) ids of the photos to judge by.

    Returns:
        For each category id: score (D,) and right (D,) bool of its boxes, at most 100 a photo, best first in each photo; items (1,), true ones.
    """
    kept = np.flatnonzero(np.isin(boxes["image_id"], judged))
    kept = kept[np.argsort(-boxes["score"][kept], kind="stable")]
    photo = np.unique(np.r_[true["image_id"], boxes["image_id"][kept]], return_inverse=True)[1]
    category = np.r_[true["category_id"], boxes["category_id"][kept]].astype(np.int64)
    true_key, key = np.split(photo * (N + 1) + category, [len(true["image_id"])])
    order = np.argsort(key, kind="stable")
    kept, key = kept[order], key[order]
    among = np.arange(len(key)) - np.searchsorted(key, key)  # place among those of its photo and category
    kept, key = kept[among < MOST_BOXES], key[among < MOST_BOXES]
    right = np.zeros(len(kept), bool)
    for one in np.intersect1d(true_key, key).tolist():
        rows = slice(*np.searchsorted(key, [one, one + 1]).tolist())
        right[rows] = match(iou_matrix(boxes["bbox"][kept[rows]], true["bbox"][true_key == one])) >= 0
    return {
        c: {
            "score": boxes["score"][kept[key % (N + 1) == c]],
            "right": right[key % (N + 1) == c],
            "items": np.array([(true["category_id"] == c).sum()]),
        }
        for c in range(1, N + 1)
    }


def _curves(shards: list[dict[int, Columns]]) -> np.ndarray:
    each = [
        precision(
            np.concatenate([shard[category]["score"] for shard in shards]),
            np.concatenate([shard[category]["right"] for shard in shards]),
            int(sum(shard[category]["items"][0] for shard in shards)),
        )
        for category in range(1, N + 1)
    ]
    known = [curve for curve in each if not np.isnan(curve).any()]
    return np.stack([np.mean(known, axis=0) if known else np.full(len(RECALLS), np.nan), *each])


def precision(score: np.ndarray, right: np.ndarray, n_items: int) -> np.ndarray:
    """Precision at recall 0, 0.01 … 1 of one category: the best that any longer list reaches; 0 where none reaches the recall.

    Source: the COCO detection evaluation, as `detection.metrics` has it; the mean of the curve is AP at this IoU.

    Args:
        score: (D,) float of its boxes, any order; equal scores in the order given.
        right: (D,) bool, whether the box stands for a true item; at most one a true item.
        n_items: true items.

    Returns:
        (101,) float64; NaN without true items.

    >>> precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)[[0, 50, 51, 100]].round(3)
    array([1.   , 1.   , 0.667, 0.667])
    """
    if not n_items:
        return np.full(len(RECALLS), np.nan)
    found = np.cumsum(right[np.argsort(-score, kind="stable")])
    exact = found / np.arange(1, len(found) + 1)
    best = np.maximum.accumulate(exact[::-1])[::-1]
    place = np.searchsorted(found / n_items, RECALLS, side="left")
    return np.where(place < len(found), best[np.minimum(place, len(found) - 1)], 0.0) if len(found) else 0.0 * RECALLS


# ---- confusion, misses, doubles ------------------------------------------------------------------------------------


def _look(found: Detection, true: Columns, boxes: Columns, judged: np.ndarray) -> None:
    """Add one shard's fused boxes to what was found."""
    order = np.argsort(-boxes["score"], kind="stable")
    for image_id in np.unique(judged).tolist():
        of_photo = {name: values[true["image_id"] == image_id] for name, values in true.items()}
        mine = order[boxes["image_id"][order] == image_id]
        seen = {name: values[mine] for name, values in boxes.items()}
        _look_at_photo(found, image_id, of_photo, seen)
    _keep_first(found)


def _look_at_photo(found: Detection, image_id: int, true: Columns, seen: Columns) -> None:
    overlap = iou_matrix(seen["bbox"], true["bbox"])
    strong = int((seen["score"] >= MIN_SCORE).sum())  # they come first
    stands = match(overlap[:strong])
    for category, item in zip(seen["category_id"][:strong].tolist(), stands.tolist(), strict=True):
        found.confusion[true["category_id"][item] - 1 if item >= 0 else N, category - 1] += 1
    at = np.where(overlap.max(axis=1, initial=0) >= IOU, overlap.argmax(axis=1), -1) if overlap.size else stands[:0]
    for item, category in enumerate(true["category_id"].tolist()):
        found.confusion[category - 1, N] += item not in stands
        bbox = _box(true["bbox"][item])
        near = np.flatnonzero(overlap[:, item] >= IOU) if len(overlap) else np.zeros(0, np.int64)
        own = np.flatnonzero(at[:strong] == item)
        if not (near < strong).any():
            best = float(seen["score"][near[0]]) if len(near) else 0.0
            found.misses.append(Miss(image_id, bbox, category, best))
            found.n_misses += 1
        elif len(own) > 1:
            told = tuple(_box(box) for box in seen["bbox"][own]), tuple(seen["score"][own].astype(float).tolist())
            found.doubles.append(Double(image_id, bbox, category, *told, tuple(seen["category_id"][own].tolist())))
            found.n_doubles += 1


def match(overlap: np.ndarray) -> np.ndarray:
    """Which true item each box stands for: the best boxes choose first, each the free item it overlaps most, from IoU 0.5 up.

    Args:
        overlap: (N, G) IoU, boxes by falling score. Equal overlaps: the later item, as in COCO.

    Returns:
        (N,) int64 items, -1 for none; no item twice.

    >>> match(np.array([[0.9, 0.6], [0.8, 0.55], [0.7, 0.3]]))
    array([ 0,  1, -1])
    """
    stands = np.full(len(overlap), -1, np.int64)
    left = np.where(overlap >= IOU, overlap, 0.0)
    for row in np.flatnonzero(left.any(axis=1)).tolist():
        item = left.shape[1] - 1 - int(left[row, ::-1].argmax())
        if left[row, item] > 0:
            stands[row] = item
            left[:, item] = 0.0
    return stands


def _keep_first(found: Detection) -> None:
    found.misses = sorted(found.misses, key=lambda m: (m.best, -_area(m.bbox), m.image_id, m.bbox))[:MOST_SHOWN]
    found.doubles = sorted(found.doubles, key=lambda d: (-d.scores[1], d.image_id, d.bbox))[:MOST_SHOWN]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(values: np.ndarray) -> Box:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2
