"""The input of every way of fusing: several models' boxes of many images, checked, weighted, images side by side.

Arrays, or lists for each model, in; `Candidates` out, or an error that names the row. Shared by `postproc.wbf` and
`postproc.nmw`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from postproc.boxes import area, check


@dataclass(frozen=True)
class Candidates:
    """Boxes of several models, ready to be fused."""

    boxes: np.ndarray  # (N, 4) float64 x1 y1 x2 y2
    strength: np.ndarray  # (N,) float64, score times the model's weight
    labels: np.ndarray  # (N,) int64
    image: np.ndarray  # (N,) ids in the type given
    model: np.ndarray  # (N,) int64
    # (U,) int64, the rows to use: of a score at the threshold or above, and with an area. Those of one image stand
    # together, images by first appearance, otherwise in order.
    rows: np.ndarray
    weights: np.ndarray  # (T,) float64, one for each model


def checked(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    model: np.ndarray,
    n_models: int,
    weights: Sequence[float] | None,
    iou_thr: float,
    skip_box_thr: float,
) -> Candidates:
    """One row per box, as `postproc.wbf.fuse_batch` takes them.

    Raises ValueError, with the row, for different lengths, weights that do not fit, thresholds out of range, a NaN,
    x2 < x1, a label or model that is not a whole number, and a negative score that passes the threshold.
    """
    model, shares = _models(model, n_models), checked_weights(weights, n_models)
    if not 0 <= iou_thr <= 1 or np.isnan(skip_box_thr):
        raise ValueError(f"fusing boxes: iou_thr is {iou_thr}, skip_box_thr {skip_box_thr}; want [0, 1], and a number")
    boxes, labels = check(boxes), _whole(labels, "the label")
    scores, image = np.asarray(scores), np.asarray(image)
    shapes = {"scores": scores.shape, "labels": labels.shape, "image": image.shape, "model": model.shape}
    if set(shapes.values()) != {(len(boxes),)}:
        raise ValueError(f"fusing boxes: {len(boxes)} boxes, but {shapes}; want one of each per box")
    used = _usable(scores, skip_box_thr) & (area(boxes) > 0)
    rows = _side_by_side(image, np.flatnonzero(used))
    return Candidates(boxes, scores.astype(np.float64) * shares[model], labels, image, model, rows, shares)


def in_one(
    boxes_list: Sequence, scores_list: Sequence, labels_list: Sequence
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A list for each model, all of one image, as rows: boxes (N, 4), scores, labels, image (all 0) and model (N,).

    Raises ValueError for different numbers of models or boxes, and for a wrong box, with its model and its row there.
    """
    n_models = len(boxes_list)
    if not len(scores_list) == len(labels_list) == n_models:
        raise ValueError(
            f"fusing boxes: {n_models} models in boxes_list, {len(scores_list)} in scores_list, "
            f"{len(labels_list)} in labels_list; want the same number"
        )
    counts = [len(one) for one in boxes_list]
    for model, count in enumerate(counts):
        if not len(scores_list[model]) == len(labels_list[model]) == count:
            raise ValueError(
                f"fusing boxes: model {model} has {count} boxes, {len(scores_list[model])} scores, "
                f"{len(labels_list[model])} labels; want the same number"
            )
    return (
        np.concatenate([np.zeros((0, 4)), *(_boxes_of(one, model) for model, one in enumerate(boxes_list))]),
        _join(scores_list),
        _join(labels_list),
        np.zeros(sum(counts), np.int64),
        np.repeat(np.arange(n_models), counts),
    )


def checked_weights(weights: Sequence[float] | None, n_models: int) -> np.ndarray:
    """(T,) float64, one number >= 0 for each model, not all 0; None: all 1."""
    numbers = np.ones(n_models) if weights is None else np.asarray(weights, dtype=np.float64)
    if numbers.shape != (n_models,):
        raise ValueError(f"fusing boxes: {n_models} models but weights {weights}; want one weight per model")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (n_models == 0 or numbers.sum() > 0)):
        raise ValueError(f"fusing boxes: weights are {numbers.tolist()}; want numbers >= 0 that are not all 0")
    return numbers


def votes_of(model: np.ndarray, fused: np.ndarray, n_fused: int, n_models: int) -> np.ndarray:
    """(n_fused,) int8, distinct models in each fused box; model (P,) of a box, fused (P,) the place it went to.

    >>> votes_of(np.array([0, 0, 2]), np.array([1, 1, 1]), 2, 3).tolist()
    [0, 2]
    """
    agree = np.zeros((n_models, n_fused), dtype=bool)
    agree[model, fused] = True
    return agree.sum(axis=0).astype(np.int8)


def _models(model: np.ndarray, n_models: int) -> np.ndarray:
    if n_models > 127:
        raise ValueError(f"fusing boxes: n_models is {n_models}; want 1 to 127")
    model = _whole(model, "model")
    if model.size and not 0 <= model.min() <= model.max() < n_models:
        row = int(np.argmax((model < 0) | (model >= n_models)))
        raise ValueError(f"fusing boxes: row {row} is of model {model[row]}; want 0 to {n_models - 1}")
    return model


def _boxes_of(boxes: Sequence, model: int) -> np.ndarray:
    try:
        return check(np.asarray(boxes))
    except ValueError as error:
        raise ValueError(f"fusing boxes: model {model}: {error}") from error


def _join(lists: Sequence) -> np.ndarray:
    """The models' lists in one; empty ones do not decide its type."""
    filled = [np.asarray(one) for one in lists if len(one)]
    return np.concatenate(filled) if filled else np.zeros(0)


def _whole(numbers: np.ndarray, name: str) -> np.ndarray:
    numbers = np.asarray(numbers)
    whole = np.where(np.isfinite(numbers), numbers, 0).astype(np.int64)
    if (whole != numbers).any():
        row = int(np.argmax(whole != numbers))
        raise ValueError(f"fusing boxes: {name} in row {row} is {numbers[row]}; want whole numbers")
    return whole


def _usable(scores: np.ndarray, skip_box_thr: float) -> np.ndarray:
    """(N,) bool: the rows to use. Compared in the type given: a float32 0.7 is not below 0.7."""
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise ValueError(f"fusing boxes: the score in row {row} is {scores[row]}; want a finite number")
    used = scores >= float(skip_box_thr)
    if (used & (scores < 0)).any():
        row = int(np.argmax(used & (scores < 0)))
        raise ValueError(f"fusing boxes: the score in row {row} is {scores[row]}; want scores >= 0 (or skip them)")
    return used


def _side_by_side(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows, with those of one image together, images by first appearance, otherwise in order."""
    ids = image[rows]
    if (ids[1:] >= ids[:-1]).all():
        return rows
    runs = 1 + np.count_nonzero(ids[1:] != ids[:-1])
    unique, first, number = np.unique(ids, return_index=True, return_inverse=True)
    if len(unique) >= runs:
        return rows
    return rows[np.argsort(first[number], kind="stable")]
