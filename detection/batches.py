"""Photos of any sizes as batches of a network: resized, padded and normalised."""

import types
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from detection.models import DetectorSpec


def fit(image: np.ndarray, scale_px: tuple[int, int]) -> np.ndarray:
    """Resize a photo to fit `scale_px` (long, short side), up or down, proportions kept, bilinear as in mmdetection.

    Raises ValueError for anything but an (H, W, 3) uint8 array.
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


def alike(shapes: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Groups of photos that pad to one shape, ordered by first member: (padded height, width), rows of `shapes`."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(row)
    yield from groups.items()


def normalise(photos: list[np.ndarray], shape: tuple[int, int], spec: DetectorSpec, device: torch.device) -> Tensor:
    """Photos of (h, w, 3) uint8 to one (B, 3, H, W) float32 batch on the device: (x - mean) / std, zeros as padding."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.mean, spec.std))
    pixels = torch.zeros((len(photos), 3, *shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for slot, photo in zip(pixels, photos, strict=True):
        slot[:, : photo.shape[0], : photo.shape[1]] = torch.from_numpy(photo).permute(2, 0, 1)
    batch = (pixels.to(device, non_blocking=True) - mean).div_(std)  # one copy, for which the CPU does not wait
    for slot, photo in zip(batch, photos, strict=True):
        slot[:, photo.shape[0] :] = 0
        slot[:, :, photo.shape[1] :] = 0
    return batch


def record_of(fitted: tuple[int, ...], original: tuple[int, int], padded: tuple[int, int]) -> Any:
    """A photo's place in the batch and its original size, under the names of mmdetection's own record."""
    scale = fitted[1] / original[1], fitted[0] / original[0]  # width, height
    meta = dict(
        img_shape=tuple(fitted), ori_shape=original, scale_factor=scale, pad_shape=padded, batch_input_shape=padded,
        # CenterNet's own pipeline centres a photo; ours pads right and below, as for the others
        border=np.zeros(4, np.float32),
    )  # fmt: skip
    return types.SimpleNamespace(metainfo=meta, ori_shape=original)
