"""One shard's items to rows of numbers: what runs inside an embed actor.

In: a shard of the image set, items/BOXES/SHARD.parquet. Out: embeddings/BOXES/MODEL/SHARD.parquet for each pair the job names.
A photo is decoded once for all of them, crops never touch the disk, and batches depend on nothing but the shard and the settings.
An item whose box covers nothing of its photo has no row.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import models, photos, tables
from jobs.config import Settings
from jobs.ledger import Outcome, versions
from jobs.models import Catalogue, Model
from jobs.trial import Job
from retrieval.crops import crop
from store.imageset import ImageSet
from store.objects import ObjectStore

GROUP = 16  # photos decoded ahead and cropped together


@dataclass
class Rows:
    """One model's rows of one kind of boxes, growing: crops that wait for a full batch, and what is embedded."""

    ids: list[tuple[int, int]] = field(default_factory=list)  # image_id, item
    crops: list[np.ndarray] = field(default_factory=list)
    embedded: list[np.ndarray] = field(default_factory=list)

    def take(self, n: int) -> Iterator[np.ndarray]:
        """Full batches of `n` crops, taken out; call with the rest's length for the last."""
        while n and len(self.crops) >= n:
            batch, self.crops = self.crops[:n], self.crops[n:]
            yield np.stack(batch)


@dataclass
class EmbedShard:
    """A worker (`jobs.pool.Worker`). `job.work` is a tuple of (BOXES, MODEL) that a shard still needs."""

    settings: Settings
    catalogue: Catalogue
    embedders: tuple[Model, ...]
    images: ImageSet
    output: ObjectStore
    device: str

    def load(self) -> dict[str, Any]:
        folder = models.weights_folder(self.settings)
        self.loaded = models.load_all(
            self.embedders,
            lambda model: self.catalogue.load_embedder(
                model.spec, self.device, weights=models.weight_file(model, folder),
                allow_random_weights=self.settings.allow_random_weights,
            ),
        )  # fmt: skip
        self.looks = {m.name: (m.spec.input_size, getattr(m.spec, "margin", 0.0)) for m in self.embedders}
        photos.limit_threads(self.settings.threads_per_actor)
        return versions() | {"device": self.device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[tuple[str, str], Outcome]:
        """Embed and write; returns (BOXES, MODEL) -> outcome."""
        clock = photos.Clock()
        rows, failures = self._embed(job, skip, 1 if single else self.settings.embed.batch_size, clock)
        outcomes = {}
        for kind, name in job.work:
            start = time.perf_counter()
            key = f"embeddings/{kind}/{name}/{job.name}.parquet"
            table = self._table(name, rows[kind, name])
            outputs = {key: tables.write(self.output, key, table)}
            seconds = {part: value / len(job.work) for part, value in clock.seconds.items()}
            seconds["write"] = time.perf_counter() - start
            notes = {"notes": list(getattr(self.loaded[name], "notes", ())), "device": self.device}
            outcomes[kind, name] = Outcome(outputs, table.num_rows, seconds, tuple(failures[kind]), notes)
        return outcomes

    def probe(self, job: Job, row: int) -> None:
        self._embed(Job(job.name, (row,), job.work), {}, self.settings.embed.batch_size, photos.Clock())

    def _embed(
        self, job: Job, skip: dict[int, str], batch_size: int, clock: photos.Clock
    ) -> tuple[dict[tuple[str, str], Rows], dict[str, list[dict]]]:
        """Rows by (BOXES, MODEL), failures rows by BOXES."""
        start = time.perf_counter()
        kinds = sorted({kind for kind, _ in job.work})
        items = {kind: _by_image(tables.read(self.output, f"items/{kind}/{job.name}.parquet")) for kind in kinds}
        wanted = self._with_items(job, items)
        clock.spent("read", start)
        rows = {pair: Rows() for pair in job.work}
        failures: dict[str, list[dict]] = {kind: [] for kind in kinds}
        limit = self.settings.max_pixels
        for group in photos.groups(self.images, job.name, wanted, skip, size=GROUP, max_pixels=limit, clock=clock):
            start = time.perf_counter()
            for photo in group:
                for kind in kinds:
                    if photo.image_id not in items[kind]:
                        continue
                    if photo.pixels is None:
                        failures[kind].append({"image_id": photo.image_id, "reason": photo.reason})
                        continue
                    numbers, boxes = _inside(*items[kind][photo.image_id], photo.pixels.shape)
                    self._add(rows, kind, photo.image_id, photo.pixels, numbers, boxes)
            for pair in job.work:
                self._run_batches(pair[1], rows[pair], batch_size, batch_size)
            clock.spent("infer", start)
        start = time.perf_counter()
        for pair in job.work:
            self._run_batches(pair[1], rows[pair], len(rows[pair].crops), batch_size)
        clock.spent("infer", start)
        return rows, failures

    def _with_items(self, job: Job, items: dict[str, dict]) -> tuple[int, ...]:
        """Rows of the photos that show an item of some kind; the others need not be decoded."""
        ids = self.images.read(job.name, columns=["image_id"]).column("image_id").to_pylist()
        return tuple(row for row in job.rows if any(ids[row] in found for found in items.values()))

    def _add(
        self,
        rows: dict[tuple[str, str], Rows],
        kind: str,
        image_id: int,
        pixels: np.ndarray,
        numbers: np.ndarray,
        boxes: np.ndarray,
    ) -> None:
        """Crop one photo's items for every model of this kind of boxes."""
        cut: dict[tuple[int, float], np.ndarray] = {}  # by size and margin: models that agree in both share the crops
        for name in (name for boxes_kind, name in rows if boxes_kind == kind):
            look = self.looks[name]
            if look not in cut:
                cut[look] = crop(pixels, boxes, *look)
            rows[kind, name].ids += [(image_id, int(number)) for number in numbers]
            rows[kind, name].crops += list(cut[look])

    def _run_batches(self, name: str, rows: Rows, n: int, batch_size: int) -> None:
        """What waits, `n` crops at a time."""
        for batch in rows.take(n):
            answer = np.asarray(self.loaded[name].embed(batch, batch_size=batch_size), np.float32)
            if not np.isfinite(answer).all():
                raise ValueError(f"{name}: rows that are not numbers; are its weights sound?")
            rows.embedded.append(answer)

    def _table(self, name: str, rows: Rows) -> pa.Table:
        dim = (
            rows.embedded[0].shape[1]
            if rows.embedded
            else next(model.spec.dim for model in self.embedders if model.name == name)
        )
        matrix = np.concatenate([np.zeros((0, dim), np.float32), *rows.embedded])
        ids = np.array(rows.ids, np.int64).reshape(-1, 2)
        schema = tables.embeddings_schema(dim, self.settings.embed.dtype)
        return tables.table(schema, {"image_id": ids[:, 0], "item": ids[:, 1], "embedding": matrix})


def _by_image(items: pa.Table) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """image_id -> item numbers (N,), boxes (N, 4)."""
    ids, numbers = items.column("image_id").to_numpy(), items.column("item").to_numpy()
    boxes = tables.rows_of(items.column("bbox"))
    return {
        image_id: (numbers[ids == image_id], boxes[ids == image_id])
        for image_id in pc.unique(items.column("image_id")).to_pylist()
    }


def _inside(numbers: np.ndarray, boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The items whose box has an area within the photo (H, W, 3)."""
    cut = np.clip(boxes, 0, [shape[1], shape[0], shape[1], shape[0]])
    kept = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    return numbers[kept], boxes[kept]
