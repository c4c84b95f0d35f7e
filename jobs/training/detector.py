"""Training of a detector: photos of image sets in, weights, figures and a page with the surest mistakes out."""

import argparse
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detection import detector, held_out, training
from detection.models import DetectorSpec, with_categories
from detection.training_photos import Batches, PhotoAugmentation, Photos, Sample, Shape
from jobs.reports import training as training_report
from jobs.training import flags
from jobs.training.data import LearningSet
from jobs.training.launch import World
from jobs.training.run import TrainingRun, shipped, to_bytes
from networks.weight_header import metadata_of
from store.errors import UserError

MEASURED = 1000  # held-out photos measured during training at most, evenly spread; at the end all are
SAME_TRAINING = (
    "model", "steps", "batch_size", "seed", "lr", "backbone_share", "weight_decay", "warm_up", "schedule",
    "drops", "ema_decay", "user_weight", "zoom", "mosaic", "copy_paste", "init_from",
)  # fmt: skip
GREEN, RED = (0, 160, 70), (220, 40, 40)  # RGB of true boxes and of a mistake


class DetectorTraining:
    """A `jobs.training.loop.ModelTraining` with jobs/train_detector.py's flags. UserError: no photos to learn from."""

    def __init__(self, args: argparse.Namespace, spec: DetectorSpec, world: World) -> None:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(1)  # photos are spread over threads already
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)  # mmdetection's, once a mask
        # photos whose boxes are only their frame would teach the wrong thing
        self.set = LearningSet(flags.imagesets(args), args.validation, weak_boxes=False, endpoint_url=args.endpoint_url)
        if self.set.categories:  # else there are no boxes either, which `read_photos` refuses
            spec = with_categories(spec, self.set.categories)
        self.args, self.spec, self.world, self.name = args, spec, world, spec.name
        self.learn, self.held_out, self.validation = read_photos(args, spec, self.set)
        self.identity = {name: getattr(args, name) for name in SAME_TRAINING} | self.set.identity()

    def build(self, *, fresh: bool) -> str:
        """The ImageNet backbone where there is one, then what --init-from holds."""
        args = self.args
        model = detector.build(self.spec, pretrained_backbone=fresh)
        training.freeze(model)
        if args.init_from and fresh:
            try:
                taken, total, anew = training.start_from(model, self.spec, Path(args.init_from))
            except training.InitError as error:
                raise UserError(f"--init-from {args.init_from}: {error}") from None
            if self.world.rank == 0:
                others = f"; {anew} that tell categories apart start anew, for those are others there" if anew else ""
                print(f"{taken} of {total} tensors from {args.init_from}{others}", flush=True)
        model = model.to(args.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.learner = training.DetectorLearner(
            model, self.spec, rate=args.lr, backbone_share=args.backbone_share, weight_decay=args.weight_decay,
            ema_decay=args.ema_decay, precision=args.precision,
        )  # fmt: skip
        return photo_counts(self.learn, self.held_out, self.set)

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.learner.load(state)

    def batches(self, steps: range) -> Iterator[tuple[int, tuple[list[Sample], Shape]]]:
        args = self.args
        augmentation = PhotoAugmentation(args.zoom, args.mosaic, args.copy_paste)
        batches = Batches(self.learn, self.spec, args.batch_size, args.seed, augmentation)
        for step, samples, shape in batches.ahead(steps, self.world.part(args.batch_size), args.threads):
            yield step, (samples, shape)

    def gradients(self, step: int, batch: tuple[list[Sample], Shape]) -> dict[str, float]:
        accumulate = self.args.accumulate
        # a seed for each part of each worker's batch
        seed = (self.args.seed * 1_000_003 + step) * 4096 + self.world.rank * accumulate
        losses = self.world.mean(self.learner.gradients(*batch, seed=seed, accumulate=accumulate))
        if not math.isfinite(losses["loss"]):
            raise FloatingPointError(f"the loss is {losses['loss']}")
        self.world.sum_gradients(self.learner.model.parameters(), mean=True)
        return losses

    def update(self, rate_share: float) -> None:
        self.learner.update(rate_share)

    def measure(self, run: TrainingRun, step: int) -> None:
        self._judge(run, step, "held_out", self.held_out, every=-(-len(self.held_out) // MEASURED) or 1)

    def finish(self, run: TrainingRun, step: int, seconds: float) -> None:
        """The weights under the model's name, their figures on all held-out photos and the validation set, a page."""
        categories = self.spec.categories
        published = run.publish_weights(self.name, to_bytes(self.learner.average.tensors, metadata_of(categories)))
        figures, judged, photos = {}, held_out.HeldOutDetections([], [], [], categories), self.held_out
        for part, part_photos in (("held_out", self.held_out), ("validation", self.validation)):
            part_judged, figures[part] = self._judge(run, step, part, part_photos)
            if part_judged.indices:
                judged, photos = part_judged, part_photos
        summary = {
            "model": self.name, "steps": step, "batch_size": self.args.batch_size, "seconds": round(seconds),
            "photos": len(self.learn), "categories": list(categories),
            "imagesets": [part.uri for part in self.set.sets], **figures,
            "left_out": dict(self.set.left_out), "undecodable": len(self.learn.broken), **published,
        }  # fmt: skip
        rows = [{"category": name, **part} for name, part in held_out.per_category(judged).items()]
        mistakes = [mistake_shown(mistake, photos, categories) for mistake in held_out.surest_mistakes(judged)]
        address = training_report.write(
            run.store, title=f"Training of {self.name}", facts=summary, log=run.lines,
            tables={"Average precision by category": rows} if rows else {}, mistakes=mistakes,
        )  # fmt: skip
        print(f"report: {address}", flush=True)
        run.finish(summary)

    def _judge(
        self, run: TrainingRun, step: int, part: str, photos: Photos, every: int = 1
    ) -> tuple[held_out.HeldOutDetections, dict[str, Any]]:
        """Run the averaged weights, as they would be shipped, on photos; the figures go to the log."""
        tensors = shipped(self.learner.average.tensors)
        judged = held_out.detect(tensors, self.spec, photos, device=self.args.device, every=every)
        figures = {name: round(v, 4) if isinstance(v, float) else v for name, v in held_out.figures_of(judged).items()}
        run.log(step, part, figures)
        print(f"step {step} {part.replace('_', ' ')}: {figures}", flush=True)
        return judged, figures


def read_photos(args: argparse.Namespace, spec: DetectorSpec, learning: LearningSet) -> tuple[Photos, Photos, Photos]:
    """Photos to learn from, held out and of the validation set, decoded when needed. UserError: none to learn from."""
    budget = int(args.cache_gb * 1e9)
    learn, held_out, validation = Photos(spec, budget * 9 // 10), Photos(spec, budget // 10), Photos(spec, 0)
    for photo in learning.photos():
        weight = photo.weight * (args.user_weight if photo.facts["source"] == "user" else 1.0)
        (held_out if photo.held_out else learn).add(photo.table, photo.row, weight)
    for photo in learning.validation_photos():
        validation.add(photo.table, photo.row, 1.0)
    if not len(learn):
        reason = f"no photos with boxes to learn from, {photo_counts(learn, held_out, learning)}"
        raise UserError(f"{learning.uris()}: {reason}; ingest them with jobs/ingest.py deepfashion2")
    return learn, held_out, validation


def photo_counts(learn: Photos, held_out: Photos, learning: LearningSet) -> str:
    counts = f"{len(learn)} photos to learn from, {len(held_out)} held out"
    return f"{counts} ({learning.left_out_counts()} left out)" if learning.left_out else counts


def mistake_shown(
    mistake: held_out.DetectionMistake, photos: Photos, categories: Sequence[str]
) -> training_report.Mistake:
    sample, category = photos[mistake.number], categories[mistake.category_id - 1]
    found, true = with_boxes(sample.image, mistake.box[None], RED), with_boxes(sample.image, sample.boxes, GREEN)
    caption = f"{category} at score {mistake.score:.2f} {mistake.reason}"
    return training_report.Mistake(caption, (("found", found), ("true", true)))


def with_boxes(image: np.ndarray, boxes: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A copy of a photo with boxes (N, 4) drawn on it."""
    picture = np.ascontiguousarray(image.copy())
    for x1, y1, x2, y2 in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 2)
    return picture
