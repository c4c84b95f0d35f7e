"""How good a detector in training is on photos it has not learnt from: average precision of boxes, and of masks if it has them.

In: the weights as they would be shipped and `detection.training_photos.Photos`. Out: figures as `detection.metrics` has them,
measured at the detector's own size.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from detection import detector, metrics
from detection.detections import Detections
from detection.models import DetectorSpec
from detection.training_photos import Photos, Sample

AT_ONCE = 64  # photos decoded at a time
SCORE_THRESHOLD, MAX_PER_IMAGE = 0.01, 100
FIGURES = ("AP", "AP50", "AP75", "AP10", "AP10_50", "images")


def measure(
    tensors: Mapping[str, Tensor], spec: DetectorSpec, photos: Photos, *, device: str, every: int = 1
) -> dict[str, float | None]:
    """AP, AP50, AP75, AP10, AP10_50, images; with masks also mask_AP and mask_AP50. {} without photos.

    Args:
        tensors: the whole model's; half precision is fine.
        photos: those to judge by, photos without garments included.
        every: take one in so many.
    """
    numbers = list(range(0, len(photos), every))
    if not numbers:
        return {}
    model = detector.build(spec)
    model.load_state_dict(dict(tensors))
    ready = detector.Detector(spec, model.to(device), device, SCORE_THRESHOLD, MAX_PER_IMAGE)
    truth: list[Sample] = []
    found: list[Detections] = []
    for start in range(0, len(numbers), AT_ONCE):
        samples = [photos[number] for number in numbers[start : start + AT_ONCE]]
        found += ready.detect([one.image for one in samples])
        truth += [Sample(one.image[:, :, :0], one.boxes, one.labels, one.polygons) for one in samples]  # pixels may go
    return figures_of(truth, found)


def figures_of(truth: list[Sample], found: list[Detections]) -> dict[str, float | None]:
    """The same from what was found in each photo."""
    boxes = _columns([one.boxes for one in truth], [one.labels + 1 for one in truth])
    boxes["area"] = np.prod(boxes["bbox"][:, 2:] - boxes["bbox"][:, :2], 1)
    detections = _columns([one.boxes for one in found], [one.categories for one in found])
    detections["score"] = np.concatenate([one.scores for one in found])
    ids = np.arange(len(truth))
    by_box = metrics.evaluate_boxes(boxes, detections, ids)
    figures = {name: by_box[name] for name in FIGURES}
    if found[0].masks is None:
        return figures
    outlines = {**boxes, "segmentation": [rings for one in truth for rings in one.polygons]}
    masks = {**detections, "mask": [mask for one in found for mask in one.masks or []]}
    sizes = {i: (one.image.shape[0], one.image.shape[1]) for i, one in enumerate(truth)}
    by_mask = metrics.evaluate_masks(outlines, masks, ids, sizes)
    return {**figures, "mask_AP": by_mask["AP"], "mask_AP50": by_mask["AP50"]}


def _columns(boxes: list[np.ndarray], categories: list[np.ndarray]) -> dict[str, Any]:
    """Rows of all photos below each other, with the photo's number."""
    return {
        "image_id": np.concatenate([np.full(len(b), i) for i, b in enumerate(boxes)]),
        "bbox": np.concatenate(boxes).astype(np.float64),
        "category_id": np.concatenate(categories).astype(np.int64),
    }
