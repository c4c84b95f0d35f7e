"""Box voting: suppression chooses the boxes, and all that overlap a chosen one say where it lies.

Boxes, scores and groups in; rows that stay and where they lie now out. `box_voting` for one image, `box_voting_batch`
for many at once. Source: Gidaris, Komodakis, "Object detection via a multi-region & semantic segmentation-aware CNN
model", arXiv:1505.01749, the step called bounding box voting: after suppression each kept box becomes the
score-weighted mean of all boxes that overlap it by more than 0.5, its own and the suppressed ones; its score stays.
"""

import numpy as np

from postproc.boxes import overlapping
from postproc.nms import nms_batch


def box_voting(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    iou_threshold: float = 0.5,
    voting_threshold: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose boxes of one image, and move them to where their neighbours are.

    Returns rows (K,) int64 of `boxes`, best score first, equal scores in input order, and moved (K, 4) float64, where
    each lies now; where the voters' scores are all 0 it stays. Raises ValueError for lengths that differ, a threshold
    out of range, and with the row for a NaN, a score below 0, x2 < x1 or y2 < y1.

    Args:
        boxes: (N, 4) float, x1 y1 x2 y2 in any one unit; N may be 0.
        scores: (N,) finite float >= 0, higher is better.
        labels: (N,) int; boxes of different labels have nothing to do with each other. None: all are of one.
        iou_threshold: of the suppression, as in `postproc.nms.nms`.
        voting_threshold: overlap in [0, 1] above which a box votes; equal overlap does not.

    >>> rows, moved = box_voting(np.array([[0, 0, 10, 10], [0, 0, 10, 8]]), np.array([0.6, 0.3]))
    >>> rows.tolist(), moved.round(2).tolist()    # 9.33 = (0.6 * 10 + 0.3 * 8) / 0.9
    ([0], [[0.0, 0.0, 10.0, 9.33]])
    """
    groups = np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels)
    rows, moved = box_voting_batch(
        boxes, scores, groups, iou_threshold=iou_threshold, voting_threshold=voting_threshold
    )
    order = np.lexsort((rows, -np.asarray(scores, np.float64)[rows]))
    return rows[order], moved[order]


def box_voting_batch(
    boxes: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    iou_threshold: float = 0.5,
    voting_threshold: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """`box_voting` for many images at once, or for many images and labels: boxes vote only within their group.

    `groups` (N,) int, in any order, is the image, or one number for each image and label. Returns rows (K,) int64 and
    moved (K, 4) float64: groups by rising number, in each the best score first, equal scores in input order. The rest
    is as in `box_voting`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not 0 <= voting_threshold <= 1:
        raise ValueError(f"box voting: voting_threshold is {voting_threshold}; want a number in [0, 1]")
    kept = nms_batch(boxes, scores, groups, iou_threshold=iou_threshold)
    if (scores < 0).any():
        worst = int(np.argmax(scores < 0))
        raise ValueError(f"box voting: the score in row {worst} is {scores[worst]}; want scores >= 0, to weigh by")
    if not len(kept):
        return kept, np.zeros((0, 4))
    boxes = np.asarray(boxes, dtype=np.float64)
    place, row = overlapping(boxes, groups, kept, voting_threshold)
    total = np.bincount(place, scores[row], minlength=len(kept))
    sums = [np.bincount(place, scores[row] * side, minlength=len(kept)) for side in boxes[row].T]
    means = np.stack(sums, axis=1) / np.where(total > 0, total, 1)[:, None]
    moved = (np.bincount(place, minlength=len(kept)) > 1) & (total > 0)
    return kept, np.where(moved[:, None], means, boxes[kept])
