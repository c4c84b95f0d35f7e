"""Embed: every item through every embedding model, on Ray actors or in one process (`jobs.runs.shards`).

In: an image set, OUTPUT/items/BOXES/SHARD.parquet. Out: OUTPUT/embeddings/BOXES/MODEL/SHARD.parquet. A photo is decoded
once for all kinds of boxes and all models of an actor, crops never touch the disk, and batches depend on the shard and
the settings alone. An item whose box covers nothing of its photo has no embedding; a photo with a crop for which a
model raises is a failure of that photo and model.
"""

import functools
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.runs import decoding, photos, shards, tables
from jobs.runs.catalogue import engine_of, load_all, notes_of, weight_file
from jobs.runs.marks import CODES, Outcome, Unit
from jobs.runs.models import Catalogue, Model
from jobs.runs.retries import Job
from jobs.runs.run import Run
from jobs.runs.settings import Settings, record
from jobs.runs.versions import versions
from jobs.stages.stored import StoredEmbedWorker
from store.decode import VERSION as DECODER
from store.imageset import ImageSet
from store.objects import ObjectStore

Pair = tuple[str, str]  # BOXES, MODEL


def units(run: Run) -> list[Unit]:
    """One for each kind of boxes, model and shard."""
    settings = record(run.settings.embed)
    del settings["actors"]
    settings = {"embed": settings, "max_pixels": run.settings.max_pixels, "engine": run.settings.engine}
    basis = {"code": CODES["embed"], "decoder": DECODER, "settings": settings}
    units = []
    for kind in run.box_kinds:
        fused = [run.units["fuse"][f"fuse/{shard.name}"] for shard in run.selected.shards]
        items = [run.embedded_digests(unit, below=f"items/{kind}/") for unit in fused]
        for model in run.embedders:
            for shard, digests in zip(run.selected.shards, items, strict=True):
                inputs = {"model": model.basis, "inputs": shard.basis() | {"items": digests}}
                of_shard = None if digests is None else basis | inputs
                path = f"{kind}/{model.name}/{shard.name}"
                units.append(Unit(f"embed/{path}", (f"embeddings/{path}.parquet",), of_shard, shard.images))
    return units


def run_unfinished(run: Run) -> None:
    """All kinds of boxes and models of a shard in one call, or one model after the other (`models_per_actor: 1`)."""
    for model in (model for model in run.embedders if model.is_stored):
        folders = {(kind, model.name): f"embed/{kind}/{model.name}/" for kind in run.box_kinds}
        todo = shards.Shards.unfinished(run, "embed", folders)
        if todo.jobs:
            worker = StoredEmbedWorker(run.settings, model, run.images, run.store)
            shards.run_here(run, todo, worker)
            worker.finish()
    for models in shards.model_groups(run, tuple(model for model in run.embedders if not model.is_stored)):
        pairs = {(kind, model.name): f"embed/{kind}/{model.name}/" for kind in run.box_kinds for model in models}
        todo = shards.Shards.unfinished(run, "embed", pairs)
        used = tuple(model for model in models if any(model.name == name for job in todo.jobs for _, name in job.work))
        embed = EmbedWorker(run.settings, run.catalogue, used, run.images, run.store)
        shards.run_on_actors(run, todo, embed, run.settings.embed.actors)


@dataclass
class CropQueue:
    """One model's crops of one kind of boxes: those that wait for a full batch, and the embeddings of the others."""

    waiting: list[tuple[tuple[int, int], np.ndarray]] = field(default_factory=list)  # (image_id, item), crop
    ids: list[tuple[int, int]] = field(default_factory=list)  # of those embedded
    embedded: list[np.ndarray] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)  # photos with a crop for which the model raised


@dataclass
class EmbedWorker:
    """A worker (`jobs.runs.pool.Worker`); `job.work` is a tuple of the (BOXES, MODEL) that a shard still needs."""

    settings: Settings
    catalogue: Catalogue
    models: tuple[Model, ...]
    images: ImageSet
    output: ObjectStore

    def load(self, device: str) -> dict[str, Any]:
        options: dict[str, Any] = {"allow_random_weights": self.settings.allow_random_weights}
        options |= {"engine": engine_of(self.settings, device)}

        def load(model: Model) -> Any:
            return self.catalogue.load_embedder(
                model.spec, device, weights=weight_file(model, self.settings), **options
            )

        self.device, self.embedders = device, load_all(self.models, load)
        photos.limit_threads(self.settings.threads_per_actor)
        self.helper = decoding.helper(self.settings, device)
        return versions() | {"device": device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[Pair, Outcome]:
        """Embed and write; returns (BOXES, MODEL) -> outcome."""
        clock = photos.Clock()
        queues, failures = self._embed(job, skip, 1 if single else self.settings.embed.batch_size, clock)
        shared = {part: seconds / len(job.work) for part, seconds in clock.seconds.items()}
        outcomes = {}
        for kind, name in job.work:
            key, queue = f"embeddings/{kind}/{name}/{job.name}.parquet", queues[kind, name]
            table, failed = functools.partial(self._table, name, queue), (*failures[kind], *queue.failures)
            notes = notes_of(self.embedders[name]) | {"device": self.device}
            outcomes[kind, name] = shards.write_table(self.output, key, table, shared, failed, notes)
        return outcomes

    def probe(self, job: Job, row: int) -> None:
        self._embed(Job(job.name, (row,), job.work), {}, self.settings.embed.batch_size, photos.Clock())

    def _embed(
        self, job: Job, skip: dict[int, str], batch_size: int, clock: photos.Clock
    ) -> tuple[dict[Pair, CropQueue], dict[str, list[dict]]]:
        """Embeddings by (BOXES, MODEL), failures by BOXES."""
        start = time.perf_counter()
        kinds = sorted({kind for kind, _ in job.work})
        items = {kind: _by_image(tables.read(self.output, f"items/{kind}/{job.name}.parquet")) for kind in kinds}
        ids = self.images.read(job.name, columns=["image_id"]).column("image_id").to_pylist()
        with_items = tuple(row for row in job.rows if any(ids[row] in of_kind for of_kind in items.values()))
        clock.spent("read", start)
        queues = {pair: CropQueue() for pair in job.work}
        failures: dict[str, list[dict]] = {kind: [] for kind in kinds}
        how: dict[str, Any] = {"size": photos.EMBED_GROUP, "max_pixels": self.settings.max_pixels}
        how |= {"threads": self.settings.threads_per_actor, "helper": self.helper}
        for group in photos.groups(self.images, job.name, with_items, skip, clock=clock, **how):
            start = time.perf_counter()
            for photo in group:
                for kind in (kind for kind in kinds if photo.image_id in items[kind]):
                    if photo.pixels is None:
                        failures[kind].append({"image_id": photo.image_id, "reason": photo.reason})
                        continue
                    numbers, boxes = _inside(*items[kind][photo.image_id], photo.pixels.shape)
                    self._crop(queues, kind, photo.image_id, photo.pixels, numbers, boxes)
            for (_, name), queue in queues.items():
                self._run_batches(name, queue, batch_size, batch_size)
            photos.tell_done(len(group))
            clock.spent("infer", start)
        start = time.perf_counter()
        for (_, name), queue in queues.items():
            self._run_batches(name, queue, len(queue.waiting), batch_size)
        clock.spent("infer", start)
        return queues, failures

    def _crop(
        self,
        queues: dict[Pair, CropQueue],
        kind: str,
        image_id: int,
        pixels: np.ndarray,
        numbers: np.ndarray,
        boxes: np.ndarray,
    ) -> None:
        """Crop one photo's items of one kind for every model; models that agree in size and margin share the crops."""
        from retrieval.crops import crop  # here: imports OpenCV

        crops: dict[tuple[int, float], np.ndarray] = {}
        for model in self.models:
            if (queue := queues.get((kind, model.name))) is None:
                continue
            how = (model.spec.input_size, getattr(model.spec, "margin", 0.0))
            if how not in crops:
                crops[how] = crop(pixels, boxes, *how)
            queue.waiting += zip([(image_id, int(number)) for number in numbers], crops[how], strict=True)

    def _run_batches(self, name: str, queue: CropQueue, n: int, batch_size: int) -> None:
        """Embed the crops that wait, `n` at a time, as long as they fill a batch."""
        while n and len(queue.waiting) >= n:
            batch, queue.waiting = queue.waiting[:n], queue.waiting[n:]
            self._run_batch(name, queue, batch, batch_size)

    def _run_batch(
        self, name: str, queue: CropQueue, batch: list[tuple[tuple[int, int], np.ndarray]], batch_size: int
    ) -> None:
        """All crops at once; when that raises, each alone, and the photos of those that raise again are failures."""
        crops = np.stack([crop for _, crop in batch])
        try:
            embeddings = np.asarray(self.embedders[name].embed(crops, batch_size=batch_size), np.float32)
        except Exception as error:
            if len(batch) == 1:
                reason = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                queue.failures.append({"image_id": batch[0][0][0], "reason": reason})
                return
        else:
            if not np.isfinite(embeddings).all():
                raise ValueError(f"{name}: embeddings that are not finite; are its weights sound?")
            queue.ids += [of_crop for of_crop, _ in batch]
            queue.embedded.append(embeddings)
            return
        for one in batch:
            self._run_batch(name, queue, [one], batch_size)

    def _table(self, name: str, queue: CropQueue) -> pa.Table:
        widths = [part.shape[1] for part in queue.embedded] or [m.spec.dim for m in self.models if m.name == name]
        matrix = np.concatenate([np.zeros((0, widths[0]), np.float32), *queue.embedded])
        ids = np.array(queue.ids, np.int64).reshape(-1, 2)
        schema = tables.embeddings_schema(widths[0], self.settings.embed.dtype)
        return tables.table(schema, {"image_id": ids[:, 0], "item": ids[:, 1], "embedding": matrix})


def _by_image(items: pa.Table) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """image_id -> item numbers (N,), boxes (N, 4)."""
    ids, numbers = items.column("image_id").to_numpy(), items.column("item").to_numpy()
    boxes = tables.rows_of(items.column("bbox"))
    return {image_id: (numbers[ids == image_id], boxes[ids == image_id]) for image_id in np.unique(ids).tolist()}


def _inside(numbers: np.ndarray, boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The items whose box has an area within the photo (H, W, 3)."""
    cut = np.clip(boxes, 0, [shape[1], shape[0], shape[1], shape[0]])
    kept = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    return numbers[kept], boxes[kept]
