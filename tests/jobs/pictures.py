"""Tiny pictures for the tests of the jobs."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from store.imageset import Item, Photo
from store.imageset_write import write_imageset


def png(shade: int, height: int = 6, width: int = 8) -> bytes:
    """A picture of one shade of grey."""
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(data, "PNG")
    return data.getvalue()


def patch(image_id: int, pair_id: int, source: str) -> Photo:
    """A patch of the pair's own colours on white (shop) or grey (consumer)."""
    rng = np.random.default_rng(pair_id)
    pixels = np.full((48, 40, 3), 255 if source == "shop" else 120, np.uint8)
    pixels[8:40, 8:32] = np.kron(rng.integers(0, 256, (4, 3, 3)), np.ones((8, 8, 1)))
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return Photo(image_id, data.getvalue(), 40, 48, source, pair_id=pair_id, items=(Item(1, 1, (8, 8, 32, 40)),))


def pairs(folder: Path) -> str:
    """An image set of twelve garments, each on a consumer's and a shop's photo; returns its address."""
    rows = [patch(2 * pair + side, pair, ("user", "shop")[side]) for pair in range(1, 13) for side in (0, 1)]
    write_imageset(rows, folder, source={"adapter": "test", "arguments": {}})
    return str(folder)
