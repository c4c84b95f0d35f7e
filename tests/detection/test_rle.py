"""Compressed masks against pycocotools and against pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from detection.rle import from_lengths, lengths, mirrored


def pixels(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (90, 70), (1200, 900)])
@pytest.mark.parametrize("kind", ["off", "on", "noise", "blob"])
def test_lengths_are_those_of_the_pixels(shape: tuple[int, int], kind: str) -> None:
    drawn = np.zeros(shape, np.uint8)
    if kind == "noise":
        drawn = (np.random.default_rng(0).random(shape) > 0.7).astype(np.uint8)
    elif kind == "on":
        drawn[:] = 1
    elif kind == "blob":
        drawn[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 3 :] = 1
    mask = coco.encode(np.asfortranarray(drawn))
    np.testing.assert_array_equal(pixels(lengths(mask), *shape), drawn)
    assert from_lengths(lengths(mask), shape) == mask
    np.testing.assert_array_equal(coco.decode(mirrored(mask)), drawn[:, ::-1])


@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=30))
def test_any_lengths_come_back(runs: list[int]) -> None:
    mask = from_lengths(np.array(runs), (1, sum(runs)))
    assert lengths(mask).tolist() == runs


@pytest.mark.parametrize("counts, message", [
    (b"", "no COCO"), (b"\x00", "no COCO"), (b"1P", "no COCO"), (b"1", "its runs are 1 pixels, its size 2 x 3"), (b"o" * 12 + b"0", "2\\^40"),
])  # fmt: skip
def test_what_is_no_mask_is_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths({"size": [2, 3], "counts": counts})
