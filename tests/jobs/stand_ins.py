"""Models of a few lines that stand in for trained ones, and photos they understand. For tests only.

A photo is a plain backdrop with one rectangle; a detector finds what differs from the corner, an embedder takes mean
colours. Three corner colours make a detector misbehave: KILLER ends the process, HANGER never returns, STUMBLER raises.
"""

import io
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detection.detections import Detections
from jobs.runs import shards as engine
from jobs.runs.models import Catalogue
from store.imageset import Item, Photo
from store.imageset_write import write_imageset

BACKDROP, KILLER, HANGER, STUMBLER = (250, 250, 250), (255, 0, 250), (0, 255, 250), (255, 250, 0)


@dataclass(frozen=True)
class DetectorSpec:
    name: str
    shift_px: int = 0
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class EmbedderSpec:
    name: str
    cells: int = 2
    input_size: int = 16
    weights: str = ""
    sha256: str = ""

    @property
    def dim(self) -> int:
        return self.cells**2 * 3


class Finder:
    def __init__(self, spec: DetectorSpec) -> None:
        self.spec, self.pause_s = spec, float(os.environ.get("STAND_IN_PAUSE_S", "0"))

    def detect(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> list[Detections]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Detections:
        time.sleep(self.pause_s)
        corner = tuple(int(value) for value in image[0, 0])
        if corner == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        if corner == HANGER:
            time.sleep(3600)
        if corner == STUMBLER:
            raise ValueError("stumbled")
        rows, columns = np.nonzero((image != image[0, 0]).any(axis=2))
        if not len(rows):
            return Detections.empty()
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        boxes = np.stack([box, box + self.spec.shift_px])
        category = 1 + int(image[rows[0], columns[0]].sum()) % 13
        other = 1 + category % 13 if self.spec.name == "unsure" else category
        return Detections(boxes, np.array([0.9, 0.4], np.float32), np.array([category, other], np.int16))


class Painter:
    def __init__(self, spec: EmbedderSpec) -> None:
        self.spec = spec

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        n, side, cells = len(crops), self.spec.input_size, self.spec.cells
        step = side // cells
        means = (
            crops[:, : step * cells, : step * cells]
            .reshape(n, cells, step, cells, step, 3)
            .mean(axis=(2, 4))
            .reshape(n, -1)
        )
        rows = means.astype(np.float32) - 127.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Reader(Painter):
    """A painter that also reads colours, "R G B"."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        colours = np.array([[int(word) for word in text.split()] for text in texts], np.float32) - 127.5
        rows = np.tile(colours, (1, self.spec.cells**2))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


DETECTORS = {
    spec.name: spec
    for spec in (
        DetectorSpec("near"), DetectorSpec("far", shift_px=2), DetectorSpec("third", shift_px=1),
        DetectorSpec("unsure"),
    )
}  # fmt: skip
EMBEDDERS = {
    spec.name: spec
    for spec in (
        EmbedderSpec("coarse"), EmbedderSpec("fine", cells=4), EmbedderSpec("finest", cells=8),
        EmbedderSpec("read"), EmbedderSpec("read-fine", cells=4),
    )
}  # fmt: skip


def load_detector(spec: DetectorSpec, device: str, *, weights: Path | None, **how: Any) -> Finder:
    return Finder(spec)


def load_embedder(spec: EmbedderSpec, device: str, *, weights: Path | None, **how: Any) -> Painter:
    return Reader(spec) if spec.name.startswith("read") else Painter(spec)


CATALOGUE = Catalogue(DETECTORS.__getitem__, EMBEDDERS.__getitem__, load_detector, load_embedder)
SETTINGS = ["--set", "detectors=[near, far]", "--set", "embedders=[coarse, fine]", "--set", "device=cpu"]


def here(done: list[tuple[str, str, Any]], run: Any, shards: engine.Shards, worker: Any, *_: Any) -> None:
    """`run_on_actors` without Ray: the jobs run one by one in this process, and `done` gets stage, shard and work."""
    progress = engine.new_progress(shards)
    if shards.jobs:
        worker.load("cpu")
    for job in shards.jobs:
        done.append((shards.stage, job.name, job.work))
        answer = worker.run(job, {}, False)
        engine.write_marks(run, shards, job, answer)
        engine.count_shard(progress, job, answer)


def photo(
    number: int, source: str, pair: int, corner: tuple[int, int, int] = BACKDROP, file: bytes | None = None
) -> Photo:
    """Photo `number` with garment `pair`: its colour and category follow from the pair, its place from the number."""
    colour = np.random.default_rng(pair).integers(0, 200, 3)
    pixels = np.full((64, 48, 3), BACKDROP, np.uint8)
    pixels[:] = corner
    left, top = 4 + number % 5, 6 + number % 7
    pixels[top : top + 40, left : left + 30] = colour
    pixels[top + 20 : top + 40, left : left + 30] = colour // 2
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    item = Item(
        1 + int(colour.sum()) % 13, 1, (left, top, left + 30, top + 40), scale=1, occlusion=1, zoom_in=1, viewpoint=1
    )
    return Photo(number, file or encoded.getvalue(), 48, 64, source, pair, file_name=f"{number}.png", items=(item,))


def imageset(
    folder: str | Path, n: int = 24, odd: dict[int, tuple[int, int, int]] | None = None, max_images: int = 6
) -> None:
    """Write a set of n photos, of which the first half are consumers'; photo i of either half shows garment i.

    `odd` gives photos another corner colour, by number. A photo number n + 1 is cut off in the middle.
    """
    photos = [
        photo(i, "user" if i < n // 2 else "shop", 1 + i % (n // 2), (odd or {}).get(i, BACKDROP)) for i in range(n)
    ]
    broken = photo(n + 1, "shop", n + 1)
    photos.append(photo(n + 1, "shop", n + 1, file=broken.image[: len(broken.image) // 2]))
    write_imageset(photos, folder, source={"adapter": "stand-in", "arguments": {}}, max_images=max_images)
