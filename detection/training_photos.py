"""What a detector learns from: photos of image sets in, batches by step number out, each photo augmented at random.

    batches = Batches(photos, spec, batch_size=8, seed=0, augmentation=PhotoAugmentation(mosaic=0.3))
    for step, samples, shape in batches.ahead(range(100)): ...

A batch is a pure function of the seed and the step's number, and so is each photo in it: a training that is stopped and
started again needs no sampler state, and any number of workers share one batch. Photos are decoded ahead of the step
that needs them and kept in memory up to a budget.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from detection.batches import fit, fitted_size
from detection.models import DetectorSpec
from store.decode import DecodeError, decode

GREY = (114, 114, 114)  # what lies outside of a photo
KEPT = 0.4  # a garment of which a smaller share is visible is dropped: too little to recognise it by
COMMON = 0.02  # share of the photos from which on a padded shape has batches of its own
AHEAD = 2  # batches prepared while the model works

Shape = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One photo to learn from, fitted to the detector's size; coordinates are pixels of `image`."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes: np.ndarray  # (N, 4) float32, x1 y1 x2 y2
    labels: np.ndarray  # (N,) int64, 0-based outputs of the model
    polygons: list[list[np.ndarray]]  # for each box its outline: rings x y x y …, float32; empty where unknown


def sample(image: np.ndarray, items: Iterable[dict[str, Any]], spec: DetectorSpec) -> Sample:
    """A photo and the items of its image-set row (category_id, bbox, segmentation) as a `Sample`."""
    items, fitted = list(items), fit(image, spec.scale_px)
    scale = np.array([fitted.shape[1] / image.shape[1], fitted.shape[0] / image.shape[0]] * 2, np.float32)
    boxes = np.array([item["bbox"] for item in items], np.float32).reshape(-1, 4) * scale
    labels = np.array([item["category_id"] - 1 for item in items], np.int64)
    outlines = [
        [(np.asarray(ring, np.float32).reshape(-1, 2) * scale[:2]).reshape(-1) for ring in item["segmentation"] or []]
        for item in items
    ]
    return Sample(fitted, boxes, labels, outlines)


def blank(shape: Shape) -> Sample:
    """A grey photo without garments."""
    return Sample(np.full((*shape, 3), GREY, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])


class Photos:
    """Photos by number, decoded and fitted to the spec's size at first use, then kept within a budget for pixels.

    Beyond the budget a photo is decoded each time. A photo that cannot be decoded is a grey one without garments.
    """

    def __init__(self, spec: DetectorSpec, cache_bytes: int) -> None:
        self.spec, self.cache_bytes = spec, cache_bytes
        self.sizes: list[Shape] = []  # of each photo, fitted
        self.weights: list[float] = []  # how often each is drawn, compared with 1
        self.broken: set[int] = set()  # numbers of the photos that could not be decoded
        self._rows: list[tuple[pa.Table, int]] = []
        self._kept: dict[int, Sample] = {}
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @staticmethod
    def of(samples: Sequence[Sample], spec: DetectorSpec, weights: Sequence[float] | None = None) -> "Photos":
        """Photos around samples in memory."""
        photos = Photos(spec, 0)
        photos.sizes = [sample.image.shape[:2] for sample in samples]  # type: ignore[misc]
        photos.weights = list(weights or [1.0] * len(samples))
        photos._kept = dict(enumerate(samples))
        return photos

    def add(self, table: pa.Table, row: int, weight: float) -> None:
        """Add a photo: a row of a table with an image set's columns. The table is not copied."""
        width, height = table["width"][row].as_py(), table["height"][row].as_py()
        self.sizes.append(fitted_size(height, width, self.spec.scale_px))
        self.weights.append(weight)
        self._rows.append((table, row))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> Sample:
        if number in self._kept:
            return self._kept[number]
        table, row = self._rows[number]
        fields = table.slice(row, 1).select(["image", "items"]).to_pylist()[0]
        try:
            photo = sample(decode(fields["image"]), fields["items"], self.spec)
        except DecodeError:
            self.broken.add(number)
            photo = blank(self.sizes[number])
        with self._lock:
            if number not in self._kept and self._kept_bytes + photo.image.nbytes <= self.cache_bytes:
                self._kept[number] = photo
                self._kept_bytes += photo.image.nbytes
        return photo


# ------------------------------------------------------------------------------------------------ batches
@dataclass(frozen=True)
class PhotoAugmentation:
    """How photos are changed at random, besides flips and other light, which all of them get.

    `zoom` is the least and greatest factor by which a photo is zoomed on a canvas of fixed size (mmdetection's
    multi-scale), `mosaic` the share of the photos composed of four, each at about half its size (arXiv:2004.10934), and
    `copy_paste` the share that get garments of another, cut out along their outlines (arXiv:2012.07177).
    """

    zoom: tuple[float, float] = (0.8, 1.25)
    mosaic: float = 0.0
    copy_paste: float = 0.0


class Batches:
    """Batches by number: photos of one padded shape, drawn by weight and augmented at random.

    The spec's padding decides which photos share a batch; padded shapes that few photos have join the common one of the
    most similar proportions. The seed and the step's number decide everything.
    """

    def __init__(
        self,
        photos: Photos,
        spec: DetectorSpec,
        batch_size: int,
        seed: int,
        augmentation: PhotoAugmentation | None = None,
    ) -> None:
        self.photos, self.batch_size, self.seed = photos, batch_size, seed
        self.augmentation = augmentation or PhotoAugmentation()
        multiple = spec.pad_multiple_px
        padded = [(-(-h // multiple) * multiple, -(-w // multiple) * multiple) for h, w in photos.sizes]
        homes = _common_shapes(padded)
        self.shapes = sorted(set(homes.values()))
        group_of = {shape: self.shapes.index(home) for shape, home in homes.items()}
        groups, weights = np.array([group_of[shape] for shape in padded]), np.array(photos.weights)
        self._members = [np.flatnonzero(groups == group) for group in range(len(self.shapes))]
        self._edges = [np.cumsum(weights[members]) for members in self._members]
        self._group_edges = np.cumsum([edges[-1] for edges in self._edges])

    def __getitem__(self, step: int) -> tuple[list[Sample], Shape]:
        """The batch of a step and the (height, width) its photos are padded to."""
        group, rows = self._plan(step)
        return [self._photo(step, place, row, group) for place, row in enumerate(rows)], self.shapes[group]

    def ahead(
        self, steps: Iterable[int], part: slice = slice(None), threads: int = 1
    ) -> Iterator[tuple[int, list[Sample], Shape]]:
        """(step, photos, shape) of each step in turn; threads prepare the next `AHEAD` batches meanwhile.

        `part` has the places in the batch that this worker needs; the others cost nothing.
        """
        pool = ThreadPoolExecutor(threads)
        waiting: deque[tuple[int, Iterator[Sample], Shape]] = deque()
        try:
            for step in steps:
                group, rows = self._plan(step)
                places = range(self.batch_size)[part]
                photos = pool.map(self._photo, repeat(step), places, rows[part].tolist(), repeat(group))
                waiting.append((step, photos, self.shapes[group]))
                if len(waiting) > AHEAD:
                    yield _complete(*waiting.popleft())
            while waiting:
                yield _complete(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _plan(self, step: int) -> tuple[int, np.ndarray]:
        """Which group of photos a step takes and which rows of it."""
        rng = np.random.default_rng((self.seed, step))
        group = int(_draw(self._group_edges, rng, 1)[0])
        return group, self._members[group][_draw(self._edges[group], rng, self.batch_size)]

    def _photo(self, step: int, place: int, row: int, group: int) -> Sample:
        rng = np.random.default_rng((self.seed, step, place + 1))  # NumPy takes (seed, step, 0) for (seed, step)
        shape, augmentation = self.shapes[group], self.augmentation
        others = (self.photos[r] for r in self._members[group][_draw(self._edges[group], rng, 3)])
        if rng.random() < augmentation.mosaic:
            return mosaic([self.photos[row], *others], rng, shape, augmentation.zoom)
        photo = augment(self.photos[row], rng, shape, augmentation.zoom)
        if rng.random() < augmentation.copy_paste:
            photo = copy_paste(photo, augment(next(others), rng, shape, augmentation.zoom), rng)
        return photo


def _complete(step: int, photos: Iterator[Sample], shape: Shape) -> tuple[int, list[Sample], Shape]:
    return step, list(photos), shape


def _draw(edges: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) numbers by weight; `edges` are the sums of the weights so far."""
    return np.searchsorted(edges, rng.random(n) * edges[-1], side="right")


def _common_shapes(padded: list[Shape]) -> dict[Shape, Shape]:
    """For each padded shape the one its photos are trained in: itself if enough photos have it."""
    counts = Counter(padded)
    least = min(COMMON * len(padded), max(counts.values()))
    common = sorted(shape for shape, n in counts.items() if n >= least)

    def unlike(one: Shape, other: Shape) -> float:
        return abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1]))

    return {shape: shape if shape in common else min(common, key=partial(unlike, shape)) for shape in counts}


# ------------------------------------------------------------------------------------------------ augmentation
def augment(photo: Sample, rng: np.random.Generator, shape: Shape, zoom: tuple[float, float]) -> Sample:
    """The photo flipped, zoomed, moved and recoloured at random, on a grey canvas of (height, width).

    A box of which less than `KEPT` stays on the canvas is dropped; boxes and outlines end at the edge of the canvas.
    """
    canvas_h, canvas_w = shape
    height, width = photo.image.shape[:2]
    factor = float(rng.uniform(*zoom))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    room_x, room_y = canvas_w - factor * width, canvas_h - factor * height
    left, top = rng.uniform(min(0, room_x), max(0, room_x)), rng.uniform(min(0, room_y), max(0, room_y))
    matrix = np.array([[flip * factor, 0, left + (factor * width if flip < 0 else 0)], [0, factor, top]], np.float64)
    image = cv2.warpAffine(photo.image, matrix, (canvas_w, canvas_h), flags=cv2.INTER_LINEAR, borderValue=GREY)
    corners = photo.boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    boxes = np.clip(boxes, 0, [canvas_w, canvas_h, canvas_w, canvas_h])
    size = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((np.prod(size, 1) >= KEPT * whole) & (size.min(1) >= 4))
    outlines = [[r.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2] for r in photo.polygons[k]] for k in kept]
    clipped = [[_within(ring, shape) for ring in rings] for rings in outlines]
    polygons = [[ring.reshape(-1) for ring in rings if len(ring) > 2] for rings in clipped]
    return Sample(_recolour(image, rng), boxes[kept].astype(np.float32), photo.labels[kept], polygons)


def mosaic(four: list[Sample], rng: np.random.Generator, shape: Shape, zoom: tuple[float, float]) -> Sample:
    """Four photos, each augmented at half the usual zoom, in the quarters of one canvas that is divided at random.

    Garments become smaller, cut off, and lie beside garments they are never worn with.
    """
    height, width = shape
    y, x = (int(side * rng.uniform(0.35, 0.65)) for side in shape)
    quarters = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
    image = np.empty((height, width, 3), np.uint8)
    moved = []
    for photo, (top, left, bottom, right) in zip(four, quarters, strict=True):
        part = augment(photo, rng, (bottom - top, right - left), (zoom[0] / 2, zoom[1] / 2))
        image[top:bottom, left:right] = part.image
        corner = np.array([left, top], np.float32)
        polygons = [[(r.reshape(-1, 2) + corner).reshape(-1) for r in rings] for rings in part.polygons]
        moved.append(Sample(part.image, part.boxes + np.tile(corner, 2), part.labels, polygons))
    return _joined(image, moved)


def copy_paste(onto: Sample, source: Sample, rng: np.random.Generator) -> Sample:
    """Some garments of `source`, cut out along their outlines, laid over `onto`, a photo of the same size, in place.

    The outlines and boxes of `onto` lose what is hidden; a garment of which less than `KEPT` stays visible is dropped.
    A garment without an outline is not pasted, and its whole box counts as its outline when others hide it.
    """
    whole = [k for k, rings in enumerate(source.polygons) if rings]
    taken = [k for k in whole if rng.random() < 0.5] or whole[:1]
    if not taken:
        return onto
    shape = onto.image.shape[:2]
    pasted = np.any([_mask(source.polygons[k], shape) for k in taken], axis=0)
    image = np.where(pasted[..., None], source.image, onto.image)
    left = [(k, _uncovered(onto, k, pasted)) for k in range(len(onto.boxes))]
    seen = [Sample(image, part[0][None], onto.labels[k : k + 1], [part[1]]) for k, part in left if part]
    cut = Sample(image, source.boxes[taken], source.labels[taken], [source.polygons[k] for k in taken])
    return _joined(image, [*seen, cut])


def _joined(image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """The garments of all parts on one image."""
    return Sample(
        image,
        np.concatenate([part.boxes for part in parts]).astype(np.float32),
        np.concatenate([part.labels for part in parts]),
        [rings for part in parts for rings in part.polygons],
    )


def _uncovered(photo: Sample, k: int, hidden: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Box and outline of the visible part of a garment; None where that is too little."""
    box, rings = photo.boxes[k], photo.polygons[k]
    mask = _mask(rings or [corners(box)], hidden.shape)
    seen = mask & ~hidden
    if seen.sum() < KEPT * mask.sum():
        return None
    if not rings or seen.sum() == mask.sum():
        return box, rings
    ys, xs = np.nonzero(seen)
    smaller = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
    return np.concatenate([np.maximum(box[:2], smaller[:2]), np.minimum(box[2:], smaller[2:])]), _outline(seen)


def corners(box: np.ndarray) -> np.ndarray:
    """A box as a ring: (8,) float32, x y of each corner."""
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32)


def _mask(rings: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: the pixels within any of the rings, as COCO counts them."""
    runs = coco_mask.frPyObjects([ring.astype(float).tolist() for ring in rings], *shape)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def _outline(mask: np.ndarray) -> list[np.ndarray]:
    """Rings around the pixels of a mask, a quarter of a pixel inside. A cut upwards opens each hole."""
    halves = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)  # contours run through the middles of these half pixels
    rings, family = cv2.findContours(halves, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if holes := [ring[0, 0] for ring, relatives in zip(rings, family[0], strict=True) if relatives[3] >= 0]:
        for x, y in holes:
            halves[: y + 1, x] = 0
        rings, _ = cv2.findContours(halves, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = [ring for ring in rings if len(ring) > 2 and cv2.contourArea(ring) >= 16]
    return [(ring.reshape(-1) / 2 + 0.25).astype(np.float32) for ring in large]


def _within(ring: np.ndarray, shape: Shape) -> np.ndarray:
    """The part of a ring (P, 2) on a canvas of (height, width), edge by edge (Sutherland and Hodgman, 1974)."""
    for axis, sign, limit in ((0, 1, 0), (0, -1, shape[1]), (1, 1, 0), (1, -1, shape[0])):
        depth = sign * (ring[:, axis] - limit)  # how far inside
        following, their_depth = np.roll(ring, -1, 0), np.roll(depth, -1)
        crosses = (depth >= 0) != (their_depth >= 0)
        share = np.divide(depth, depth - their_depth, out=np.zeros_like(depth), where=crosses)
        points = np.stack([ring, ring + share[:, None] * (following - ring)], 1)
        ring = points[np.stack([depth >= 0, crosses], 1)]
    return ring.astype(np.float32)


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and white balance of another camera, by one table a channel."""
    gain, shift = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3), rng.uniform(-20, 20)
    table = np.clip((np.arange(256)[:, None] - 128) * gain + 128 + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[:, None, :])
