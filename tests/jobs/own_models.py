"""Classes that a run file's `call` names in tests: what a user would write. For tests only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stand_ins

from detection.detections import Detections

NAMES = tuple(f"class {i}" for i in range(1, 14))


class Detector:
    """Finds what `stand_ins.Finder` does; `odd` spoils the answer for photos whose corner is red."""

    def __init__(self, version: str = "1", odd: str = "") -> None:
        self.version, self.odd, self.class_names = version, odd, NAMES
        self.finder = stand_ins.Finder(stand_ins.DetectorSpec("own"))

    def detect(self, images: Sequence[np.ndarray]) -> list[Any]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Any:
        found = self.finder._one(image)
        if not self.odd or tuple(image[0, 0]) != (255, 0, 0):
            return found
        boxes, scores, categories = found.boxes.copy(), found.scores.copy(), found.categories.copy()
        if self.odd == "nan":
            boxes[0, 0] = np.nan
        if self.odd == "turned":
            boxes[0] = boxes[0, [2, 3, 0, 1]]
        if self.odd == "score":
            scores[0] = 1.5
        if self.odd == "category":
            categories[0] = 14
        if self.odd == "shape":
            boxes = boxes[:, :3]
        return Detections(boxes, scores, categories)


class Embedder:
    """Mean colours, not of unit length; `version_file` holds the version, and crops of one colour have zeros."""

    input_size = 16

    def __init__(self, size: int = 16, version_file: str = "", device: str = "") -> None:
        self.input_size, self.device = size, device
        self.version = Path(version_file).read_text() if version_file else "1"
        self.painter = stand_ins.Painter(stand_ins.EmbedderSpec("own", input_size=size))

    def embed(self, crops: np.ndarray) -> np.ndarray:
        assert self.device == "cpu" and crops.dtype == np.uint8
        return 3 * self.painter.embed(crops)


class NoVersion:
    input_size = 16

    def embed(self, crops: np.ndarray) -> np.ndarray:
        return np.ones((len(crops), 3))


class Wrong:
    """Gives what no embedder may, from its first crop on, once it has been asked how wide it is."""

    input_size, dim, version = 16, 4, "1"

    def __init__(self, how: str) -> None:
        self.how = how

    def embed(self, crops: np.ndarray) -> np.ndarray:
        rows = np.ones((len(crops), 4), np.float32)
        if self.how == "wide":
            return np.ones((len(crops), 5), np.float32)
        rows[0] = {"nan": np.nan, "zero": 0.0}[self.how]
        return rows
