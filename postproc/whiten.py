"""Principal components and whitening: rows in, shorter or decorrelated unit rows out.

Learned from gallery or training rows block by block, so that they need not fit in memory. Sources: PCA; whitening of
image descriptors after Jégou and Chum, "Negative evidences and co-occurrences in image retrieval", ECCV 2012, section
3. Where we differ: directions in which the data has no variance are dropped rather than divided by, so data of lower
rank than its dimension, or fewer rows than columns, gives fewer columns and no noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from postproc.features import BLOCK, finite, unit

ROUNDING = 1e-14  # of the largest number of the mean: what differs less from the mean is equal to it
RANK_TOLERANCE = 1e-7  # a direction with less than this share of the largest variance is rounding, not data


@dataclass(frozen=True)
class Projection:
    """A learned projection: `(row - mean) @ axes`, then to unit length."""

    mean: np.ndarray  # (D,) float64
    axes: np.ndarray  # (D, K) float64, orthogonal columns by falling variance, divided by deviations where it whitens
    kept: float  # share of the variance in the K directions, in [0, 1]

    def apply(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Project rows (N, D) float, finite, perhaps memory-mapped, to (N, K) float32 unit rows.

        They are written to `out`, memory-mapped if the result does not fit, or to a new array. A row that projects to
        nothing (the mean itself) is all zeros. Raises ValueError for another width, or a row that is not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"projecting rows: want (N, {len(self.mean)}), got {rows.shape}; learned on other rows?")
        result = np.empty((len(rows), self.axes.shape[1]), np.float32) if out is None else out
        for start in range(0, len(rows), BLOCK):
            block = finite(rows[start : start + BLOCK], start)
            centred = block - self.mean
            centred[np.abs(centred) <= ROUNDING * np.abs(self.mean).max()] = 0  # else the mean becomes noise
            result[start : start + BLOCK] = unit(centred @ self.axes)
        return result


def learn(
    blocks: Iterable[np.ndarray], dim: int | None = None, *, whiten: bool = True, power: float = 1.0
) -> Projection:
    """Learn the projection from rows.

    Raises ValueError for no rows, widths that differ, a row that is not finite, all rows alike, dim or power out of
    range.

    Args:
        blocks: arrays (N_i, D) float, D the same; together all the rows to learn from, at least one. Only one block and
            D x D sums are held.
        dim: columns wanted, at least 1; more than the data's rank gives its rank. None: all.
        whiten: divide every direction by its standard deviation; False: rotate and cut only.
        power: of the standard deviation that is divided by, in [0, 1]; 1 whitens wholly, 0 not at all.

    >>> rows = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> learn([rows], 1, whiten=False).apply(rows).tolist()
    [[1.0], [-1.0], [0.0], [0.0]]
    """
    return from_moments(moments(blocks), dim, whiten=whiten, power=power)


Moments = tuple[int, np.ndarray, np.ndarray]  # rows, their mean (D,), the (D, D) sum of squares about it; float64


def from_moments(found: Moments, dim: int | None = None, *, whiten: bool = True, power: float = 1.0) -> Projection:
    """`learn` from what `moments` gathered."""
    if dim is not None and dim < 1:
        raise ValueError(f"learning a projection: want at least 1 column, got {dim}")
    if not 0 <= power <= 1:
        raise ValueError(f"learning a projection: power {power}; want 0 to 1")
    n, mean, scatter = found
    variance, axes = np.linalg.eigh(scatter / n)
    variance, axes = variance[::-1].clip(min=0), axes[:, ::-1]
    if not variance[0] > 0:
        raise ValueError(f"learning a projection: all {n} rows are alike; want rows that differ")
    rank = int((variance > RANK_TOLERANCE * variance[0]).sum())
    keep = min(rank, len(variance) if dim is None else dim)
    axes = axes[:, :keep] * np.sign(axes[np.abs(axes[:, :keep]).argmax(axis=0), np.arange(keep)])
    if whiten:
        axes = axes / variance[:keep] ** (power / 2)
    return Projection(mean, axes, float(variance[:keep].sum() / variance.sum()))


def moments(blocks: Iterable[np.ndarray]) -> Moments:
    """How many rows, their mean, and the sum of squares about it, in one pass.

    Raises ValueError for no rows, widths that differ, or a row that is not finite.
    """
    total: Moments | None = None
    for block in blocks:
        if len(block):
            here = moments_of(block, 0 if total is None else total[0])
            total = here if total is None else together(total, here)
    if total is None:
        raise ValueError("learning a projection: no rows; want at least one")
    return total


def moments_of(block: np.ndarray, first: int = 0) -> Moments:
    """Of rows at hand; `first` is the number of the first one, for the message."""
    rows = finite(block, first)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return len(rows), mean, centred.T @ centred


def together(one: Moments, other: Moments) -> Moments:
    """Of two parts' rows: Chan, Golub and LeVeque's update, which does not cancel."""
    if one[1].shape != other[1].shape:
        raise ValueError(f"learning a projection: rows of {len(other[1])} numbers after rows of {len(one[1])}")
    n, step = one[0] + other[0], other[1] - one[1]
    scatter = one[2] + other[2] + np.outer(step, step) * (one[0] * other[0] / n)
    return n, one[1] + step * (other[0] / n), scatter
