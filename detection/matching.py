"""Which boxes stand for true items, for many sets of boxes over the same photos: COCO's matching, all photos going forward together.

True boxes once, then found boxes again and again; what `detection.metrics.matches` says, in a fraction of its time. Within a photo
and category the best box takes the true item it overlaps most, the next one the best of what is left, for each of ten
thresholds. Source: the COCO detection evaluation, as pycocotools carries it out (its answers are the test's).
"""

from itertools import pairwise

import numpy as np

from detection.categories import CATEGORIES
from detection.metrics import Arrays

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_PER_PHOTO = 100  # boxes of a category
LEAST_OVERLAP = 0.5 - 1e-9  # what overlaps less takes nothing at any threshold


class Truth:
    """The true boxes to judge by.

    Attributes:
        photos: (I,) int64 ids of the judged photos, rising.
    """

    def __init__(self, truth: Arrays, image_ids: np.ndarray) -> None:
        """`truth` and `image_ids` as `detection.metrics.evaluate_boxes` takes them."""
        self.photos = np.unique(image_ids)
        inside = np.flatnonzero(np.isin(truth["image_id"], self.photos))
        keys = self._keys(truth, inside)
        order = np.argsort(keys, kind="stable")
        self._boxes, keys = np.asarray(truth["bbox"], np.float64).reshape(-1, 4)[inside[order]], keys[order]
        self._groups, begins, self._sizes = np.unique(keys, return_index=True, return_counts=True)
        slots = np.arange(max([1, *self._sizes.tolist()]))
        self._there = slots < self._sizes[:, None]
        self._places = np.where(self._there, begins[:, None] + slots, 0)
        self._items = np.bincount(keys, minlength=(len(CATEGORIES) + 1) * len(self.photos)).reshape(
            -1, len(self.photos)
        )

    def matches(self, found: Arrays) -> dict[int, dict[str, np.ndarray]]:
        """For each category id what `detection.metrics.matches` has: score and image_id (D,), right (10, D), items (I,).

        Args:
            found: image_id, bbox, score and category_id, as there; boxes in photos that do not judge are left out.
        """
        inside = np.flatnonzero(np.isin(found["image_id"], self.photos))
        keys, score = self._keys(found, inside), np.asarray(found["score"], np.float64)[inside]
        order = np.lexsort((-score, keys))
        order = order[_rank(keys[order]) < MOST_PER_PHOTO]
        keys, score, rows = keys[order], score[order], inside[order]
        right = self._right(np.asarray(found["bbox"], np.float64).reshape(-1, 4)[rows], keys)
        image_id, ends = np.asarray(found["image_id"])[rows], np.arange(len(CATEGORIES) + 2) * len(self.photos)
        cuts = np.searchsorted(keys, ends)
        return {
            category: {
                "score": score[begin:end], "image_id": image_id[begin:end], "right": right[:, begin:end],
                "items": self._items[category].astype(np.float64),
            }
            for category, (begin, end) in enumerate(pairwise(cuts)) if category
        }  # fmt: skip

    def _keys(self, columns: Arrays, rows: np.ndarray) -> np.ndarray:
        """(R,) a number for each category and photo, in that order."""
        place = np.searchsorted(self.photos, np.asarray(columns["image_id"])[rows])
        return np.asarray(columns["category_id"])[rows].astype(np.int64) * len(self.photos) + place

    def _right(self, boxes: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(10, D) bool, whether each box takes a true item; boxes (D, 4) in groups of `keys`, best first."""
        right = np.zeros((len(THRESHOLDS), len(boxes)), dtype=bool)
        if not len(self._groups) or not len(boxes):
            return right
        group = np.searchsorted(self._groups, keys).clip(max=len(self._groups) - 1)
        rows = np.flatnonzero(self._groups[group] == keys)
        overlap = np.where(self._there[group[rows]], _overlaps(boxes[rows], self._boxes[self._places[group[rows]]]), 0)
        near = overlap.max(axis=1, initial=0) >= LEAST_OVERLAP
        rows, overlap = rows[near], overlap[near]
        free = np.repeat(self._there[:, None], len(THRESHOLDS), axis=1)
        rank = _rank(keys[rows])
        for step in range(int(rank.max(initial=-1)) + 1):
            now = np.flatnonzero(rank == step)
            own = group[rows[now]]
            fits = free[own] & (overlap[now, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None])
            best = np.where(fits, overlap[now, None], -1)
            taken = best.shape[2] - 1 - best[:, :, ::-1].argmax(axis=2)  # the last of several equal ones
            takes = fits.any(axis=2)
            right[:, rows[now]] = takes.T
            which, threshold = np.nonzero(takes)
            free[own[which], threshold, taken[which, threshold]] = False
        return right


def _rank(keys: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal keys."""
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    return np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(D, S) IoU of each box (D, 4) with its others (D, S, 4); corners rebuilt from sizes, as pycocotools rounds them."""
    near, size = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    theirs, their_size = others[:, :, :2], others[:, :, 2:] - others[:, :, :2]
    sides = np.minimum(near + size, theirs + their_size) - np.maximum(near, theirs)
    shared = np.where((sides > 0).all(axis=2), sides.prod(axis=2), 0)
    union = size.prod(axis=2) + their_size.prod(axis=2) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
