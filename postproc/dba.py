"""Database-side augmentation: every gallery row moves towards its nearest neighbours in the gallery.

Gallery rows in, gallery rows out; done once, before the index is built. Source: Turcot and Lowe, "Better matching with
fewer features", ICCV-W 2009; weights falling with the neighbour's rank after Gordo et al., arXiv:1610.07940, section
5.3; weights by similarity as in alpha query expansion, Radenović et al., arXiv:1711.02512, section 3.
"""

import numpy as np

from postproc.features import finite, in_blocks, unit
from postproc.neighbours import nearest

WEIGHTS = ("rank", "similarity")
BLOCK = 4096  # rows whose neighbours are gathered at once: BLOCK x (k + 1) x D x 8 bytes


def augment(
    gallery: np.ndarray, k: int = 5, *, weights: str = "rank", alpha: float = 3.0, out: np.ndarray | None = None
) -> np.ndarray:
    """Replace each row by the weighted sum of itself and its k nearest neighbours, at unit length: (N, D) float32.

    With `rank` the row itself weighs 1 and its r-th neighbour (k + 1 - r) / (k + 1); with `similarity` the row weighs 1
    and a neighbour of cosine s weighs max(s, 0) ** alpha. Of equal neighbours the lower row comes first. Raises
    ValueError for rows that are not finite, k under 0, unknown weights, and `out` that shares memory with the gallery.

    Args:
        gallery: (N, D) float32 unit rows; may be memory-mapped, and then `out` too.
        k: neighbours, at least 0; a gallery of k rows or fewer has N - 1.
        out: (N, D) float32 to write to, never `gallery` itself; None: a new array.

    >>> augment(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), 1).round(3)    # (1, 1/2) at unit length
    array([[0.894, 0.447],
           [0.447, 0.894]], dtype=float32)
    """
    if k < 0:
        raise ValueError(f"database-side augmentation: want k of at least 0, got {k}")
    if weights not in WEIGHTS:
        raise ValueError(f"database-side augmentation: weights {weights!r}; want {' or '.join(WEIGHTS)}")
    if out is not None and np.shares_memory(out, gallery):
        raise ValueError("database-side augmentation: `out` is the gallery itself, whose rows are still needed")
    result = np.empty(np.shape(gallery), np.float32) if out is None else out
    start = 0
    for block in in_blocks(gallery, BLOCK):
        own, total = np.arange(start, start + len(block)), finite(block, start)
        similarity, rows = nearest(block, gallery, min(k + 1, len(gallery)))
        similarity, rows = _others(similarity, rows, own, k)
        share = (
            np.broadcast_to((k + 1 - np.arange(1, rows.shape[1] + 1)) / (k + 1), rows.shape)
            if weights == "rank"
            else np.maximum(similarity.astype(np.float64), 0) ** alpha
        )
        result[start : start + len(block)] = unit(total + weighted_sum(gallery, rows, share))
        start += len(block)
    return result


def weighted_sum(gallery: np.ndarray, rows: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(Q, D) float64: every line's gallery rows times their shares, added up neighbour by neighbour to save memory.

    `gallery` is (N, D), `rows` (Q, k) int with -1 for none, `share` (Q, k) float.
    """
    total = np.zeros((len(rows), gallery.shape[1]))
    for place in range(rows.shape[1]):
        there = rows[:, place] >= 0
        total[there] += share[there, place, None] * gallery[rows[there, place]]
    return total


def _others(similarity: np.ndarray, rows: np.ndarray, own: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each line without the row itself, k long at most. Copies may stand before it, so it is found by its number."""
    itself = rows == own[:, None]
    itself[~itself.any(axis=1), -1] = True  # k + 1 copies before it: the last one goes
    shape = (len(rows), rows.shape[1] - 1)
    return similarity[~itself].reshape(shape)[:, :k], rows[~itself].reshape(shape)[:, :k]
