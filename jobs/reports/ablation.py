"""The page ablation.html: the variants that `jobs/ablate.py` compared, their accuracy and cost.

In: OUTPUT/ablation.parquet, one row per variant; `difference`, `low` and `high` are against the base variant, the
interval holds 95 %.
Out: a `Study` for each part and kind of boxes, its chart, and the queries that a variant helped and hurt.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs.reports import charts
from jobs.reports.charts import Chart
from jobs.runs import tables
from store.objects import ObjectStore

KEY = "ablation.parquet"
MOST_QUERIES = 20  # helped, and as many hurt
UNRANKED = 1_000_000  # instead of a rank where no result is right: further away than any rank
GROUP_COLOURS = {"base": 0, "single": 1, "greedy": 2, "removed": 3, "tuned": 4}
NEEDED = ("part", "boxes", "name", "group", "metric", "value", "difference", "low", "high", "seconds", "peak_mb")


@dataclass(frozen=True)
class Study:
    """Variants that can be compared with each other."""

    title: str  # what was varied
    boxes: str
    metric: str  # the name of what `value` measures, a fraction in [0, 1]
    rows: tuple[dict[str, Any], ...]  # of ablation.parquet

    @property
    def base(self) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["group"] == "base"), None)


def read_studies(output: ObjectStore) -> list[Study]:
    """The studies of a run's ablation, [] where none was made. Raises ValueError where the file lacks a column."""
    if not output.exists(KEY):
        return []
    table = tables.read(output, KEY)
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise ValueError(
            f"{output.uri}/{KEY}: no column {', '.join(missing)}; run jobs/ablate.py again, or remove the file"
        )
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["part"], row["boxes"] or ""), []).append(row)  # "" where fusion is studied
    return [
        Study(_title(part, boxes), boxes, rows[0]["metric"].replace("top-", "Acc@"), tuple(rows))
        for (part, boxes), rows in groups.items()
    ]


def moved(queries: Iterable[dict[str, Any]] | None, *, gained: bool) -> list[dict[str, Any]]:
    """The queries whose first right result moved furthest from its rank without the variant to that with it.

    A rank of 0 stands for no right result, which is further away than any rank.

    >>> rows = [dict(image_id=1, item=0, before=5, after=2), dict(image_id=2, item=0, before=0, after=3)]
    >>> [query["after"] for query in moved(rows, gained=True)]
    [3, 2]
    """

    def order(query: dict[str, Any]) -> tuple[int, int, int]:
        gain = (query["before"] or UNRANKED) - (query["after"] or UNRANKED)
        return -gain if gained else gain, query["image_id"], query["item"]

    return sorted(queries or (), key=order)[:MOST_QUERIES]


def steps_in_words(steps: str | None) -> str:
    """A pipeline's JSON as a line; as it stands where it is no pipeline.

    >>> steps_in_words('[{"step": "concat"}, {"step": "kreciprocal", "k1": 20}]')
    'concat, kreciprocal k1=20'
    """
    try:
        return ", ".join(
            " ".join([str(step["step"]), *(f"{name}={value}" for name, value in step.items() if name != "step")])
            for step in json.loads(steps or "[]")
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return steps or ""


def cost_chart(study: Study, number: int) -> Chart:
    """Accuracy over seconds, a point per variant; its bar is the interval of its difference to the base."""
    series = []
    for group in dict.fromkeys(row["group"] for row in study.rows):
        rows = [r for r in study.rows if r["group"] == group and r["value"] is not None and r["seconds"] is not None]
        seconds, values = [row["seconds"] for row in rows], [100 * row["value"] for row in rows]
        points = charts.series(group, GROUP_COLOURS.get(group, 6), seconds, values)
        series.append(points | {"text": [row["name"] for row in rows], "bars": [_bar(row) for row in rows]})
    x, y = charts.axis("seconds, logarithmic", log=True), charts.axis(f"{study.metric}, percent")
    return charts.chart(f"cost-{number}", study.title, "points", x, y, {"": series})


def _bar(row: dict[str, Any]) -> list[float] | None:
    """How far the interval reaches below and above the value, in percentage points."""
    if row["low"] is None or row["high"] is None or row["difference"] is None:
        return None
    return [round(100 * (row["difference"] - row["low"]), 3), round(100 * (row["high"] - row["difference"]), 3)]


def _title(part: str, boxes: str) -> str:
    return f"Retrieval, {boxes} boxes" if part == "retrieval" else "Fusing boxes" if part == "boxes" else part
