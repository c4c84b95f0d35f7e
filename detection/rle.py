"""COCO's compressed masks: drawn from a mask head's prediction, and to run lengths and back for `postproc.masks`.

Run lengths count pixels column by column, off first. The compressed form writes each length, less the one two before it
from the fourth on, in groups of five bits, lowest first, one character (48 + 32 if more follow + the bits) a group; the
last group's highest bit is the sign. Source: pycocotools' `rleToString`, which also does the way back here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from detection.detections import Rle

LARGEST = 1 << 29  # pixels of a mask that is written


def lengths(mask: Mapping[str, Any]) -> np.ndarray:
    """Run lengths (R,) int64 of a compressed mask.

    Raises ValueError for characters that are none of the format's, or lengths that do not fill the mask's size.

    >>> lengths({"size": [2, 3], "counts": b"132"})
    array([1, 3, 2])
    """
    groups = np.frombuffer(mask["counts"], np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError(f"reading a mask: {bytes(mask['counts'])[:40]!r} is no COCO run-length encoding")
    begins = np.append(0, np.flatnonzero(groups[:-1] & 32 == 0) + 1)
    ends = np.append(begins[1:], len(groups)) - 1
    place = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    if place.max() > 7:
        raise ValueError("reading a mask: a run of more than 2^40 pixels; is it a COCO run-length encoding?")
    numbers = np.add.reduceat((groups & 31) << (5 * place), begins)
    numbers -= np.where(groups[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    height, width = mask["size"]
    if (numbers < 0).any() or numbers.sum() != height * width:
        raise ValueError(f"reading a mask: its runs are {numbers.sum()} pixels, its size {height} x {width}")
    return numbers


def from_lengths(runs: np.ndarray, size: tuple[int, int]) -> Rle:
    """The compressed mask of run lengths (R,) that fill `size` (height, width).

    Raises ValueError for 2^29 pixels or more: pycocotools has memory for six characters a run and would write a seventh
    beyond it.

    >>> from_lengths(np.array([1, 3, 2]), (2, 3))
    {'size': [2, 3], 'counts': b'132'}
    """
    height, width = (int(side) for side in size)
    if runs.sum() >= LARGEST:
        raise ValueError(f"writing a mask of {runs.sum()} pixels: want fewer than {LARGEST}")
    compressed = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": compressed["counts"]}


def mirrored(mask: Rle) -> Rle:
    """The mask of the mirrored photo."""
    flipped = coco.encode(np.asfortranarray(coco.decode(mask)[:, ::-1]))
    return {"size": [int(side) for side in mask["size"]], "counts": flipped["counts"]}


def drawn(values: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> Rle:
    """The mask of one box: a mask head's prediction stretched over the box, on where it reaches the threshold.

    `values` is (S, S) float32 in [0, 1]; `box` is x1 y1 x2 y2 in pixels, where NaN and infinity count as 0, for the
    detector drops such a box itself; `size` is height and width of the photo. Bilinear between the centres of the cells
    and fading to zero half a cell outside, as in mmdetection's `_do_paste_mask` (Mask R-CNN, arXiv:1703.06870, section
    3.1). Stretching is a product with one matrix a side, and only the box is computed.
    """
    height, width = size
    box = np.where(np.isfinite(box), box, 0)
    left, top = (max(int(side) - 1, 0) for side in np.floor(box[:2]))
    right, bottom = (min(int(side) + 1, end) for side, end in zip(np.ceil(box[2:]), (width, height), strict=True))
    whole = np.zeros((height, width), np.uint8, order="F")
    if right > left and bottom > top:
        down = _stretched(len(values), box[1], box[3], top, bottom)
        along = _stretched(len(values), box[0], box[2], left, right)
        whole[top:bottom, left:right] = down @ values @ along.T >= threshold
    return {"size": [height, width], "counts": coco.encode(whole)["counts"]}


def _stretched(n_cells: int, begin: float, end: float, first: int, last: int) -> np.ndarray:
    """(last - first, n_cells) float32: the share of each cell between `begin` and `end` in pixels `first` to `last`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (np.arange(first, last, dtype=np.float32) + 0.5 - begin) / (end - begin)
    place[~np.isfinite(place)] = 0.5  # a box without a side: its middle
    cell = place * n_cells - 0.5  # from the centre of the first one
    return np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(n_cells, dtype=np.float32)))
