"""What a detector says of one photo, as plain arrays. Nothing past this record knows which library made it."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np


class Rle(TypedDict):
    """A mask in COCO's compressed run-length encoding."""

    size: list[int]  # height, width in pixels of the upright photo
    counts: bytes


@dataclass(frozen=True)
class Detections:
    """The garments found in one photo, best score first."""

    boxes: np.ndarray  # (N, 4) float32, x1 y1 x2 y2 in pixels of the upright photo, within it
    scores: np.ndarray  # (N,) float32 in [0, 1]
    categories: np.ndarray  # (N,) int16, category ids of the run, from 1 up
    masks: list[Rle] | None = None  # N of the photo's size; None where the model has none

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty(with_masks: bool = False) -> "Detections":
        """A photo in which nothing was found."""
        boxes, scores, categories = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int16)
        return Detections(boxes, scores, categories, [] if with_masks else None)
