"""Grouping: a list shows only the best of the shop items that are one product or lie in one photo.

Ranked lists in, ranked lists out. Source: result diversification by grouping, as shops and search engines show it.
"""

import numpy as np

from postproc.lists import NOTHING, checked, without


def group(rows: np.ndarray, similarity: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first result of every key, and close up the lists: -1 and -inf at the end.

    `rows` (Q, K) int are positions in the gallery, best first, -1 for none; `similarity` is (Q, K) float. `key` (N,)
    int is equal for gallery items of one group; a negative key is a group of its own. Returns rows (Q, K) int64 and
    similarity (Q, K) float32. Raises ValueError for shapes that do not fit.

    >>> group(np.array([[0, 1, 2]]), np.array([[0.9, 0.8, 0.7]]), np.array([5, 5, 6]))[0].tolist()
    [[0, 2, -1]]
    """
    key = np.asarray(key)
    if key.ndim != 1 or (key.size and not np.issubdtype(key.dtype, np.integer)):
        raise ValueError(f"grouping: want one whole number a gallery item, got {key.dtype} {key.shape}")
    rows, similarity = checked(rows, similarity, len(key))
    if not rows.size or not len(key):
        return rows, similarity
    keys = np.where(rows >= 0, key[rows], NOTHING)
    order = np.argsort(keys, axis=1, kind="stable")  # equal keys side by side, the better one first
    ordered = np.take_along_axis(keys, order, axis=1)
    again = np.zeros(rows.shape, bool)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    np.put_along_axis(again, order[:, 1:], same, axis=1)
    return without(rows, similarity, again)
