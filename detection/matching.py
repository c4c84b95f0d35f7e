"""COCO's matching of detected and true boxes, fast enough to judge many sets of boxes over the same photos.

Gives what pycocotools gives, in a fraction of its time: the true boxes are sorted once, and all photos are matched
together. Within a photo and category the best box takes the true item it overlaps most, the next one the best of what
is left, for each of ten thresholds. Source: the COCO detection evaluation (pycocotools' answers are the test's).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

Arrays = Mapping[str, Any]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# COCO's ranges of an item's area, square pixels: all, small, medium, large
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
MOST_PER_PHOTO = 100  # boxes of a category
LEAST_OVERLAP = 0.5 - 1e-9  # a box that overlaps less takes nothing at any threshold


class TrueBoxes:
    """The true boxes to judge by; `photos` is (I,) int64, the ids of the judged photos, rising."""

    def __init__(self, truth: Arrays, image_ids: np.ndarray, n_categories: int) -> None:
        """`truth` and `image_ids` as `detection.metrics.evaluate_boxes` takes them, ids of 1 to `n_categories`."""
        self.photos, self.n_categories = np.unique(image_ids), n_categories
        inside = judged_rows(truth, self.photos, n_categories, "truth")
        keys = self._keys(truth, inside)
        order = np.argsort(keys, kind="stable")
        self._rows, keys = inside[order], keys[order]  # of the truth, and what they belong to
        self._boxes = np.asarray(truth["bbox"], np.float64).reshape(-1, 4)[self._rows]
        self._areas = np.asarray(truth["area"], np.float64)[self._rows] if "area" in truth else None
        self._groups, begins, self._sizes = np.unique(keys, return_index=True, return_counts=True)
        slots = np.arange(max([1, *self._sizes.tolist()]))
        self._there = slots < self._sizes[:, None]
        self._places = np.where(self._there, begins[:, None] + slots, 0)
        shape = (n_categories + 1, len(self.photos))  # which may be empty
        self._items = np.bincount(keys, minlength=shape[0] * shape[1]).reshape(shape)

    def matches(self, detections: Arrays) -> dict[int, dict[str, np.ndarray]]:
        """COCO's matching of detections as `detection.metrics.evaluate_boxes` takes them; those elsewhere are left out.

        For each category id: score (D,) and image_id (D,) of its boxes, at most 100 a photo; right (10, D) bool,
        whether the box stands for a true item at IoU 0.50:0.05:0.95; items (I,), true items of each judged photo.
        """
        rows, keys, score = self._in_order(detections)
        right, _ = self._right(
            keys, self._near(keys, self._of_boxes(detections, rows)), np.zeros(len(self._boxes), bool)
        )
        image_id = np.asarray(detections["image_id"])[rows]
        cuts = np.searchsorted(keys, np.arange(self.n_categories + 2) * len(self.photos))
        return {
            category: {
                "score": score[begin:end], "image_id": image_id[begin:end], "right": right[:, begin:end],
                "items": self._items[category].astype(np.float64),
            }
            for category, (begin, end) in enumerate(pairwise(cuts)) if category
        }  # fmt: skip

    def by_area(self, detections: Arrays, true_masks: Sequence[Any] | None = None) -> dict[str, np.ndarray]:
        """The same boxes, judged once for each of AREAS as COCO does, where true items outside an area are ignored.

        Args:
            detections: as `matches` takes them; with `true_masks`, mask: N masks instead of bbox.
            true_masks: a mask for each true item, in the truth's order; masks are run lengths, as pycocotools has them.

        Returns:
            category_id (D,), image_id (D,), score (D,); right (4, D) uint16, bit t says that the box stands for a true
            item at the t-th threshold; ignored (4, D) uint16, likewise: it counts neither as right nor as wrong there.
        """
        assert self._areas is not None
        judged_rows(detections, self.photos, self.n_categories, "detections")
        rows, keys, score = self._in_order(detections)
        if true_masks is None:
            near = self._near(keys, self._of_boxes(detections, rows))
            boxes = np.asarray(detections["bbox"], np.float64).reshape(-1, 4)[rows]
            size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        else:
            masks = [detections["mask"][row] for row in rows]
            near = self._near(keys, self._of_masks(masks, true_masks))
            size = np.array([float(rle.area(mask)) for mask in masks])  # all at once overflows in pycocotools 2.0
        bits = np.uint16(1) << np.arange(len(THRESHOLDS), dtype=np.uint16)
        right, ignored = np.zeros((2, len(AREAS), len(rows)), np.uint16)
        for number, (least, most) in enumerate(AREAS):
            takes, on_ignored = self._right(keys, near, (self._areas < least) | (self._areas > most))
            out = (size < least) | (size > most)
            right[number] = bits @ (takes & ~on_ignored)
            ignored[number] = bits @ (on_ignored | (out & ~takes))
        image_id, category_id = np.asarray(detections["image_id"])[rows], keys // max(len(self.photos), 1)
        columns = {"category_id": category_id, "image_id": image_id, "score": score}
        return columns | {"right": right, "ignored": ignored}

    def _in_order(self, detections: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, keys and scores of the detections that are judged, by category and photo, best first."""
        inside = np.flatnonzero(np.isin(detections["image_id"], self.photos))
        keys, score = self._keys(detections, inside), np.asarray(detections["score"], np.float64)[inside]
        order = np.lexsort((-score, keys))
        order = order[_rank(keys[order]) < MOST_PER_PHOTO]
        return inside[order], keys[order], score[order]

    def _keys(self, columns: Arrays, rows: np.ndarray) -> np.ndarray:
        """(R,) int64, one number for each category and photo, rising by category, then by photo."""
        place = np.searchsorted(self.photos, np.asarray(columns["image_id"])[rows])
        return np.asarray(columns["category_id"])[rows].astype(np.int64) * len(self.photos) + place

    def _near(self, keys: np.ndarray, overlaps: "Overlaps") -> "Near":
        """The boxes that overlap a true item enough; `keys`, (D,), are rising."""
        if not len(self._groups) or not len(keys):
            return Near(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, self._there.shape[1])))
        group = np.searchsorted(self._groups, keys).clip(max=len(self._groups) - 1)
        rows = np.flatnonzero(self._groups[group] == keys)
        overlap = np.where(self._there[group[rows]], overlaps(rows, group[rows]), 0)
        near = overlap.max(axis=1, initial=0) >= LEAST_OVERLAP
        return Near(rows[near], group[rows[near]], overlap[near])

    def _of_boxes(self, detections: Arrays, rows: np.ndarray) -> "Overlaps":
        boxes = np.asarray(detections["bbox"], np.float64).reshape(-1, 4)[rows]
        return lambda near, group: _overlaps(boxes[near], self._boxes[self._places[group]])

    def _of_masks(self, masks: Sequence[Any], true_masks: Sequence[Any]) -> "Overlaps":
        def overlaps(near: np.ndarray, group: np.ndarray) -> np.ndarray:
            found = np.zeros((len(near), self._there.shape[1]))
            for one in np.unique(group):
                places = self._places[one, : self._sizes[one]]
                own = np.flatnonzero(group == one)
                of_photo = [masks[row] for row in near[own]], [true_masks[row] for row in self._rows[places]]
                found[own, : len(places)] = rle.iou(*of_photo, [0] * len(places))
            return found

        return overlaps

    def _right(self, keys: np.ndarray, near: "Near", ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which boxes take a true item, and which of them an ignored one, for want of another: (10, D) bool each.

        `keys`, (D,), of boxes best first; `ignored`, (G,) bool, is of the true boxes.
        """
        right, on_ignored = np.zeros((2, len(THRESHOLDS), len(keys)), dtype=bool)
        free = np.repeat(self._there[:, None], len(THRESHOLDS), axis=1)
        wanted = self._there & ~ignored[self._places] if len(ignored) else self._there
        rank = _rank(keys[near.rows])
        for step in range(int(rank.max(initial=-1)) + 1):
            now = np.flatnonzero(rank == step)
            rows, group, overlap = near.rows[now], near.group[now], near.overlap[now, None]
            fits = free[group] & (overlap >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None])
            fits_wanted = fits & wanted[group, None]
            none_wanted = ~fits_wanted.any(axis=2)
            fits = np.where(none_wanted[:, :, None], fits, fits_wanted)
            best = np.where(fits, overlap, -1)
            taken = best.shape[2] - 1 - best[:, :, ::-1].argmax(axis=2)  # the last of several equal ones
            takes = fits.any(axis=2)
            right[:, rows], on_ignored[:, rows] = takes.T, (takes & none_wanted).T
            which, threshold = np.nonzero(takes)
            free[group[which], threshold, taken[which, threshold]] = False
        return right, on_ignored


class Near(NamedTuple):
    """Boxes that may take a true item."""

    rows: np.ndarray  # (R,) int64 of the boxes
    group: np.ndarray  # (R,) int64, the photo and category of each, numbered
    overlap: np.ndarray  # (R, S) float64 with each of its true items


Overlaps = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows of boxes and their groups -> `Near.overlap`


def _rank(keys: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal keys."""
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    return np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(D, S) IoU of each box (D, 4) with its others (D, S, 4), through sides, as pycocotools rounds it."""
    near, size = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    theirs, their_size = others[:, :, :2], others[:, :, 2:] - others[:, :, :2]
    sides = np.minimum(near + size, theirs + their_size) - np.maximum(near, theirs)
    shared = np.where((sides > 0).all(axis=2), sides.prod(axis=2), 0)
    union = size.prod(axis=2) + their_size.prod(axis=2) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def judged_rows(columns: Arrays, image_ids: np.ndarray, n_categories: int, what: str) -> np.ndarray:
    """Rows in judged photos, once the columns have passed the checks; `what` is for messages."""
    n = len(columns["image_id"])
    for name, column in columns.items():
        if name != "judged" and len(column) != n:
            raise ValueError(f"{what}: {name} has {len(column)} rows, image_id has {n}")
    category = np.asarray(columns["category_id"])
    unknown = (category < 1) | (category > n_categories)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise ValueError(f"{what}: row {row} has category id {category[row]}, want 1 to {n_categories}")
    for name in columns.keys() & {"bbox", "score", "area"}:
        numbers = np.asarray(columns[name], np.float64).reshape(n, 4 if name == "bbox" else 1)
        if not np.isfinite(numbers).all():  # COCO takes a box of NaN for right at every IoU
            row = int(np.argmin(np.isfinite(numbers).all(axis=1)))
            raise ValueError(f"{what}: row {row} has {name} {numbers[row].tolist()}, want finite numbers")
    return np.flatnonzero(np.isin(columns["image_id"], image_ids))
