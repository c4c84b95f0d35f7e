"""Non-maximum suppression: of boxes that overlap too much, the best stays.

The plain alternative to fusing boxes: greedy, by falling score. `nms` for one image, `nms_batch` for many at once.
Source: standard; ties as in `postproc.wbf`.
"""

from itertools import pairwise

import numpy as np

from postproc.boxes import Stacks, by_rank, check, chunks, edges, falling

ROWS_AT_ONCE = 65_536  # bounds memory; results do not depend on it


def nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None = None, *, iou_threshold: float = 0.5
) -> np.ndarray:
    """Choose which boxes of one image stay: (K,) int64 rows of `boxes`, best score first, equal scores in input order.

    Raises ValueError for lengths that differ, a threshold out of range, and with the row for a NaN, x2 < x1 or y2 < y1.

    Args:
        boxes: (N, 4) float, x1 y1 x2 y2 in any one unit; N may be 0. A box without area overlaps nothing and stays.
        scores: (N,) finite float, higher is better.
        labels: (N,) int; boxes of different labels never suppress each other. None: all boxes compete.
        iou_threshold: overlap in [0, 1] above which the lower score goes; equal overlap stays.

    >>> nms(np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]]), np.array([0.5, 0.6, 0.7]))
    array([2, 1])
    """
    groups = np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels)
    kept = np.sort(nms_batch(boxes, scores, groups, iou_threshold=iou_threshold))
    return kept[falling(np.asarray(scores, dtype=np.float64)[kept])]


def nms_batch(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, iou_threshold: float = 0.5) -> np.ndarray:
    """`nms` for many images at once, or for many images and labels: boxes compete only within their group.

    `groups` (N,) int, in any order, is the image, or a number of one's own for each image and label; boxes have one
    unit per group. Returns (K,) int64 rows of `boxes`: groups by rising number, in each the best score first, equal
    scores in input order. A group's rows do not depend on the groups beside it. The rest is as in `nms`.
    """
    boxes, groups = check(boxes), np.asarray(groups)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(boxes),) or groups.shape != (len(boxes),):
        raise ValueError(f"nms: {len(boxes)} boxes, but scores of shape {scores.shape}, groups of shape {groups.shape}")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise ValueError(f"nms: the score in row {row} is {scores[row]}; want a finite number")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"nms: iou_threshold is {iou_threshold}; want a number in [0, 1]")
    rows = falling(scores)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    stays = np.zeros(len(rows), dtype=bool)
    for part in chunks(groups[rows], ROWS_AT_ONCE):
        stays[part] = _survivors(boxes[rows[part]], scores[rows[part]], groups[rows[part]], iou_threshold)
    return rows[stays]


def _survivors(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou_threshold: float) -> np.ndarray:
    """(N,) bool: the rows that no better row of their group suppresses. All groups go forward together, box by box."""
    order, steps = by_rank(scores, groups)
    columns = edges(boxes[order])
    stacks = Stacks(int(steps[1]))
    stays = np.empty(len(boxes), dtype=bool)
    for begin, end in pairwise(steps.tolist()):
        new = columns[:, begin:end]
        free = np.flatnonzero(stacks.overlap(new).max(axis=0) <= iou_threshold)
        stacks.put(stacks.height[free], free, new[:, free], begin + free)
        stays[begin:end] = False
        stays[begin + free] = True
    return stays[np.argsort(order)]
