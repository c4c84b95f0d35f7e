"""Is one detector's AP better than another's? A paired bootstrap over photos.

In: true boxes and two detectors' boxes, as `detection.metrics.evaluate_boxes` takes them. Out: both APs, their
difference and an interval. COCO's matching of boxes is done once; a draw only changes how often each photo counts, so
it costs one pass over the boxes sorted by score. Source: percentile bootstrap, as in `postproc.bootstrap`; AP as in
`detection.metrics`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.average_precision import AP10_IDS
from detection.matching import Arrays, TrueBoxes, judged_rows
from store.categories import DEEPFASHION2

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class APInterval:
    """Two APs in [0, 1], their difference `ours - theirs`, and its interval."""

    ours: float
    theirs: float
    difference: float
    low: float
    high: float


def paired_interval(
    truth: Arrays,
    ours: Arrays,
    theirs: Arrays,
    image_ids: np.ndarray,
    *,
    at_50: bool = False,
    confidence: float = 0.95,
    n_draws: int = 500,
    seed: int = 0,
) -> APInterval:
    """AP10 of `ours` minus that of `theirs` on the same photos, which are drawn with replacement.

    The arrays are as `detection.metrics.evaluate_boxes` takes them, with DeepFashion2's categories. `at_50` judges at
    IoU 0.5 alone instead of the mean over 0.50:0.05:0.95; `confidence` in (0, 1) is the share of the draws inside the
    interval. Raises ValueError for no photo or no true item of AP10's categories, and for what `evaluate_boxes`
    refuses.
    """
    for what, columns in (("truth", truth), ("detections", ours), ("detections", theirs)):
        judged_rows(columns, image_ids, len(DEEPFASHION2), what)
    true = TrueBoxes(truth, image_ids, len(DEEPFASHION2))
    sides = [Curves(true.matches(detections), true.photos, at_50=at_50) for detections in (ours, theirs)]
    return interval(*sides, confidence=confidence, n_draws=n_draws, seed=seed)


def interval(
    ours: "Curves", theirs: "Curves", *, confidence: float = 0.95, n_draws: int = 500, seed: int = 0
) -> APInterval:
    """`paired_interval` of boxes that are matched already, with the mean AP over the curves' categories.

    Raises ValueError for different photos, no photo, or no true item of these categories.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"AP interval: want a confidence between 0 and 1, got {confidence}")
    photos, whole = ours.photos, (ours.ap(), theirs.ap())
    if not np.array_equal(photos, theirs.photos):
        raise ValueError("AP interval: the two were judged on different photos; want the same ones")
    if not len(photos) or np.isnan(whole).any():
        raise ValueError("AP interval: no photo with a true item of the categories averaged over; nothing to judge by")
    rng = np.random.default_rng(seed)
    differences = np.empty(n_draws)
    for draw in range(n_draws):
        times = np.bincount(rng.integers(len(photos), size=len(photos)), minlength=len(photos)).astype(np.float64)
        differences[draw] = ours.ap(times) - theirs.ap(times)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(differences, [tail, 1 - tail])
    return APInterval(whole[0], whole[1], whole[0] - whole[1], float(low), float(high))


class Curves:
    """One detector's boxes of some categories, matched and sorted by score.

    `matched` comes from `detection.matching.TrueBoxes.matches`; `photos` (I,) are the ids of the judged photos, rising.
    `at_50` judges at IoU 0.5 alone. APs are averaged over those of the `categories` that have a true item.
    """

    def __init__(
        self,
        matched: Mapping[int, Mapping[str, np.ndarray]],
        photos: np.ndarray,
        *,
        at_50: bool = False,
        categories: Iterable[int] = AP10_IDS,
    ) -> None:
        self.photos = photos
        self._categories: list[dict[str, Any]] = []
        for category in categories:
            boxes = matched[category]
            order = np.argsort(-boxes["score"], kind="mergesort")
            right = boxes["right"][: 1 if at_50 else None, order]
            photo = np.searchsorted(photos, boxes["image_id"])[order]
            self._categories.append({"right": right, "photo": photo, "items": boxes["items"]})

    def ap(self, times: np.ndarray | None = None) -> float:
        """The mean AP when photo i counts times[i] times (None: once each); nan without any true item."""
        times = np.ones(len(self.photos)) if times is None else times
        aps = [ap for category in self._categories if (ap := self._ap(category, times)) is not None]
        return float(np.mean(aps)) if aps else float("nan")

    @staticmethod
    def _ap(category: dict[str, Any], times: np.ndarray) -> float | None:
        n_items = float(category["items"] @ times)
        if not n_items:
            return None
        weight = times[category["photo"]]
        hits = np.cumsum(category["right"] * weight, axis=1)
        seen = np.maximum(np.cumsum(weight), 1e-12)
        # the highest precision at this recall or a greater one
        precision = np.maximum.accumulate((hits / seen)[:, ::-1], axis=1)[:, ::-1]
        total = 0.0
        for recall, curve in zip(hits / n_items, precision, strict=True):
            place = np.searchsorted(recall, RECALLS, side="left")
            total += float(curve[place[place < len(curve)]].sum()) / len(RECALLS)
        return total / len(precision)
