"""COCO's compressed masks to run lengths and back: what `postproc.masks` votes on.

Run lengths count pixels column by column, off first. The compressed form writes each length, less the one two before it from the
fourth on, in groups of five bits, lowest first, one character (48 + 32 if more follow + the bits) a group; the last group's
highest bit is the sign. Source: the format of pycocotools' `rleToString`, which also does the way back here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from detection.detections import Rle


def lengths(mask: Mapping[str, Any]) -> np.ndarray:
    """Run lengths (R,) int64 of a compressed mask.

    Raises:
        ValueError: characters that are none of the format's, or lengths that do not fill the mask's size.

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

    >>> from_lengths(np.array([1, 3, 2]), (2, 3))
    {'size': [2, 3], 'counts': b'132'}
    """
    height, width = (int(side) for side in size)
    return {"size": [height, width], "counts": coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"]}  # fmt: skip


def mirrored(mask: Rle) -> Rle:
    """The mask of the photo seen in a mirror: left is right."""
    flipped = coco.encode(np.asfortranarray(coco.decode(mask)[:, ::-1]))
    return {"size": [int(side) for side in mask["size"]], "counts": flipped["counts"]}
