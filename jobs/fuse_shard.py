"""One shard's boxes of all detectors to one set of boxes, and to the items worth embedding.

In: detections/DETECTOR/SHARD.parquet of every detector, in the order of the settings; the shard's ground truth.
Out: fused/SHARD.parquet (what AP judges), items/detected/SHARD.parquet and, where there is ground truth, items/true/SHARD.parquet.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import tables
from jobs.config import Fusion, Items, Settings
from jobs.ledger import Outcome
from jobs.trial import Job
from postproc.boxes import iou_matrix
from postproc.nms import nms_batch
from postproc.wbf import fuse_batch
from store.imageset import ImageSet
from store.objects import ObjectStore


@dataclass(frozen=True)
class Boxes:
    """Boxes of many images, rows grouped by image in the shard's order, best score first within one.

    Attributes:
        boxes: (N, 4) float, px x1 y1 x2 y2.
        scores: (N,) float; labels: (N,) category ids.
        image: (N,) int, index into the shard's photos.
        votes: (N,) int, detectors that agree; 0 for ground truth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    votes: np.ndarray

    def where(self, rows: np.ndarray) -> "Boxes":
        return Boxes(self.boxes[rows], self.scores[rows], self.labels[rows], self.image[rows], self.votes[rows])


@dataclass
class FuseShard:
    """A worker (`jobs.pool.Worker`). `job.work` names the kinds of items to write."""

    settings: Settings
    detectors: tuple[str, ...]
    images: ImageSet
    output: ObjectStore

    def load(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def probe(self, job: Job, row: int) -> None:
        """Nothing here looks at a photo; a shard that kills twice is simply tried whole again."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        start = time.perf_counter()
        photos = self.images.read(job.name, columns=["image_id", "items"]).take(pa.array(job.rows, pa.int64()))
        image_ids = photos.column("image_id").to_numpy()
        candidates, model = self._read(job.name, image_ids)
        read = time.perf_counter()
        fused = fuse(candidates, model, len(self.detectors), self.settings.fusion)
        items = {
            "detected": lambda: worth_embedding(fused, self.settings.items),
            "true": lambda: true_items(photos.column("items")),
        }
        chosen = {kind: items[kind]() for kind in job.work}
        infer = time.perf_counter()
        key = f"fused/{job.name}.parquet"
        outputs = {key: tables.write(self.output, key, _table(tables.FUSED, fused, image_ids))}
        for kind, boxes in chosen.items():
            key = f"items/{kind}/{job.name}.parquet"
            outputs[key] = tables.write(self.output, key, _table(tables.ITEMS, boxes, image_ids))
        seconds = {"read": read - start, "infer": infer - read, "write": time.perf_counter() - infer}
        return {"fuse": Outcome(outputs, len(fused.scores), seconds)}

    def _read(self, shard: str, image_ids: np.ndarray) -> tuple[Boxes, np.ndarray]:
        """All detectors' boxes, and the number of the detector each came from (N,)."""
        found = [tables.read(self.output, f"detections/{name}/{shard}.parquet") for name in self.detectors]
        model = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        rows = pa.concat_tables(found)
        order = np.argsort(image_ids, kind="stable")
        image = order[np.searchsorted(image_ids, rows.column("image_id").to_numpy(), sorter=order)]
        boxes = Boxes(
            tables.rows_of(rows.column("bbox")).astype(np.float64), rows.column("score").to_numpy().astype(np.float64),
            rows.column("category_id").to_numpy().astype(np.int64), image, np.zeros(len(rows), np.int64),
        )  # fmt: skip
        return boxes, model


def fuse(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Boxes:
    """One set of boxes from several detectors': weighted boxes fusion, or suppression as the plain alternative."""
    if fusion.method == "wbf":
        boxes, scores, labels, image, votes = fuse_batch(
            found.boxes, found.scores, found.labels, found.image, model, n_models, weights=fusion.weights,
            iou_thr=fusion.iou_threshold, skip_box_thr=fusion.skip_box_threshold, conf_type=fusion.conf_type,
        )  # fmt: skip
        fused = Boxes(boxes, scores, labels, image, votes)
    else:
        fused = _suppress(found, model, n_models, fusion)
    fused = fused.where(np.flatnonzero(fused.scores >= fusion.score_threshold))
    return fused.where(best(fused, fusion.max_per_image))


def _suppress(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Boxes:
    """The best of boxes of one category that overlap; its votes are the detectors that have such a box."""
    weights = np.ones(n_models) if fusion.weights is None else np.array(fusion.weights) / max(fusion.weights)
    usable = np.flatnonzero(found.scores >= fusion.skip_box_threshold)
    found, model = found.where(usable), model[usable]
    scores = found.scores * weights[model]
    groups = found.image * 1000 + found.labels
    kept = nms_batch(found.boxes, scores, groups, iou_threshold=fusion.iou_threshold)
    votes = np.array([_votes(row, found, groups, model, fusion.iou_threshold) for row in kept], np.int64)
    return Boxes(found.boxes[kept], scores[kept], found.labels[kept], found.image[kept], votes)


def _votes(row: int, found: Boxes, groups: np.ndarray, model: np.ndarray, iou_threshold: float) -> int:
    rivals = np.flatnonzero(groups == groups[row])
    alike = iou_matrix(found.boxes[[row]], found.boxes[rivals])[0] > iou_threshold
    return len(set(model[rivals[alike]].tolist()) | {int(model[row])})


def best(boxes: Boxes, n: int) -> np.ndarray:
    """Rows of the `n` best boxes of each image, images in order, best first, ties in input order."""
    order = np.lexsort((np.arange(len(boxes.scores)), -boxes.scores, boxes.image))
    return order[rank_within(boxes.image[order]) < n]


def rank_within(groups: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal values of a sorted array.

    >>> rank_within(np.array([4, 4, 7, 7, 7])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.int64)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def worth_embedding(fused: Boxes, items: Items) -> Boxes:
    """Boxes over the item score, of overlapping ones of any category the best, at most N a photo."""
    fused = fused.where(np.flatnonzero(fused.scores >= items.score_threshold))
    kept = fused.where(nms_batch(fused.boxes, fused.scores, fused.image, iou_threshold=items.iou_threshold))
    return kept.where(best(kept, items.max_per_image))


def true_items(column: pa.ChunkedArray) -> Boxes:
    """Ground truth as items, in the order it is written down: score 1, no votes."""
    photos = column.to_pylist()
    counts = [len(items or ()) for items in photos]
    flat = [item for items in photos for item in items or ()]
    boxes = np.array([item["bbox"] for item in flat], np.float64).reshape(-1, 4)
    labels = np.array([item["category_id"] for item in flat], np.int64)
    return Boxes(
        boxes, np.ones(len(flat)), labels, np.repeat(np.arange(len(photos)), counts), np.zeros(len(flat), np.int64)
    )


def _table(schema: pa.Schema, boxes: Boxes, image_ids: np.ndarray) -> pa.Table:
    columns = {
        "image_id": image_ids[boxes.image], "bbox": boxes.boxes, "score": boxes.scores,
        "category_id": boxes.labels, "votes": boxes.votes,
    }  # fmt: skip
    if "item" in schema.names:
        columns["item"] = rank_within(boxes.image)
    return tables.table(schema, columns)
