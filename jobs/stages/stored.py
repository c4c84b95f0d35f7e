"""Detectors and embedders whose results are read from files (`from`): matched with the run's photos and items.

No photo is decoded and Ray is not started. What the files say wrongly of a photo is a failure of that photo; rows of
photos that the image set lacks, and photos and items without rows, are counted and said.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

import detection.stored
import retrieval.stored
from detection.calls import checked_mask
from detection.detections import Detections
from jobs.runs import tables
from jobs.runs.marks import Outcome
from jobs.runs.models import Model
from jobs.runs.progress import say
from jobs.runs.retries import Job
from jobs.runs.settings import Settings
from postproc.places import places
from retrieval.stored import WHOLE_PHOTO
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectStore

MAX_REASON = 300  # characters


@dataclass
class StoredDetectWorker:
    """A worker (`jobs.runs.pool.Worker`) for one stored detector; lives in the driver."""

    settings: Settings
    model: Model
    images: ImageSet
    output: ObjectStore

    def load(self, device: str) -> dict[str, Any]:
        read = detection.stored.read(self.model.spec, self.settings.storage.endpoint_url)
        photos = self.images.photos(("image_id", "file_name"))
        known = photos.column("image_id").to_numpy()
        given = _by_name(self.model, read.image, photos) if self.model.spec.images else read.image
        ids = np.array([-1 if image_id is None else image_id for image_id in given], np.int64)
        is_known = (places(known, ids) >= 0) & np.array([image_id is not None for image_id in given], bool)
        self.unknown = int((~is_known).sum())
        if self.unknown and not is_known.any():
            advice = "" if self.model.spec.images else "; name their ground truth with `images: truth.json`"
            raise UserError(f"{self.model.name}: none of its {len(ids)} boxes is of a photo of the image set{advice}")
        rows = np.flatnonzero(is_known)
        self.rows = rows[np.argsort(ids[rows], kind="stable")]
        self.ids, self.read, self.without = ids[self.rows], read, 0
        return {"device": device}

    def probe(self, job: Job, row: int) -> None:
        """Nothing here looks at a photo."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        start = time.perf_counter()
        columns = ["image_id", "width", "height"]
        photos = self.images.read(job.name, columns=columns).take(pa.array(job.rows, pa.int64())).to_pylist()
        found, failures, outside = [], [], 0
        for photo in photos:
            first, last = np.searchsorted(self.ids, [photo["image_id"], photo["image_id"] + 1])
            self.without += int(first == last)
            answer, wrong, n_outside = self._photo(self.rows[first:last], photo["width"], photo["height"])
            found.append((photo["image_id"], answer))
            failures += [{"image_id": photo["image_id"], "reason": reason[:MAX_REASON]} for reason in wrong]
            outside += n_outside
        key, table = f"detections/{self.model.name}/{job.name}.parquet", tables.detections(found)
        outputs = {key: tables.write(self.output, key, table)}
        notes = {"notes": [f"{self.model.name}: {outside} boxes without area in their photo left out"] * bool(outside)}
        seconds = {"read": time.perf_counter() - start}
        return {self.model.name: Outcome(outputs, len(table), seconds, tuple(failures), notes)}

    def _photo(self, rows: np.ndarray, width: int, height: int) -> tuple[Detections, list[str], int]:
        """A photo's detections, what is wrong with others, and how many boxes show nothing of it."""
        read, detect = self.read, self.settings.detect
        wrong = [f"{self.model.name}: {read.wrong[row]}" for row in rows if read.wrong[row]]
        rows = np.array([row for row in rows if not read.wrong[row]], np.int64)
        n_categories = len(self.model.category_ids)
        for row in rows[read.categories[rows] > n_categories]:
            wrong.append(f"{self.model.name}: category {read.categories[row]}, the run has {n_categories}")
        rows = rows[(read.categories[rows] <= n_categories) & (read.categories[rows] >= 1)]
        ids = np.array((0, *self.model.category_ids), np.int16)[read.categories[rows]]
        cut = np.clip(read.boxes[rows], 0, [width, height, width, height])
        has_area = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
        scores = read.scores[rows]
        kept = np.flatnonzero(has_area & (ids > 0) & (scores >= detect.score_threshold))
        kept = kept[np.argsort(-scores[kept], kind="stable")][: detect.max_per_image]
        masks: list[Any] = []
        for row in rows[kept]:
            try:
                mask = read.masks[row]
                masks.append(None if mask is None else checked_mask(mask, (height, width)))
            except (ValueError, TypeError, KeyError) as error:
                masks.append(None)
                wrong.append(f"{self.model.name}: its mask: {type(error).__name__}: {error}")
        own = masks if any(mask is not None for mask in masks) else None
        answer = Detections(cut[kept].astype(np.float32), scores[kept].astype(np.float32), ids[kept], own)
        return answer, wrong, int((~has_area).sum())

    def finish(self, n_photos: int) -> None:
        """Say what did not meet."""
        if self.without:
            where = ", ".join(self.model.spec.source)
            say(f"{self.model.name}: {self.without} of {n_photos} photos have no boxes in {where}")
        if self.unknown:
            say(f"{self.model.name}: {self.unknown} boxes are of photos that the image set lacks, and left out")


def _by_name(model: Model, names: np.ndarray, photos: pa.Table) -> list[int | None]:
    """The image id of each file name, as it stands or by its last part; None where no photo has it."""
    by_name: dict[str, set[int]] = {}
    for image_id, name in zip(photos["image_id"].to_pylist(), photos["file_name"].to_pylist(), strict=True):
        for key in {name, name.rpartition("/")[2]}:
            by_name.setdefault(key, set()).add(image_id)
    found: list[int | None] = []
    for name in names:
        ids = by_name.get(name) or by_name.get((name or "").rpartition("/")[2]) or set()
        if len(ids) > 1:
            raise UserError(f"{model.name}: {name} in `images` may be any of {len(ids)} photos of the image set")
        found.append(next(iter(ids), None))
    return found


@dataclass
class StoredEmbedWorker:
    """A worker (`jobs.runs.pool.Worker`) for one stored embedder; lives in the driver."""

    settings: Settings
    model: Model
    images: ImageSet
    output: ObjectStore
    missing: Counter[str] = field(default_factory=Counter)  # kind of boxes -> items without a row
    items: Counter[str] = field(default_factory=Counter)

    def load(self, device: str) -> dict[str, Any]:
        self.read = retrieval.stored.read(self.model.spec, self.settings.storage.endpoint_url)
        ids = self.read.image_id
        known = places(self.images.photos(("image_id",)).column("image_id").to_numpy(), ids) >= 0
        self.unknown = int((~known).sum())
        if self.unknown and not known.any():
            raise UserError(f"{self.model.name}: none of its {len(ids)} rows is of a photo of the image set")
        rows = np.flatnonzero(known)
        self.rows = rows[np.argsort(ids[rows], kind="stable")]
        self.ids = ids[self.rows]
        return {"device": device}

    def probe(self, job: Job, row: int) -> None:
        """Nothing here looks at a photo."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[tuple[str, str], Outcome]:
        return {(kind, name): self._one(job.name, kind) for kind, name in job.work}

    def _one(self, shard: str, kind: str) -> Outcome:
        start = time.perf_counter()
        items = tables.read(self.output, f"items/{kind}/{shard}.parquet", ["image_id", "item"])
        keys = list(zip(items["image_id"].to_pylist(), items["item"].to_pylist(), strict=True))
        row_of: dict[tuple[int, int], int] = {}
        for image_id in dict.fromkeys(image_id for image_id, _ in keys):
            first, last = np.searchsorted(self.ids, [image_id, image_id + 1])
            for row in self.rows[first:last].tolist():
                if self.read.boxes[row] in ("", kind):
                    of_item = (image_id, int(self.read.item[row]))
                    if of_item in row_of:
                        raise UserError(f"{self.model.name}: photo {image_id}, item {of_item[1]}: more than one row")
                    row_of[of_item] = row
        chosen = [row_of.get(of_item, row_of.get((of_item[0], WHOLE_PHOTO), -1)) for of_item in keys]
        self.items[kind] += len(keys)
        self.missing[kind] += chosen.count(-1)
        wrong = self.read.wrong
        pairs = list(zip(keys, chosen, strict=True))
        failures = {image_id: wrong[row] for (image_id, _), row in pairs if row in wrong}
        good = [(of_item, row) for of_item, row in pairs if row >= 0 and row not in wrong]
        ids = np.array([of_item for of_item, _ in good], np.int64).reshape(-1, 2)
        rows = self.read.embeddings[[row for _, row in good]]
        key, dtype = f"embeddings/{kind}/{self.model.name}/{shard}.parquet", self.settings.embed.dtype
        schema = tables.embeddings_schema(self.model.spec.dim, dtype)
        table = tables.table(schema, {"image_id": ids[:, 0], "item": ids[:, 1], "embedding": rows})
        outputs = {key: tables.write(self.output, key, table)}
        told = tuple({"image_id": i, "reason": f"{self.model.name}: {reason}"} for i, reason in failures.items())
        return Outcome(outputs, len(table), {"read": time.perf_counter() - start}, told)

    def finish(self) -> None:
        """Say what did not meet."""
        for kind, n in self.missing.items():
            if n:
                of = f"{n} of {self.items[kind]} garments ({kind} boxes)"
                say(f"{self.model.name}: {of} have no embedding in {', '.join(self.model.spec.source)}")
        if self.unknown:
            say(f"{self.model.name}: {self.unknown} embeddings are of photos that the image set lacks, and left out")
