"""Small garments in memory, for the tests of what is learnt from and of what is measured on."""

import dataclasses

import numpy as np

from retrieval.models import LITE0_SG
from retrieval.training_crops import CHANCES, CachedGarment, cut

SPEC = dataclasses.replace(LITE0_SG, input_size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def smooth_photo(height: int = 120, width: int = 90) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 2, (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


def cached(photo: np.ndarray, box, identity=None, shop=True, held_out=False, weight=1.0) -> CachedGarment:
    canvas, on_canvas, extent = cut(photo, np.array(box), SPEC.input_size)
    return CachedGarment(canvas, on_canvas, extent, identity, shop, held_out, weight=weight)


def one(
    shade: int, identity: tuple[int, int, int] | None, shop: bool, held_out: bool = False, weight: float = 1.0
) -> CachedGarment:
    return cached(np.full((50, 50, 3), shade, np.uint8), (5, 5, 45, 45), identity, shop, held_out, weight)


def chance(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, CHANCES))
