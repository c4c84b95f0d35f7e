"""Boxes and masks nobody would draw: every way of fusing answers soundly, or refuses in one line that names the row."""

import contextlib
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.rle import from_lengths, lengths
from postproc.masks import vote
from postproc.nms import nms_batch
from postproc.nmw import nmw_batch_members
from postproc.soft_nms import soft_nms_batch
from postproc.voting import box_voting_batch
from postproc.wbf import fuse_batch_members
from tests.fuzz import guard

N_MODELS = 3
odd = st.sampled_from(
    [0.0, -0.0, 1e-320, 1e-30, 1e-5, 1 / 3, 0.5, 1.0, 1e8, 1e15, 1.1e15, -3.0, 1e308, np.inf, -np.inf, np.nan]
)
plain = st.integers(0, 6).map(float)
coordinate = st.one_of(plain, plain, plain, odd)
score = st.one_of(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), odd)
row = st.tuples(
    coordinate, coordinate, coordinate, coordinate, score,
    st.integers(0, 2), st.integers(0, 2), st.integers(0, N_MODELS - 1),
)  # fmt: skip
Answer = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # boxes, scores, and which rows stand behind each fused box, (M, N) bool


def _all(members: np.ndarray, n: int) -> np.ndarray:
    return members[None] == np.arange(n)[:, None]


def wbf(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, model: np.ndarray, iou: float
) -> Answer:
    fused, confidence, *_, members = fuse_batch_members(boxes, scores, labels, image, model, N_MODELS, iou_thr=iou)
    return fused, confidence, _all(members, len(fused))


def nmw(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, model: np.ndarray, iou: float
) -> Answer:
    fused, confidence, *_, members = nmw_batch_members(boxes, scores, labels, image, model, N_MODELS, iou_thr=iou)
    return fused, confidence, _all(members, len(fused))


def nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, model: np.ndarray, iou: float
) -> Answer:
    kept = nms_batch(boxes, scores, 10 * image + labels, iou_threshold=iou)
    return boxes[kept], scores[kept], kept[:, None] == np.arange(len(boxes))


def soft(kind: str) -> Callable[..., Answer]:
    def fuse(
        boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, model: np.ndarray, iou: float
    ) -> Answer:
        kept, lowered = soft_nms_batch(
            boxes, scores, 10 * image + labels, kind=kind, iou_threshold=iou, score_threshold=0
        )
        assert (lowered <= scores[kept]).all() and sorted(kept.tolist()) == list(range(len(boxes)))
        return boxes[kept], lowered, kept[:, None] == np.arange(len(boxes))

    return fuse


def voting(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, model: np.ndarray, iou: float
) -> Answer:
    kept, moved = box_voting_batch(boxes, scores, 10 * image + labels, iou_threshold=iou, voting_threshold=iou)
    groups = 10 * image + labels
    return moved, scores[kept], groups[kept][:, None] == groups


WAYS = {
    "wbf": wbf, "nmw": nmw, "nms": nms, "soft nms, linear": soft("linear"), "soft nms, gaussian": soft("gaussian"),
    "voting": voting,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@guard.fuzzed(len(WAYS))
@given(rows=st.lists(row, max_size=12), tidy=st.booleans(), iou=st.sampled_from([0.0, 0.3, 0.55, 1.0]))
def test_odd_boxes(way: str, rows: list[tuple], tidy: bool, iou: float) -> None:
    guard.inputs["test_fusion"] += 1
    table = np.array(rows, float).reshape(-1, 8)
    boxes, scores = table[:, :4], table[:, 4]
    scores[(scores > 0) & (scores < 1e-30)] = 0  # have no meaning (postproc.wbf): their float32 sums are 0
    if tidy:  # otherwise hardly anything gets past the checks
        boxes = np.sort(np.nan_to_num(boxes.clip(-1e15, 1e15)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        scores = np.nan_to_num(np.abs(scores)).clip(0, 1e8)
    labels, image, model = table[:, 5:].astype(np.int64).T
    before = boxes.copy(), scores.copy()
    may_refuse = contextlib.nullcontext() if tidy else contextlib.suppress(ValueError)
    with may_refuse, warnings.catch_warnings():
        warnings.simplefilter("error")
        fused, confidence, behind = WAYS[way](boxes, scores, labels, image, model, iou)
        assert not tidy or np.isfinite(boxes).all()
        assert (
            np.isfinite(fused).all() and np.isfinite(confidence).all() and len(fused) == len(confidence) <= len(boxes)
        )
        for one, own in zip(fused, behind, strict=True):
            hull = boxes[own]
            slack = 1e-6 * np.abs(hull).max() + 1e-30  # wbf sums in float32
            assert own.any() and (one >= hull.min(axis=0) - slack).all() and (one <= hull.max(axis=0) + slack).all()
    np.testing.assert_array_equal(before[0], boxes)
    np.testing.assert_array_equal(before[1], scores)


@guard.fuzzed()
@given(st.lists(row, min_size=1, max_size=12), st.sampled_from(list(WAYS)))
def test_refusals_of_boxes_say_where(rows: list[tuple], way: str) -> None:
    guard.inputs["test_fusion"] += 1
    table = np.array(rows, float)
    boxes, scores = table[:, :4], table[:, 4]
    labels, image, model = table[:, 5:].astype(np.int64).T
    bad = ~(np.abs(boxes) <= 1e15).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1) | ~np.isfinite(scores)
    if bad.any():
        with pytest.raises(ValueError, match=r"row \d+ ") as refused:
            WAYS[way](boxes, scores, labels, image, model, 0.5)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@guard.fuzzed()
@given(st.binary(max_size=40), st.lists(st.integers(0, 10**6), min_size=2, max_size=2))
def test_bytes_that_may_be_a_mask(counts: bytes, size: list[int]) -> None:
    guard.inputs["test_fusion"] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            runs = lengths({"size": size, "counts": counts})
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            return
    assert runs.sum() == size[0] * size[1] and (runs >= 0).all()
    assert vote([runs]).sum() == runs.sum()


@guard.fuzzed()
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(0, 255), st.integers(0, 30))
def test_a_mask_with_one_byte_changed(runs: list[int], byte: int, place: int) -> None:
    guard.inputs["test_fusion"] += 1
    size = (1, max(sum(runs), 1))
    runs = runs if sum(runs) else [1]
    counts = bytearray(from_lengths(np.array(runs), size)["counts"])
    counts[place % len(counts)] = byte
    with contextlib.suppress(ValueError):
        got = lengths({"size": list(size), "counts": bytes(counts)})
        assert got.sum() == size[1] and (got >= 0).all()
