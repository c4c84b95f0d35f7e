"""How each query of a run ended: which of its shop results are right, and which queries get pictures.

In: the ground truth of an image set and a run's rankings. Out: `Standings` over all queries. What is right is decided
by `retrieval.truth`; this file only orders.
"""

from dataclasses import dataclass

import numpy as np

from jobs.reports.truth import GroundTruth
from retrieval.metrics import KS
from retrieval.rankings import Rankings

LIST_LENGTH = max(KS)  # results further down are not read
CONFIDENT_SHARE = 5  # one picture in so many shows one of the most confident mistakes, the others show typical queries


@dataclass(frozen=True)
class Standings:
    """Every query and how it ended; the columns have an entry per query."""

    row: np.ndarray  # (Q,) row of the rankings that belongs to it; -1 for a missed garment
    truth_row: np.ndarray  # (Q,) which query of the truth it is; -1 where the set has no ground truth
    first: np.ndarray  # (Q,) 1-based rank of the first right result; 0 for none
    right: np.ndarray | None  # (R, K) bool, which results of the rankings' rows are right; None without ground truth
    length: int  # K, the length to which lists are judged
    relevant: np.ndarray  # (Q,) how many right answers the gallery has for it; 0 without ground truth

    def __len__(self) -> int:
        return len(self.row)

    def of(self, places: np.ndarray) -> "Standings":
        """The queries at these places; `right` stays that of all rankings."""
        row, truth_row, first, relevant = (
            column[places] for column in (self.row, self.truth_row, self.first, self.relevant)
        )
        return Standings(row, truth_row, first, self.right, self.length, relevant)


def judge(rankings: Rankings, truth: GroundTruth) -> Standings:
    """How every query ended, the most confident mistakes first; `rankings` are those of `read_judged`.

    With ground truth the queries are its own, those without a detection included; without it, the rows of the rankings.
    First come queries with no right result in the list, then those whose first right result is not the first, then
    missed ones, then those right at rank 1; within each group by falling similarity of the first result, then in the
    set's order.
    """
    n_queries = len(truth.rankings.photo)
    length = max(1, rankings.results.gallery_image_id.shape[1])
    if not n_queries:
        in_order = np.lexsort((rankings.query_item, rankings.results.query_image_id))
        none = np.zeros(len(in_order), np.int64)
        standings = Standings(in_order, np.full(len(in_order), -1), none, None, length, none)
    else:
        judged = truth.rankings.judge(rankings)
        places = np.arange(n_queries)
        standings = Standings(judged.row, places, judged.first, judged.right, length, judged.relevant)
    order = np.lexsort((np.arange(len(standings)), -similarities(rankings, standings), _group(standings)))
    return standings.of(order)


def similarities(rankings: Rankings, standings: Standings) -> np.ndarray:
    """(Q,) float64 similarity of each query's first result; -1, the least there is, without any."""
    listed = has_results(rankings, standings)
    first = np.full(len(standings), -1.0)
    first[listed] = rankings.similarity[standings.row[listed], 0]
    return first


def has_results(rankings: Rankings, standings: Standings) -> np.ndarray:
    """(Q,) bool: whether a query was detected and its list holds a shop item."""
    detected = standings.row >= 0
    listed = np.zeros(len(standings), bool)
    listed[detected] = rankings.results.gallery_count[standings.row[detected]] > 0
    return listed


def _group(standings: Standings) -> np.ndarray:
    """(Q,) 0 wrong, 1 right below rank 1, 2 missed, 3 right at rank 1; 0 where nothing is judged."""
    if standings.right is None:
        return np.zeros(len(standings), np.int64)
    by_rank = np.where(standings.first == 1, 3, np.where(standings.first > 1, 1, 0))
    return np.where(standings.row < 0, 2, by_rank)


def pick(standings: Standings, n: int) -> np.ndarray:
    """Which queries get pictures: (at most n,) places in `standings`, rising.

    Four fifths of n are taken at even steps of all queries, sorted by the rank of their first right result (none, then
    missed, last) and then by the set's order, both ends included, so that right and wrong ones keep their true shares.
    The rest are the most confident mistakes that are not yet among them.
    """
    if n <= 0:
        return np.zeros(0, np.int64)
    judged = standings.right is not None
    rank = np.where(standings.first > 0, standings.first, standings.length + 1)
    in_order = np.lexsort((standings.truth_row if judged else standings.row, standings.row < 0, rank))
    chosen = _even_steps(in_order, n - n // CONFIDENT_SHARE if judged else n)
    others = np.setdiff1d(np.arange(len(standings)), chosen)  # the most confident mistakes come first in `standings`
    return np.sort(np.r_[chosen, others[: n - len(chosen)]])


def _even_steps(order: np.ndarray, n: int) -> np.ndarray:
    """n entries of `order` at even steps, first and last included; all of them where there are no more."""
    if len(order) <= n:
        return order
    return order[np.linspace(0, len(order) - 1, n).round().astype(int)] if n > 1 else order[:n]
