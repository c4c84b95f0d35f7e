"""Detect: every photo through every detector, on Ray actors or in one process (`jobs.runs.shards`).

In: an image set. Out: OUTPUT/detections/DETECTOR/SHARD.parquet. A photo is decoded once for all detectors of an actor.
A photo that cannot be decoded, or for which a detector raises, is a failure of that photo alone.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detection.detections import Detections
from jobs.runs import decoding, photos, shards, tables
from jobs.runs.catalogue import engine_of, load_all, notes_of, weight_file
from jobs.runs.marks import CODES, Outcome, Unit
from jobs.runs.models import Catalogue, Model
from jobs.runs.retries import Job
from jobs.runs.run import Run
from jobs.runs.settings import Settings, record
from jobs.runs.versions import versions
from jobs.stages.stored import StoredDetectWorker
from store.decode import VERSION as DECODER
from store.imageset import ImageSet
from store.objects import ObjectStore

PhotoDetections = list[tuple[int, Detections]]  # (image_id, detections) of each photo, in order
Failures = list[dict[str, Any]]  # {image_id, reason}


def units(run: Run) -> list[Unit]:
    """One for each detector and shard."""
    settings = record(run.settings.detect)
    del settings["actors"]
    settings = {"detect": settings, "max_pixels": run.settings.max_pixels, "engine": run.settings.engine}
    basis = {"code": CODES["detect"], "decoder": DECODER, "settings": settings}
    return [
        Unit(
            f"detect/{model.name}/{shard.name}",
            (f"detections/{model.name}/{shard.name}.parquet",),
            basis | {"model": model.basis, "inputs": shard.basis()},
            shard.images,
        )
        for model in run.detectors
        for shard in run.selected.shards
    ]


def run_unfinished(run: Run) -> None:
    """All detectors of a shard in one call, or one detector after the other (`models_per_actor: 1`)."""
    for model in (model for model in run.detectors if model.is_stored):
        todo = shards.Shards.unfinished(run, "detect", {model.name: f"detect/{model.name}/"})
        if todo.jobs:
            worker = StoredDetectWorker(run.settings, model, run.images, run.store)
            shards.run_here(run, todo, worker)
            worker.finish(sum(len(job.rows) for job in todo.jobs))
    for models in shards.model_groups(run, tuple(model for model in run.detectors if not model.is_stored)):
        todo = shards.Shards.unfinished(run, "detect", {model.name: f"detect/{model.name}/" for model in models})
        used = tuple(model for model in models if any(model.name in job.work for job in todo.jobs))
        detect = DetectWorker(run.settings, run.catalogue, used, run.images, run.store)
        shards.run_on_actors(run, todo, detect, run.settings.detect.actors)


@dataclass
class DetectWorker:
    """A worker (`jobs.runs.pool.Worker`); `job.work` names the detectors that a shard still needs."""

    settings: Settings
    catalogue: Catalogue
    models: tuple[Model, ...]
    images: ImageSet
    output: ObjectStore

    def load(self, device: str) -> dict[str, Any]:
        detect = self.settings.detect
        options: dict[str, Any] = {"score_threshold": detect.score_threshold, "max_per_image": detect.max_per_image}
        options |= {"allow_random_weights": self.settings.allow_random_weights}
        options |= {"engine": engine_of(self.settings, device)}

        def load(model: Model) -> Any:
            how = options | {"weights": weight_file(model, self.settings), "category_ids": model.category_ids}
            return self.catalogue.load_detector(model.spec, device, **how)

        self.device, self.detectors = device, load_all(self.models, load)
        photos.limit_threads(self.settings.threads_per_actor)
        self.helper = decoding.helper(self.settings, device)
        return versions() | {"device": device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        """Detect and write; returns detector -> outcome."""
        clock = photos.Clock()
        found, failures = self._detect(job, skip, 1 if single else self.settings.detect.batch_size, clock)
        shared = {part: seconds / len(job.work) for part, seconds in clock.seconds.items()}
        outcomes = {}
        for name in job.work:
            key, table = f"detections/{name}/{job.name}.parquet", functools.partial(tables.detections, found[name])
            notes = notes_of(self.detectors[name]) | {"device": self.device}
            outcomes[name] = shards.write_table(self.output, key, table, shared, failures[name], notes)
        return outcomes

    def probe(self, job: Job, row: int) -> None:
        self._detect(Job(job.name, (row,), job.work), {}, self.settings.detect.batch_size, photos.Clock())

    def _detect(
        self, job: Job, skip: dict[int, str], batch_size: int, clock: photos.Clock
    ) -> tuple[dict[str, PhotoDetections], dict[str, Failures]]:
        """Detections and failures by detector."""
        found: dict[str, PhotoDetections] = {name: [] for name in job.work}
        failures: dict[str, Failures] = {name: [] for name in job.work}
        how: dict[str, Any] = {"size": max(1, batch_size * photos.DETECT_BATCHES)}
        how |= {"max_pixels": self.settings.max_pixels, "threads": self.settings.threads_per_actor}
        how["helper"] = self.helper
        for group in photos.groups(self.images, job.name, job.rows, skip, clock=clock, **how):
            decoded = [photo for photo in group if photo.pixels is not None]
            undecoded = [{"image_id": each.image_id, "reason": each.reason} for each in group if each.pixels is None]
            start = time.perf_counter()
            for name in job.work:
                results, trouble = self._run_detector(name, decoded, batch_size)
                found[name] += results
                failures[name] += undecoded + trouble
                photos.tell_done(len(group) / len(job.work))
            clock.spent("infer", start)
        return found, failures

    def _run_detector(
        self, name: str, decoded: Sequence[photos.Decoded], batch_size: int
    ) -> tuple[PhotoDetections, Failures]:
        """All photos at once; when that raises, each photo alone, and those that raise again are failures."""
        if not decoded:
            return [], []
        try:
            answers = self.detectors[name].detect([photo.pixels for photo in decoded], batch_size=batch_size)
            return [(photo.image_id, answer) for photo, answer in zip(decoded, answers, strict=True)], []
        except Exception as error:
            if len(decoded) == 1:
                reason = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return [], [{"image_id": decoded[0].image_id, "reason": reason}]
        parts = [self._run_detector(name, [photo], batch_size) for photo in decoded]
        return [row for found, _ in parts for row in found], [row for _, failures in parts for row in failures]
