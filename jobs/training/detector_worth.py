"""What a trained detector is worth on photos it has not learnt from, and the page about it: figures by category, surest mistakes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detection import held_out
from detection.categories import CATEGORIES
from jobs.training import report as training_report
from jobs.training.run import TrainingRun

if TYPE_CHECKING:
    from torch import Tensor

    from detection.models import DetectorSpec
    from detection.training_photos import Photos
    from jobs.training.detector_photos import Read

GREEN, RED = (0, 160, 70), (220, 40, 40)  # RGB: true boxes, the mistake


@dataclass(frozen=True)
class Worth:
    """figures: of "held_out" and "validation", {} where there are no photos. judged: the last of them that has some."""

    figures: dict[str, dict[str, Any]]
    judged: held_out.Judged
    photos: "Photos"


def judge(
    run: TrainingRun, step: int, spec: "DetectorSpec", tensors: "Mapping[str, Tensor]", photos: "Read", device: str
) -> Worth:
    """Measure the weights as they are shipped on all that is held out, then on the validation set; both go to the log."""
    figures: dict[str, dict[str, Any]] = {}
    judged, kept = held_out.Judged([], [], []), photos.held_out
    for part, some in (("held_out", photos.held_out), ("validation", photos.validation)):
        seen = held_out.look(tensors, spec, some, device=device)
        found = held_out.figures_of(seen)
        figures[part] = {name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()}
        run.log(step, part, figures[part])
        print(f"step {step} {part.replace('_', ' ')}: {figures[part]}", flush=True)
        if seen.numbers:
            judged, kept = seen, some
    return Worth(figures, judged, kept)


def report(run: TrainingRun, summary: Mapping[str, Any], worth: Worth) -> None:
    """Publish OUTPUT/report/."""
    categories = [{"category": name, **part} for name, part in held_out.per_category(worth.judged).items()]
    mistakes = [_mistake(one, worth.photos) for one in held_out.surest_mistakes(worth.judged)]
    address = training_report.write(
        run.store, title=f"Training of {summary['model']}", facts=summary, log=run.lines,
        tables={"Average precision by category": categories} if categories else {}, mistakes=mistakes,
    )  # fmt: skip
    print(f"report: {address}", flush=True)


def _mistake(one: held_out.Mistake, photos: "Photos") -> training_report.Mistake:
    sample = photos[one.number]
    said = f"{CATEGORIES[one.category_id - 1]} at score {one.score:.2f} {one.reason}"
    pictures = (
        ("found", _drawn(sample.image, one.box[None], RED)),
        ("true", _drawn(sample.image, sample.boxes, GREEN)),
    )
    return training_report.Mistake(said, pictures)


def _drawn(image: np.ndarray, boxes: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A copy of a photo with boxes on it."""
    picture = np.ascontiguousarray(image.copy())
    for x1, y1, x2, y2 in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 2)
    return picture
