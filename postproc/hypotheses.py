"""What an item may be: the categories that fused boxes of one place have, each with its score, the item's own first.

In: the fused boxes of many photos, and which of them are items. Out: `Hypotheses`, padded arrays. The benchmark lets a
submission have an entry for each; a detector that gives a good box the wrong category often gives it the right one too,
a little lower. No source: our own reading of the fused boxes.
"""

from dataclasses import dataclass

import numpy as np

from postproc.boxes import overlapping


@dataclass(frozen=True)
class Hypotheses:
    """The categories that N items may have, at most H each: the item's own, then the others by falling score."""

    category_id: np.ndarray  # (N, H) int64, H at least 1; 0 after an item's last
    score: np.ndarray  # (N, H) float32; 0 after an item's last

    @classmethod
    def own(cls, category_id: np.ndarray, score: np.ndarray) -> "Hypotheses":
        """One each, from (N,) category ids and (N,) scores; category id 0, unknown, is no hypothesis and has score 0.

        >>> Hypotheses.own(np.array([9, 0]), np.array([0.5, 0.5])).score.tolist()
        [[0.5], [0.0]]
        """
        score = np.where(category_id > 0, score, 0).astype(np.float32)
        return cls(category_id.astype(np.int64)[:, None], score[:, None])

    def __len__(self) -> int:
        return len(self.category_id)

    def __getitem__(self, rows: np.ndarray) -> "Hypotheses":
        """Those of some items, by row numbers or by (N,) bool."""
        return Hypotheses(self.category_id[rows], self.score[rows])

    @property
    def real(self) -> np.ndarray:
        """(N, H) bool: which entries are hypotheses, and not padding."""
        return self.category_id > 0

    @property
    def shares(self) -> np.ndarray:
        """(N, H) float64: each score over the sum of the item's, its probability where scores are; 0 for padding.

        >>> Hypotheses(np.array([[9, 1]]), np.array([[0.5, 0.25]])).shares.round(2).tolist()
        [[0.67, 0.33]]
        """
        total = self.score.sum(axis=1, keepdims=True, dtype=np.float64)
        return np.divide(self.score, total, out=np.zeros(self.score.shape), where=total > 0)


def hypotheses_of(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, image: np.ndarray, kept: np.ndarray,
    *, iou_threshold: float, score_threshold: float, most: int,
) -> Hypotheses:  # fmt: skip
    """Every category that boxes of the same photo give the place of an item, once, with its best score.

    Args:
        boxes: (M, 4) float, px x1 y1 x2 y2, with `scores` (M,) float, `labels` (M,) int from 1, `image` (M,) int.
        kept: (N,) int, the rows that are items.
        iou_threshold: overlap with the item's box in [0, 1] from which a box is at its place; equal overlap counts.
        score_threshold: the least score of a box; the item's own always counts.
        most: hypotheses of an item, at least 1.

    Returns:
        (N, H), H at most `most`, in the order of `kept`. An item's own category comes first, with its own score; others
        by falling score, equal scores by lower category id.

    >>> boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 9, 8]])
    >>> scores, labels, photo = np.array([0.5, 0.75, 0.25]), np.array([9, 1, 1]), np.zeros(3, int)
    >>> how = {"iou_threshold": 0.5, "score_threshold": 0.02, "most": 5}
    >>> found = hypotheses_of(boxes, scores, labels, photo, np.array([0]), **how)
    >>> found.category_id.tolist(), found.score.tolist()
    ([[9, 1]], [[0.5, 0.75]])
    """
    least = np.nextafter(iou_threshold, -1)  # `overlapping` wants more than its threshold
    item, row = overlapping(boxes, image, kept, float(least))
    is_own = row == kept[item]
    counts = (scores[row] >= score_threshold) | is_own
    item, row, is_own = item[counts], row[counts], is_own[counts]
    order = np.lexsort((labels[row], -scores[row], ~is_own, item))
    item, row = item[order], row[order]
    # the first of an item's boxes of one category is its best, or its own
    first = np.sort(np.unique(np.stack([item, labels[row]]), axis=1, return_index=True)[1])
    item, row = item[first], row[first]
    place = np.arange(len(item)) - np.searchsorted(item, item)
    inside = place < most
    item, row, place = item[inside], row[inside], place[inside]
    shape = (len(kept), int(place.max(initial=0)) + 1)
    category_id, score = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    category_id[item, place], score[item, place] = labels[row], scores[row]
    return Hypotheses(category_id, score)
