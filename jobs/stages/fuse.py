"""Fuse: the detectors' boxes and masks to one set, and the items worth embedding; on CPU.

In: OUTPUT/detections/DETECTOR/SHARD.parquet of every detector; the set's ground truth. Out: OUTPUT/fused/SHARD.parquet,
which AP judges, and OUTPUT/items/BOXES/SHARD.parquet. Without detectors the whole photo is the item. How boxes are
fused is in `postproc.fusion`.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection import rle
from detection.detections import Rle
from jobs.runs import shards, tables
from jobs.runs.marks import CODES, EMBEDDED, Outcome, Unit
from jobs.runs.retries import Job
from jobs.runs.run import Run
from jobs.runs.settings import Settings, record
from postproc.fusion import Boxes, Fused, FusionRule, ItemRule, fuse_members, rank_within, worth_embedding
from postproc.hypotheses import Hypotheses
from postproc.masks import vote_batch
from postproc.places import places
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectStore


def units(run: Run) -> list[Unit]:
    """One for each shard."""
    settings: dict[str, Any] = {name: record(getattr(run.settings, name)) for name in ("fusion", "items")}
    settings["boxes"] = list(run.box_kinds)
    detected, units = run.units["detect"], []
    for shard in run.selected.shards:
        digests = run.digests(detected[f"detect/{model.name}/{shard.name}"] for model in run.detectors)
        inputs = shard.basis() | {"detections": digests}
        basis = None if digests is None else {"code": CODES["fuse"], "settings": settings, "inputs": inputs}
        outputs = (f"fused/{shard.name}.parquet", *(f"items/{kind}/{shard.name}.parquet" for kind in run.box_kinds))
        units.append(Unit(f"fuse/{shard.name}", outputs, basis, shard.images))
    return units


def run_unfinished(run: Run) -> None:
    todo = shards.Shards.unfinished(run, "fuse", {"fuse": "fuse/"})
    detectors = tuple(model.name for model in run.detectors)
    shards.run_cheap(run, todo, FuseWorker(run.settings, detectors, run.box_kinds, run.images, run.store))


@dataclass
class FuseWorker:
    """A worker (`jobs.runs.pool.Worker`)."""

    settings: Settings
    detectors: tuple[str, ...]  # names, in the order of the settings' weights and thresholds
    kinds: tuple[str, ...]  # of items to write: detected, true
    images: ImageSet
    output: ObjectStore

    def load(self, device: str) -> dict[str, Any]:
        return {"device": device}

    def probe(self, job: Job, row: int) -> None:
        """Nothing here looks at a photo; a shard that killed its process twice is simply tried whole again."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        """Fuse and write; returns {"fuse": outcome}."""
        start = time.perf_counter()
        columns = ["image_id", "source", "width", "height", "items"]
        photos = self.images.read(job.name, columns=columns).take(pa.array(job.rows, pa.int64()))
        image_ids = photos.column("image_id").to_numpy()
        detected, model, masks = self._read(job.name, image_ids)
        read = time.perf_counter()
        rule = FusionRule.of(self.settings.fusion)
        n_models = max(len(self.detectors), 1)
        fused = fuse_members(detected, model, n_models, rule)
        items = {kind: self._items(kind, photos, fused.boxes) for kind in self.kinds}
        more: dict[str, Any] = {}
        if self.settings.fusion.masks:
            more["mask"] = fuse_masks(fused, masks, detected.scores * rule.shares(n_models)[model])
        infer = time.perf_counter()
        written = {f"fused/{job.name}.parquet": _table(tables.FUSED, fused.boxes, image_ids, **more)}
        embedded = {}
        for kind, (boxes, hypotheses) in items.items():
            key, table = (
                f"items/{kind}/{job.name}.parquet",
                _table(tables.ITEMS, boxes, image_ids, hypotheses=hypotheses),
            )
            written[key], embedded[key] = table, tables.digest_of(table.drop_columns("hypotheses"))
        outputs = {key: tables.write(self.output, key, table) for key, table in written.items()}
        seconds = {"read": read - start, "infer": infer - read, "write": time.perf_counter() - infer}
        return {"fuse": Outcome(outputs, len(fused.boxes), seconds, notes={EMBEDDED: embedded})}

    def _items(self, kind: str, photos: pa.Table, fused: Boxes) -> tuple[Boxes, Hypotheses]:
        """Items of one kind of boxes; what is not detected is of its own category alone."""
        if kind == "detected" and self.detectors:
            return worth_embedding(fused, self._item_rule(photos, fused))
        items = true_items(photos.column("items")) if kind == "true" else whole_photos(photos)
        return items, Hypotheses.own(items.labels, items.scores)

    def _item_rule(self, photos: pa.Table, fused: Boxes) -> ItemRule:
        limits = self.settings.items
        rule, of_queries = ItemRule.of(limits), limits.query_score_threshold
        if of_queries is None:
            return rule
        is_query = photos.column("source").to_numpy()[fused.image] == "user"
        return replace(rule, score_threshold=np.where(is_query, of_queries, limits.score_threshold))

    def _read(self, shard: str, image_ids: np.ndarray) -> tuple[Boxes, np.ndarray, pa.ChunkedArray]:
        """All detectors' boxes, (N,) the number of the detector each is from, and their masks, null for none."""
        parts = [tables.read(self.output, f"detections/{name}/{shard}.parquet") for name in self.detectors]
        model = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        table = pa.concat_tables([tables.DETECTIONS.empty_table(), *parts])
        image = places(image_ids, table.column("image_id").to_numpy())
        if (image < 0).any():
            foreign = f"photo {table.column('image_id')[int(image.argmin())]} is none of {shard}'s"
            raise UserError(f"{self.output.uri}/detections: {foreign}; delete the folder and start the run again")
        boxes = Boxes(
            tables.rows_of(table.column("bbox")).astype(np.float64),
            table.column("score").to_numpy().astype(np.float64),
            table.column("category_id").to_numpy().astype(np.int64),
            image,
            np.zeros(len(table), np.int64),
        )
        return boxes, model, table.column("mask")


def fuse_masks(fused: Fused, masks: pa.ChunkedArray, strength: np.ndarray) -> list[Rle | None]:
    """The mask of each fused box: the vote of its members' masks by weighted score; None where no member has one.

    `masks`, (N,), are the detectors' own, null where there is none; `strength`, (N,), the score times weight of each.
    """
    pairs = np.flatnonzero(pc.is_valid(masks).to_numpy(zero_copy_only=False)[fused.row])
    place, row = fused.place[pairs], fused.row[pairs]
    rows, number = np.unique(row, return_inverse=True)
    given: list[Rle] = masks.take(pa.array(rows, pa.int64())).to_pylist()
    results: list[Rle | None] = [None] * len(fused.boxes)
    several = np.bincount(place, minlength=len(results))[place] > 1
    for alone in np.flatnonzero(~several):  # nothing to vote on
        results[place[alone]] = given[number[alone]]
    sizes = {int(place[k]): given[number[k]]["size"] for k in np.flatnonzero(several)}
    lengths = {k: rle.lengths(given[k]) for k in np.unique(number[several]).tolist()}
    votes = vote_batch(place[several], [lengths[k] for k in number[several]], strength[row[several]], len(results))
    for k, size in sizes.items():
        results[k] = rle.from_lengths(votes[k], (size[0], size[1]))  # type: ignore[arg-type]  # it has members
    return results


def whole_photos(photos: pa.Table) -> Boxes:
    """An item a photo: all of it, without a category (id 0), score 1, no votes. For runs without detectors."""
    n = len(photos)
    boxes = np.zeros((n, 4))
    boxes[:, 2:] = np.stack([photos.column(side).to_numpy() for side in ("width", "height")], axis=1)
    zeros = np.zeros(n, np.int64)
    return Boxes(boxes, np.ones(n), zeros, np.arange(n), zeros)


def true_items(column: pa.ChunkedArray) -> Boxes:
    """Ground truth as items, in the order of the annotations: score 1, no votes."""
    photos = column.to_pylist()
    counts = [len(items or ()) for items in photos]
    flat = [item for items in photos for item in items or ()]
    boxes = np.array([item["bbox"] for item in flat], np.float64).reshape(-1, 4)
    labels = np.array([item["category_id"] for item in flat], np.int64)
    image = np.repeat(np.arange(len(photos)), counts)
    return Boxes(boxes, np.ones(len(flat)), labels, image, np.zeros(len(flat), np.int64))


def _table(schema: pa.Schema, boxes: Boxes, image_ids: np.ndarray, **more: Any) -> pa.Table:
    columns = {
        "image_id": image_ids[boxes.image], "bbox": boxes.boxes, "score": boxes.scores,
        "category_id": boxes.labels, "votes": boxes.votes, **more,
    }  # fmt: skip
    if "item" in schema.names:
        columns["item"] = rank_within(boxes.image)
    return tables.table(schema, columns)
