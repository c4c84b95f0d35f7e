"""What a ranked list is worth when several answers are right: average precision, reciprocal rank, nDCG.

In: which places of each query's list hold a right answer, each answer once, and how many right answers there are. Out:
a figure for each query in [0, 1], or their means. A query without any right answer, and one without a list, is worth 0,
as in Acc@k. Source: the definitions of trec_eval as ranx spells them (Järvelin and Kekäläinen, 2002, for nDCG, with
relevance 0 or 1); equal to `ranx.evaluate` on the run and qrels of `retrieval.trec`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

NDCG_KS = (5, 10, 20)


def average_precision(found: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(Q,) the mean, over all right answers, of the precision at the place of each; 0 for answers not in the list.

    Args:
        found: (Q, K) bool, which places of the list hold a right answer, best first; False after the list's end.
        relevant: (Q,) int, how many right answers there are, in the list or not.

    >>> average_precision(np.array([[True, False, True]]), np.array([4]))  # (1/1 + 2/3 + 0 + 0) / 4
    array([0.41666667])
    """
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return (precision * found).sum(axis=1) / np.maximum(relevant, 1)


def first_ranks(found: np.ndarray) -> np.ndarray:
    """(Q,) int64: the 1-based place of the first right answer of `found` (Q, K); 0 where the list has none."""
    if not found.shape[1]:
        return np.zeros(len(found), np.int64)
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)


def reciprocal_rank(found: np.ndarray) -> np.ndarray:
    """(Q,) 1 / the place of the first right answer of `found` (Q, K); 0 where the list has none."""
    first = first_ranks(found)
    return np.divide(1, first, out=np.zeros(len(first)), where=first > 0)


def ndcg(found: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """(Q,) discounted gain of the first k places, 1 / log2(1 + place) each, divided by the most that is possible.

    Arguments as those of `average_precision`; k is at least 1.

    >>> ndcg(np.array([[False, True]]), np.array([1]), 5).round(4)  # (1 / log2(3)) / (1 / log2(2))
    array([0.6309])
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain = found[:, :k] @ discount[: found.shape[1]]
    ideal = np.r_[0.0, np.cumsum(discount)][np.minimum(relevant, k)]
    return np.divide(gain, ideal, out=np.zeros(len(found)), where=ideal > 0)


def list_figures(found: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = NDCG_KS) -> dict[str, Any]:
    """`{"map", "mrr", "ndcg": {"5", "10", "20"}, "unanswered"}`: means over all queries, None where there is no query.

    `unanswered` is the number of queries without a right answer anywhere; they count as wrong.
    """
    if not len(found):
        return {"map": None, "mrr": None, "ndcg": {str(k): None for k in ks}, "unanswered": 0}
    return {
        "unanswered": int((relevant == 0).sum()),
        "map": float(average_precision(found, relevant).mean()),
        "mrr": float(reciprocal_rank(found).mean()),
        "ndcg": {str(k): float(ndcg(found, relevant, k).mean()) for k in ks},
    }
