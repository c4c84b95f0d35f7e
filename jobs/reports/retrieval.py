"""The page retrieval.html: accuracy at every list length and per category, and how similar right and wrong first
results are.

In: metrics.json and rankings/ of a run, the set's ground truth. Out: a curve for each model, a histogram of the final
list, charts. What is right is decided by `retrieval.truth`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.reports import charts
from jobs.reports.charts import Chart
from jobs.reports.figures import COMBINED, accuracy_at, final_name, parts
from jobs.reports.standings import LIST_LENGTH, Standings, has_results, similarities
from jobs.reports.truth import GroundTruth
from jobs.runs.reader import read_judged
from retrieval.rankings import Rankings
from store.objects import ObjectStore

MOST_BINS = 40  # of the histogram; its bins are 1, 2, 5 or 10 percent wide
MOST_CHARTED = 40  # categories in a chart


@dataclass(frozen=True)
class Histogram:
    """How many first results have which similarity; missed queries have no first result."""

    edges: np.ndarray  # (B + 1,) int64, whole percents, rising by one width; a bin holds its lower edge
    right: np.ndarray  # (B,) int64, queries whose first result is right
    wrong: np.ndarray  # those where it is wrong


def model_rankings(output: ObjectStore, boxes: str, models: list[str]) -> dict[str, str]:
    """The name of each model's rankings, without those whose file does not exist; `models` as metrics.json names them.

    rankings/BOXES.parquet is the list after all steps; rankings/BOXES/concat.parquet exists where further steps follow
    concatenation.
    """
    final = final_name(models)
    names = {model: f"{boxes}/{model}" for model in models}
    if final and (final in COMBINED or len(models) == 1):
        names[final] = boxes
    return {model: name for model, name in names.items() if output.exists(f"rankings/{name}.parquet")}


def accuracy_curves(
    output: ObjectStore, boxes: str, models: list[str], truth: GroundTruth, top_k: int = LIST_LENGTH
) -> dict[str, np.ndarray]:
    """Model -> (at most 20,) Acc@1, Acc@2 … Acc@20, or as far as lists of `top_k` results go.

    One model's rankings are in memory at a time.
    """
    if truth.rankings.kind is None:
        return {}
    curves = {}
    for model, name in model_rankings(output, boxes, models).items():
        lists = read_judged(output, name, truth.rankings, LIST_LENGTH)
        curves[model] = curve(truth.rankings.judge(lists).first)[:top_k]
    return curves


def curve(first: np.ndarray, length: int = LIST_LENGTH) -> np.ndarray:
    """Acc@1 to Acc@`length` from the rank of each query's first right result, 0 for none.

    >>> curve(np.array([1, 3, 0, 3]), 4)
    array([0.25, 0.25, 0.75, 0.75])
    """
    return np.cumsum(np.bincount(first, minlength=length + 1)[1 : length + 1]) / len(first)


def similarity_histogram(rankings: Rankings, standings: Standings) -> Histogram | None:
    """Similarities of right and of wrong first results; None where no query has a judged one."""
    if standings.right is None:
        return None
    listed = has_results(rankings, standings)
    if not listed.any():
        return None
    top, right = 100 * similarities(rankings, standings)[listed], standings.first[listed] == 1
    edges = whole_edges(float(top.min()), float(top.max()))
    return Histogram(edges, *(np.histogram(top[group], edges)[0] for group in (right, ~right)))


def whole_edges(low: float, high: float) -> np.ndarray:
    """Edges of at most MOST_BINS bins that start at multiples of their width and hold both numbers, in percent.

    >>> whole_edges(66.2, 69.0)
    array([66, 67, 68, 69, 70])
    """
    width = next((w for w in (1, 2, 5) if (high // w - low // w + 1) <= MOST_BINS), 10)
    return np.arange(low // width, high // width + 2).astype(np.int64) * width


# ---- charts ----------------------------------------------------------------------------------------------------------


def accuracy_chart(curves: Mapping[str, np.ndarray], boxes: str, colours: Mapping[str, int]) -> Chart:
    """Accuracy at each list length."""
    series = [
        charts.series(name, colours.get(name, 0), np.arange(1, len(curve) + 1), 100 * curve)
        for name, curve in curves.items()
    ]
    x, y = charts.axis("k, length of the result list"), charts.axis("Acc@k, percent")
    return charts.chart(f"accuracy-{boxes}", _title(boxes), "lines", x, y, {"": series}) | {"labels": "ends"}


def parts_chart(
    models: Mapping[str, dict[str, Any]], boxes: str, colours: Mapping[str, int], categories: Sequence[str]
) -> Chart | None:
    """Acc@10 of each model per category, or per level of an attribute; rows with their number of queries. None without.

    Of many categories the chart has those with the most queries; the page's table has all.
    """
    choices: dict[str, list[charts.Series]] = {}
    if all(_percent(row) is None for row in models.values()):
        return None
    for part, every in parts(dict(models), categories):
        numbers = [next((f["queries"] for f in per if f.get("queries")), 0) for _, per in every]
        shown = sorted(np.argsort(-np.array(numbers), kind="stable")[:MOST_CHARTED].tolist())
        rows = [every[i] for i in shown]
        labels = [f"{every[i][0]} ({numbers[i]:,})" for i in shown]
        series = [
            charts.series(model, colours.get(model, 0), [_percent(per[m]) for _, per in rows], labels)
            for m, model in enumerate(models)
        ]
        choices |= {f"per {part}": series} if rows else {}
    x = charts.axis("Acc@10, percent", (-2, 102))
    return charts.chart(f"parts-{boxes}", _title(boxes), "dots", x, charts.axis(""), choices) if choices else None


def _percent(figures: dict[str, Any]) -> float | None:
    value = accuracy_at(figures, "10")
    return None if value is None else 100 * value


def similarity_chart(histogram: Histogram, boxes: str) -> Chart:
    """How similar first results are, the right ones and the wrong ones."""
    lower, upper = histogram.edges[:-1], histogram.edges[1:]
    middles, spans = (lower + upper) / 2, [f"{a} to {b}" for a, b in zip(lower, upper, strict=True)]
    series = [
        charts.series(f"{name} ({counts.sum():,})", name, middles, counts) | {"text": spans}
        for name, counts in (("right", histogram.right), ("wrong", histogram.wrong))
    ]
    x, y = charts.axis("similarity of the first result, percent"), charts.axis("queries")
    return charts.chart(f"similarity-{boxes}", _title(boxes), "bars", x, y, {"": series})


def _title(boxes: str) -> str:
    return f"{boxes.capitalize()} boxes"
