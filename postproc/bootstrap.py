"""Paired bootstrap: is one method better than another, beyond the chance of which photos were drawn?

In: a value per query by each method, and each query's photo. Out: the mean difference and an interval. Photos are drawn
with replacement, all queries of a photo together, because garments of one photo are right or wrong together. Source:
the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
"""

import numpy as np


def paired_interval(
    ours: np.ndarray,
    theirs: np.ndarray,
    photo: np.ndarray,
    *,
    confidence: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
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
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(difference.mean()), float(low), float(high)
