"""Is one detector's AP better than another's, on photos as they might have been drawn? A paired bootstrap over photos.

In: true boxes and two detectors' boxes, as `detection.metrics.evaluate_boxes` takes them. Out: both AP10s, their difference and
an interval. COCO's matching of boxes is done once; a draw only changes how often each photo counts, so a draw costs one pass
over the boxes sorted by score. Source: percentile bootstrap, as in `postproc.bootstrap`; AP as in `detection.metrics`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.categories import AP10_IDS
from detection.metrics import Arrays, matches

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Interval:
    """Two AP10s in [0, 1] and what lies between them: `ours - theirs` and its interval."""

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
) -> Interval:
    """AP10 of `ours` less that of `theirs` on the same photos, photos drawn with replacement.

    Args:
        truth, ours, theirs, image_ids: as `detection.metrics.evaluate_boxes` takes them.
        at_50: at IoU 0.5 alone instead of the mean over 0.50:0.05:0.95.
        confidence: share of the draws inside the interval, in (0, 1).
        n_draws, seed: how often photos are drawn, and how.

    Raises:
        ValueError: no photo or no true item of AP10's categories, or what `evaluate_boxes` refuses.
    """
    photos = np.unique(image_ids)
    sides = [Curves(matches(truth, found, photos), photos, at_50=at_50) for found in (ours, theirs)]
    return interval(*sides, confidence=confidence, n_draws=n_draws, seed=seed)


def interval(
    ours: "Curves", theirs: "Curves", *, confidence: float = 0.95, n_draws: int = 500, seed: int = 0
) -> Interval:
    """`paired_interval` of boxes that are matched already, over the same photos; the AP is that of the curves' categories.

    Raises:
        ValueError: other photos, none of them, or no true item of these categories.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"AP interval: want a confidence between 0 and 1, got {confidence}")
    photos, sides = ours.photos, (ours, theirs)
    if not np.array_equal(photos, theirs.photos):
        raise ValueError("AP interval: the two are of different photos; want the same ones")
    whole = [side.ap() for side in sides]
    if not len(photos) or np.isnan(whole).any():
        raise ValueError("AP interval: no photo with a true item of AP10's categories; nothing to judge by")
    rng = np.random.default_rng(seed)
    differences = np.empty(n_draws)
    for draw in range(n_draws):
        times = np.bincount(rng.integers(len(photos), size=len(photos)), minlength=len(photos)).astype(np.float64)
        differences[draw] = sides[0].ap(times) - sides[1].ap(times)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(differences, [tail, 1 - tail])
    return Interval(whole[0], whole[1], whole[0] - whole[1], float(low), float(high))


class Curves:
    """One detector's boxes of some categories, matched and sorted by score.

    Args:
        matched: what `detection.metrics.matches` or `detection.matching.Truth.matches` says of them.
        photos: (I,) ids of the judged photos, rising.
        at_50: at IoU 0.5 alone.
        categories: whose APs are averaged; those without a true item are left out.
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
            one = matched[category]
            order = np.argsort(-one["score"], kind="mergesort")
            right = one["right"][: 1 if at_50 else None, order]
            kept = {"right": right, "photo": np.searchsorted(photos, one["image_id"])[order]}
            self._categories.append(kept | {"items": one["items"]})

    def ap(self, times: np.ndarray | None = None) -> float:
        """The mean AP when photo i counts times[i] times, once for None; nan without any item."""
        times = np.ones(len(self.photos)) if times is None else times
        aps = [ap for one in self._categories if (ap := self._ap(one, times)) is not None]
        return float(np.mean(aps)) if aps else float("nan")

    @staticmethod
    def _ap(one: dict[str, Any], times: np.ndarray) -> float | None:
        n_items = float(one["items"] @ times)
        if not n_items:
            return None
        weight = times[one["photo"]]
        hits = np.cumsum(one["right"] * weight, axis=1)
        seen = np.maximum(np.cumsum(weight), 1e-12)
        # the best precision at this recall or a higher one
        precision = np.maximum.accumulate((hits / seen)[:, ::-1], axis=1)[:, ::-1]
        total = 0.0
        for recall, curve in zip(hits / n_items, precision, strict=True):
            place = np.searchsorted(recall, RECALLS, side="left")
            total += float(curve[place[place < len(curve)]].sum()) / len(RECALLS)
        return total / len(precision)
