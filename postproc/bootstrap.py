"""Paired bootstrap: is one method better than another, beyond the chance of which photos were drawn?

In: a value per query by each method, and each query's photo. Out: the mean difference and an interval. Photos are drawn
with replacement, all queries of a photo together, because garments of one photo are right or wrong together. Source:
the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13. Where all photos say
the same, every draw does, and the interval is Wilson's instead (`interval_of_alike`).
"""

from statistics import NormalDist

import numpy as np


def paired_interval(
    ours: np.ndarray,
    theirs: np.ndarray,
    photo: np.ndarray,
    *,
    confidence: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> tuple[float, float, float]:
    """Mean of `ours - theirs`, and the interval it lies in: (mean, low, high).

    An interval without 0 means a difference that other photos would show too. Raises ValueError for different lengths,
    no query, or a value that is not finite.

    Args:
        ours, theirs: (Q,) float, the value of each query by each method; the same queries in the same order.
        photo: (Q,) of any type, equal for queries of one photo.
        confidence: share of the draws inside the interval, in (0, 1).
        n_draws: how often photos are drawn; memory grows with n_draws only.
        seed: of the draws.
        bounds: the least and the greatest difference that a query can have, for `interval_of_alike`.

    >>> paired_interval(np.array([1.0, 1, 0, 1]), np.array([0.0, 0, 0, 0]), np.array([1, 1, 2, 3]))[0]
    0.75
    """
    ours, theirs, photo = np.asarray(ours, np.float64), np.asarray(theirs, np.float64), np.asarray(photo)
    if not (ours.shape == theirs.shape == photo.shape and ours.ndim == 1) or not len(ours):
        raise ValueError(f"bootstrap: want three (Q,) arrays, Q > 0; got {ours.shape}, {theirs.shape}, {photo.shape}")
    difference = ours - theirs
    if not np.isfinite(difference).all():
        raise ValueError(f"bootstrap: value {difference[~np.isfinite(difference)][0]}; want finite numbers")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap: want a confidence between 0 and 1, got {confidence}")
    _, member = np.unique(photo, return_inverse=True)
    sums, counts = np.bincount(member, difference), np.bincount(member)
    rng = np.random.default_rng(seed)
    means = np.empty(n_draws)
    for draw in range(n_draws):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        means[draw] = (times @ sums) / (times @ counts)
    mean = float(difference.mean())
    if np.ptp(means) < 1e-12:
        return mean, *interval_of_alike(mean, len(sums), bounds, confidence=confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return mean, float(low), float(high)


def interval_of_alike(
    mean: float, n_photos: int, bounds: tuple[float, float], *, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval (low, high) of a mean that is the same on each of `n_photos` photos, where a bootstrap has no width.

    What was seen on none of n photos may be so on a share of up to z² / (n + z²) of others, the upper end of Wilson's
    score interval of 0 in n, z being 1.96 for 0.95. On that share the values may be as far off as `bounds`, the least
    and the greatest, allow. So for 0 or n right of n within (0, 1) this is Wilson's interval. Source: Wilson, Probable
    Inference, the Law of Succession, and Statistical Inference (1927).

    >>> [round(end, 3) for end in interval_of_alike(1.0, 25, (0.0, 1.0))]
    [0.867, 1.0]
    """
    squared = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    others = squared / (n_photos + squared)
    least, most = bounds
    return mean - others * (mean - least), mean + others * (most - mean)
