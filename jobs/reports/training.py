"""The report of a training: report/index.html beside the checkpoints, for a browser, a bucket or an archive.

In: lines of the training's log, facts and tables ready to print, and the worst mistakes with their pictures. Out: a
static page with relative links; assets/charts.js draws its curves with plotly.js.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from jobs.reports import pages
from jobs.reports.pictures import Shot, photo_with_marks
from store.objects import ObjectStore

LOG = "log.jsonl"  # of the training, beside its report
PICTURES = "report/pictures/"
ASSETS = ("report.css", "charts.js")
MAX_MISTAKES = 40
LONGEST_PX = 256  # longer side of a mistake's picture
MAX_POINTS = 600  # of one curve; a longer log is averaged over neighbouring lines
LOG_SCALE_FROM = 50.0  # highest over lowest loss from which the axis is logarithmic


@dataclass(frozen=True)
class Mistake:
    """One thing the model gets wrong."""

    caption: str  # what is wrong, in words; any text, it is escaped
    pictures: tuple[tuple[str, np.ndarray], ...]  # (label, (h, w, 3) uint8 RGB), e.g. query, found first, right one


@dataclass(frozen=True)
class Curve:
    """Figures of one name over a training: rising steps and finite values, one of each at least."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class CurveChart:
    """Curves that share an axis, and notes beside them."""

    title: str
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = ()
    from_zero: bool = True  # the axis begins at 0 unless a value is negative
    highest: bool = False  # the table beside the chart also has each curve's highest value

    @property
    def id(self) -> str:
        return self.title.lower().replace(",", "").replace(" ", "-")

    @property
    def drawn(self) -> bool:
        return any(len(curve.steps) > 1 for curve in self.curves)

    @property
    def logarithmic(self) -> bool:
        values = [value for curve in self.curves for value in curve.values]
        return self.title == "Losses" and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM

    @property
    def colours(self) -> list[int]:
        """Of each curve, see `jobs.reports.charts`: 0, the boldest, is the sum of the losses."""
        others = itertools.count(1)
        return [0 if curve.name == "loss" else next(others) for curve in self.curves]


def write(
    store: ObjectStore,
    *,
    title: str,
    facts: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    mistakes: Sequence[Mistake],
) -> str:
    """Publish report/index.html and the files it shows in the training's folder; returns the address of the page.

    Pictures are named by their bytes and the page is written after them, so a reader never sees an old page with new
    pictures. Those that only an earlier page showed are removed last.

    Args:
        title: heading of the page.
        facts: model, data, steps, time … in the order to show.
        log: lines {"step", "part": train | held_out, …figures}, in any order; of two values at a step the later counts.
        tables: title -> rows with the same keys.
        mistakes: worst first; the first 40 are shown. A picture that is not (h, w, 3) uint8 raises a ValueError.
    """
    pictures: dict[str, bytes] = {}  # file name -> its bytes
    charts = charts_of(log)
    drawn = [chart for chart in charts if chart.drawn]
    shown = mistakes[:MAX_MISTAKES]
    shots = [(m.caption, [(label, _shot(label, image, pictures)) for label, image in m.pictures]) for m in shown]
    template = pages.environment().get_template("training.html.j2")
    page = template.render(
        title=title,
        facts=[(name, fact_text(value)) for name, value in facts.items()],
        charts=[(chart, legend(chart), alt_text(chart) if chart.drawn else "") for chart in charts],
        drawn=bool(drawn),
        tables=[(name, *table(rows)) for name, rows in tables.items()],
        mistakes=shots,
        left_out=len(mistakes) - len(shown),
        log=LOG if store.exists(LOG) else None,
    )
    pages.publish_assets(store, plotly=bool(drawn), names=ASSETS)
    if drawn:
        pages.publish_data(store, "charts-index", [plot(chart) for chart in drawn])
    for name, data in pictures.items():
        store.write(PICTURES + name, data)
    pages.publish_page(store, "index", page)
    for entry in store.list(PICTURES):
        if entry.key.removeprefix(PICTURES) not in pictures:
            store.delete(entry.key)
    return pages.address(store)


# ---- curves --------------------------------------------------------------------------------------------------------


def charts_of(log: Sequence[Mapping[str, Any]]) -> list[CurveChart]:
    """Always losses, learning rate and held-out figures; speed and other figures where the log has them."""
    train, held_out = _curves(log, "train"), _curves(log, "held_out")
    rates = [curve for curve in train if curve.name in ("rate", "lr")]
    speeds = [curve for curve in train if curve.name.endswith("_per_s")]
    losses = sorted((c for c in train if c not in rates + speeds), key=lambda curve: curve.name != "loss")
    counts = [c for c in held_out if len(set(c.values)) == 1 and c.values[0] > 1]  # images, queries: no curve
    shares = [c for c in held_out if c not in counts and min(c.values) >= 0 and max(c.values) <= 1]
    others = [c for c in held_out if c not in counts + shares]
    notes = (*(f"{curve.name} {figure_text(curve.values[0])}" for curve in counts), *_left_out(log, "held_out"))
    charts = [
        CurveChart("Losses", tuple(losses), _left_out(log, "train")),
        CurveChart("Learning rate", tuple(rates), highest=True),
        CurveChart("Held out", tuple(shares), notes, from_zero=False, highest=True),
    ]
    if others:
        charts.append(CurveChart("Held out, other figures", tuple(others), from_zero=False))
    if speeds:
        charts.append(CurveChart("Speed", tuple(speeds)))
    return charts


def _curves(log: Sequence[Mapping[str, Any]], part: str) -> list[Curve]:
    """The finite figures of a part by name, in the order in which they first appear."""
    points: dict[str, dict[float, float]] = {}
    for step, name, value in _figures(log, part):
        if _is_finite(value):
            points.setdefault(name, {})[step] = float(value)
    return [_thinned(name, sorted(steps.items())) for name, steps in points.items()]


def _thinned(name: str, points: list[tuple[float, float]]) -> Curve:
    """At most MAX_POINTS points: means over as many neighbours as that takes, at the last one's step."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = (sum(value for _, value in group) / len(group) for group in groups)
    return Curve(name, tuple(group[-1][0] for group in groups), tuple(means))


def _figures(log: Sequence[Mapping[str, Any]], part: str) -> Iterator[tuple[float, str, Any]]:
    """Step, name and value of every figure of a part."""
    for line in log:
        if line["part"] == part:
            figures = {name: value for name, value in line.items() if name not in ("step", "part")}
            yield from ((line["step"], spelt(name), value) for name, value in figures.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _left_out(log: Sequence[Mapping[str, Any]], part: str) -> tuple[str, ...]:
    """A note where values are no finite numbers; none otherwise."""
    lost = sum(not _is_finite(value) for _, _, value in _figures(log, part))
    return (f"{lost} {'value is' if lost == 1 else 'values are'} no finite number and not drawn",) if lost else ()


def plot(chart: CurveChart) -> dict[str, Any]:
    """The record that assets/charts.js draws, see `jobs.reports.charts`; the table on the page is its legend."""
    values = [value for curve in chart.curves for value in curve.values]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    bottom = 0.0 if chart.from_zero and low >= 0 else low - room
    series = [
        {"name": curve.name, "colour": colour, "x": curve.steps, "y": [float(f"{value:.6g}") for value in curve.values]}
        for curve, colour in zip(chart.curves, chart.colours, strict=True)
    ]
    y = {"title": "", "log": True} if chart.logarithmic else {"title": "", "range": [bottom, high + room]}
    return {
        "id": chart.id, "title": chart.title, "kind": "lines", "labels": "table", "x": {"title": "step"},
        "y": y | {"format": ".4~g"}, "choices": [{"name": "", "series": series}],
    }  # fmt: skip


def legend(chart: CurveChart) -> list[dict[str, Any]]:
    """A row per curve: its colour, and its first, last and highest figure; values alone where nothing is drawn."""
    rows = []
    for curve, colour in zip(chart.curves, chart.colours, strict=True):
        best = max(curve.values)
        step = f"{curve.steps[curve.values.index(best)]:,}"
        figures = {"first": figure_text(curve.values[0]), "last": figure_text(curve.values[-1])}
        if chart.highest:
            figures["highest"] = f"{figure_text(best)} at {step}"
        if not chart.drawn:
            figures = {"step": step, "value": figure_text(best)}
        rows.append({"colour": colour, "name": curve.name, "figures": figures})
    return rows


def alt_text(chart: CurveChart) -> str:
    """What a chart shows, for someone who does not see it."""
    curves = [f"{c.name} from {figure_text(c.values[0])} to {figure_text(c.values[-1])}" for c in chart.curves[:6]]
    if len(chart.curves) > len(curves):
        curves.append(f"{len(chart.curves) - len(curves)} more in the table")
    steps = [step for curve in chart.curves for step in curve.steps]
    return f"{chart.title} over steps {min(steps):,} to {max(steps):,}: {'; '.join(curves)}"


# ---- mistakes ------------------------------------------------------------------------------------------------------


def _shot(label: str, image: np.ndarray, pictures: dict[str, bytes]) -> Shot | None:
    """Shrink and encode a picture into `pictures`; None where it has no area."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"picture {label!r}: want (h, w, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if not image.size:
        return None
    small = photo_with_marks(image, [], longest_px=LONGEST_PX)
    name = f"mistake-{hashlib.sha256(small.jpeg).hexdigest()[:16]}.jpg"
    pictures[name] = small.jpeg
    return Shot(f"pictures/{name}", small.width, small.height)


# ---- printing ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
    """Heads and cells, each a text and whether its column has only numbers and gaps; what a row lacks is a dash."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [(name, all(row.get(name) is None or _is_number(row[name]) for row in rows)) for name in names]
    head = [(spelt(name), number) for name, number in columns]
    return head, [[(cell_text(row.get(name)), number) for name, number in columns] for row in rows]


def spelt(name: str) -> str:
    """A figure's name as people read it; the keys of logs and summaries stay as they are.

    >>> spelt("acc@10"), spelt("loss")
    ('Acc@10', 'loss')
    """
    return name.replace("acc@", "Acc@")


def cell_text(value: Any) -> str:
    """0.45678 -> 0.457; 1234 -> 1,234; None or no finite number -> a dash."""
    if isinstance(value, Real) and not isinstance(value, bool | Integral):
        return f"{float(value):z,.3f}" if math.isfinite(value) else "–"
    return fact_text(value)


def fact_text(value: Any) -> str:
    """A value as a person says it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return figure_text(float(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{spelt(name)} {fact_text(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(fact_text(part) for part in value) or "–"
    return str(value)


def figure_text(value: float) -> str:
    """Four significant digits; large numbers in full: 0.001234, 12,346."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
