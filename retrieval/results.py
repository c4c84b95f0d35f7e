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

from postproc.hypotheses import Hypotheses

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
    # (R, H): an entry of the submission for each, with the row's box and list; None: one each, of query_cls and
    # query_score, which are otherwise the first hypothesis
    hypotheses: Hypotheses | None = None

    def __post_init__(self) -> None:
        n, k = self.gallery_image_id.shape
        want = {"query_image_id": (n,), "query_bbox": (n, 4), "query_cls": (n,), "query_score": (n,)}
        for name, shape in (want | {"gallery_bbox": (n, k, 4), "gallery_count": (n,)}).items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"results: {name} has shape {getattr(self, name).shape}, others want {shape}")

        if self.hypotheses is not None and len(self.hypotheses) != n:
            raise ValueError(f"results: {len(self.hypotheses)} rows of hypotheses, others want {n}")

    def __len__(self) -> int:
        return len(self.query_image_id)


class QueryDetections(NamedTuple):
    """The consumer side of R results with E entries, in their order; shop lists are read only where they are needed."""

    image: np.ndarray  # (R,)
    bbox: np.ndarray  # (R, 4)
    cls: np.ndarray  # (E,)
    score: np.ndarray  # (E,)
    row: np.ndarray  # (E,) int64, the result that an entry is of


def detections_of(results: Results | Records) -> QueryDetections:
    """The consumer side of a submission; raises ValueError for a box or a score that is not finite, with its entry."""
    keys = ("query_image_id", "query_bbox", "query_cls", "query_score")
    if isinstance(results, Results):
        image, bbox, cls, score = (getattr(results, key) for key in keys)
        row = np.arange(len(results))
        if (hypotheses := results.hypotheses) is not None:
            row, place = np.nonzero(hypotheses.real)
            cls, score = hypotheses.category_id[row, place], hypotheses.score[row, place]
    else:
        image, bbox, cls, score = columns_of(results, keys, "results")
        row = np.arange(len(results))
    detections = QueryDetections(image, bbox.astype(np.float64), cls, score, row)
    for name, values in (("query_score", detections.score[:, None]), ("query_bbox", detections.bbox)):
        if not (finite := np.isfinite(values).all(axis=1)).all():  # a box of NaN would stand for the photo's first item
            entry = int(finite.argmin())
            raise ValueError(f"results: entry {entry} has {name} {values[entry].tolist()}, want finite numbers")
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
