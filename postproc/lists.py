"""What every technique on ranked lists needs: to check, sort and close up lists. Arrays in, arrays out.

A list is a line of `rows` (Q, K) int64, positions in the gallery, best first, -1 where there is nothing, and a line of
`similarity` (Q, K) float32, -inf there.
"""

import numpy as np

NOTHING = -1


def checked(rows: np.ndarray, similarity: np.ndarray, n_gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """The lists as int64 and float32 copies.

    Raises ValueError for shapes that differ, a row outside the gallery, or a row whose similarity is no number.
    """
    rows, similarity = np.array(rows, np.int64), np.array(similarity, np.float32)
    if rows.ndim != 2 or rows.shape != similarity.shape:
        raise ValueError(f"ranked lists: rows {rows.shape} and similarity {similarity.shape}; want one (Q, K) of each")
    if rows.size and not NOTHING <= rows.min() <= rows.max() < n_gallery:
        raise ValueError(
            f"ranked lists: row {rows.max() if rows.max() >= n_gallery else rows.min()}; want -1 to {n_gallery - 1}"
        )
    bad = (rows >= 0) & ~np.isfinite(similarity)
    if bad.any():
        query, place = np.argwhere(bad)[0]
        raise ValueError(f"ranked lists: query {query}, place {place} has similarity {similarity[query, place]}")
    similarity[rows < 0] = -np.inf
    return rows, similarity


def in_order(rows: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, equal ones as they stood, empty places last.

    >>> [part.tolist() for part in in_order(np.array([[4, -1, 2]]), np.array([[0.25, -np.inf, 0.5]], np.float32))]
    [[[2, 4, -1]], [[0.5, 0.25, -inf]]]
    """
    order = np.argsort(np.where(rows >= 0, -similarity.astype(np.float64), np.inf), axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarity, order, axis=1)


def without(rows: np.ndarray, similarity: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists closed up where `gone` (Q, K) is true, with empty places at their ends."""
    rows, similarity = np.where(gone, NOTHING, rows), np.where(gone, np.float32(-np.inf), similarity)
    order = np.argsort(rows < 0, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarity, order, axis=1)
