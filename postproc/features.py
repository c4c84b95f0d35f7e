"""What every technique on feature rows needs: rows checked, rows in blocks, rows of unit length. Arrays in, arrays out."""

from collections.abc import Iterator

import numpy as np

BLOCK = 16_384  # rows worked on at once: bounds memory, results do not depend on it


def finite(rows: np.ndarray, first: int = 0, dtype: type = np.float64) -> np.ndarray:
    """(N, D) rows, checked, as float64 or the type asked for.

    Args:
        rows: (N, D) float, N may be 0.
        first: the number of the first row, for the message of a block.

    Raises:
        ValueError: another shape, or a row that is not finite, with its number.
    """
    rows = np.asarray(rows, dtype)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"rows: want (N, D), D at least 1, got {rows.shape}")
    if np.isfinite(np.einsum("nd->", rows)):  # a sum is finite only where all numbers are; else they are looked at
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
