"""Detectors of the user's own code: `{name: tv, call: package.module:Class, args: {…}, classes: {…}}`.

The class has `detect(images)`: a list of upright photos (H, W, 3) uint8 RGB in, one `Detections` a photo out, whose
`categories` count from 1 in the object's `class_names`; and `version`. `networks.calls` says how it is found. What it
gives is checked here: a photo whose boxes are none is a failure of that photo.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from detection.detections import Detections, Rle
from networks import calls
from networks.engines import TORCH, Engine
from store.categories import problem


@dataclass(frozen=True)
class CalledDetectorSpec:
    """A detector that a class of the user's gives."""

    LOADER: ClassVar[str] = "detection.calls:load"

    name: str
    call: str  # package.module:Class
    args: Mapping[str, Any]
    version: str  # as the object says; results are made again when it changes
    categories: tuple[str, ...]  # its class names
    classes: Mapping[str, str | None] = field(default_factory=dict)
    fusion_weight: float = 1.0
    weights: str = ""  # its own matter
    sha256: str = ""


def from_fields(entry: Mapping[str, Any]) -> CalledDetectorSpec:
    """The detector of a run file's entry. Raises ValueError for a wrong field, and as `networks.calls.describe`."""
    fields = calls.fields_of(entry, ("classes", "fusion_weight"), "detector")
    classes, weight = entry.get("classes", {}), entry.get("fusion_weight", 1.0)
    if not isinstance(classes, Mapping):
        raise ValueError(
            f"detector {entry['name']!r}: classes want a mapping of its names to the run's, got {classes!r}"
        )
    if type(weight) not in (int, float) or not 0 <= weight < math.inf:
        raise ValueError(f"detector {entry['name']!r}: fusion_weight wants a number from 0 up, got {weight!r}")
    told = calls.describe(fields["call"], fields["args"], "detect")
    names = tuple(told.get("class_names", ()))
    if reason := problem(names) if names else "it has no class_names: the names of what it finds, in order":
        raise ValueError(f"{fields['call']}: {reason}")
    return CalledDetectorSpec(
        **fields, version=told["version"], categories=names, classes=dict(classes), fusion_weight=float(weight)
    )


def load(
    spec: CalledDetectorSpec,
    device: str,
    *,
    weights: Path | None = None,
    allow_random_weights: bool = False,
    score_threshold: float = 0.01,
    max_per_image: int = 100,
    category_ids: Sequence[int] | None = None,
    engine: Engine = TORCH,
) -> "CalledDetector":
    """The user's object behind our checks; the arguments are those of `detection.detector.load`.

    The object runs as it will, whatever the engine.
    """
    ids = range(1, len(spec.categories) + 1) if category_ids is None else category_ids
    model = calls.make(spec.call, spec.args, device)
    return CalledDetector(spec.name, model, np.array(ids, np.int16), score_threshold, max_per_image)


class CalledDetector:
    """Answers as `detection.detector.Detector` does. `notes` says how many boxes showed nothing of their photo."""

    def __init__(
        self, name: str, model: Any, category_ids: np.ndarray, score_threshold: float, max_per_image: int
    ) -> None:
        self.name, self.model, self.category_ids = name, model, category_ids
        self.score_threshold, self.max_per_image = score_threshold, max_per_image
        self.outside = 0

    @property
    def notes(self) -> list[str]:
        return [f"{self.name}: {self.outside} boxes without area in their photo left out"] if self.outside else []

    def detect(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> list[Detections]:
        """One answer a photo. ValueError: an answer that is none, with the value seen."""
        answers: list[Detections] = []
        for start in range(0, len(images), batch_size):
            batch = list(images[start : start + batch_size])
            given = list(self.model.detect(batch))
            if len(given) != len(batch):
                raise ValueError(f"detect gave {len(given)} answers for {len(batch)} photos")
            answers += [
                self._checked(one, image.shape[0], image.shape[1]) for one, image in zip(given, batch, strict=True)
            ]
        return answers

    def _checked(self, given: Any, height: int, width: int) -> Detections:
        boxes, scores, classes = checked_boxes(given.boxes, given.scores, given.categories, len(self.category_ids))
        masks = checked_masks(getattr(given, "masks", None), len(scores), (height, width))
        cut = np.clip(boxes, 0, [width, height, width, height])
        has_area = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
        self.outside += int((~has_area).sum())
        ids = self.category_ids[classes - 1]
        kept = np.flatnonzero(has_area & (ids > 0) & (scores >= self.score_threshold))
        kept = kept[np.argsort(-scores[kept], kind="stable")][: self.max_per_image]
        own = None if masks is None else [masks[row] for row in kept]
        return Detections(cut[kept].astype(np.float32), scores[kept].astype(np.float32), ids[kept], own)


def checked_boxes(boxes: Any, scores: Any, classes: Any, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) float64 px x1 y1 x2 y2, scores (N,) float64 in [0, 1], classes (N,) int64 from 1 to `n_classes`.

    ValueError: another shape, a number that is not finite or out of range, a box whose sides are the wrong way round.
    """
    boxes, scores, classes = np.asarray(boxes, np.float64), np.asarray(scores, np.float64), np.asarray(classes)
    n = len(scores) if scores.ndim == 1 else -1
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if n < 0 or boxes.shape != (n, 4) or classes.shape != (n,):
        raise ValueError(
            f"want boxes (N, 4), scores (N,), categories (N,), got {boxes.shape}, {scores.shape}, {classes.shape}"
        )
    for row in np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))):
        raise ValueError(f"box {row} {boxes[row].tolist()} is no x1 y1 x2 y2 in pixels")
    for row in np.flatnonzero(~((scores >= 0) & (scores <= 1))):
        raise ValueError(f"score {row} is {scores[row]}, want 0 to 1")
    for row in np.flatnonzero(~((classes >= 1) & (classes <= n_classes) & (classes == np.floor(classes)))):
        raise ValueError(f"category {row} is {classes[row]}, want 1 to {n_classes}, a number in class_names")
    return boxes, scores, classes.astype(np.int64)


def checked_masks(masks: Any, n: int, size: tuple[int, int]) -> list[Rle] | None:
    """Masks as COCO's run lengths: from such, or from (H, W) arrays that are not 0 where the garment is.

    ValueError: not `n` of them, another size (height, width) than the photo's, or characters that are no run lengths.
    """
    if masks is None:
        return None
    if len(masks) != n:
        raise ValueError(f"{len(masks)} masks for {n} boxes")
    return [checked_mask(mask, size) for mask in masks]


def checked_mask(mask: Any, size: tuple[int, int]) -> Rle:
    """One mask, as `checked_masks` takes it."""
    from pycocotools import mask as coco  # heavy

    from detection import rle

    if not isinstance(mask, Mapping):
        mask = coco.encode(np.asfortranarray(np.asarray(mask) != 0, np.uint8))
    counts = mask["counts"].encode() if isinstance(mask["counts"], str) else bytes(mask["counts"])
    checked: Rle = {"size": [int(side) for side in mask["size"]], "counts": counts}
    if tuple(checked["size"]) != size:
        raise ValueError(f"a mask is {checked['size']}, its photo {list(size)} (height, width)")
    rle.lengths(checked)
    return checked
