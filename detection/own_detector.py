"""Detectors of `detection.own_config`: built from a configuration, filled from a checkpoint, fed by its own pipeline.

    detector = load(spec, "cpu", weights=Path("rtmdet_tiny.pth"))
    detections = detector.detect([photo, another])

A photo goes through mmdetection's own transforms and data preprocessor, so scale, padding, means and the order of
channels are those of the configuration, and the boxes those of mmdetection's `DetInferencer`. Photos that pad to one
shape go through the model together; a photo is never padded for the sake of another.
"""

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor, nn

from detection import mmcv_ops
from detection.detections import Rle
from detection.detector import ALL_BOXES, Detector, build
from detection.own_config import MmdetectionSpec, resized
from networks import checkpoints
from networks.engines import TORCH, Engine
from networks.weight_files import WeightsError

# mmengine exchanges them when it saves, so that the weights' moving average, where there is one, is the state_dict.
WRAPPERS = ("state_dict", "model", "ema_state_dict")
LOADS_PHOTOS = ("LoadImageFromFile", "LoadImageFromNDArray", "InferencerLoader")


def load(
    spec: MmdetectionSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    score_threshold: float = 0.01,
    max_per_image: int = 100,
    category_ids: Sequence[int] | None = None,
    engine: Engine = TORCH,
) -> "MmdetectionDetector":
    """A detector ready for photos; the arguments are those of `detection.detector.load`.

    The limits of the configuration's `test_cfg` hold; `score_threshold` and `max_per_image` cut what they leave.

    Raises:
        WeightsError: no weights, tensors that do not fit, or a configuration that no model can be built from.
    """
    model = _build(spec)
    if weights is not None:
        tensors = checkpoints.read(Path(weights), model=spec.name, sha256=spec.sha256, wrappers=WRAPPERS)
        fill(model, tensors, f"{spec.name}: {weights}")
    elif not allow_random_weights:
        raise WeightsError(f"{spec.name}: no checkpoint given; name one, or set allow_random_weights")
    detector = MmdetectionDetector(spec, model.to(device), device, score_threshold, max_per_image, category_ids)
    detector.compile(engine, weights)
    return detector


def _build(spec: MmdetectionSpec) -> nn.Module:
    """The model with random weights."""
    try:
        with _mmdetection():
            from mmengine.model.utils import revert_sync_batchnorm

            for module in spec.imports:
                importlib.import_module(module)
            return revert_sync_batchnorm(build(_with_flat_masks(spec)))
    except Exception as error:  # whatever the modules that a configuration names may raise
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{spec.name}: building the model of {spec.config}: {type(error).__name__}: {reason}"
        ) from error


@contextlib.contextmanager
def _mmdetection() -> Iterator[None]:
    """Names of types mean mmdetection's own, also those that parts of a model build; what importing it prints is kept
    back."""
    mmcv_ops.install()
    from mmengine.registry import DefaultScope

    with contextlib.redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope("mmdet"):
        yield


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put a checkpoint's tensors into a model as mmdetection does, which renames those of older versions.

    `source` begins the message of the WeightsError that refuses tensors that are missing, unknown, of another shape or
    not finite. Counters of batches, which inference does not read, may be missing; averages that mmdetection 2 kept
    beside the weights (`ema_…`) are passed over, and so is the counter of an average.
    """
    advice = "is the checkpoint of this configuration?"
    named = checkpoints.without_prefixes(tensors, model.state_dict())
    given = {key: tensor for key, tensor in named.items() if not key.startswith("ema_") and key != "steps"}
    try:
        answer = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n\t")[2].partition("\n")[0].split()) or str(error)
        raise WeightsError(f"{source}: {reason[:300]}; {advice}") from None
    missing = [key for key in answer.missing_keys if not key.endswith(".num_batches_tracked")]
    for what, keys in (("is missing", missing), ("is not the model's", answer.unexpected_keys)):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise WeightsError(f"{source}: {keys[0][:200]} {what}{more}; {advice}")
    for key, tensor in given.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{source}: {key[:200]} is not all finite numbers; was its training broken off?")


class MmdetectionDetector(Detector):
    """A detector ready for photos, made by `load`."""

    def __init__(self, spec: MmdetectionSpec, *rest: Any) -> None:
        super().__init__(spec, *rest)
        steps = [_for_arrays(step) for step in resized(spec.pipeline, spec.scale_px)]
        with _mmdetection():
            from mmdet.datasets import transforms  # noqa: F401  (registers them)
            from mmdet.registry import TRANSFORMS

            self._steps = [TRANSFORMS.build(step) for step in steps]

    def _set_limits(self, left_out: list[int]) -> None:
        """The configuration's own limits, but that boxes of classes `left_out` take no other box's place."""
        model: Any = self.model
        proposals = getattr(getattr(model, "rpn_head", None), "num_proposals", None)
        queries = getattr(model, "num_queries", None) or proposals
        for head in (getattr(model, "bbox_head", None), getattr(model, "roi_head", None)):
            limits = getattr(head, "test_cfg", None)
            if left_out and limits and "max_per_img" in limits:
                # those who take the best of a fixed number of queries cannot take more
                limits.max_per_img = queries * len(self.spec.categories) if queries else ALL_BOXES

    def _choose_layout(self) -> tuple[torch.memory_format, bool]:
        """Planes first and full precision: heads may view their maps as rows, and small errors grow in DETR's."""
        return torch.contiguous_format, False

    def _prepare(self, image: np.ndarray) -> Any:
        """mmdetection's record of a photo as its pipeline leaves it: `inputs` (3, h, w) and `data_samples`."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"detecting: want an (H, W, 3) uint8 photo, got {image.shape} {image.dtype}")
        pixels = image[:, ::-1] if self.spec.flip else image
        results: Any = {"img": np.ascontiguousarray(pixels[..., ::-1]), "img_id": 0}  # BGR, as mmdetection loads photos
        for step in self._steps:
            results = step(results)
            if results is None:
                raise ValueError(f"detecting: {type(step).__name__} of the test pipeline gives no photo")
        return results

    def _padded(self, prepared: Any) -> tuple[int, int]:
        divisor = getattr(self.model.data_preprocessor, "pad_size_divisor", 1)
        height, width = (-(-side // divisor) * divisor for side in prepared["inputs"].shape[-2:])
        return height, width

    def _inputs(
        self, photos: list[Any], originals: list[tuple[int, int]], shape: tuple[int, int]
    ) -> tuple[Tensor, list[Any]]:
        model: Any = self.model
        samples = [each["data_samples"].clone() for each in photos]  # the model writes its answer into them
        batch = model.data_preprocessor({"inputs": [each["inputs"] for each in photos], "data_samples": samples})
        return batch["inputs"], batch["data_samples"]

    def _masks(self, instances: Any, rows: np.ndarray) -> list[Rle] | None:
        if "masks" not in instances:
            return None
        return [_encoded(instances.masks[row]) for row in rows]


def _encoded(mask: Any) -> Rle:
    """The mask (H, W) bool of one box, compressed if its head has not done so."""
    if isinstance(mask, dict):
        return Rle(size=mask["size"], counts=mask["counts"])
    pixels = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    encoded = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}


def _for_arrays(step: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's step; loading a file becomes taking the pixels that are there."""
    kind = step["type"].rpartition(".")[2]
    if kind not in LOADS_PHOTOS:
        return step
    if not str(step.get("color_type", "color")).startswith("color"):
        raise ValueError(f"its test pipeline loads photos as {step['color_type']!r}; want 'color'")
    return {"type": "mmdet.LoadImageFromNDArray", "to_float32": step.get("to_float32", False)}


def _with_flat_masks(spec: MmdetectionSpec) -> Any:
    """The spec with our own mask head in place of mmdetection's, for the same masks in a hundredth of the memory."""
    return dataclasses.replace(spec, model=_renamed(spec.model))


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        kind = value.get("type")
        own = {"type": "RleMaskHead"} if kind in ("FCNMaskHead", "mmdet.FCNMaskHead") else {}
        return {key: _renamed(part) for key, part in value.items()} | own
    return type(value)(map(_renamed, value)) if isinstance(value, list | tuple) else value
