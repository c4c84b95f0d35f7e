"""One shard's boxes of all detectors to one set of boxes and masks, and to the items worth embedding.

In: detections/DETECTOR/SHARD.parquet of every detector, in the order of the settings; the shard's ground truth.
Out: fused/SHARD.parquet (what AP judges), items/detected/SHARD.parquet and, where there is ground truth, items/true/SHARD.parquet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection import rle
from detection.detections import Rle
from jobs import tables
from jobs.config import Fusion, Items, Settings
from jobs.ledger import Outcome
from jobs.trial import Job
from postproc.boxes import overlapping
from postproc.candidates import votes_of
from postproc.masks import vote_batch
from postproc.nms import nms_batch
from postproc.nmw import nmw_batch_members
from postproc.soft_nms import soft_nms_batch
from postproc.voting import box_voting_batch
from postproc.wbf import fuse_batch_members
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


@dataclass(frozen=True)
class Fused:
    """Fused boxes and what each was made of.

    Attributes:
        boxes: the M fused boxes.
        place: (P,) int in [0, M), row: (P,) int, in pairs: row of the detectors' boxes stands behind fused box `place`.
    """

    boxes: Boxes
    place: np.ndarray
    row: np.ndarray

    def where(self, rows: np.ndarray) -> "Fused":
        now = np.full(len(self.boxes.scores), -1)
        now[rows] = np.arange(len(rows))
        stays = now[self.place] >= 0
        return Fused(self.boxes.where(rows), now[self.place[stays]], self.row[stays])


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
        candidates, model, masks = self._read(job.name, image_ids)
        read = time.perf_counter()
        fusion = self.settings.fusion
        made = fuse_members(candidates, model, len(self.detectors), fusion)
        fused = made.boxes
        items = {
            "detected": lambda: worth_embedding(fused, self.settings.items),
            "true": lambda: true_items(photos.column("items")),
        }
        chosen = {kind: items[kind]() for kind in job.work}
        strength = candidates.scores * _shares(fusion, len(self.detectors))[model]
        columns = {"mask": fused_masks(made, masks, strength)} if fusion.masks else {}
        infer = time.perf_counter()
        key = f"fused/{job.name}.parquet"
        outputs = {key: tables.write(self.output, key, _table(tables.FUSED, fused, image_ids, **columns))}
        for kind, boxes in chosen.items():
            key = f"items/{kind}/{job.name}.parquet"
            outputs[key] = tables.write(self.output, key, _table(tables.ITEMS, boxes, image_ids))
        seconds = {"read": read - start, "infer": infer - read, "write": time.perf_counter() - infer}
        return {"fuse": Outcome(outputs, len(fused.scores), seconds)}

    def _read(self, shard: str, image_ids: np.ndarray) -> tuple[Boxes, np.ndarray, pa.ChunkedArray]:
        """All detectors' boxes, the number of the detector each came from (N,), and their masks, null where there is none."""
        found = [tables.read(self.output, f"detections/{name}/{shard}.parquet") for name in self.detectors]
        model = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        rows = pa.concat_tables(found)
        order = np.argsort(image_ids, kind="stable")
        image = order[np.searchsorted(image_ids, rows.column("image_id").to_numpy(), sorter=order)]
        boxes = Boxes(
            tables.rows_of(rows.column("bbox")).astype(np.float64), rows.column("score").to_numpy().astype(np.float64),
            rows.column("category_id").to_numpy().astype(np.int64), image, np.zeros(len(rows), np.int64),
        )  # fmt: skip
        return boxes, model, rows.column("mask")


def fuse(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Boxes:
    """One set of boxes from several detectors': `fuse_members` without the members."""
    return fuse_members(found, model, n_models, fusion).boxes


def fuse_members(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
    """One set of boxes from several detectors', by the method of the settings.

    Args:
        found: the detectors' boxes; model: (N,) int in [0, n_models), whose each is.

    Returns:
        Fused boxes that score and agree enough, at most so many a photo; images in order, best score first.
    """
    thresholds = fusion.thresholds or (fusion.skip_box_threshold,) * n_models
    usable = np.flatnonzero(found.scores >= np.array(thresholds)[model])
    fused = METHODS[fusion.method](found.where(usable), model[usable], n_models, fusion)
    fused = replace(fused, row=usable[fused.row])
    boxes = fused.boxes
    fused = fused.where(np.flatnonzero((boxes.scores >= fusion.score_threshold) & (boxes.votes >= fusion.min_votes)))
    return fused.where(best(fused.boxes, fusion.max_per_image))


def _wbf(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
    *columns, members = fuse_batch_members(
        found.boxes, found.scores, found.labels, found.image, model, n_models, weights=fusion.weights,
        iou_thr=fusion.iou_threshold, conf_type=fusion.conf_type,
    )  # fmt: skip
    return _of_members(columns, members)


def _nmw(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
    *columns, members = nmw_batch_members(
        found.boxes, found.scores, found.labels, found.image, model, n_models, weights=fusion.weights,
        iou_thr=fusion.iou_threshold,
    )  # fmt: skip
    return _of_members(columns, members)


def _of_members(columns: list[np.ndarray], members: np.ndarray) -> Fused:
    row = np.flatnonzero(members >= 0)
    return Fused(Boxes(*columns), members[row], row)


def _nms(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
    scores, groups = found.scores * _shares(fusion, n_models)[model], _groups(found)
    kept = nms_batch(found.boxes, scores, groups, iou_threshold=fusion.iou_threshold)
    return _of_kept(found, model, n_models, fusion, kept, found.boxes[kept], scores[kept])


def _soft_nms(kind: str) -> Callable[[Boxes, np.ndarray, int, Fusion], Fused]:
    def method(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
        scores, groups = found.scores * _shares(fusion, n_models)[model], _groups(found)
        kept, lowered = soft_nms_batch(
            found.boxes, scores, groups, kind=kind, iou_threshold=fusion.iou_threshold, sigma=fusion.sigma,
            score_threshold=fusion.score_threshold,
        )  # fmt: skip
        return _of_kept(found, model, n_models, fusion, kept, found.boxes[kept], lowered)

    return method


def _voting(found: Boxes, model: np.ndarray, n_models: int, fusion: Fusion) -> Fused:
    scores, groups = found.scores * _shares(fusion, n_models)[model], _groups(found)
    limit = fusion.iou_threshold
    kept, moved = box_voting_batch(found.boxes, scores, groups, iou_threshold=limit, voting_threshold=limit)
    return _of_kept(found, model, n_models, fusion, kept, moved, scores[kept])


METHODS: dict[str, Callable[[Boxes, np.ndarray, int, Fusion], Fused]] = {
    "wbf": _wbf, "nms": _nms, "nmw": _nmw, "voting": _voting,
    "soft_nms_linear": _soft_nms("linear"), "soft_nms_gaussian": _soft_nms("gaussian"),
}  # fmt: skip


def _of_kept(
    found: Boxes,
    model: np.ndarray,
    n_models: int,
    fusion: Fusion,
    kept: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
) -> Fused:
    """Kept boxes; the detectors with a box of the category that overlaps a kept one vote for it."""
    place, row = overlapping(found.boxes, _groups(found), kept, fusion.iou_threshold)
    votes = votes_of(model[row], place, len(kept), n_models)
    return Fused(Boxes(boxes, scores, found.labels[kept], found.image[kept], votes), place, row)


def _shares(fusion: Fusion, n_models: int) -> np.ndarray:
    """(T,) each detector's weight over the largest."""
    return np.ones(n_models) if fusion.weights is None else np.array(fusion.weights) / max(fusion.weights)


def _groups(found: Boxes) -> np.ndarray:
    """(N,) a number for each photo and category."""
    return found.image * 1000 + found.labels


def fused_masks(made: Fused, masks: pa.ChunkedArray, strength: np.ndarray) -> list[Rle | None]:
    """The mask of each fused box: the vote of its members' masks, by their weighted scores; None where no member has one.

    Args:
        masks: (N,) the detectors' masks, null where there is none. strength: (N,) score times weight of each.
    """
    pairs = np.flatnonzero(pc.is_valid(masks).to_numpy(zero_copy_only=False)[made.row])
    place, row = made.place[pairs], made.row[pairs]
    rows, number = np.unique(row, return_inverse=True)
    given: list[Rle] = masks.take(pa.array(rows, pa.int64())).to_pylist()
    fused: list[Rle | None] = [None] * len(made.boxes.scores)
    several = np.bincount(place, minlength=len(fused))[place] > 1
    for alone in np.flatnonzero(~several):  # nothing to vote on
        fused[place[alone]] = given[number[alone]]
    sizes = {int(place[k]): given[number[k]]["size"] for k in np.flatnonzero(several)}
    runs = {k: rle.lengths(given[k]) for k in np.unique(number[several]).tolist()}
    votes = vote_batch(place[several], [runs[k] for k in number[several]], strength[row[several]], len(fused))
    for k, size in sizes.items():
        fused[k] = rle.from_lengths(votes[k], (size[0], size[1]))  # type: ignore[arg-type]  # it has members
    return fused


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


def _table(schema: pa.Schema, boxes: Boxes, image_ids: np.ndarray, **more: Any) -> pa.Table:
    columns = {
        "image_id": image_ids[boxes.image], "bbox": boxes.boxes, "score": boxes.scores,
        "category_id": boxes.labels, "votes": boxes.votes, **more,
    }  # fmt: skip
    if "item" in schema.names:
        columns["item"] = rank_within(boxes.image)
    return tables.table(schema, columns)
