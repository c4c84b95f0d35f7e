"""The category rule: shop items that are probably of another category than the query lose places, or go.

Ranked lists in, ranked lists out. Source: the soft and hard use of predicted labels in retrieval, as in Ge et al.,
arXiv:1901.07973, section 4.4, where only items of the predicted category are compared. The soft rule weighs every
category that the two may have.
"""

import numpy as np

from postproc.hypotheses import Hypotheses
from postproc.lists import checked, in_order, without


def category_rule(
    rows: np.ndarray,
    similarity: np.ndarray,
    query: Hypotheses,
    gallery: Hypotheses,
    rule: str = "soft",
    penalty: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the rule to lists of candidates. Lists of queries without a hypothesis stay as they are.

    Returns rows (Q, K) int64 and similarity (Q, K) float32, best first, equal ones as they stood; -1 and -inf at the
    end. Raises ValueError for shapes that do not fit, an unknown rule, or a penalty under 0.

    Args:
        rows: (Q, K) int, positions in the gallery, -1 for none; similarity: (Q, K) float.
        query: what each of the Q queries may be; gallery: what each of the N shop items may be.
        rule: `hard`: items whose first hypothesis is another category than the query's first leave the list; `soft`:
            items lose `penalty` times the probability that the two categories differ; `off`: nothing happens.
        penalty: at least 0, in units of similarity.

    >>> lists = np.array([[0, 1]]), np.array([[0.75, 0.5]])
    >>> sure = Hypotheses.own(np.array([7]), np.ones(1)), Hypotheses.own(np.array([1, 7]), np.ones(2))
    >>> category_rule(*lists, *sure, "hard")[0].tolist()
    [[1, -1]]
    >>> category_rule(*lists, *sure, "soft", 0.5)[1].tolist()    # 0.75 - 0.5 = 0.25
    [[0.5, 0.25]]
    """
    rows, similarity = checked(rows, similarity, len(gallery))
    if len(query) != len(rows):
        raise ValueError(f"category rule: {len(rows)} queries, hypotheses of {len(query)}")
    if rule not in ("off", "soft", "hard") or not (np.isfinite(penalty) and penalty >= 0):
        raise ValueError(
            f"category rule: {rule!r}, penalty {penalty}; want off, soft or hard, and a penalty of at least 0"
        )
    if rule == "off" or not rows.size or not len(gallery):
        return rows, similarity
    applies = (query.category_id[:, :1] > 0) & (rows >= 0)
    if rule == "hard":
        other = gallery.category_id[rows, 0] != query.category_id[:, :1]
        return without(rows, similarity, applies & other)
    loss = np.float32(penalty) * (1 - same_category(rows, query, gallery)).astype(np.float32)
    return in_order(rows, np.where(applies, similarity - loss, similarity))


def same_category(rows: np.ndarray, query: Hypotheses, gallery: Hypotheses) -> np.ndarray:
    """(Q, K) float64 in [0, 1]: the probability that a query and each item of its list have one category.

    Their categories are taken for independent, with the probabilities of `Hypotheses.shares`.

    >>> maybe = Hypotheses(np.array([[7, 1]]), np.array([[0.75, 0.25]]))
    >>> same_category(np.array([[0]]), maybe, maybe).tolist()    # 0.75 * 0.75 + 0.25 * 0.25
    [[0.625]]
    """
    listed, place = np.unique(rows, return_inverse=True)  # of a large gallery few items are in any list
    place, items = place.reshape(rows.shape), gallery[listed]
    of_query, of_item, same = query.shares, items.shares, np.zeros(rows.shape)
    for i in range(of_query.shape[1]):
        for j in range(of_item.shape[1]):
            equal = items.category_id[place, j] == query.category_id[:, i, None]
            same += np.where(equal, of_query[:, i, None] * of_item[place, j], 0)
    return same
