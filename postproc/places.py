"""Where keys stand among others: rows of one table found in another by id, or joined with all rows of an equal key."""

import numpy as np


def places(keys: np.ndarray, wanted: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """int64, of the shape of `wanted`: the place of each among (N,) `keys`, of equal keys the first; -1 for absent.

    `order` is np.argsort(keys, kind="stable") where the caller keeps it.

    >>> places(np.array([7, 5, 9, 5]), np.array([5, 6, 9]))
    array([ 1, -1,  2])
    """
    if not len(keys):
        return np.full(np.shape(wanted), -1)
    order = np.argsort(keys, kind="stable") if order is None else order
    nearest = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[nearest] == wanted, nearest, -1)


def spans(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of equal values: (M,) int64 rows of (W,) `wanted` and (M,) positions in (N,) sorted `ordered`.

    Pairs are in the order of the rows, then of the positions.

    >>> [part.tolist() for part in spans(np.array([3, 5, 5]), np.array([5, 4, 3]))]
    [[0, 0, 2], [1, 2, 0]]
    """
    low, high = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
    n = high - low
    row = np.repeat(np.arange(len(wanted)), n)
    return row, np.arange(len(row)) + np.repeat(low - (np.cumsum(n) - n), n)
