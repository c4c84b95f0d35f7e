"""The page detection.html: precision over recall, confusion between categories, missed and duplicate garments.

In: detections/ and fused/ of a run, the true boxes of its image set, a shard at a time. Out: a `Detection` record, its
charts and the pictures it needs. Photos whose true boxes are too loose to judge by (`weak_box`) are left out, as they
are left out of AP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detection import metrics
from detection.average_precision import AP10_IDS
from detection.matching import TrueBoxes
from jobs.reports import certainty, charts
from jobs.reports.charts import Chart
from jobs.reports.pictures import Mark, Marked, Wanted
from jobs.reports.truth import Box, GroundTruth, as_box, of_photos
from jobs.runs.reader import read_boxes
from postproc.boxes import iou_matrix
from store.categories import DEEPFASHION2
from store.imageset import ImageSet
from store.objects import ObjectStore

IOU = 0.5  # overlap from which a box matches a true item
MIN_SCORE = 0.3  # of a fused box that counts as a detection here: weaker ones are in no picture and no confusion matrix
MOST_SHOWN = 24  # misses, and as many duplicates
RECALLS = np.linspace(0, 1, 101)
MOST_CONFUSED = 30  # categories that the confusion matrix shows by name

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Miss:
    """A true item that no fused box of MIN_SCORE matches; `best` is the score of the best weaker box, 0 without any."""

    image_id: int
    bbox: Box  # px x1 y1 x2 y2, as everywhere here
    category_id: int
    best: float


@dataclass(frozen=True)
class Duplicate:
    """A true item that several fused boxes match, best first."""

    image_id: int
    bbox: Box
    category_id: int
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    categories: tuple[int, ...]


@dataclass
class Detection:
    """What the page says of a run's boxes.

    Attributes:
        categories: names of the C category ids, id 1 first.
        curves: detector or "fused" -> (1 + C, 101) float64, precision at RECALLS at IoU 0.5: the mean over the
            categories that have items, then each category; NaN where it has no item. The mean of a row is its AP50.
        confusion: (C + 1, C + 1) int64, fused boxes by true category (row; last: no item) and found category (column;
            last: not found).
        misses: the first MOST_SHOWN of n_misses. Those without any box come first, then those with a weak box by its
            rising score; larger items first.
        duplicates: the first MOST_SHOWN of n_duplicates, by falling score of the second box.
        intervals: of the fused boxes' AP50 and AP10_50, 95 % over photos, fractions.
    """

    categories: tuple[str, ...]
    confusion: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    misses: list[Miss] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    n_misses: int = 0
    n_duplicates: int = 0
    intervals: dict[str, certainty.Interval] = field(default_factory=dict)


def examine(
    output: ObjectStore,
    imageset: ImageSet,
    truth: GroundTruth,
    detectors: Sequence[str],
    categories: Sequence[str] = DEEPFASHION2,
) -> Detection | None:
    """Look at every judged photo once. None where the set has no true item to judge by, or no shard has boxes.

    `detectors` are named as in metrics.json, with or without "fused"; `categories` are the run's.
    """
    n = len(categories)
    result = Detection(tuple(categories), np.zeros((n + 1, n + 1), np.int64))
    folders = {name: "fused" if name == "fused" else f"detections/{name}" for name in detectors}
    matched: dict[str, list[dict[int, Columns]]] = {name: [] for name in folders}
    fused_photos: list[np.ndarray] = []
    n_items = 0
    for shard, image_ids in truth.shard_ids.items():
        rows = of_photos(imageset.read(shard, columns=["image_id", "source", "weak_box", "items"]), image_ids)
        true: dict[str, Any] = dict(metrics.truth_arrays(rows, areas=False))
        judged = true.pop("judged")
        n_items += len(true["image_id"])
        true_boxes = TrueBoxes(true, judged, n)
        for name, folder in folders.items():
            if output.exists(f"{folder}/{shard}.parquet"):
                boxes = read_boxes(output, folder, [shard])
                of_categories = true_boxes.matches(boxes)
                # at IoU 0.5 alone: a copy, for a view would keep the other thresholds in memory
                at50 = {c: columns | {"right": columns["right"][:1].copy()} for c, columns in of_categories.items()}
                matched[name].append(at50)
                if name == "fused":
                    fused_photos.append(true_boxes.photos)
                    _add_fused(result, true, boxes, judged)
    result.curves = {name: _curves(shards, n) for name, shards in matched.items() if shards}
    if matched.get("fused"):
        means = {"AP50": range(1, n + 1)} | ({"AP10_50": AP10_IDS} if categories == DEEPFASHION2 else {})
        result.intervals = certainty.ap50_intervals(matched["fused"], fused_photos, means)
    return result if n_items and result.curves else None


def want_pictures(detection: Detection, wanted: Wanted) -> None:
    """Ask for the photos of missed garments and of those detected twice."""
    for miss in detection.misses:
        mark = Mark(miss.bbox, miss.category_id, "?", strong=True, dashed=True)
        wanted.setdefault(miss.image_id, {})[picture_name("miss", miss)] = Marked((mark,))
    for duplicate in detection.duplicates:
        boxes = enumerate(zip(duplicate.boxes, duplicate.categories, strict=True), 1)
        marks = tuple(Mark(box, category, str(number)) for number, (box, category) in boxes)
        wanted.setdefault(duplicate.image_id, {})[picture_name("duplicate", duplicate)] = Marked(marks)


def picture_name(kind: str, item: Miss | Duplicate) -> str:
    """Name of a picture: miss or duplicate, the photo's id, and the corners of the true box."""
    return f"{kind}-{item.image_id}-{'-'.join(f'{v:.0f}' for v in item.bbox)}"


# ---- charts ----------------------------------------------------------------------------------------------------------


def precision_recall_chart(detection: Detection, colours: Mapping[str, int]) -> Chart:
    """Precision over recall at IoU 0.5, the mean over all categories or one of them."""
    choices: dict[str, list[charts.Series]] = {}
    for row, name in enumerate(("mean over categories", *detection.categories)):
        series = [
            charts.series(model, colours.get(model, 0), 100 * RECALLS, 100 * curve[row])
            for model, curve in detection.curves.items()
            if not np.isnan(curve[row]).any()
        ]
        choices |= {name: series} if series else {}
    x, y = charts.axis("recall, percent", (0, 100)), charts.axis("precision, percent", (0, 100))
    return charts.chart("precision-recall", "Precision over recall, IoU 0.5", "lines", x, y, choices)


def confusion_chart(detection: Detection) -> Chart:
    """Each true category's share of found categories; the cells print counts.

    Of more than MOST_CONFUSED categories those with the fewest items and boxes are one row and column, "others".
    """
    n, confusion = len(detection.categories), detection.confusion
    numbers = confusion[:n].sum(axis=1) + confusion[:, :n].sum(axis=0)
    named = np.sort(np.argsort(-numbers, kind="stable")[:MOST_CONFUSED])
    place = np.full(n + 1, len(named))  # of the others
    place[named], place[n] = np.arange(len(named)), len(named) + 1
    whole = np.zeros((len(named) + 2, len(named) + 2), np.int64)
    np.add.at(whole, (place[:, None], place), confusion)
    names = [*(detection.categories[i] for i in named), "others"]
    used = [i for i in range(len(whole)) if whole[i].any() or whole[:, i].any()]
    counts = whole[np.ix_(used, used)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    columns, rows = ([(*names, last)[i] for i in used] for last in ("not found", "no garment"))
    series = {"x": columns, "y": rows, "z": [charts.rounded(row, 3) for row in shares], "counts": counts.tolist()}
    x, y = charts.axis("found category"), charts.axis("true category")
    return charts.chart("confusion", "Confusion between categories", "heat", x, y, {"": [series]})


# ---- precision and recall ------------------------------------------------------------------------------------------


def _curves(shards: list[dict[int, Columns]], n_categories: int) -> np.ndarray:
    each = []
    for c in range(1, n_categories + 1):
        score = np.concatenate([shard[c]["score"] for shard in shards])
        right = np.concatenate([shard[c]["right"][0] for shard in shards])  # at IoU 0.5
        each.append(precision(score, right, int(sum(shard[c]["items"].sum() for shard in shards))))
    defined = [curve for curve in each if not np.isnan(curve).any()]
    return np.stack([np.mean(defined, axis=0) if defined else np.full(len(RECALLS), np.nan), *each])


def precision(score: np.ndarray, right: np.ndarray, n_items: int) -> np.ndarray:
    """Precision of one category at recall 0, 0.01 … 1, (101,) float64: the best at that recall or a higher one.

    It is 0 where no list reaches the recall, and NaN without true items. `score`, (D,) float, is of the category's
    boxes in any order, equal scores in the order given; `right`, (D,) bool, says whether the box matches a true item,
    at most one box per item. Source: the COCO detection evaluation, as in `detection.metrics`; the mean of the curve is
    AP at this IoU.

    >>> precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)[[0, 50, 51, 100]].round(3)
    array([1.   , 1.   , 0.667, 0.667])
    """
    if not n_items:
        return np.full(len(RECALLS), np.nan)
    n_right = np.cumsum(right[np.argsort(-score, kind="stable")])
    if not len(n_right):
        return np.zeros(len(RECALLS))
    exact = n_right / np.arange(1, len(n_right) + 1)
    best = np.maximum.accumulate(exact[::-1])[::-1]
    place = np.searchsorted(n_right / n_items, RECALLS, side="left")
    return np.where(place < len(n_right), best[np.minimum(place, len(n_right) - 1)], 0.0)


# ---- confusion, misses, duplicates -----------------------------------------------------------------------------------


def _add_fused(result: Detection, true: Columns, boxes: Columns, judged: np.ndarray) -> None:
    """Add one shard's fused boxes to the confusion matrix, the misses and the duplicates."""
    order = np.argsort(-boxes["score"], kind="stable")
    for image_id in np.unique(judged).tolist():
        items = {name: values[true["image_id"] == image_id] for name, values in true.items()}
        rows = order[boxes["image_id"][order] == image_id]
        _add_photo(result, image_id, items, {name: values[rows] for name, values in boxes.items()})
    result.misses = sorted(result.misses, key=lambda m: (m.best, -_area(m.bbox), m.image_id, m.bbox))[:MOST_SHOWN]
    result.duplicates = sorted(result.duplicates, key=lambda d: (-d.scores[1], d.image_id, d.bbox))[:MOST_SHOWN]


def _add_photo(result: Detection, image_id: int, true: Columns, boxes: Columns) -> None:
    """Add one photo; `boxes` by falling score."""
    overlap = iou_matrix(boxes["bbox"], true["bbox"])
    strong = int((boxes["score"] >= MIN_SCORE).sum())  # they come first
    item_of_box = match(overlap[:strong])
    for category, item in zip(boxes["category_id"][:strong].tolist(), item_of_box.tolist(), strict=True):
        result.confusion[true["category_id"][item] - 1 if item >= 0 else -1, category - 1] += 1
    nearest = overlap.argmax(axis=1)[:strong] if overlap.size else item_of_box
    for item, category in enumerate(true["category_id"].tolist()):
        result.confusion[category - 1, -1] += item not in item_of_box
        bbox = as_box(true["bbox"][item])
        matching = np.flatnonzero(overlap[:, item] >= IOU) if len(overlap) else np.zeros(0, np.int64)
        if not (matching < strong).any():
            best = float(boxes["score"][matching[0]]) if len(matching) else 0.0
            result.misses.append(Miss(image_id, bbox, category, best))
            result.n_misses += 1
            continue
        own = [row for row in matching.tolist() if row < strong and nearest[row] == item]
        if len(own) > 1:
            corners = tuple(as_box(box) for box in boxes["bbox"][own])
            scores = tuple(boxes["score"][own].astype(float).tolist())
            categories = tuple(boxes["category_id"][own].tolist())
            result.duplicates.append(Duplicate(image_id, bbox, category, corners, scores, categories))
            result.n_duplicates += 1


def match(overlap: np.ndarray) -> np.ndarray:
    """Which true item each box matches: the best boxes choose first, each the free item it overlaps most (IoU ≥ 0.5).

    Takes (N, G) IoU, boxes by falling score. Returns (N,) int64 items, -1 for none, no item twice; of equal overlaps
    the later item, as in COCO.

    >>> match(np.array([[0.9, 0.6], [0.8, 0.55], [0.7, 0.3]]))
    array([ 0,  1, -1])
    """
    items = np.full(len(overlap), -1, np.int64)
    free = np.where(overlap >= IOU, overlap, 0.0)
    for row in np.flatnonzero(free.any(axis=1)).tolist():
        item = free.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, item] > 0:
            items[row] = item
            free[:, item] = 0.0
    return items


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
