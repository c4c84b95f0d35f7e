"""Non-maximum weighted: boxes that overlap the best one move it, by their scores and their overlap; its score stays.

Boxes, scores, labels and the model each came from in; fused boxes and how many models voted for each out. Going by
falling score, a box joins the leader of its label it overlaps most, if by more than the threshold; otherwise it leads.
A leader becomes the mean of its boxes, each weighted by score times overlap with the leader. `nmw_batch` does many
images at once, `nmw_batch_members` also tells which box went where, `non_maximum_weighted` does one image. Source: Zhou
et al., "CAD: Scale Invariant Framework for Real-Time Object Detection", ICCVW 2017; the numbers of ensemble-boxes 1.0.9
within 1e-5.

Where we differ from that package: any coordinate unit, nothing clipped; equal scores keep input order; wrong input is a
ValueError; a fused box whose scores are all 0 stays where its leader is (there: 0 / 0).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from postproc import candidates
from postproc.boxes import Stacks, by_rank, chunks, edges, falling, narrow, pairwise_iou
from postproc.candidates import Candidates

ROWS_AT_ONCE = 65_536  # bounds memory; results do not depend on it


def non_maximum_weighted(
    boxes_list: Sequence,
    scores_list: Sequence,
    labels_list: Sequence,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuse the boxes that several models found in one image.

    Args:
        boxes_list: per model (N_i, 4) x1 y1 x2 y2, one unit for all, x1 <= x2, y1 <= y2; a model may have none.
        scores_list: per model (N_i,) finite; dropped below `skip_box_thr`, otherwise >= 0.
        labels_list: per model (N_i,) whole numbers; boxes of different labels never fuse.
        weights: one number >= 0 per model, not all 0; its share of the largest scales its scores. None: all alike.
        iou_thr: overlap in [0, 1]; boxes fuse strictly above it.
        skip_box_thr: boxes with a lower score (before weighting) are left out; so are boxes without area.

    Returns:
        boxes (M, 4) float64, scores (M,) float64 of the leaders, labels (M,) int64: best score first, equal scores in
        input order (models in order, rows in order).

    Raises ValueError, with the value and the row, for what `postproc.candidates` refuses.

    >>> boxes, scores, _ = non_maximum_weighted([[[0, 0, 10, 10]], [[0, 0, 10, 8]]], [[0.8], [0.5]], [[1], [1]])
    >>> boxes.round(2).tolist(), scores.tolist()    # 9.33 = (0.8 * 1 * 10 + 0.5 * 0.8 * 8) / (0.8 * 1 + 0.5 * 0.8)
    ([[0.0, 0.0, 10.0, 9.33]], [0.8])
    """
    found = candidates.in_one(boxes_list, scores_list, labels_list)
    checked = candidates.checked(*found, len(boxes_list), weights, iou_thr, skip_box_thr)
    boxes, scores, labels, _, _, _ = _fuse(checked, iou_thr)
    return boxes, scores, labels


def nmw_batch(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    model: np.ndarray,
    n_models: int,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`non_maximum_weighted` for many images at once: one row per box, columns as `postproc.wbf.fuse_batch` takes them.

    Returns boxes (M, 4) float64, scores (M,) float64, labels (M,) int64, image (M,) in the type given, votes (M,) int8:
    the number of distinct models among the fused boxes. Images are in the order they first appear; in each the best
    score comes first, equal scores in the order of the rows. An image's rows do not depend on the images beside it. The
    rest is as in `non_maximum_weighted`.
    """
    return nmw_batch_members(boxes, scores, labels, image, model, n_models, weights, iou_thr, skip_box_thr)[:5]


def nmw_batch_members(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    model: np.ndarray,
    n_models: int,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`nmw_batch`, and members (N,) int64: the fused row that each row given is part of, -1 where it was left out."""
    if n_models < 1:
        raise ValueError(f"fusing boxes: n_models is {n_models}; want 1 to 127")
    checked = candidates.checked(boxes, scores, labels, image, model, n_models, weights, iou_thr, skip_box_thr)
    return _fuse(checked, iou_thr)


def _fuse(
    found: Candidates, iou_thr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    members = np.full(len(found.boxes), -1)
    heads, n_fused = [np.zeros(0, np.int64)], 0
    for part in chunks(found.image[found.rows], ROWS_AT_ONCE):
        rows = found.rows[part]
        head, went = _lead(found, rows, iou_thr)
        members[rows] = went + n_fused
        heads.append(head)
        n_fused += len(head)
    head = np.concatenate(heads)
    scores = found.strength[head] / found.weights.max(initial=0) if len(head) else np.zeros(0)
    inside = np.flatnonzero(members >= 0)
    votes = candidates.votes_of(found.model[inside], members[inside], n_fused, len(found.weights))
    return _means(found, head, inside, members[inside]), scores, found.labels[head], found.image[head], votes, members


def _lead(found: Candidates, rows: np.ndarray, iou_thr: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows that lead (M,), images side by side, best first; and for each of `rows` (U,) the place of its leader."""
    ids = found.image[rows]
    number = narrow(np.cumsum(np.append(0, ids[1:] != ids[:-1])))  # of the image, in order
    order, steps = by_rank(found.strength[rows], found.labels[rows], number)
    columns, leader = edges(found.boxes[rows[order]]), np.arange(len(rows))
    stacks = Stacks(int(steps[1]))
    for begin, end in pairwise(steps.tolist()):
        new = columns[:, begin:end]
        overlap = stacks.overlap(new)
        near = overlap.max(axis=0) > iou_thr
        joins, free = np.flatnonzero(near), np.flatnonzero(~near)
        best = overlap[:, joins].argmax(axis=0)  # the first of several equal ones
        leader[begin + joins] = stacks.names(best, joins)
        stacks.put(stacks.height[free], free, new[:, free], begin + free)
    first = order[np.flatnonzero(leader == np.arange(len(leader)))]
    first = np.sort(first)
    first = first[falling(found.strength[rows[first]])]
    first = first[np.argsort(number[first], kind="stable")]
    place = np.empty(len(rows), np.int64)
    place[first] = np.arange(len(first))
    went = np.empty(len(rows), np.int64)
    went[order] = place[order[leader]]
    return rows[first], went


def _means(found: Candidates, head: np.ndarray, inside: np.ndarray, went: np.ndarray) -> np.ndarray:
    """(M, 4) the leaders' boxes, moved by the boxes `inside` (U,) that `went` (U,) to them."""
    if not len(head):
        return np.zeros((0, 4))
    leaders = found.boxes[head]
    weight = found.strength[inside] * pairwise_iou(found.boxes[inside], leaders[went])
    total = np.bincount(went, weight, minlength=len(head))
    sums = [np.bincount(went, weight * side, minlength=len(head)) for side in found.boxes[inside].T]
    means = np.stack(sums, axis=1) / np.where(total > 0, total, 1)[:, None]
    return np.where((np.bincount(went) > 1)[:, None] & (total > 0)[:, None], means, leaders)
