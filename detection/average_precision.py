"""COCO's average precision, gathered from blocks of photos: boxes or masks as they are judged in, the figures out.

A block may be one shard: photos are judged apart from each other, and what stays of a block is some 30 bytes a box.
`detection.metrics` says what the figures are. Source: the COCO detection evaluation; precision is that of pycocotools'
`COCOeval.accumulate`, bit by bit, computed at the boxes that are right, for between two of them it can only fall.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detection.matching import AREAS, THRESHOLDS, Arrays, TrueBoxes
from store.categories import DEEPFASHION2

AP10_IDS: tuple[int, ...] = (1, 2, 4, 5, 7, 8, 9, 10, 11, 12)
"""Ids of DeepFashion2's categories that `AP10` averages over: the other three have too few items in ccp_df2 to mean
anything."""
RECALLS = np.linspace(0.0, 1.0, 101)
BOXES = {"image_id": np.int64, "category_id": np.int16, "score": np.float64}
MATCHES = {"right": np.uint16, "ignored": np.uint16}  # (4, D), as `TrueBoxes.by_area` gives them


@dataclass
class JudgedBoxes:
    """The boxes (or masks) of one detector as they were judged; add blocks of photos, then ask for figures."""

    boxes: list[dict[str, np.ndarray]] = field(default_factory=list)  # columns of BOXES and MATCHES
    items: list[dict[str, np.ndarray]] = field(default_factory=list)  # image_id, category_id, area of true items

    def add(self, boxes: Arrays, items: Arrays) -> None:
        """One block: judged boxes, those of a photo and category best first, and the true items of judged photos."""
        kinds = BOXES | MATCHES
        self.boxes.append({name: np.asarray(boxes[name]).astype(kind) for name, kind in kinds.items()})
        self.items.append({name: np.asarray(items[name]) for name in ("image_id", "category_id", "area")})

    def add_boxes(
        self,
        truth: TrueBoxes,
        true_items: Arrays,
        detections: Arrays,
        true_masks: Sequence[Any] | None = None,
    ) -> None:
        """One block; `true_items` are those that `truth` was made of, the others as `TrueBoxes.by_area` takes them."""
        inside = np.isin(true_items["image_id"], truth.photos)
        items = {name: np.asarray(true_items[name])[inside] for name in ("image_id", "category_id", "area")}
        self.add(truth.by_area(detections, true_masks), items)

    def figures(self, image_ids: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
        """As `detection.metrics.evaluate_boxes` returns them, of these photos among those that were added."""
        items = _columns(self.items, {"image_id": np.int64, "category_id": np.int64, "area": np.float64})
        image_ids = np.unique(image_ids)
        items = {name: column[_among(items["image_id"], image_ids)] for name, column in items.items()}
        precision = self._precision(image_ids, items, len(categories))
        numbers = np.bincount(items["category_id"], minlength=len(categories) + 1)
        every, at50, at75 = slice(None), slice(0, 1), slice(5, 6)

        def ap(iou: slice = every, category: slice = every, area: int = 0) -> float | None:
            judged = precision[iou, :, category, area]
            return float(judged[judged > -1].mean()) if (judged > -1).any() else None

        ids = range(1, len(categories) + 1)
        of = {i: (ap(category=slice(i - 1, i)), ap(at50, slice(i - 1, i)), int(numbers[i])) for i in ids}
        ten = AP10_IDS if tuple(categories) == DEEPFASHION2 else ()
        return {
            **{"AP": ap(), "AP50": ap(at50), "AP75": ap(at75), "APs": ap(area=1), "APm": ap(area=2), "APl": ap(area=3)},
            "AP10": _mean(of[i][0] for i in ten),
            "AP10_50": _mean(of[i][1] for i in ten),
            "images": len(image_ids),
            "per_category": {categories[i - 1]: dict(zip(("AP", "AP50", "items"), of[i], strict=True)) for i in ids},
        }

    def _precision(self, image_ids: np.ndarray, items: Arrays, n_categories: int) -> np.ndarray:
        """(10, 101, C, 4) float64 at THRESHOLDS, RECALLS and AREAS; -1 where a category has no item of that area.

        `image_ids` are rising.
        """
        inside = [_among(block["image_id"], image_ids) for block in self.boxes]
        precision = np.full((len(THRESHOLDS), len(RECALLS), n_categories, len(AREAS)), -1.0)
        for i in np.unique(items["category_id"]).tolist():
            boxes = self._of_category(i, inside)
            area = items["area"][items["category_id"] == i]
            for number, (least, most) in enumerate(AREAS):
                if n_items := int(((area >= least) & (area <= most)).sum()):
                    right, ignored = boxes["right"][number], boxes["ignored"][number]
                    precision[:, :, i - 1, number] = _at_recalls(right, ignored, n_items)
        return precision

    def _of_category(self, category_id: int, inside: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """MATCHES of a category's boxes, by falling score; of equal scores the lower photo's first.

        `inside` says of each block's boxes, (D,) bool, whether they count.
        """
        blocks = zip(self.boxes, inside, strict=True)
        rows = [np.flatnonzero((block["category_id"] == category_id) & counts) for block, counts in blocks]
        parts = [{name: block[name][..., of] for name in block} for block, of in zip(self.boxes, rows, strict=True)]
        whole = _columns(parts, BOXES) | {
            name: np.concatenate([np.zeros((len(AREAS), 0), kind), *(part[name] for part in parts)], axis=1)
            for name, kind in MATCHES.items()
        }
        order = np.lexsort((whole["image_id"], -whole["score"]))
        return {name: whole[name][:, order] for name in MATCHES}


def _among(image_ids: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(N,) bool, which of N ids are chosen; `chosen`, (I,), are rising. np.isin would sort them again at every call."""
    if not len(chosen):
        return np.zeros(len(image_ids), bool)
    among: np.ndarray = chosen[np.searchsorted(chosen, image_ids).clip(max=len(chosen) - 1)] == image_ids
    return among


def _at_recalls(right: np.ndarray, ignored: np.ndarray, n_items: int) -> np.ndarray:
    """(10, 101) float64, precision at RECALLS; `right` and `ignored` (D,) uint16 with a bit a threshold, best first."""
    found = np.zeros((len(THRESHOLDS), len(RECALLS)))
    for threshold in range(len(THRESHOLDS)):
        bit = np.uint16(1 << threshold)
        places = np.flatnonzero(right & bit)
        n_right = np.arange(1, len(places) + 1, dtype=np.float64)
        wrong = np.cumsum((ignored & bit) == 0)[places] - n_right  # those counted before it, less the right ones
        exact = n_right / (wrong + n_right + np.spacing(1))
        best = np.maximum.accumulate(exact[::-1])[::-1]
        at = np.searchsorted(n_right / n_items, RECALLS, side="left")
        reached = at < len(best)
        found[threshold, reached] = best[at[reached]]
    return found


def _columns(parts: Iterable[Arrays], kinds: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of all parts as one, of these kinds where there is no part."""
    parts = list(parts)
    return {
        name: np.concatenate([np.zeros(0, kind), *(part[name] for part in parts)]).astype(kind)
        for name, kind in kinds.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
