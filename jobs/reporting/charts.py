"""The charts of a report as plain records; assets/charts.js draws them with plotly.js in the colours of the page.

In: figures. Out: dictionaries for `script_data`: id, title, kind (lines, dots, bars, heat), axes, and `choices`, lists of series of which
one is shown at a time. A series' `colour` is a model's number (`figures.colours`) or a word of the page's style: right, wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detection.categories import CATEGORIES
from jobs.reporting.ablation import Study
from jobs.reporting.detection import RECALLS, Detection
from jobs.reporting.facts import StageTime
from jobs.reporting.figures import parts
from jobs.reporting.retrieval import Histogram
from jobs.reporting.script_data import rounded

Chart = dict[str, Any]


def precision_recall(found: Detection, colours: Mapping[str, int]) -> Chart:
    """Precision over recall at IoU 0.5, all categories or one."""
    choices = []
    for row, name in enumerate(("mean over categories", *CATEGORIES)):
        series = [
            _series(model, colours.get(model, 0), 100 * RECALLS, 100 * curves[row])
            for model, curves in found.curves.items()
            if not np.isnan(curves[row]).any()
        ]
        choices += [{"name": name, "series": series}] if series else []
    x, y = _axis("recall, percent", 0, 100), _axis("precision, percent", 0, 100)
    return _chart("precision-recall", "Precision over recall, IoU 0.5", "lines", x, y, choices)


def confusion(found: Detection) -> Chart:
    """Share of each true category that was found as what; counts are in the cells' words."""
    names = [*CATEGORIES, "background"]
    seen = [i for i in range(len(names)) if found.confusion[i].any() or found.confusion[:, i].any()]
    counts = found.confusion[np.ix_(seen, seen)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [names[i] for i in seen]
    columns = [name if name != "background" else "not found" for name in labels]
    rows = [name if name != "background" else "no garment" for name in labels]
    series = {"x": columns, "y": rows, "z": [rounded(row, 3) for row in shares], "counts": counts.tolist()}
    return _chart(
        "confusion",
        "What is taken for what",
        "heat",
        _axis("found as"),
        _axis("true"),
        [{"name": "", "series": [series]}],
    )


def accuracy(curves: Mapping[str, np.ndarray], boxes: str, colours: Mapping[str, int]) -> Chart:
    """Accuracy at each list length."""
    series = [
        _series(name, colours.get(name, 0), np.arange(1, len(curve) + 1), 100 * curve) for name, curve in curves.items()
    ]
    x, y = _axis("first k results"), _axis("queries with a right one, percent")
    whole = _chart(f"accuracy-{boxes}", f"{boxes.capitalize()} boxes", "lines", x, y, [{"name": "", "series": series}])
    return whole | {"labels": "ends"}


def by_part(models: Mapping[str, dict[str, Any]], boxes: str, colours: Mapping[str, int]) -> Chart | None:
    """Top-10 of each model per category, or per level of an attribute; rows with their number of queries."""
    choices = []
    for part, rows in parts(dict(models)):
        labels = [f"{name} ({next((f['queries'] for f in found if f.get('queries')), 0):,})" for name, found in rows]
        series = [
            _series(model, colours.get(model, 0), [_top(found[m]) for _, found in rows], labels)
            for m, model in enumerate(models)
        ]
        choices += [{"name": f"per {part}", "series": series}] if rows else []
    x, y = _axis("top-10, percent", -2, 102), _axis("")
    return _chart(f"parts-{boxes}", f"{boxes.capitalize()} boxes", "dots", x, y, choices) if choices else None


def similarity(found: Histogram, boxes: str) -> Chart:
    """How similar first results are, those that are right and those that are wrong."""
    middles = (found.edges[:-1] + found.edges[1:]) / 2
    series = [
        _series(f"{name} ({counts.sum():,})", name, middles, counts, 4)
        for name, counts in (("right", found.right), ("wrong", found.wrong))
    ]
    x, y = _axis("similarity of the first result"), _axis("queries")
    return _chart(f"similarity-{boxes}", f"{boxes.capitalize()} boxes", "bars", x, y, [{"name": "", "series": series}])


def throughput(times: Sequence[StageTime]) -> Chart | None:
    known = [time for time in times if time.rate is not None]
    if not known:
        return None
    series = [_series("photos per worker second", 1, [time.rate for time in known], [time.stage for time in known], 3)]
    x = _axis("photos per worker second, logarithmic") | {"log": True}
    return _chart("throughput", "Speed of each stage", "dots", x, _axis(""), [{"name": "", "series": series}])


def cost(study: Study, number: int) -> Chart:
    """Accuracy over seconds, a point a variant; its bar is the interval of its difference to the base."""
    series = []
    for group in dict.fromkeys(row["group"] for row in study.rows):
        rows = [
            row
            for row in study.rows
            if row["group"] == group and row["value"] is not None and row["seconds"] is not None
        ]
        one = _series(
            group, GROUP_COLOURS.get(group, 6), [row["seconds"] for row in rows], [100 * row["value"] for row in rows]
        )
        series.append(one | {"text": [row["name"] for row in rows], "bars": [_bar(row) for row in rows]})
    x, y = _axis("seconds, logarithmic") | {"log": True}, _axis(f"{study.metric}, percent")
    return _chart(f"cost-{number}", study.title, "points", x, y, [{"name": "", "series": series}])


GROUP_COLOURS = {"base": 0, "single": 1, "greedy": 2, "removed": 3, "tuned": 4}


def _bar(row: dict[str, Any]) -> list[float] | None:
    """How far the interval reaches below and above the value, in points."""
    if row["low"] is None or row["high"] is None or row["difference"] is None:
        return None
    return [round(100 * (row["difference"] - row["low"]), 3), round(100 * (row["high"] - row["difference"]), 3)]


def _top(figures: dict[str, Any]) -> float | None:
    value = (figures.get("top") or {}).get("10")
    return None if value is None else 100 * value


def _series(name: str, colour: int | str, x: Any, y: Any, digits: int = 3) -> dict[str, Any]:
    """Numbers short, names as they are."""
    told = [values if len(values) and isinstance(values[0], str) else rounded(values, digits) for values in (x, y)]
    return {"name": name, "colour": colour, "x": list(told[0]), "y": list(told[1])}


def _axis(title: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"title": title} if low is None else {"title": title, "range": [low, high]}


def _chart(name: str, title: str, kind: str, x: dict, y: dict, choices: list[dict[str, Any]]) -> Chart:
    return {"id": name, "title": title, "kind": kind, "x": x, "y": y, "choices": choices}
