"""How good a detector in training is on photos it has not learnt from: average precision, and its surest mistakes.

In: the weights as they would be shipped and `detection.training_photos.Photos`. Out: the figures of
`detection.metrics`, at the detector's own photo size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from detection import detector, metrics
from detection.detections import Detections
from detection.models import DetectorSpec
from detection.training_photos import Photos, Sample
from postproc.boxes import iou_with

BATCH_PHOTOS = 64  # photos decoded at a time
SCORE_THRESHOLD, MAX_PER_IMAGE = 0.01, 100
FIGURES = ("AP", "AP50", "AP75", "AP10", "AP10_50", "images")


class HeldOutDetections(NamedTuple):
    """Photos by their index in a set, the true items of each (without pixels), and its detections, in one order."""

    indices: list[int]
    truth: list[Sample]
    detections: list[Detections]
    categories: tuple[str, ...]  # the detector's: category id n is output n - 1


class DetectionMistake(NamedTuple):
    """A wrong box of high score, on the photo of that number; `reason` says what lies there instead."""

    number: int
    box: np.ndarray  # (4,) x1 y1 x2 y2
    category_id: int
    score: float
    reason: str


def detect(
    tensors: Mapping[str, Tensor], spec: DetectorSpec, photos: Photos, *, device: str, every: int = 1
) -> HeldOutDetections:
    """Detect in held-out photos, those without garments included, and keep their true items beside the detections.

    `tensors` are all weights of the model, backbone included; half precision is fine. `every` 3 takes each third photo.
    """
    judged = HeldOutDetections(list(range(0, len(photos), every)), [], [], spec.categories)
    if not judged.indices:
        return judged
    model = detector.build(spec)
    model.load_state_dict(dict(tensors))
    trained = detector.Detector(spec, model.to(device), device, SCORE_THRESHOLD, MAX_PER_IMAGE)
    for start in range(0, len(judged.indices), BATCH_PHOTOS):
        samples = [photos[number] for number in judged.indices[start : start + BATCH_PHOTOS]]
        judged.detections.extend(trained.detect([sample.image for sample in samples]))
        # without pixels, which would fill the memory; the height stays
        judged.truth.extend(dataclasses.replace(sample, image=sample.image[:, :, :0]) for sample in samples)
    return judged


def figures_of(judged: HeldOutDetections) -> dict[str, float | None]:
    """AP, AP50, AP75, AP10, AP10_50, images; with masks also mask_AP, mask_AP50 and mask_AP10_50. {} without photos."""
    if not judged.indices:
        return {}
    boxes, detections, ids = _arrays(judged)
    by_box = metrics.evaluate_boxes(boxes, detections, ids, judged.categories)
    figures = {name: by_box[name] for name in FIGURES}
    if judged.detections[0].masks is None:
        return figures
    outlines = {**boxes, "segmentation": [rings for photo in judged.truth for rings in photo.polygons]}
    masks = {**detections, "mask": [mask for photo in judged.detections for mask in photo.masks or []]}
    sizes = {i: (photo.image.shape[0], photo.image.shape[1]) for i, photo in enumerate(judged.truth)}
    by_mask = metrics.evaluate_masks(outlines, masks, ids, sizes, judged.categories)
    return {**figures, **{f"mask_{name}": by_mask[name] for name in ("AP", "AP50", "AP10_50")}}


def per_category(judged: HeldOutDetections) -> dict[str, dict[str, Any]]:
    """{category: {"AP", "AP50", "items"}} of those that have true items."""
    if not judged.indices:
        return {}
    figures: dict[str, dict[str, Any]] = metrics.evaluate_boxes(*_arrays(judged), judged.categories)["per_category"]
    return {name: part for name, part in figures.items() if part["items"]}


def surest_mistakes(judged: HeldOutDetections, n: int = 40) -> list[DetectionMistake]:
    """The n boxes of highest score that match no true item of their category at IoU 0.5, at most one a photo."""
    mistakes = []
    for number, truth, detections in zip(judged.indices, judged.truth, judged.detections, strict=True):
        for box, score, category_id in zip(detections.boxes, detections.scores, detections.categories, strict=True):
            overlap = iou_with(truth.boxes, box)
            if not (overlap[truth.labels + 1 == category_id] >= 0.5).any():
                others = truth.labels[overlap >= 0.5]
                reason = f"is {judged.categories[others[0]]}" if len(others) else "lies on no garment"
                mistakes.append(DetectionMistake(number, box, int(category_id), float(score), reason))
                break  # boxes come best first
    return sorted(mistakes, key=lambda mistake: -mistake.score)[:n]


def _arrays(judged: HeldOutDetections) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """True boxes, detected boxes and photo numbers as `detection.metrics` takes them."""
    boxes = _columns([photo.boxes for photo in judged.truth], [photo.labels + 1 for photo in judged.truth])
    boxes["area"] = np.prod(boxes["bbox"][:, 2:] - boxes["bbox"][:, :2], 1)
    found = judged.detections
    detections = _columns([photo.boxes for photo in found], [photo.categories for photo in found])
    detections["score"] = np.concatenate([photo.scores for photo in found])
    return boxes, detections, np.arange(len(judged.truth))


def _columns(boxes: list[np.ndarray], category_ids: list[np.ndarray]) -> dict[str, Any]:
    """The boxes of all photos in one table, with the photo's number."""
    return {
        "image_id": np.concatenate([np.full(len(b), i) for i, b in enumerate(boxes)]),
        "bbox": np.concatenate(boxes).astype(np.float64),
        "category_id": np.concatenate(category_ids).astype(np.int64),
    }
