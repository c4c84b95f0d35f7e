"""One shard of photos through every detector: what runs inside a detect actor.

In: a shard of the image set. Out: detections/DETECTOR/SHARD.parquet for each detector of the job. Photos are decoded once for
all detectors. A photo that cannot be decoded, or that a detector stumbles over, is a failure of that photo and of nothing else.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.detections import Detections
from jobs import models, photos, tables
from jobs.config import Settings
from jobs.ledger import Outcome, versions
from jobs.models import Catalogue, Model
from jobs.trial import Job
from store.imageset import ImageSet
from store.objects import ObjectStore

GROUP_BATCHES = 16  # photos looked at together, in batches: enough that those of like shape fill batches


@dataclass
class DetectShard:
    """A worker (`jobs.pool.Worker`). `job.work` names the detectors a shard still needs."""

    settings: Settings
    catalogue: Catalogue
    detectors: tuple[Model, ...]
    images: ImageSet
    output: ObjectStore
    device: str

    def load(self) -> dict[str, Any]:
        folder = models.weights_folder(self.settings)
        how: dict[str, Any] = {"allow_random_weights": self.settings.allow_random_weights}
        how |= {
            "score_threshold": self.settings.detect.score_threshold,
            "max_per_image": self.settings.detect.max_per_image,
        }
        self.loaded = models.load_all(
            self.detectors,
            lambda model: self.catalogue.load_detector(
                model.spec, self.device, weights=models.weight_file(model, folder), **how
            ),
        )
        photos.limit_threads(self.settings.threads_per_actor)
        return versions() | {"device": self.device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        """Detect and write; returns detector -> outcome."""
        clock = photos.Clock()
        found, failures = self._detect(job, skip, 1 if single else self.settings.detect.batch_size, clock)
        outcomes = {}
        for name in job.work:
            start, before = time.perf_counter(), dict(clock.seconds)
            key = f"detections/{name}/{job.name}.parquet"
            table = _table(found[name])
            digest = tables.write(self.output, key, table)
            clock.spent("write", start)
            share = {
                part: (clock.seconds[part] if part == "write" else seconds / len(job.work))
                for part, seconds in before.items()
            }
            clock.seconds["write"] = 0.0
            notes = {"notes": list(getattr(self.loaded[name], "notes", ())), "device": self.device}
            outcomes[name] = Outcome({key: digest}, table.num_rows, share, tuple(failures[name]), notes)
        return outcomes

    def probe(self, job: Job, row: int) -> None:
        self._detect(Job(job.name, (row,), job.work), {}, self.settings.detect.batch_size, photos.Clock())

    def _detect(
        self, job: Job, skip: dict[int, str], batch_size: int, clock: photos.Clock
    ) -> tuple[dict[str, list[tuple[int, Detections]]], dict[str, list[dict]]]:
        """By detector: (image_id, detections) of each photo in order, and failures rows."""
        found: dict[str, list[tuple[int, Detections]]] = {name: [] for name in job.work}
        failures: dict[str, list[dict]] = {name: [] for name in job.work}
        size, limit = max(1, batch_size * GROUP_BATCHES), self.settings.max_pixels
        for group in photos.groups(self.images, job.name, job.rows, skip, size=size, max_pixels=limit, clock=clock):
            good = [photo for photo in group if photo.pixels is not None]
            bad = [{"image_id": photo.image_id, "reason": photo.reason} for photo in group if photo.pixels is None]
            start = time.perf_counter()
            for name in job.work:
                failures[name] += bad
                results, trouble = self._one_detector(name, good, batch_size)
                found[name] += results
                failures[name] += trouble
            clock.spent("infer", start)
        return found, failures

    def _one_detector(
        self, name: str, good: list[photos.Decoded], batch_size: int
    ) -> tuple[list[tuple[int, Detections]], list[dict]]:
        """All photos at once; when that raises, each alone, and the ones that raise again are failures."""
        detector = self.loaded[name]
        try:
            answers = detector.detect([photo.pixels for photo in good], batch_size=batch_size) if good else []
            return [(photo.image_id, answer) for photo, answer in zip(good, answers, strict=True)], []
        except Exception as error:
            if len(good) == 1:
                reason = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return [], [{"image_id": good[0].image_id, "reason": reason}]
        parts = [self._one_detector(name, [photo], batch_size) for photo in good]
        return [row for rows, _ in parts for row in rows], [row for _, rows in parts for row in rows]


def _table(found: list[tuple[int, Detections]]) -> Any:
    """The detections table of a shard: photos in the shard's order, best box first."""
    full = [(image_id, answer) for image_id, answer in found if len(answer)]
    masks = [
        mask for _, answer in full for mask in (answer.masks if answer.masks is not None else [None] * len(answer))
    ]
    return tables.table(
        tables.DETECTIONS,
        {
            "image_id": np.repeat([image_id for image_id, _ in full], [len(answer) for _, answer in full]).astype(
                np.int64
            ),
            "bbox": np.concatenate([np.zeros((0, 4), np.float32), *(answer.boxes for _, answer in full)]),
            "score": np.concatenate([np.zeros(0, np.float32), *(answer.scores for _, answer in full)]),
            "category_id": np.concatenate([np.zeros(0, np.int8), *(answer.categories for _, answer in full)]),
            "mask": masks,
        },
    )
