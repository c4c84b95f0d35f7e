"""Training a detector: photos with boxes in, a model that sees garments out. `jobs/train_detector.py` drives it.

Photos are decoded once, fitted to the detector's size and kept in memory as uint8. What a step sees is a pure function
of the seed and the step's number, so a training that is stopped and started again needs no sampler state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detection.detector import fit, normalise
from detection.models import DetectorSpec


@dataclass(frozen=True)
class Sample:
    """One photo to learn from, already fitted to the detector's size.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels of `image`.
        labels: (N,) int64, 0-based outputs of the model.
        polygons: for each box its outline, flat x y x y … rings in pixels of `image`; empty where unknown.
        weight: how often it is drawn, against 1 for a plain photo.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    polygons: list[list[np.ndarray]]
    weight: float = 1.0


def sample(image: np.ndarray, items: Iterable[dict[str, Any]], spec: DetectorSpec, weight: float = 1.0) -> Sample:
    """A photo and the items of its image-set row (category_id, bbox, segmentation) as a `Sample`."""
    items = list(items)
    fitted = fit(image, spec.scale_px)
    scale = np.array([fitted.shape[1] / image.shape[1], fitted.shape[0] / image.shape[0]] * 2, np.float32)
    boxes = np.array([item["bbox"] for item in items], np.float32).reshape(-1, 4) * scale
    labels = np.array([item["category_id"] - 1 for item in items], np.int64)
    rings = [
        [np.asarray(ring, np.float32).reshape(-1, 2) * scale[:2] for ring in item["segmentation"] or []]
        for item in items
    ]
    return Sample(fitted, boxes, labels, [[ring.reshape(-1) for ring in outline] for outline in rings], weight)


class Batches:
    """Batches by number: photos of like padded shape, chosen by weight, changed at random.

    Args:
        samples: all photos.
        spec: whose padding decides what goes together.
        batch_size: photos a batch.
        seed: with the step's number it decides everything.
        zoom: (least, most) factor a photo is zoomed by.
    """

    def __init__(
        self,
        samples: list[Sample],
        spec: DetectorSpec,
        batch_size: int,
        seed: int,
        zoom: tuple[float, float] = (0.8, 1.25),
    ) -> None:
        self.samples, self.spec, self.batch_size, self.seed, self.zoom = samples, spec, batch_size, seed, zoom
        multiple = spec.pad_multiple_px
        shapes = [tuple(-(-side // multiple) * multiple for side in s.image.shape[:2]) for s in samples]
        self._shapes = sorted(set(shapes))
        self._members = [[i for i, s in enumerate(shapes) if s == shape] for shape in self._shapes]
        weights = np.array([s.weight for s in samples])
        self._odds = [weights[m] / weights[m].sum() for m in self._members]
        mass = np.array([weights[m].sum() for m in self._members])
        self._shape_odds = mass / mass.sum()

    def __getitem__(self, step: int) -> tuple[list[Sample], tuple[int, int]]:
        """The batch of a step and the (height, width) its photos are padded to."""
        rng = np.random.default_rng((self.seed, step))
        group = int(rng.choice(len(self._shapes), p=self._shape_odds))
        rows = rng.choice(self._members[group], self.batch_size, p=self._odds[group])
        height, width = self._shapes[group]
        return [augment(self.samples[row], rng, (height, width), self.zoom) for row in rows], (height, width)


def augment(one: Sample, rng: np.random.Generator, shape: tuple[int, int], zoom: tuple[float, float]) -> Sample:
    """The photo flipped, zoomed, moved and recoloured at random, on a canvas of (height, width) grey pixels.

    A box of which less than 40 % stays on the canvas is dropped: too little is left to know the garment by.
    """
    canvas_h, canvas_w = shape
    height, width = one.image.shape[:2]
    factor = float(rng.uniform(*zoom))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    room_x, room_y = canvas_w - factor * width, canvas_h - factor * height
    left, top = rng.uniform(min(0, room_x), max(0, room_x)), rng.uniform(min(0, room_y), max(0, room_y))
    matrix = np.array([[flip * factor, 0, left + (factor * width if flip < 0 else 0)], [0, factor, top]], np.float64)
    grey = (114, 114, 114)
    image = cv2.warpAffine(one.image, matrix, (canvas_w, canvas_h), flags=cv2.INTER_LINEAR, borderValue=grey)
    image = _recolour(image, rng)

    corners = one.boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    boxes = np.clip(boxes, 0, [canvas_w, canvas_h, canvas_w, canvas_h])
    size = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((np.prod(size, 1) >= 0.4 * whole) & (size.min(1) >= 4))
    polygons = [
        [(r.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).reshape(-1) for r in one.polygons[k]] for k in kept
    ]
    return Sample(image, boxes[kept].astype(np.float32), one.labels[kept], polygons, one.weight)


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and white balance of another camera, by one table a channel."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    shift = rng.uniform(-20, 20)
    table = np.clip((np.arange(256)[:, None] - 128) * gain + 128 + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[:, None, :])


def to_model(
    batch: list[Sample], shape: tuple[int, int], spec: DetectorSpec, device: torch.device
) -> tuple[Tensor, list[Any]]:
    """The tensors and records mmdetection's losses want."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import PolygonMasks
    from mmengine.structures import InstanceData

    records = []
    for one in batch:
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        truth = InstanceData(
            bboxes=torch.from_numpy(one.boxes).to(device), labels=torch.from_numpy(one.labels).to(device)
        )
        if spec.model["type"] == "CascadeRCNN":
            outlines = [rings or [_corners(box)] for rings, box in zip(one.polygons, one.boxes, strict=True)]
            truth.masks = PolygonMasks(outlines, *shape)
        record = DetDataSample(metainfo=meta)
        record.gt_instances, record.ignored_instances = (
            truth,
            InstanceData(bboxes=truth.bboxes[:0], labels=truth.labels[:0]),
        )
        records.append(record)
    images = normalise([one.image for one in batch], shape, spec, device)
    return images.to(memory_format=torch.channels_last), records  # a third faster than planes first, on CPU and GPU


def _corners(box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32)


def losses(model: nn.Module, images: Tensor, records: list[Any]) -> dict[str, Tensor]:
    """Each loss of the model as a scalar; the sum of them is what to minimise."""
    found: Any = model(images, records, mode="loss")
    return {
        name: value if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()
        for name, value in ((n, v.mean() if isinstance(v, Tensor) else v) for n, v in found.items())
        if "loss" in name
    }


def parameter_groups(model: nn.Module, rate: float, backbone_share: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone learns slower, and vectors (norms, biases) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = backbone_share if name.startswith("backbone.") else 1.0
            groups.setdefault((rate * share, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def take_matching(model: nn.Module, tensors: dict[str, Tensor]) -> int:
    """Start from another detector: copy every tensor of the same name and shape. Returns how many."""
    own = model.state_dict()
    matching = {
        key: value.to(own[key].dtype) for key, value in tensors.items() if key in own and own[key].shape == value.shape
    }
    model.load_state_dict(matching, strict=False)
    return len(matching)


def freeze(model: nn.Module) -> None:
    """Leave the backbone's first stages alone, so that no gradient is made for them."""
    backbone: Any = model.backbone
    frozen = getattr(backbone, "frozen_stages", 0)
    if hasattr(backbone, "conv_stem") and frozen > 0:
        for module in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:frozen]):
            module.requires_grad_(False)


def truth_rows(samples: list[Sample]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number, boxes, category ids) of each sample, for measuring on photos held out."""
    for number, one in enumerate(samples):
        yield number, one.boxes, one.labels + 1
