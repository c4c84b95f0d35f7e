"""The detectors' score is added to the similarity: a shop box of low score loses places.

Ranked lists in, ranked lists out. Source: none needed; the sum of two scores with a weight, Fox and Shaw's CombSUM
(TREC-2, 1993).
"""

import numpy as np

from postproc.lists import checked, in_order


def with_detector_score(
    rows: np.ndarray, similarity: np.ndarray, gallery_score: np.ndarray, weight: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Add `weight * score` of the shop item to each similarity; `weight` is finite, and 0 changes nothing.

    `rows` (Q, K) int are positions in the gallery, -1 for none; `similarity` is (Q, K) float, `gallery_score` (N,)
    float in [0, 1]. Returns rows (Q, K) int64 and similarity (Q, K) float32, best first, equal ones as they stood.
    Raises ValueError for shapes that do not fit, a score outside [0, 1], or a weight that is no number.

    >>> with_detector_score(np.array([[0, 1]]), np.array([[0.5, 0.25]]), np.array([0.25, 1.0]), 0.5)    # 0.625, 0.75
    (array([[1, 0]]), array([[0.75 , 0.625]], dtype=float32))
    """
    gallery_score = np.asarray(gallery_score, np.float64)
    if not np.isfinite(weight) or not ((gallery_score >= 0) & (gallery_score <= 1)).all():
        raise ValueError(f"detector score: weight {weight} and scores; want a number, and scores from 0 to 1")
    rows, similarity = checked(rows, similarity, len(gallery_score))
    if not rows.size or not len(gallery_score):
        return rows, similarity
    return in_order(rows, np.where(rows >= 0, similarity + weight * gallery_score[rows], -np.inf).astype(np.float32))
