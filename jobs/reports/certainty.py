"""How sure the main figures are: 95 % intervals over photos, the level of chance.

In: ranks of right results, matched boxes. Out: fractions in [0, 1]. Photos are drawn with replacement, all
of a photo's queries and boxes together (`postproc.bootstrap`). Where all photos say the same, such as 25 right ones of
25, the interval is Wilson's.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from postproc.bootstrap import interval_of_alike, paired_interval

Interval = tuple[float, float]
Columns = Mapping[str, np.ndarray]

N_DRAWS = 200  # of photos, for average precision
CELLS = 1 << 22  # drawn boxes held at once
RECALLS = np.linspace(0, 1, 101)


def accuracy_interval(first: np.ndarray, photo: np.ndarray, k: int) -> Interval | None:
    """The interval of Acc@k, from the rank of each query's first right result (0: none) and its photo; (Q,) both."""
    if not len(first):
        return None
    right = ((first > 0) & (first <= k)).astype(np.float64)
    return paired_interval(right, np.zeros(len(right)), photo, bounds=(0.0, 1.0))[1:]


def accuracy_by_chance(relevant: np.ndarray, detected: np.ndarray, size: int, k: int) -> float | None:
    """Acc@k when the gallery's `size` items come in random order.

    `relevant` (Q,) says how many of them are right for each query, `detected` (Q,) bool whether it has a list at all.
    The chance that none of k comes first is the product of (size - relevant - i) / (size - i) over i < k.

    >>> accuracy_by_chance(np.array([1, 1]), np.array([True, False]), 10, 1)
    0.05
    """
    if not len(relevant) or not size:
        return None
    i = np.arange(min(k, size))
    none = np.prod(np.maximum(size - np.minimum(relevant, size)[:, None] - i, 0) / (size - i), axis=1)
    return float(((1 - none) * detected).mean())


def ap50_intervals(
    matched: Sequence[Mapping[int, Columns]], photos: Sequence[np.ndarray], means: Mapping[str, Sequence[int]]
) -> dict[str, Interval]:
    """The intervals of AP50, averaged over some category ids for each name of `means`.

    Args:
        matched: `TrueBoxes.matches` of each shard. photos: the ids of its judged photos, rising.
        means: name -> category ids; those without a true item do not count.
    """
    starts = np.cumsum([0, *map(len, photos)])
    n_photos = int(starts[-1])
    if not n_photos:
        return {}
    columns: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # place of the photo, right; items of a photo
    for category in sorted({category for ids in means.values() for category in ids}):
        parts = [shard[category] for shard in matched]
        at = [s + np.searchsorted(p, c["image_id"]) for s, p, c in zip(starts, photos, parts, strict=False)]
        score, right = (
            np.concatenate(rows) for rows in zip(*((c["score"], c["right"][0]) for c in parts), strict=True)
        )
        items = np.concatenate([c["items"] for c in parts])
        if items.any():
            order = np.argsort(-score, kind="stable")
            columns[category] = np.concatenate(at)[order], right[order], items
    rng, blocks = np.random.default_rng(0), list[dict[int, np.ndarray]]()
    step = max(1, CELLS // n_photos)
    for n_draws in (min(step, N_DRAWS - start) for start in range(0, N_DRAWS, step)):
        draws = (rng.integers(n_photos, size=n_photos) for _ in range(n_draws))
        times = np.stack([np.bincount(draw, minlength=n_photos) for draw in draws])
        blocks.append({
            category: _average_precisions(times, photo, right, times @ items)
            for category, (photo, right, items) in columns.items()
        })  # fmt: skip
    drawn = {category: np.concatenate([block[category] for block in blocks]) for category in columns}
    intervals = {}
    for name, ids in means.items():
        if known := [drawn[category] for category in ids if category in drawn]:
            values = np.stack(known)
            values = values[:, ~np.isnan(values).all(axis=0)]  # without the draws that hold no item at all
            drawn_means = np.nanmean(values, axis=0)
            if np.ptp(drawn_means) < 1e-12:
                intervals[name] = interval_of_alike(float(drawn_means[0]), n_photos, (0.0, 1.0))
            else:
                low, high = np.quantile(drawn_means, [0.025, 0.975])
                intervals[name] = float(low), float(high)
    return intervals


def _average_precisions(times: np.ndarray, photo: np.ndarray, right: np.ndarray, n_items: np.ndarray) -> np.ndarray:
    """(B,) AP of one category in each draw; NaN where it holds none of its items.

    `times` (B, P) says how often each draw has a photo, `photo` and `right` (D,) are of the boxes by falling score.
    """
    hits = np.flatnonzero(right)
    values = np.where(n_items > 0, 0.0, np.nan)
    step = max(1, CELLS // max(1, len(photo)))
    for start in range(0, len(times) if len(hits) else 0, step):
        boxes = times[start : start + step, photo]
        found, seen = np.cumsum(boxes[:, hits], axis=1), np.cumsum(boxes, axis=1)[:, hits]
        best = np.maximum.accumulate((found / np.maximum(seen, 1))[:, ::-1], axis=1)[:, ::-1]
        for row, total in enumerate(n_items[start : start + step]):
            if total:
                place = np.searchsorted(found[row] / total, RECALLS, side="left")
                reached = place < len(hits)
                values[start + row] = np.where(reached, best[row, np.minimum(place, len(hits) - 1)], 0.0).mean()
    return values
