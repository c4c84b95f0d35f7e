"""How retrieval went, beyond its figures: accuracy at every list length, and how similar right and wrong first results are.

In: rankings/ of a run, the set's ground truth. Out: a curve for each model, a histogram for the final list. The judgement is
`retrieval.metrics`'.
"""

from dataclasses import dataclass

import numpy as np

from jobs.reporting.figures import TOGETHER, final_name
from jobs.reporting.queries import LIST_LENGTH, Ranking, Standings, Truth, read_ranking, similarities
from retrieval import metrics
from store.objects import ObjectStore

N_BINS = 40


@dataclass(frozen=True)
class Histogram:
    """How many first results have which similarity.

    Attributes:
        edges: (N_BINS + 1,) float64, rising.
        right, wrong: (N_BINS,) int64, queries whose first result is right, or wrong; missed ones have none.
    """

    edges: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


def model_keys(output: ObjectStore, boxes: str, models: list[str]) -> dict[str, str]:
    """Each model's ranking file; `models` as metrics.json names them. Files that are not there are left out.

    rankings/BOXES.parquet is the list after all steps; rankings/BOXES/concat.parquet is there where steps go beyond concatenation.
    """
    final = final_name(models)
    keys = {}
    for name in models:
        last = name == final and (name in TOGETHER or len(models) == 1)
        keys[name] = f"rankings/{boxes}.parquet" if last else f"rankings/{boxes}/{name}.parquet"
    return {name: key for name, key in keys.items() if output.exists(key)}


def accuracy_curves(output: ObjectStore, boxes: str, models: list[str], truth: Truth) -> dict[str, np.ndarray]:
    """Model -> (20,) share of the queries that have a right result among their first 1, 2 … 20; one ranking in memory at a time."""
    curves: dict[str, np.ndarray] = {}
    if not len(truth.queries):
        return curves
    for name, key in model_keys(output, boxes, models).items():
        results = read_ranking(output, key, LIST_LENGTH).results
        first = metrics.first_hit_ranks(results, truth.query_gt, truth.gallery_gt, k=LIST_LENGTH)
        curves[name] = curve(first)
    return curves


def curve(first: np.ndarray, length: int = LIST_LENGTH) -> np.ndarray:
    """Accuracy at 1 to `length` from the rank of each query's first right result, 0 for none.

    >>> curve(np.array([1, 3, 0, 3]), 4)
    array([0.25, 0.25, 0.75, 0.75])
    """
    return np.cumsum(np.bincount(first, minlength=length + 1)[1 : length + 1]) / len(first)


def similarity_histogram(ranking: Ranking, standings: Standings) -> Histogram | None:
    """Similarities of right and of wrong first results; None where no query has a judged one."""
    if standings.right is None:
        return None
    top = similarities(ranking, standings)
    listed = (
        (standings.row >= 0) & (ranking.results.gallery_count[standings.row] > 0) if len(ranking.results) else top > 0
    )
    if not listed.any():
        return None
    low, high = float(top[listed].min()), float(top[listed].max())
    edges = np.linspace(low, high if high > low else low + 1e-3, N_BINS + 1)
    right = standings.first == 1
    counts = [np.histogram(top[listed & which], edges)[0] for which in (right, ~right)]
    return Histogram(edges, counts[0], counts[1])
