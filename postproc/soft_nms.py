"""Soft suppression: boxes that overlap a better one lose score instead of going.

Boxes, scores and groups in; rows that stay and their new scores out. `soft_nms` for one image, `soft_nms_batch` for
many at once. Source: Bodla, Singh, Chellappa, Davis, "Soft-NMS", arXiv:1704.04503, section 3. Take the best box left,
multiply every other one's score by a factor that falls with their overlap, and repeat until no box is left.

Where we differ from the paper: the linear rule begins above the threshold, not at it (equal overlap costs nothing, as
in `postproc.nms`). ensemble-boxes 1.0.9 returns the scores as they were; here they are the new ones, its inner loop's.
"""

import numpy as np

from postproc.boxes import by_rank, check, chunks, edges

KINDS = ("linear", "gaussian")
ROWS_AT_ONCE = 8_192  # bounds memory and stays in the cache; results do not depend on it
TAKEN = -1.0  # below any score


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    kind: str = "gaussian",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower the scores of overlapping boxes of one image.

    Returns rows (K,) int64 of `boxes` and scores (K,) float64: best new score first; equal ones by the score they had,
    then in input order. Raises ValueError for lengths that differ, a setting out of range, and with the row for a NaN,
    a score below 0, x2 < x1 or y2 < y1.

    Args:
        boxes: (N, 4) float, x1 y1 x2 y2 in any one unit; N may be 0. A box without area overlaps nothing.
        scores: (N,) finite float >= 0, higher is better.
        labels: (N,) int; boxes of different labels do not lower each other. None: all boxes compete.
        kind: the factor of a box of overlap o: `linear`: 1 - o above the threshold, else 1; `gaussian`: exp(-o²/sigma).
        iou_threshold: in [0, 1], of `linear`.
        sigma: above 0, of `gaussian`; smaller is harsher.
        score_threshold: at least 0; a box goes when its score falls below.

    >>> boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 3], [9, 0, 12, 4]])
    >>> rows, scores = soft_nms(boxes, np.array([0.8, 0.6, 0.4]), kind="linear")
    >>> rows.tolist(), scores.round(2).tolist()    # 0.15 = 0.6 * (1 - 12 / 16)
    ([0, 2, 1], [0.8, 0.4, 0.15])
    """
    groups = np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels)
    rows, lowered = soft_nms_batch(
        boxes, scores, groups, kind=kind, iou_threshold=iou_threshold, sigma=sigma, score_threshold=score_threshold
    )
    order = np.lexsort((rows, -np.asarray(scores, np.float64)[rows], -lowered))
    return rows[order], lowered[order]


def soft_nms_batch(
    boxes: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    kind: str = "gaussian",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """`soft_nms` for many images at once, or for many images and labels: boxes compete only within their group.

    `groups` (N,) int, in any order, is the image, or a number of one's own for each image and label; boxes have one
    unit per group. Returns rows (K,) int64 and scores (K,) float64: groups by rising number, in each the best new score
    first, equal ones by the score they had, then in input order. A group's rows do not depend on the groups beside it.
    The rest is as in `soft_nms`.
    """
    boxes, groups = check(boxes), np.asarray(groups)
    scores = np.asarray(scores, dtype=np.float64)
    _check(boxes, scores, groups, kind, iou_threshold, sigma, score_threshold)
    order = np.argsort(groups, kind="stable")
    lowered = np.empty(len(boxes))
    for part in chunks(groups[order], ROWS_AT_ONCE):
        rows = order[part]
        lowered[rows] = _lower(boxes[rows], scores[rows], groups[rows], kind, iou_threshold, sigma, score_threshold)
    stays = np.flatnonzero(lowered >= score_threshold)
    stays = stays[np.lexsort((stays, -scores[stays], -lowered[stays], groups[stays]))]
    return stays, lowered[stays]


def _check(
    boxes: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    kind: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> None:
    if scores.shape != (len(boxes),) or groups.shape != (len(boxes),):
        raise ValueError(
            f"soft nms: {len(boxes)} boxes, but scores of shape {scores.shape}, groups of shape {groups.shape}"
        )
    bad = ~(np.isfinite(scores) & (scores >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"soft nms: the score in row {row} is {scores[row]}; want a finite number from 0 up")
    if kind not in KINDS:
        raise ValueError(f"soft nms: kind is {kind!r}; want one of {', '.join(KINDS)}")
    if not 0 <= iou_threshold <= 1 or not 0 < sigma < np.inf or not 0 <= score_threshold < np.inf:
        raise ValueError(
            f"soft nms: iou_threshold is {iou_threshold}, sigma {sigma}, score_threshold {score_threshold}; "
            "want [0, 1], a number above 0, and one from 0 up"
        )


def _lower(
    boxes: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    kind: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> np.ndarray:
    """(N,) new scores of whole groups; of boxes that go, some number below the threshold.

    Groups of like size make one (boxes, groups) table, so that hardly half of a table is empty, and go forward
    together.
    """
    order, steps = by_rank(scores, groups)
    columns, lowered = edges(boxes[order]), np.empty(len(boxes))
    sizes = np.searchsorted(-np.diff(steps), -np.arange(steps[1]), side="left")  # falling; of each column
    begin = 0
    while begin < len(sizes):
        end = int(np.searchsorted(-sizes, -(sizes[begin] // 2), side="left"))
        ranks = np.arange(sizes[begin])[:, None]
        there = ranks < sizes[begin:end]
        place = np.where(there, steps[ranks] + np.arange(begin, end), 0)
        table = np.where(there, scores[order[place]], TAKEN)
        _take_all(columns[:, place], table, kind, iou_threshold, sigma, score_threshold)
        lowered[order[place[there]]] = table[there]
        begin = end
    return lowered


def _take_all(
    boxes: np.ndarray, scores: np.ndarray, kind: str, iou_threshold: float, sigma: float, score_threshold: float
) -> None:
    """Take the best box of every column, lower the others, until all are taken or below the threshold.

    `boxes` is (5, R, G) as `postproc.boxes.edges` has them; `scores` (R, G), `TAKEN` where there is no box, is changed
    to the new scores.
    """
    left, live = scores.copy(), np.arange(scores.shape[1])
    for _ in range(len(scores)):
        best = left.argmax(axis=0)  # the first of several equal ones
        score = left[best, np.arange(len(live))]
        goes_on = (score > TAKEN) & (score >= score_threshold)
        if not goes_on.all():
            scores[:, live[~goes_on]] = np.where(left > TAKEN, left, scores[:, live])[:, ~goes_on]
            live, best, score = live[goes_on], best[goes_on], score[goes_on]
            left, boxes = left[:, goes_on], boxes[:, :, goes_on]
        if not len(live):
            return
        here = np.arange(len(live))
        scores[best, live] = score
        overlap = _overlap(boxes, boxes[:, best, here])
        if kind == "linear":
            overlap[overlap <= iou_threshold] = 0
            factor = np.subtract(1, overlap, out=overlap)
        else:
            factor = np.exp(-(overlap**2) / sigma)
        np.multiply(left, factor, out=left, where=left > TAKEN)
        left[best, here] = TAKEN
    scores[:, live] = np.where(left > TAKEN, left, scores[:, live])


def _overlap(boxes: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(R, G) IoU of every box (5, R, G) with its column's best one (5, G)."""
    width = np.minimum(boxes[2], best[2]) - np.maximum(boxes[0], best[0])
    height = np.minimum(boxes[3], best[3]) - np.maximum(boxes[1], best[1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    return shared / (boxes[4] + best[4] - shared)
