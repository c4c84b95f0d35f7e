"""Charts as plain records, which assets/charts.js draws with plotly.js in the colours of the page.

A chart has an id, a title, a kind (lines, dots, bars, points, heat), two axes, and `choices`: named lists of series,
one list of which is shown at a time. A series' colour is the number of a model (`figures.colours`) or one of the names
in charts.js: right, wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Chart = dict[str, Any]
Series = dict[str, Any]
Points = Sequence[Any] | np.ndarray


def chart(name: str, title: str, kind: str, x: dict, y: dict, choices: Mapping[str, Sequence[Series]]) -> Chart:
    """A chart; with a single choice the name of that choice is not shown."""
    listed = [{"name": choice, "series": list(series)} for choice, series in choices.items()]
    return {"id": name, "title": title, "kind": kind, "x": x, "y": y, "choices": listed}


def series(name: str, colour: int | str, x: Points, y: Points, digits: int = 3) -> Series:
    """One model's points; numbers are rounded, texts stay as they are."""
    short = [values if len(values) and isinstance(values[0], str) else rounded(values, digits) for values in (x, y)]
    return {"name": name, "colour": colour, "x": list(short[0]), "y": list(short[1])}


def axis(title: str, limits: tuple[float, float] | None = None, *, log: bool = False) -> dict[str, Any]:
    """An axis; without limits it fits the points."""
    return {"title": title} | ({"range": list(limits)} if limits else {}) | ({"log": True} if log else {})


def rounded(values: Iterable[float | None] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Figures short enough for a chart.

    >>> rounded([0.123456, None])
    [0.1235, None]
    """
    return [None if value is None else round(float(value), digits) for value in values]
