"""Query expansion: a query moves towards its first results, and the search is repeated.

Query and gallery rows in, query rows out. Sources: average query expansion, Chum et al., "Total recall", ICCV 2007,
section 4; alpha query expansion, Radenović, Tolias and Chum, arXiv:1711.02512, section 3 (weights cosine ** alpha).
"""

from collections.abc import Callable

import numpy as np

from postproc.dba import weighted_sum
from postproc.features import finite, unit
from postproc.neighbours import nearest

BLOCK = 4096  # queries expanded at once


def average(queries: np.ndarray, gallery: np.ndarray, k: int = 3) -> np.ndarray:
    """Each query, its k best gallery rows added with the same weight, at unit length. See `alpha` for arguments.

    >>> average(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 1).round(3)
    array([[0.707, 0.707]], dtype=float32)
    """
    return alpha(queries, gallery, k, exponent=0.0)


Find = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def alpha(
    queries: np.ndarray, gallery: np.ndarray, k: int = 3, exponent: float = 3.0, *, find: Find | None = None
) -> np.ndarray:
    """Each query, its k best gallery rows added with weight cosine ** exponent: (Q, D) float32 of unit length.

    Of equal similarities the lower row comes first. Raises ValueError for rows that are not finite or of different
    widths, and for k or exponent under 0.

    Args:
        queries: (Q, D) float32 unit rows; Q may be 0.
        gallery: (N, D) float32 unit rows; may be memory-mapped; N may be under k, or 0.
        k: rows added, at least 0.
        find: (queries, k) -> similarity, rows of the gallery: an index. None: `postproc.neighbours.nearest`.
        exponent: at least 0; 0 weighs all alike. A row of negative cosine is added only at exponent 0.

    >>> alpha(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.0, 1.0]]), 2, 1.0).round(3)    # (1.36, 0.48) at length 1
    array([[0.943, 0.333]], dtype=float32)
    """
    if k < 0 or not (np.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"query expansion: k {k}, exponent {exponent}; want both at least 0")
    result = np.empty(np.shape(queries), np.float32)
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        total = finite(block, start)
        if k and len(gallery):
            similarity, rows = find(block, k) if find else nearest(block, gallery, min(k, len(gallery)))
            similarity = np.where(rows >= 0, similarity, 0)
            share = np.maximum(similarity.astype(np.float64), 0) ** exponent if exponent else np.ones(rows.shape)
            total = total + weighted_sum(gallery, rows, share)
        result[start : start + BLOCK] = unit(total)
    return result
