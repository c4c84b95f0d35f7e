"""Compressed masks against pycocotools and against pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from detection.rle import drawn, from_lengths, lengths, mirrored


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


@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=30))
def test_any_lengths_come_back(runs: list[int]) -> None:
    mask = from_lengths(np.array(runs), (1, sum(runs)))
    assert lengths(mask).tolist() == runs


def test_a_mask_too_large_to_be_written_is_refused() -> None:
    """pycocotools would write beyond its memory, and some later line would end the process."""
    largest = 2**29 - 1
    np.testing.assert_array_equal(lengths(from_lengths(np.array([0, largest]), (1, largest))), [0, largest])
    with pytest.raises(ValueError, match="writing a mask of 536870912 pixels: want fewer than 536870912"):
        from_lengths(np.array([2**28, 2**28]), (1, 2**29))


@pytest.mark.parametrize("counts, message", [
    (b"", "no COCO"), (b"\x00", "no COCO"), (b"1P", "no COCO"), (b"1", "its runs are 1 pixels, its size 2 x 3"),
    (b"o" * 12 + b"0", "2\\^40"),
])  # fmt: skip
def test_what_is_no_mask_is_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths({"size": [2, 3], "counts": counts})


def test_a_mask_is_drawn_over_its_box() -> None:
    """By hand: two cells of 1 above two of 0, over 4 x 4 pixels.

    Row centres lie at -0.25, 0.25, 0.75 and 1.25 cells: 0.75, 0.75, 0.25, 0.
    """
    values = np.array([[1, 1], [0, 0]], np.float32)
    mask = coco.decode(drawn(values, np.array([2, 1, 6, 5], np.float32), (7, 9)))
    want = np.zeros((7, 9), np.uint8)
    want[1:3, 2:6] = 1
    np.testing.assert_array_equal(mask, want)
    lower = coco.decode(drawn(values, np.array([2, 1, 6, 5], np.float32), (7, 9), 0.2))
    np.testing.assert_array_equal(np.flatnonzero(lower[:, 3]), [0, 1, 2, 3])  # 0.25 half a pixel above the box


@pytest.mark.parametrize("box", [[np.nan] * 4, [0, 0, np.inf, 3], [5, 5, 5, 5], [50, 50, 60, 60], [-9, -9, -3, -3]])
def test_a_box_that_covers_nothing_or_is_none_has_a_mask_all_the_same(box: list[float]) -> None:
    mask = coco.decode(drawn(np.ones((7, 7), np.float32), np.array(box, np.float32), (8, 6)))
    assert (
        mask.shape == (8, 6) and mask.sum() <= 4
    )  # a box without a side reaches its neighbours, as mmdetection's does


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(*[st.floats(-5, 70, width=32)] * 4),
    st.sampled_from([2, 7, 28]),
)
def test_masks_are_drawn_as_mmdetection_pastes_them(
    seed: int, size: tuple[int, int], corners: tuple[float, ...], cells: int
) -> None:
    import torch

    from detection import mmcv_ops

    mmcv_ops.install()
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    height, width = size
    x1, x2 = sorted(np.clip(corners[:2], 0, width))
    y1, y2 = sorted(np.clip(corners[2:], 0, height))
    box = np.array([x1, y1, x2, y2], np.float32)
    values = np.random.default_rng(seed).random((cells, cells), np.float32)
    pasted, _ = _do_paste_mask(
        torch.from_numpy(values)[None, None], torch.from_numpy(box)[None], height, width, skip_empty=False
    )
    theirs = pasted[0].numpy()
    ours = coco.decode(drawn(values, box, size))
    certain = np.abs(theirs - 0.5) > 1e-3 * (1 + 1 / max(1e-3, min(x2 - x1, y2 - y1)))
    np.testing.assert_array_equal(ours[certain], (theirs >= 0.5)[certain])
