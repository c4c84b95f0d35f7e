"""The category rule: shop items of another category than the query's lose places, or go.

Ranked lists in, ranked lists out. Source: the soft and hard use of predicted labels in retrieval, as in Ge et al.,
arXiv:1901.07973, section 4.4, where only items of the predicted category are compared.
"""

import numpy as np

from postproc.lists import checked, in_order, without


def category_rule(
    rows: np.ndarray,
    similarity: np.ndarray,
    query_category: np.ndarray,
    gallery_category: np.ndarray,
    rule: str = "soft",
    penalty: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the rule to lists of candidates.

    Returns rows (Q, K) int64 and similarity (Q, K) float32, best first, equal ones as they stood; -1 and -inf at the
    end. Raises ValueError for shapes that do not fit, an unknown rule, or a penalty under 0.

    Args:
        rows: (Q, K) int, positions in the gallery, -1 for none; similarity: (Q, K) float.
        query_category: (Q,) int; gallery_category: (N,) int.
        rule: `hard`: other categories leave the list; `soft`: they lose `penalty`; `off`: nothing happens.
        penalty: at least 0, in units of similarity.

    >>> lists = np.array([[0, 1]]), np.array([[0.75, 0.5]])
    >>> category_rule(*lists, np.array([7]), np.array([1, 7]), "hard")[0].tolist()
    [[1, -1]]
    >>> category_rule(*lists, np.array([7]), np.array([1, 7]), "soft", 0.5)[1].tolist()    # 0.75 - 0.5 = 0.25
    [[0.5, 0.25]]
    """
    gallery_category, query_category = np.asarray(gallery_category), np.asarray(query_category)
    rows, similarity = checked(rows, similarity, len(gallery_category))
    if query_category.shape != (len(rows),):
        raise ValueError(f"category rule: {len(rows)} queries, categories of shape {query_category.shape}")
    if rule not in ("off", "soft", "hard") or not (np.isfinite(penalty) and penalty >= 0):
        raise ValueError(
            f"category rule: {rule!r}, penalty {penalty}; want off, soft or hard, and a penalty of at least 0"
        )
    if rule == "off" or not rows.size or not len(gallery_category):
        return rows, similarity
    other = (rows >= 0) & (gallery_category[rows] != query_category[:, None])
    if rule == "hard":
        return without(rows, similarity, other)
    return in_order(rows, np.where(other, similarity - np.float32(penalty), similarity))
