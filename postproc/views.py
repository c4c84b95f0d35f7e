"""Views: the embeddings of one garment mirrored, cropped wider … become one row.

Rows in, rows out. Source: test-time augmentation as in Krizhevsky et al., NeurIPS 2012, section 4.1, on features
instead of scores.
"""

from collections.abc import Sequence

import numpy as np

from postproc.features import finite, unit

BLOCK = 256  # rows averaged at once: float64 that stays in the processor's cache


def average_views(views: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted mean of a garment's rows, at unit length: (N, D) float32; views that cancel out give zeros.

    `views` has one (N, D) float array per view, the same items in the same order, at least one; `weights` a number >= 0
    per view, not all 0, and None means all alike. Raises ValueError for no view, shapes that differ, rows that are not
    finite, or weights that do not fit.

    >>> average_views([np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])]).round(3)
    array([[0.707, 0.707]], dtype=float32)
    """
    rows = [np.asarray(view) for view in views]
    if not rows or any(one.ndim != 2 or one.shape != rows[0].shape for one in rows):
        raise ValueError(f"views: want (N, D) arrays of one shape, got {[one.shape for one in rows]}")
    shares = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(rows),) or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"views: {len(rows)} views but weights {weights}; want one number >= 0 each, not all 0")
    shares = shares / shares.sum()
    averaged = np.empty(rows[0].shape, np.float32)
    for start in range(0, len(averaged), BLOCK):
        block = slice(start, start + BLOCK)
        total = sum(share * finite(one[block], start) for share, one in zip(shares, rows, strict=True))
        weight = sum(share * np.abs(one[block]) for share, one in zip(shares, rows, strict=True))
        cancelled = np.abs(total) <= len(rows) * np.finfo(np.float64).eps * weight  # what is left is rounding
        averaged[block] = unit(np.where(cancelled, 0, total))
    return averaged
