"""Weighted boxes fusion: boxes of several detectors that agree become one box, at their weighted mean.

Boxes, scores, labels and the model each came from in; fused boxes and how many models voted for each out. Going by
falling score, a box joins the fused box of its label it overlaps most, if by more than the threshold, and moves it to
the score-weighted mean; otherwise it starts a new one. `fuse_batch` does many images at once, `fuse_batch_members` also
tells which box went where, `weighted_boxes_fusion` does one image. Source: Solovyev, Wang, Gabruseva, "Weighted boxes
fusion", arXiv 1910.13302; same numbers as ensemble-boxes 1.0.9.

Where we differ from that package:
- coordinates in any unit, never clipped (there: fractions, clipped to [0, 1]);
- equal scores keep input order, before fusing and after (there: as the sort leaves them);
- wrong input is a ValueError (there: printed, then corrected or exit): weights that do not fit, x2 < x1 (swapped
  there), NaN, labels that are not whole numbers (cut there), negative scores that pass the threshold;
- fused boxes whose scores are all 0 stay where their first box was (there: 0 / 0).
As there: boxes without area are left out, scores below `skip_box_thr` too, and sums of several boxes are rounded to
float32 (kept on purpose: a pair exactly at the threshold is decided the same way): scores under 1e-30 have no meaning.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from postproc import candidates
from postproc.boxes import Stacks, by_rank, chunks, edges, falling, narrow
from postproc.candidates import Candidates

CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
ROWS_AT_ONCE = 65_536  # bounds memory; results do not depend on it


def weighted_boxes_fusion(
    boxes_list: Sequence,
    scores_list: Sequence,
    labels_list: Sequence,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fuse the boxes that several models found in one image.

    Args:
        boxes_list: per model (N_i, 4) x1 y1 x2 y2, one unit for all, x1 <= x2, y1 <= y2; a model may have none.
        scores_list: per model (N_i,) finite; dropped below `skip_box_thr`, otherwise >= 0.
        labels_list: per model (N_i,) whole numbers; boxes of different labels never fuse.
        weights: one number >= 0 per model, not all 0; scales its scores. None: all 1.
        iou_thr: overlap in [0, 1]; boxes fuse strictly above it.
        skip_box_thr: boxes with a lower score (before weighting) are left out.
        conf_type: the score of a fused box, with s the weighted scores of its n boxes, T models, w_T all weights' sum:
            `avg`: mean(s) * min(T, n) / w_T;
            `max`: max(s) / max(weights);
            `box_and_model_avg`: sum(s) / (its boxes' weights) * (weights of the models that agree) / w_T;
            `absent_model_aware_avg`: sum(s) / (its boxes' weights + weights of the models that do not agree).
        allows_overflow: with `avg`, multiply by n rather than min(T, n); scores may then exceed 1.

    Returns:
        boxes (M, 4) float64, scores (M,) float64, labels (M,) int64: best score first; equal scores in the order of the
        inputs (models in order, rows in order) that started the fused boxes.

    Raises ValueError, see the head of this file, with the value and the row: of a box in its model's list, otherwise
    counted through all models.

    >>> boxes, scores, labels = weighted_boxes_fusion([[[0, 0, 10, 10]], [[0, 0, 10, 12]]], [[0.8], [0.4]], [[1], [1]])
    >>> boxes.round(2).tolist(), scores.round(2).tolist(), labels.tolist()    # 10.67 = (0.8 * 10 + 0.4 * 12) / 1.2
    ([[0.0, 0.0, 10.0, 10.67]], [0.6], [1])
    """
    found = candidates.in_one(boxes_list, scores_list, labels_list)
    how = (len(boxes_list), weights, iou_thr, skip_box_thr)
    boxes, scores, labels, _, _, _ = _fuse(candidates.checked(*found, *how), iou_thr, conf_type, allows_overflow)
    return boxes, scores, labels


def fuse_batch(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    model: np.ndarray,
    n_models: int,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`weighted_boxes_fusion` for many images at once: one row per box, in a fraction of the time.

    Args:
        boxes: (N, 4) x1 y1 x2 y2, one unit per image; N may be 0.
        image: (N,) int ids. Rows grouped by image are fastest; in any other order they are brought together first.
        model: (N,) int in [0, n_models): the model each box came from.
        n_models: models asked, those that found nothing included; at most 127.

    The other arguments and the errors are as there. Returns boxes (M, 4) float64, scores (M,) float64, labels (M,)
    int64, image (M,) in the type given, votes (M,) int8: the number of distinct models among the fused boxes. Images
    are in the order they first appear; in each the best score comes first, equal scores in the order of the rows that
    started the fused boxes. An image whose boxes are all left out has no rows. An image's rows do not depend, by a
    single bit, on the images beside it.
    """
    fused = fuse_batch_members(
        boxes, scores, labels, image, model, n_models, weights, iou_thr, skip_box_thr, conf_type, allows_overflow
    )
    return fused[:5]


def fuse_batch_members(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image: np.ndarray,
    model: np.ndarray,
    n_models: int,
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`fuse_batch`, and members (N,) int64: the fused row that each row given is part of, -1 where it was left out.

    >>> same = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 9]])
    >>> fuse_batch_members(same, [0.5, 0.9, 0.4], [1, 1, 1], [7, 7, 7], [0, 0, 1], 2)[5].tolist()
    [1, 0, 1]
    """
    if n_models < 1:
        raise ValueError(f"fusing boxes: n_models is {n_models}; want 1 to 127")
    found = candidates.checked(boxes, scores, labels, image, model, n_models, weights, iou_thr, skip_box_thr)
    return _fuse(found, iou_thr, conf_type, allows_overflow)


# --- fusing -----------------------------------------------------------------------------------------------------------


def _fuse(
    found: Candidates, iou_thr: float, conf_type: str, allows_overflow: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if conf_type not in CONF_TYPES:
        raise ValueError(f"fusing boxes: conf_type is {conf_type!r}; want one of {', '.join(CONF_TYPES)}")
    members = np.full(len(found.boxes), -1)
    parts, n_fused = [], 0
    for part in chunks(found.image[found.rows], ROWS_AT_ONCE):
        *columns, went = _fuse_part(found, found.rows[part], iou_thr, conf_type, allows_overflow)
        members[found.rows[part]] = went + n_fused
        parts.append(columns)
        n_fused += len(columns[0])
    if not parts:
        return np.zeros((0, 4)), np.zeros(0), found.labels[:0], found.image[:0], np.zeros(0, np.int8), members
    boxes, scores, labels, image, votes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return boxes, scores, labels, image, votes, members


def _fuse_part(
    found: Candidates, rows: np.ndarray, iou_thr: float, conf_type: str, allows_overflow: bool
) -> tuple[np.ndarray, ...]:
    """Fuse whole images that lie side by side in `rows` (U,): `fuse_batch_members` of these rows."""
    ids = found.image[rows]
    number = narrow(np.cumsum(np.append(0, ids[1:] != ids[:-1])))  # of the image, in order
    order, steps = by_rank(found.strength[rows], found.labels[rows], number)
    place = rows[order]
    strength, model = found.strength[place], found.model[place]
    leader, fused, total = _cluster(np.take(found.boxes, place, axis=0), strength, steps, iou_thr)
    first = np.flatnonzero(leader == np.arange(len(leader)))
    scores, votes = _confidence(leader, strength, total, model, found.weights, conf_type, allows_overflow)
    first = first[np.argsort(order[first])]  # input order, then stable: best score first, image by image
    first = first[falling(scores[first])]
    first = first[np.argsort(number[order[first]], kind="stable")]
    row_of = np.empty(len(leader), np.int64)
    row_of[first] = np.arange(len(first))
    members = np.empty(len(leader), np.int64)
    members[order] = row_of[leader]
    place = place[first]
    columns = np.take(fused, first, axis=0), scores[first], found.labels[place], found.image[place]
    return *columns, votes[first].astype(np.int8), members


def _cluster(
    boxes: np.ndarray, strength: np.ndarray, steps: np.ndarray, iou_thr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decide which boxes fuse, all groups of one image and label going forward together, one box each.

    Boxes (N, 4) and their weighted scores `strength` (N,) are in the order and steps of `by_rank`.

    Returns:
        leader: (N,) the position of the box that started the fused box this one belongs to, its own if it did.
        fused: (N, 4) the fused box, total: (N,) the sum of its strengths; both stand at the leader's position.
    """
    columns, parts = edges(boxes), boxes * strength[:, None]
    leader, total, sums = np.arange(len(boxes)), strength.copy(), parts.astype(np.float32)
    stacks = Stacks(int(steps[1]))
    for begin, end in pairwise(steps.tolist()):
        new, lead, slots = columns[:, begin:end], leader[begin:end], stacks.height[: end - begin].copy()
        overlap = stacks.overlap(new)
        joins = (overlap.max(axis=0) > iou_thr).nonzero()[0]
        if len(joins):
            slots[joins] = best = overlap.take(joins, axis=1).argmax(axis=0)  # the first of several equal ones
            lead[joins] = whose = stacks.names(best, joins)
            rows = begin + joins
            weight = total.take(whose) + strength.take(rows)
            summed = (sums.take(whose, axis=0) + parts.take(rows, axis=0)).astype(np.float32)
            total[whose], sums[whose] = weight, summed
            new = new.copy()
            new[:, joins] = edges(_mean(summed, weight, boxes, whose))
        stacks.put(slots, np.arange(end - begin), new, lead)
    fused = boxes.copy()
    several = np.flatnonzero(np.bincount(leader) > 1)
    fused[several] = _mean(sums[several], total[several], boxes, several)
    return leader, fused, total


def _mean(sums: np.ndarray, totals: np.ndarray, boxes: np.ndarray, leader: np.ndarray) -> np.ndarray:
    """(M, 4) weighted means; where the scores sum to 0, the leader's box."""
    if totals.min(initial=1) > 0:
        return (sums / totals[:, None]).astype(np.float32).astype(np.float64)
    means = (sums / np.where(totals > 0, totals, 1)[:, None]).astype(np.float32)
    return np.where(totals[:, None] > 0, means, boxes[leader])


def _confidence(
    leader: np.ndarray,
    strength: np.ndarray,
    total: np.ndarray,
    model: np.ndarray,
    weights: np.ndarray,
    conf_type: str,
    allows_overflow: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and votes of the fused boxes, each (N,) and valid at leaders: see `weighted_boxes_fusion`."""
    n = len(leader)
    count = np.bincount(leader, minlength=n)
    weight = np.bincount(leader, weights=weights[model], minlength=n)
    agree = np.zeros((len(weights), n), dtype=bool)
    agree[model, leader] = True
    votes = agree.sum(axis=0)
    size = np.maximum(count, 1)
    mean = np.where(count > 1, (total / size).astype(np.float32), total)
    if conf_type == "max":
        best = np.where(count > 1, strength.astype(np.float32), strength)  # the leader is the strongest
        return best / weights.max(), votes
    if conf_type == "avg":
        return mean * (count if allows_overflow else np.minimum(count, len(weights))) / weights.sum(), votes
    present = sum(np.where(agrees, one, 0.0) for agrees, one in zip(agree, weights, strict=True))
    if conf_type == "box_and_model_avg":
        scores = np.divide(mean * count, weight, out=np.zeros(n), where=weight > 0)
        return scores * present / weights.sum(), votes
    return mean * count / np.where(count > 0, weight + (weights.sum() - present), 1), votes
