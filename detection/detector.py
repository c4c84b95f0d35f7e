"""One call for every detector: upright RGB photos in, boxes with scores, categories and masks out.

    detector = load(models.ATSS_TINY, "cpu", weights=Path("weights/tiny/atss-tiny.safetensors"))
    found = detector.detect([photo, another])

Resizing, padding and normalising are ours and batched; the numbers are those of mmdetection's own per-image pipeline
(tested on real photos). Only this module and `detection.training` import mmdet.
"""

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detection import backbones, mmcv_ops
from detection.categories import CATEGORIES
from detection.detections import Detections, Rle
from detection.models import DetectorSpec
from detection.rle import mirrored


class WeightsError(ValueError):
    """Weights are absent, are not the ones named, or do not fit the model."""

    user_facing = True  # jobs.cli prints it as one line


def build_config(spec: DetectorSpec) -> Any:
    """The spec's model as mmengine's `ConfigDict`, a copy; every module it names is registered."""
    mmcv_ops.install()
    from mmengine.config import ConfigDict

    backbones.register()
    return ConfigDict(copy.deepcopy(dict(spec.model)))


def build(spec: DetectorSpec, *, pretrained_backbone: bool = False) -> nn.Module:
    """The mmdetection model of a spec, with random heads; the backbone too unless `pretrained_backbone`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = build_config(spec)
        from mmdet.registry import MODELS

        if pretrained_backbone and config.backbone.type == "EfficientNetLite":
            config.backbone.pretrained = True
        logging.disable(logging.INFO)  # mmengine would print three lines for each of hundreds of tensors
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # heads start alike in every process, so a run with random weights can be repeated
                model: nn.Module = MODELS.build(config)
                model.init_weights()  # type: ignore[operator]  # mmengine's modules have it
        finally:
            logging.disable(logging.NOTSET)
    return model


def load(
    spec: DetectorSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    score_threshold: float = 0.01,
    max_per_image: int = 100,
) -> "Detector":
    """A detector ready for photos.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of safetensors (nothing in it is executed); checked against `spec.sha256` where that is given.
        allow_random_weights: build it untrained when `weights` is None: for tests of the machinery, not for results.
        score_threshold: boxes below this score are not returned, in [0, 1].
        max_per_image: at most so many boxes a photo, the best.

    Raises:
        WeightsError: no weights, another digest, or tensors that do not fit.
    """
    model = build(spec)
    if weights is not None:
        _fill(model, spec, Path(weights))
    elif not allow_random_weights:
        raise WeightsError(
            f"{spec.name}: no weights given; train them with jobs/train_detector.py, or set allow_random_weights"
        )
    return Detector(spec, model.to(device), device, score_threshold, max_per_image)


def _fill(model: nn.Module, spec: DetectorSpec, path: Path) -> None:
    from safetensors.torch import load as load_tensors

    if not path.is_file():
        raise WeightsError(
            f"{spec.name}: no weights at {path}; train them with jobs/train_detector.py or set weights_dir"
        )
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if spec.sha256 and digest != spec.sha256:
        raise WeightsError(
            f"{spec.name}: {path} has sha256 {digest[:16]}…, want {spec.sha256[:16]}…; fetch the weights again"
        )
    try:
        tensors = load_tensors(data)
    except Exception as error:
        raise WeightsError(f"{spec.name}: {path} is not a safetensors file: {str(error)[:300]}") from None
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        theirs, ours = tensors.get(key), wanted.get(key)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            want = "nothing" if ours is None else tuple(ours.shape)
            have = "nothing" if theirs is None else tuple(theirs.shape)
            raise WeightsError(
                f"{spec.name}: {path}: {key[:200]} wants {want}, has {have}; were they trained for another model?"
            )
        if theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
            raise WeightsError(
                f"{spec.name}: {path}: {key} wants {ours.dtype}, has {theirs.dtype}; were they trained for another model?"
            )
        if not torch.isfinite(theirs.to(ours.dtype)).all():
            raise WeightsError(f"{spec.name}: {path}: {key} is not all finite numbers; train again, at a lower rate")
    model.load_state_dict({key: tensors[key].to(wanted[key].dtype) for key in wanted})


def _set_test_limits(model: nn.Module, score_threshold: float, max_per_image: int) -> None:
    """Put the caller's limits where mmdetection's heads read them."""
    heads = [getattr(model, "bbox_head", None), getattr(model, "roi_head", None)]
    for limits in (head.test_cfg for head in heads if head is not None):
        limits.max_per_img = max_per_image
        if "score_thr" in limits:
            limits.score_thr = score_threshold
        if "topk" in limits:  # CenterNet: so many peaks of the heat map
            limits.topk = max(max_per_image, 100)


class Detector:
    """A detector ready for photos. Made by `load`, or around a model in training; `notes` tells of halved batches."""

    def __init__(
        self, spec: DetectorSpec, model: nn.Module, device: str, score_threshold: float, max_per_image: int
    ) -> None:
        _set_test_limits(model, score_threshold, max_per_image)
        self.spec, self.model, self.device = spec, model.eval(), torch.device(device)
        self.score_threshold, self.max_per_image = score_threshold, max_per_image
        self.with_masks = bool(getattr(model, "with_mask", False))
        self.notes: list[str] = []
        on_gpu = self.device.type == "cuda"
        self._few_sizes = on_gpu  # cuDNN plans each convolution anew for a shape it has not met
        planes_first = on_gpu and _is_depthwise(model)  # channels last, a depthwise one takes it seconds to plan
        self._layout = torch.contiguous_format if planes_first else torch.channels_last
        self._half = on_gpu and not planes_first  # small networks: converting costs more time than half precision saves
        self.model.to(memory_format=self._layout)  # type: ignore[call-overload]  # channels last: a third faster on a CPU
        category_ids = [CATEGORIES.index(name) + 1 for name in spec.categories]
        self._category_ids = np.array(category_ids, np.int8)

    def view(self, spec: DetectorSpec) -> "Detector":
        """Another view of the same detector (`detection.models.viewed`), around the same network."""
        return Detector(spec, self.model, str(self.device), self.score_threshold, self.max_per_image)

    def detect(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> list[Detections]:
        """Find the garments in photos.

        Args:
            images: upright RGB photos, each (H, W, 3) uint8, of any sizes.
            batch_size: photos of one padded shape that go through the model together.

        Returns:
            One `Detections` a photo, in the order given. A photo's result does not depend on the order of the others,
            up to the rounding of batched arithmetic.

        Raises:
            ValueError: a photo that is not (H, W, 3) uint8.
        """
        fitted = [fit(image, self.spec.scale_px) for image in images]
        if self.spec.flip:
            fitted = [np.ascontiguousarray(image[:, ::-1]) for image in fitted]
        found: list[Detections | None] = [None] * len(images)
        for shape, members in _alike(fitted, self.spec.pad_multiple_px):
            for start in range(0, len(members), batch_size):
                rows = members[start : start + batch_size]
                n = min(_power_of_two(len(rows)), batch_size) if self._few_sizes else len(rows)
                batch = rows + rows[-1:] * (n - len(rows))
                results = self._run([fitted[r] for r in batch], [images[r].shape[:2] for r in batch], shape)
                for row, result in zip(rows, results, strict=False):  # the last one's copies fall away
                    found[row] = result
        return [result for result in found if result is not None]

    def _run(
        self, photos: list[np.ndarray], originals: list[tuple[int, int]], shape: tuple[int, int]
    ) -> list[Detections]:
        """One batch; when the device's memory is too small, two halves of it, which is noted."""
        try:
            return self._forward(photos, originals, shape)
        except torch.cuda.OutOfMemoryError:
            if len(photos) == 1:
                raise
            self.notes.append(
                f"{self.spec.name}: out of memory at {len(photos)} photos of {shape[1]}x{shape[0]}, halved"
            )
        torch.cuda.empty_cache()
        half = len(photos) // 2
        return self._run(photos[:half], originals[:half], shape) + self._run(photos[half:], originals[half:], shape)

    @torch.inference_mode()
    def _forward(
        self, photos: list[np.ndarray], originals: list[tuple[int, int]], shape: tuple[int, int]
    ) -> list[Detections]:
        batch = normalise(photos, shape, self.spec, self.device).to(memory_format=self._layout)
        samples = [_sample(photo.shape[:2], original, shape) for photo, original in zip(photos, originals, strict=True)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            predicted: Any = self.model(batch, samples, mode="predict")
        return [self._convert(p.pred_instances, size) for p, size in zip(predicted, originals, strict=True)]

    def _convert(self, instances: Any, size: tuple[int, int]) -> Detections:
        """mmdetection's record to ours: clipped to the photo, thresholded, best first, of the photo as it was given."""
        scores = instances.scores.float().cpu().numpy()
        boxes = instances.bboxes.float().cpu().numpy().reshape(-1, 4)
        labels = instances.labels.cpu().numpy()
        height, width = size
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        solid = (
            (boxes[:, 2] > boxes[:, 0])
            & (boxes[:, 3] > boxes[:, 1])
            & (scores >= self.score_threshold)
            & np.isfinite(scores)
        )
        rows = np.flatnonzero(solid)
        rows = rows[np.argsort(-scores[rows], kind="stable")][: self.max_per_image]
        masks: list[Rle] | None = [instances.masks[r] for r in rows] if self.with_masks else None
        if self.spec.flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            masks = masks and [mirrored(mask) for mask in masks]
        return Detections(
            boxes[rows].astype(np.float32), scores[rows].astype(np.float32), self._category_ids[labels[rows]], masks
        )


def _is_depthwise(model: nn.Module) -> bool:
    """Whether it has convolutions of a channel each, as EfficientNet-Lite's."""
    return any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in model.modules())


def _power_of_two(n: int) -> int:
    """The smallest that is at least `n`, which is at least 1."""
    return 1 << (n - 1).bit_length()


def fit(image: np.ndarray, scale_px: tuple[int, int]) -> np.ndarray:
    """Resize a photo to fit `scale_px` (long, short side), proportions kept, up or down, bilinear as mmdetection does it.

    Raises:
        ValueError: not an (H, W, 3) uint8 array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"detecting: want an (H, W, 3) uint8 photo, got {image.shape} {image.dtype}; decode it with store.decode"
        )
    height, width = fitted_size(image.shape[0], image.shape[1], scale_px)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def fitted_size(height: int, width: int, scale_px: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that `fit` resizes a photo of that size to."""
    scale = min(max(scale_px) / max(height, width), min(scale_px) / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _alike(fitted: list[np.ndarray], multiple: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Groups of photos that pad to one shape, in the order their first member came."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, photo in enumerate(fitted):
        height, width = (-(-side // multiple) * multiple for side in photo.shape[:2])
        groups.setdefault((height, width), []).append(row)
    yield from groups.items()


def normalise(photos: list[np.ndarray], shape: tuple[int, int], spec: DetectorSpec, device: torch.device) -> Tensor:
    """Photos of (h, w, 3) uint8 to one (B, 3, H, W) float32 batch on the device: (x - mean) / std, zeros as padding."""
    mean = torch.tensor(spec.mean, device=device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=device).view(3, 1, 1)
    batch = torch.zeros((len(photos), 3, *shape), device=device)
    for slot, photo in zip(batch, photos, strict=True):
        height, width = photo.shape[:2]
        pixels = torch.from_numpy(photo).to(device).permute(2, 0, 1)
        torch.div(pixels - mean, std, out=slot[:, :height, :width])
    return batch


def _sample(fitted: tuple[int, ...], original: tuple[int, int], padded: tuple[int, int]) -> Any:
    """mmdetection's record of where a photo lies in its batch and how large it was."""
    from mmdet.structures import DetDataSample

    scale = fitted[1] / original[1], fitted[0] / original[0]  # width, height
    meta = dict(
        img_shape=tuple(fitted), ori_shape=original, scale_factor=scale, pad_shape=padded, batch_input_shape=padded,
        border=np.zeros(4, np.float32),  # CenterNet's own pipeline centres a photo; ours pads right and below as for the others
    )  # fmt: skip
    return DetDataSample(metainfo=meta)
