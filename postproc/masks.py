"""Masks fused beside boxes: a pixel is on where most of the members' masks, by weight, have it on.

Run lengths in, run lengths out. No pixel is ever drawn, so the cost grows with a mask's outline, not with the photo. A
mask is its run lengths along the pixels in one fixed order (COCO: column by column), off first: [3, 2, 1] is off, off,
off, on, on, off. Source: the weighted mean of weighted boxes fusion (arXiv:1910.13302), pixel by pixel instead of edge
by edge.
"""

from collections.abc import Sequence

import numpy as np


def vote(masks: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """One mask from several of the same photo: on where the masks that are on have more than half of the weight.

    `masks` are K >= 1 arrays of run lengths, whole numbers >= 0, off first, all of one sum, the pixels of the photo;
    `weights` are K numbers >= 0, and None, or all 0, means all alike. Returns (R,) int64 run lengths, off first, only
    the first may be 0. Raises ValueError, with the mask, for no mask, a length below 0 or not whole, sums that differ,
    or weights that do not fit.

    >>> vote([np.array([0, 4, 2]), np.array([2, 4]), np.array([2, 1, 3])]).tolist()    # on at 0-3, at 2-5, at 2
    [2, 2, 2]
    """
    runs = [_checked(mask, place) for place, mask in enumerate(masks)]
    shares = _shares(weights, len(runs))
    pixels = [int(run.sum()) for run in runs]
    if len(set(pixels)) > 1:
        other = next(place for place, n in enumerate(pixels) if n != pixels[0])
        raise ValueError(
            f"fusing masks: mask 0 has {pixels[0]} pixels, mask {other} {pixels[other]}; want one photo's masks"
        )
    changes = [np.cumsum(run)[:-1] for run in runs]  # where a mask turns on, off, on …
    at = np.concatenate(changes)
    by = np.concatenate([share * _turns(len(change)) for share, change in zip(shares, changes, strict=True)])
    where, number = np.unique(at, return_inverse=True)
    weight = np.cumsum(np.bincount(number, by, minlength=len(where)))
    return _lengths(where, weight > 0.5 + 1e-9, pixels[0])  # sums of shares are off by rounding, never by more


def vote_batch(
    place: np.ndarray, masks: Sequence[np.ndarray], weights: np.ndarray, n_fused: int
) -> list[np.ndarray | None]:
    """`vote` for many fused boxes at once: for each its run lengths, None where no member has a mask.

    Raises ValueError for lengths that differ, a place out of range, and what `vote` refuses.

    Args:
        place: (P,) int in [0, n_fused), the fused box of each mask, in any order.
        masks: P arrays of run lengths; those of one fused box are of one photo.
        weights: (P,) float >= 0.
        n_fused: fused boxes, those without any mask included.

    >>> vote_batch(np.array([1]), [np.array([1, 2])], np.ones(1), 2)
    [None, array([1, 2])]
    """
    place, weights = np.asarray(place), np.asarray(weights, np.float64)
    if not place.shape == weights.shape == (len(masks),):
        raise ValueError(
            f"fusing masks: {len(masks)} masks, but place {place.shape}, weights {weights.shape}; want one each"
        )
    if place.size and not 0 <= place.min() <= place.max() < n_fused:
        raise ValueError(f"fusing masks: a mask of fused box {place.max()}; want 0 to {n_fused - 1}")
    fused: list[np.ndarray | None] = [None] * n_fused
    order = np.argsort(place, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
        if len(members):
            fused[int(place[members[0]])] = vote([masks[k] for k in members], weights[members].tolist())
    return fused


def _checked(mask: np.ndarray, place: int) -> np.ndarray:
    run = np.asarray(mask)
    whole = run.astype(np.int64) if np.issubdtype(run.dtype, np.number) and np.isfinite(run).all() else None
    if whole is None or run.ndim != 1 or not run.size or (whole != run).any() or (whole < 0).any():
        raise ValueError(f"fusing masks: mask {place} is no list of run lengths >= 0: {str(mask)[:80]}")
    return whole


def _shares(weights: Sequence[float] | None, n: int) -> np.ndarray:
    """(K,) float64, the weights over their sum."""
    numbers = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if not n or numbers.shape != (n,) or not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError(f"fusing masks: {n} masks, weights {weights}; want at least one, and a number >= 0 for each")
    return numbers / numbers.sum() if numbers.sum() > 0 else np.full(n, 1 / n)


def _turns(n: int) -> np.ndarray:
    """+1, -1, +1 … n times."""
    return np.where(np.arange(n) % 2, -1.0, 1.0)


def _lengths(where: np.ndarray, on: np.ndarray, pixels: int) -> np.ndarray:
    """Run lengths of a mask that is off up to where[0] and `on[i]` from `where[i]` (C,), rising, to the next."""
    turns = np.flatnonzero(np.diff(on, prepend=False) & (where < pixels))
    return np.diff(where[turns], prepend=0, append=pixels)
