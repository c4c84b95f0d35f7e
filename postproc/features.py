"""What every technique on feature rows needs: a check of rows, rows in blocks, rows of unit length."""

from collections.abc import Iterator

import numpy as np

BLOCK = 16_384  # rows worked on at once: bounds memory, results do not depend on it


def finite(rows: np.ndarray, first: int = 0, dtype: type = np.float64) -> np.ndarray:
    """(N, D) rows, N from 0, as float64 or the type asked for; `first` is the number of a block's first row.

    Raises ValueError for another shape, or a row that is not finite, with its number.
    """
    rows = np.asarray(rows, dtype)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"rows: want (N, D), D at least 1, got {rows.shape}")
    if np.isfinite(np.einsum("nd->", rows)):  # a finite sum has finite terms; the reverse is checked below
        return rows
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(
            f"rows: row {first + bad[0]} has numbers that are not finite; look at the model that made them"
        )
    return rows


def unit(rows: np.ndarray) -> np.ndarray:
    """(N, D) rows brought to unit length; a row of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def in_blocks(rows: np.ndarray, n: int = BLOCK) -> Iterator[np.ndarray]:
    """An array, memory-mapped or not, n rows at a time."""
    return (rows[start : start + n] for start in range(0, len(rows), n))
