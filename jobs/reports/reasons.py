"""What would have been right for a query that was answered wrongly, and the reason in words.

In: the query, the run's boxes of its photo, what `expected` found. Out: a sentence or two for the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.reports.pages import count, ordinal, percent
from jobs.reports.truth import Box
from postproc.boxes import iou_with
from store.categories import category_name

IOU = 0.5  # overlap from which a box is of a true item, as in the benchmark

Key = tuple[int, int]  # image_id and number of an item
Judged = tuple[int, float]  # a category id that a box was judged by, and the score as that category


@dataclass(frozen=True)
class Expected:
    """The right garment of the shop that comes first in the whole ranking.

    Attributes:
        bbox: px x1 y1 x2 y2; the true box where the run has none there; None where nobody drew one.
        item: number of the run's box; None where the run has none there.
        rank: 1-based among the shop's items, by photo among its photos; None where unknown. similarity: a cosine.
    """

    image_id: int
    bbox: Box | None
    item: int | None = None
    rank: int | None = None
    similarity: float | None = None


def nearest_box(boxes: Sequence[Mapping[str, Any]], bbox: Box | None) -> int | None:
    """The place among a photo's boxes of the one that overlaps a true box most; None where none has an IoU of 0.5."""
    if bbox is None or not boxes:
        return None
    overlap = iou_with(np.array([box["bbox"] for box in boxes], np.float64), np.array(bbox))
    return int(overlap.argmax()) if overlap.max() >= IOU else None


def judged_categories(box: Mapping[str, Any]) -> list[Judged]:
    """The categories that a box was judged by, its own first."""
    known = [(one["category_id"], one["score"]) for one in box.get("hypotheses") or []]
    return known or [(box["category_id"], box["score"])]


def why_missed(
    category_id: int, bbox: Box | None, boxes: Sequence[Mapping[str, Any]], categories: Sequence[str]
) -> str:
    """Why no detection stands for a garment with this true box; None: the query is a photo."""
    if bbox is None:
        return "No box: nothing was detected in this photo."
    nearest = nearest_box(boxes, bbox)
    if nearest is None:
        return "No box: nothing was detected where the garment is."
    judged = [one for one, _ in judged_categories(boxes[nearest])]
    if category_id in judged:
        return f"Box {nearest + 1} is taken: it overlaps another garment more than this one."
    *others, last = (category_name(categories, one) for one in judged)
    names, score = " or ".join([*filter(None, [", ".join(others)]), last]), percent(boxes[nearest]["score"])
    return f"Box of category {names} only ({score}), and the benchmark wants the right category, too."


def why_unranked(expected: Expected | None, length: int) -> str:
    """Why a list without a right result has none; `length` is how many results were stored."""
    if expected is None:
        return "The shops have no photo of this garment."
    if expected.item is None:
        return "The shop's garment has no box, so that no list can hold it."
    return "" if expected.rank else f"Not among the first {count(length)}."


def rank_in_words(expected: Expected | None, size: int, box: int | None = None) -> str:
    """Where the right garment stands in the ranking of all `size` garments, or photos, of the shops.

    `box` is the place of the photo's box that was searched with, where it is not the query's own.
    """
    if expected is None or not expected.rank:
        return ""
    searched = "" if box is None else f", searched with box {box + 1}"
    return f"ranked {ordinal(expected.rank)} of {count(size)}{searched}"
