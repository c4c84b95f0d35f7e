"""Fusing: the boxes of several detectors on many photos to one set of boxes, and to the items worth embedding.

NumPy in, NumPy out. One file a method lies beside this one; here they share thresholds, weights, votes and limits.
Sources: as the methods name them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from postproc.boxes import overlapping
from postproc.candidates import votes_of
from postproc.hypotheses import Hypotheses, hypotheses_of
from postproc.nms import nms_batch
from postproc.nmw import nmw_batch_members
from postproc.soft_nms import soft_nms_batch
from postproc.voting import box_voting_batch
from postproc.wbf import fuse_batch_members


@dataclass(frozen=True)
class FusionRule:
    """How boxes are fused."""

    method: str  # one of `METHODS`
    iou_threshold: float  # overlap in [0, 1] above which boxes of a category are one garment
    conf_type: str  # how "wbf" makes a score of its members' scores, see `postproc.wbf`
    weights: Sequence[float] | None  # one a detector, not all 0; None: all 1
    thresholds: Sequence[float] | None  # the least score of each detector's boxes; None: `skip_box_threshold` for all
    skip_box_threshold: float
    score_threshold: float  # the least score of a fused box
    sigma: float  # of "soft_nms_gaussian"
    min_votes: int  # detectors that must agree on a fused box
    max_per_image: int  # fused boxes of a photo, at most

    @classmethod
    def of(cls, settings: object) -> "FusionRule":
        """From any record with attributes of these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def shares(self, n_models: int) -> np.ndarray:
        """(T,) each detector's weight divided by the largest."""
        return np.ones(n_models) if self.weights is None else np.array(self.weights) / max(self.weights)


@dataclass(frozen=True)
class Boxes:
    """Boxes of many photos."""

    boxes: np.ndarray  # (N, 4) float, px x1 y1 x2 y2
    scores: np.ndarray  # (N,) float
    labels: np.ndarray  # (N,) int, category ids
    image: np.ndarray  # (N,) int, number of the photo
    votes: np.ndarray  # (N,) int, detectors that agree; 0 for ground truth

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def groups(self) -> np.ndarray:
        """(N,) int, a number for each photo and category."""
        return self.image * 2**16 + self.labels  # ids have 16 bits

    def where(self, rows: np.ndarray) -> "Boxes":
        return Boxes(self.boxes[rows], self.scores[rows], self.labels[rows], self.image[rows], self.votes[rows])


@dataclass(frozen=True)
class Fused:
    """Fused boxes, and in pairs what each was made of: row `row` of the detectors' boxes is behind box `place`."""

    boxes: Boxes  # the M fused boxes, photos in order, best score first
    place: np.ndarray  # (P,) int in [0, M)
    row: np.ndarray  # (P,) int

    def where(self, rows: np.ndarray) -> "Fused":
        place = np.full(len(self.boxes), -1)
        place[rows] = np.arange(len(rows))
        stays = place[self.place] >= 0
        return Fused(self.boxes.where(rows), place[self.place[stays]], self.row[stays])


def fuse_members(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
    """One set of boxes from several detectors', with enough score and votes, at most `max_per_image` a photo.

    `detected` are the detectors' boxes, of each detector by photo; `model` (N,) int in [0, n_models) is the detector
    each box is from. In the result photos are in order, best score first.
    """
    thresholds = rule.thresholds or (rule.skip_box_threshold,) * n_models
    usable = np.flatnonzero(detected.scores >= np.array(thresholds)[model])
    fused = METHODS[rule.method](detected.where(usable), model[usable], n_models, rule)
    fused = replace(fused, row=usable[fused.row])
    boxes = fused.boxes
    fused = fused.where(np.flatnonzero((boxes.scores >= rule.score_threshold) & (boxes.votes >= rule.min_votes)))
    return fused.where(best(fused.boxes, rule.max_per_image))


def _wbf(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
    *columns, members = fuse_batch_members(
        detected.boxes, detected.scores, detected.labels, detected.image, model, n_models, weights=rule.weights,
        iou_thr=rule.iou_threshold, conf_type=rule.conf_type,
    )  # fmt: skip
    return _of_members(columns, members)


def _nmw(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
    *columns, members = nmw_batch_members(
        detected.boxes, detected.scores, detected.labels, detected.image, model, n_models, weights=rule.weights,
        iou_thr=rule.iou_threshold,
    )  # fmt: skip
    return _of_members(columns, members)


def _of_members(columns: list[np.ndarray], members: np.ndarray) -> Fused:
    """`members`: (N,) int, the fused box that each row is part of, -1 for none."""
    row = np.flatnonzero(members >= 0)
    return Fused(Boxes(*columns), members[row], row)


def _nms(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
    scores = detected.scores * rule.shares(n_models)[model]
    kept = nms_batch(detected.boxes, scores, detected.groups, iou_threshold=rule.iou_threshold)
    return _of_kept(detected, model, n_models, rule, kept, detected.boxes[kept], scores[kept])


def _soft_nms(kind: str) -> Callable[[Boxes, np.ndarray, int, FusionRule], Fused]:
    def method(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
        scores = detected.scores * rule.shares(n_models)[model]
        kept, lowered = soft_nms_batch(
            detected.boxes, scores, detected.groups, kind=kind, iou_threshold=rule.iou_threshold, sigma=rule.sigma,
            score_threshold=rule.score_threshold,
        )  # fmt: skip
        return _of_kept(detected, model, n_models, rule, kept, detected.boxes[kept], lowered)

    return method


def _voting(detected: Boxes, model: np.ndarray, n_models: int, rule: FusionRule) -> Fused:
    scores, limit = detected.scores * rule.shares(n_models)[model], rule.iou_threshold
    kept, moved = box_voting_batch(detected.boxes, scores, detected.groups, iou_threshold=limit, voting_threshold=limit)
    return _of_kept(detected, model, n_models, rule, kept, moved, scores[kept])


METHODS: dict[str, Callable[[Boxes, np.ndarray, int, FusionRule], Fused]] = {
    "wbf": _wbf, "nms": _nms, "nmw": _nmw, "voting": _voting,
    "soft_nms_linear": _soft_nms("linear"), "soft_nms_gaussian": _soft_nms("gaussian"),
}  # fmt: skip


def _of_kept(
    detected: Boxes,
    model: np.ndarray,
    n_models: int,
    rule: FusionRule,
    kept: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
) -> Fused:
    """Kept boxes; the detectors with a box of the category that overlaps a kept one vote for it."""
    place, row = overlapping(detected.boxes, detected.groups, kept, rule.iou_threshold)
    votes = votes_of(model[row], place, len(kept), n_models)
    return Fused(Boxes(boxes, scores, detected.labels[kept], detected.image[kept], votes), place, row)


def best(boxes: Boxes, n: int) -> np.ndarray:
    """Rows of the `n` best boxes of each photo, photos in order, best first, ties in input order."""
    order = np.lexsort((np.arange(len(boxes)), -boxes.scores, boxes.image))
    return order[rank_within(boxes.image[order]) < n]


def rank_within(groups: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal values of a sorted array.

    >>> rank_within(np.array([4, 4, 7, 7, 7])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.int64)
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


@dataclass(frozen=True)
class ItemRule:
    """Which fused boxes are items, and which categories an item may have."""

    score_threshold: float | np.ndarray  # the least score of an item, for all fused boxes or one for each, (M,)
    iou_threshold: float  # of boxes of any category that overlap by more, the best is an item
    max_per_image: int  # items of a photo, at most
    hypotheses: int  # categories of an item, its own included, at most; at least 1
    hypothesis_iou: float  # overlap with an item in [0, 1] from which a box says what it may be
    hypothesis_score: float  # the least score of such a box

    @classmethod
    def of(cls, settings: object) -> "ItemRule":
        """From any record with attributes of these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


def worth_embedding(fused: Boxes, rule: ItemRule) -> tuple[Boxes, Hypotheses]:
    """The fused boxes that are items, best first within each photo, photos in order, and what each may be."""
    strong = np.flatnonzero(fused.scores >= rule.score_threshold)
    best_of_each = nms_batch(
        fused.boxes[strong], fused.scores[strong], fused.image[strong], iou_threshold=rule.iou_threshold
    )
    kept = strong[best_of_each]
    kept = kept[best(fused.where(kept), rule.max_per_image)]
    return fused.where(kept), hypotheses_of(
        fused.boxes, fused.scores, fused.labels, fused.image, kept,
        iou_threshold=rule.hypothesis_iou, score_threshold=rule.hypothesis_score, most=rule.hypotheses,
    )  # fmt: skip
