"""Submissions to the consumer-to-shop benchmark: as columns, or as its official list of dictionaries.

In: detected consumer garments with ranked lists of shop boxes, or ground truth as records. Out: arrays. What is lacking
or malformed is named by its entry.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]
Records = Sequence[Record]


@dataclass(frozen=True)
class Results:
    """A submission as columns: R detected consumer garments, each with a list of up to K shop boxes, best first.

    Every function of `retrieval.metrics` takes this or the official list of dictionaries.
    """

    query_image_id: np.ndarray  # (R,) int, the consumer photo
    query_bbox: np.ndarray  # (R, 4) float, x1 y1 x2 y2 in its pixels
    query_cls: np.ndarray  # (R,) int, category id
    query_score: np.ndarray  # (R,) float
    gallery_image_id: np.ndarray  # (R, K) int, the shop photos
    gallery_bbox: np.ndarray  # (R, K, 4) float, x1 y1 x2 y2 in their pixels
    gallery_count: np.ndarray  # (R,) int, the length of each list; what a row holds after that is ignored

    def __post_init__(self) -> None:
        n, k = self.gallery_image_id.shape
        want = {"query_image_id": (n,), "query_bbox": (n, 4), "query_cls": (n,), "query_score": (n,)}
        for name, shape in (want | {"gallery_bbox": (n, k, 4), "gallery_count": (n,)}).items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"results: {name} has shape {getattr(self, name).shape}, others want {shape}")

    def __len__(self) -> int:
        return len(self.query_image_id)


class QueryDetections(NamedTuple):
    """The consumer side of the results. The shop lists are read only where they are needed."""

    image: np.ndarray
    bbox: np.ndarray
    cls: np.ndarray
    score: np.ndarray


def detections_of(results: Results | Records) -> QueryDetections:
    """The consumer side of a submission; raises ValueError for a box or a score that is not finite, with its entry."""
    keys = ("query_image_id", "query_bbox", "query_cls", "query_score")
    if isinstance(results, Results):
        detections = QueryDetections(*(getattr(results, key) for key in keys))
        detections = detections._replace(bbox=detections.bbox.astype(np.float64))
    else:
        detections = QueryDetections(*columns_of(results, keys, "results"))
    for name, values in (("query_score", detections.score[:, None]), ("query_bbox", detections.bbox)):
        if not (finite := np.isfinite(values).all(axis=1)).all():  # a box of NaN would stand for the photo's first item
            row = int(finite.argmin())
            raise ValueError(f"results: entry {row} has {name} {values[row].tolist()}, want finite numbers")
    return detections


def columns_of(records: Records, keys: Iterable[str], what: str) -> list[np.ndarray]:
    """The values of each key as one array: boxes (N, 4) float64, scores float64, all else int64."""
    columns = []
    for key in keys:
        try:
            values = list(map(itemgetter(key), records))
        except KeyError:
            lacking = next(i for i, record in enumerate(records) if key not in record)
            raise ValueError(f"{what}: entry {lacking} has no {key!r}, only {sorted(records[lacking])}") from None
        if key.endswith("bbox"):
            if set(map(len, values)) - {4}:
                wrong = next(i for i, box in enumerate(values) if len(box) != 4)
                raise ValueError(f"{what}: entry {wrong} has {key} {values[wrong]}, want [x1, y1, x2, y2]")
            flat = np.fromiter(chain.from_iterable(values), np.float64, 4 * len(values))
            columns.append(flat.reshape(-1, 4))
        else:
            columns.append(np.array(values, dtype=np.float64 if key.endswith("score") else np.int64))
    return columns


def shop_lists(
    results: Results | Records, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Shop photo ids (N, k) of these results, how many of them count (N,), and a reader of boxes by (result, place)."""
    if isinstance(results, Results):
        shop_boxes = results.gallery_bbox
        ids, count = results.gallery_image_id[rows, :k], np.minimum(results.gallery_count[rows], k)
        return ids, count, lambda row, place: shop_boxes[row, place].astype(np.float64)

    chosen = [results[row] for row in rows.tolist()]
    n_ids = [len(result["gallery_image_id"]) for result in chosen]
    n_boxes = [len(result["gallery_bbox"]) for result in chosen]
    if n_ids != n_boxes:
        i = next(i for i in range(len(rows)) if n_ids[i] != n_boxes[i])
        raise ValueError(f"results: entry {rows[i]} has {n_ids[i]} gallery_image_id and {n_boxes[i]} gallery_bbox")
    lists = [ids if len(ids := result["gallery_image_id"]) <= k else ids[:k] for result in chosen]
    count = np.minimum(np.array(n_ids, dtype=np.int64), k)
    table = np.zeros((len(lists), k), dtype=np.int64)
    table[np.arange(k) < count[:, None]] = np.fromiter(chain.from_iterable(lists), np.int64, count.sum())

    def boxes(row: np.ndarray, place: np.ndarray) -> np.ndarray:
        wanted = [results[r]["gallery_bbox"][p] for r, p in zip(row.tolist(), place.tolist(), strict=True)]
        return np.array(wanted, dtype=np.float64).reshape(-1, 4)

    return table, count, boxes
