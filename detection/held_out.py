"""How good a detector in training is on photos it has not learnt from: average precision, by category too, and its mistakes.

In: the weights as they would be shipped and `detection.training_photos.Photos`. Out: figures as `detection.metrics` has them,
measured at the detector's own size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from detection import detector, metrics
from detection.categories import CATEGORIES
from detection.detections import Detections
from detection.models import DetectorSpec
from detection.training_photos import Photos, Sample
from postproc.boxes import iou_with

AT_ONCE = 64  # photos decoded at a time
SCORE_THRESHOLD, MAX_PER_IMAGE = 0.01, 100
FIGURES = ("AP", "AP50", "AP75", "AP10", "AP10_50", "images")


class Judged(NamedTuple):
    """Photos looked at, in one order: their numbers, what is true of each (pixels dropped), and what was found."""

    numbers: list[int]
    truth: list[Sample]
    found: list[Detections]


class Mistake(NamedTuple):
    """A box that is sure of itself and wrong: number of its photo, the box, category id, score, and why."""

    number: int
    box: np.ndarray
    category_id: int
    score: float
    reason: str


def measure(
    tensors: Mapping[str, Tensor], spec: DetectorSpec, photos: Photos, *, device: str, every: int = 1
) -> dict[str, float | None]:
    """AP, AP50, AP75, AP10, AP10_50, images; with masks also mask_AP, mask_AP50 and mask_AP10_50. {} without photos.

    Args: as for `look`.
    """
    return figures_of(look(tensors, spec, photos, device=device, every=every))


def look(tensors: Mapping[str, Tensor], spec: DetectorSpec, photos: Photos, *, device: str, every: int = 1) -> Judged:
    """What a detector finds on photos.

    Args:
        tensors: the whole model's; half precision is fine.
        photos: those to judge by, photos without garments included.
        every: take one in so many.
    """
    judged = Judged(list(range(0, len(photos), every)), [], [])
    if not judged.numbers:
        return judged
    model = detector.build(spec)
    model.load_state_dict(dict(tensors))
    ready = detector.Detector(spec, model.to(device), device, SCORE_THRESHOLD, MAX_PER_IMAGE)
    for start in range(0, len(judged.numbers), AT_ONCE):
        samples = [photos[number] for number in judged.numbers[start : start + AT_ONCE]]
        judged.found.extend(ready.detect([one.image for one in samples]))
        judged.truth.extend(Sample(one.image[:, :, :0], one.boxes, one.labels, one.polygons) for one in samples)
    return judged


def figures_of(judged: Judged) -> dict[str, float | None]:
    """The same from what was found in each photo."""
    if not judged.numbers:
        return {}
    boxes, detections, ids = _arrays(judged)
    by_box = metrics.evaluate_boxes(boxes, detections, ids)
    figures = {name: by_box[name] for name in FIGURES}
    if judged.found[0].masks is None:
        return figures
    outlines = {**boxes, "segmentation": [rings for one in judged.truth for rings in one.polygons]}
    masks = {**detections, "mask": [mask for one in judged.found for mask in one.masks or []]}
    sizes = {i: (one.image.shape[0], one.image.shape[1]) for i, one in enumerate(judged.truth)}
    by_mask = metrics.evaluate_masks(outlines, masks, ids, sizes)
    return {**figures, **{f"mask_{name}": by_mask[name] for name in ("AP", "AP50", "AP10_50")}}


def per_category(judged: Judged) -> dict[str, dict[str, Any]]:
    """{category: {"AP", "AP50", "items"}} of those that have true items."""
    if not judged.numbers:
        return {}
    figures: dict[str, dict[str, Any]] = metrics.evaluate_boxes(*_arrays(judged))["per_category"]
    return {name: part for name, part in figures.items() if part["items"]}


def surest_mistakes(judged: Judged, n: int = 40) -> list[Mistake]:
    """Boxes of the highest scores that overlap no true item of their category by half, at most one a photo, surest first."""
    mistakes = []
    for number, truth, found in zip(judged.numbers, judged.truth, judged.found, strict=True):
        for box, score, category in zip(found.boxes, found.scores, found.categories, strict=True):
            overlap = (
                iou_with(truth.boxes.astype(np.float64), box.astype(np.float64)) if len(truth.boxes) else np.zeros(0)
            )
            if not (overlap[truth.labels + 1 == category] >= 0.5).any():
                other = truth.labels[overlap >= 0.5]
                reason = f"is {CATEGORIES[other[0]]}" if len(other) else "lies on no garment"
                mistakes.append(Mistake(number, box, int(category), float(score), reason))
                break  # boxes come best first
    return sorted(mistakes, key=lambda mistake: -mistake.score)[:n]


def _arrays(judged: Judged) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """True boxes, found boxes and photo numbers as `detection.metrics` takes them."""
    boxes = _columns([one.boxes for one in judged.truth], [one.labels + 1 for one in judged.truth])
    boxes["area"] = np.prod(boxes["bbox"][:, 2:] - boxes["bbox"][:, :2], 1)
    detections = _columns([one.boxes for one in judged.found], [one.categories for one in judged.found])
    detections["score"] = np.concatenate([one.scores for one in judged.found])
    return boxes, detections, np.arange(len(judged.truth))


def _columns(boxes: list[np.ndarray], categories: list[np.ndarray]) -> dict[str, Any]:
    """Rows of all photos below each other, with the photo's number."""
    return {
        "image_id": np.concatenate([np.full(len(b), i) for i, b in enumerate(boxes)]),
        "bbox": np.concatenate(boxes).astype(np.float64),
        "category_id": np.concatenate(categories).astype(np.int64),
    }
