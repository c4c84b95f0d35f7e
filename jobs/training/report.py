"""The report of a training: `report/index.html` beside the checkpoints, for a browser, a bucket or an archive.

In: the training's log (lines of `jobs/training/run.py`), facts and tables ready to print, and the worst mistakes with
their pictures. Out: a static page with curves, tables and mistakes; relative links, no scripts. Called by both training jobs.
"""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from jobs.training.run import LOG
from store.objects import ObjectStore

if TYPE_CHECKING:
    import numpy as np

PAGE = "report/index.html"
PICTURES = "report/pictures/"
MAX_MISTAKES = 40
LONGEST_PX = 256  # longer side of a mistake's picture
CHART_PX = (440, 250)  # small, so that its text is still read on a phone
MAX_POINTS = 600  # of one curve; a longer log is averaged over neighbouring lines
MARKED_POINTS = 20  # a curve of so few gets a dot at each
LOG_SCALE_FROM = 50.0  # highest over lowest loss from which the axis is logarithmic

# Each stands out by 3:1 or nearly so from a white and from a near-black page; where they run out the next dashes begin.
COLOURS = ("#3a86d4", "#c4701f", "#2f9e6e", "#cf5c8a", "#8a6fd1", "#8f8a1f", "#2b98a8")
DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
AXES = "#787e87"  # 4:1 from both pages


@dataclass(frozen=True)
class Mistake:
    """One thing the model gets wrong."""

    caption: str  # what is wrong, in words; may hold hostile text, is escaped
    pictures: tuple[tuple[str, "np.ndarray"], ...]  # (label, (h, w, 3) uint8 RGB), e.g. query, found first, right


@dataclass(frozen=True)
class Curve:
    """Figures of one name over a training; steps rise."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]  # finite

    @property
    def best(self) -> tuple[float, float]:
        """The highest value and the first step that reached it."""
        value = max(self.values)
        return value, self.steps[self.values.index(value)]


@dataclass(frozen=True)
class Chart:
    """Curves that share an axis, and what the page says in their place or beside them."""

    title: str
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = ()
    from_zero: bool = True  # the axis begins at 0
    highest: bool = False  # the legend tells the best value

    @property
    def drawn(self) -> bool:
        return any(len(curve.steps) > 1 for curve in self.curves)

    @property
    def logarithmic(self) -> bool:
        values = [value for curve in self.curves for value in curve.values]
        return self.title == "Losses" and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM


@dataclass(frozen=True)
class Shot:
    """A picture that was written beside the page; path relative to the page."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    text: str
    number: bool  # stands at the right


def write(
    store: ObjectStore,
    *,
    title: str,
    facts: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    mistakes: Sequence[Mistake],
) -> str:
    """Publish report/index.html and its pictures under `store`; returns the address of the page.

    Pictures are named by their bytes and the page is written after them, so a reader never sees an old page with new
    pictures. Those that only an earlier page showed are removed last.

    Args:
        store: the training's folder.
        title: heading of the page.
        facts: model, data, steps, time … in the order to show.
        log: lines {"step", "part": train | held_out, …figures}, in any order; of two values at a step the later counts.
        tables: title -> rows with the same keys.
        mistakes: worst first; the first 40 are shown.

    Raises:
        ValueError: a mistake's picture is not (h, w, 3) uint8.
    """
    shown = mistakes[:MAX_MISTAKES]
    pictures: dict[str, bytes] = {}  # file name -> its bytes
    page = _template().render(
        title=title,
        facts=[(name, _fact(value)) for name, value in facts.items()],
        charts=[(chart, _chart_shot(chart, pictures), _legend(chart)) for chart in _charts(log)],
        tables=[(name, *_table(rows)) for name, rows in tables.items()],
        mistakes=[(m.caption, [(label, _shot(label, image, pictures)) for label, image in m.pictures]) for m in shown],
        left_out=len(mistakes) - len(shown),
        log=LOG if store.exists(LOG) else None,
    )
    for name, data in pictures.items():
        store.write(PICTURES + name, data)
    store.write(PAGE, page.encode("utf-8", "replace"))
    for entry in store.list(PICTURES):
        if entry.key.removeprefix(PICTURES) not in pictures:
            store.delete(entry.key)
    return f"{str(store.uri).rstrip('/')}/{PAGE}"


# ---- curves --------------------------------------------------------------------------------------------------------


def _charts(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses, learning rate and held-out figures, said to be absent where they are; speed and others where there are any."""
    train, held_out = _curves(log, "train"), _curves(log, "held_out")
    rates = [curve for curve in train if curve.name in ("rate", "lr")]
    speeds = [curve for curve in train if curve.name.endswith("_per_s")]
    losses = sorted((c for c in train if c not in rates + speeds), key=lambda curve: curve.name != "loss")
    counts = [c for c in held_out if len(set(c.values)) == 1 and c.values[0] > 1]  # images, queries: no curve
    shares = [c for c in held_out if c not in counts and min(c.values) >= 0 and max(c.values) <= 1]
    others = [c for c in held_out if c not in counts + shares]
    charts = [
        Chart("Losses", tuple(losses), _left_out(log, "train")),
        Chart("Learning rate", tuple(rates), highest=True),
        Chart(
            "Held out",
            tuple(shares),
            (*(f"{curve.name} {_figure(curve.values[0])}" for curve in counts), *_left_out(log, "held_out")),
            from_zero=False,
            highest=True,
        ),
    ]
    if others:
        charts.append(Chart("Held out, other figures", tuple(others), from_zero=False))
    if speeds:
        charts.append(Chart("Speed", tuple(speeds)))
    return charts


def _curves(log: Sequence[Mapping[str, Any]], part: str) -> list[Curve]:
    """The finite figures of a part by name, in the order in which they first appear."""
    points: dict[str, dict[float, float]] = {}
    for line in log:
        if line["part"] == part:
            for name, value in _figures(line):
                if _is_finite(value):
                    points.setdefault(name, {})[line["step"]] = float(value)
    return [_thinned(name, sorted(found.items())) for name, found in points.items()]


def _thinned(name: str, points: list[tuple[float, float]]) -> Curve:
    """At most MAX_POINTS points: means over as many neighbours as that takes, at the last one's step."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = (sum(value for _, value in group) / len(group) for group in groups)
    return Curve(name, tuple(group[-1][0] for group in groups), tuple(means))


def _figures(line: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in line.items() if name not in ("step", "part")]


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _left_out(log: Sequence[Mapping[str, Any]], part: str) -> tuple[str, ...]:
    """A note where values are no finite numbers; none otherwise."""
    lost = sum(not _is_finite(value) for line in log if line["part"] == part for _, value in _figures(line))
    return (f"{lost} {'value is' if lost == 1 else 'values are'} no finite number and not drawn",) if lost else ()


def _style(place: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the curve at `place` in its chart."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _chart_shot(chart: Chart, pictures: dict[str, bytes]) -> Shot | None:
    """Draw a chart into `pictures`; None where nothing in it is a curve."""
    if not chart.drawn:
        return None
    data = _draw(chart)
    stem = chart.title.lower().replace(",", "").replace(" ", "-")
    name = f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}.svg"
    pictures[name] = data
    return Shot(f"pictures/{name}", *CHART_PX)


def _draw(chart: Chart) -> bytes:
    """The chart as SVG, transparent, text as text; the same curves give the same bytes. No window system, no pyplot."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "training report",
        "font.size": 12.5,
        "font.family": "sans-serif",
    }
    settings |= {name: AXES for name in ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}
    with matplotlib.style.context(["default", settings]):  # whatever a matplotlibrc says
        figure = Figure(figsize=(CHART_PX[0] / 72, CHART_PX[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        for place, curve in enumerate(chart.curves):
            colour, dashes = _style(place)
            axes.plot(
                curve.steps,
                curve.values,
                color=colour,
                linewidth=2.2 if place == 0 else 1.6,
                linestyle=(0, dashes) if dashes else "-",
                marker="o" if len(curve.steps) <= MARKED_POINTS else None,
                markersize=4,
                zorder=len(chart.curves) - place + 2,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        if chart.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.yaxis.set_minor_locator(LogLocator(subs=()))
        elif chart.from_zero and min(value for curve in chart.curves for value in curve.values) >= 0:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(color=AXES, alpha=0.25, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        data = io.BytesIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data.getvalue()


def _legend(chart: Chart) -> list[dict[str, Any]]:
    """A row per curve: how it is drawn, and its first, last and highest figure; values alone where nothing is drawn."""
    rows = []
    for place, curve in enumerate(chart.curves):
        colour, dashes = _style(place)
        dash = " ".join(f"{2 * part:g}" for part in dashes)
        first, last, (best, step) = curve.values[0], curve.values[-1], curve.best
        figures = {"first": _figure(first), "last": _figure(last)}
        if chart.highest:
            figures["highest"] = f"{_figure(best)} at {step:,}"
        if not chart.drawn:
            figures = {"step": f"{step:,}", "value": _figure(last)}
        rows.append({"colour": colour, "dashes": dash, "name": curve.name, "figures": figures})
    return rows


def alt_text(chart: Chart) -> str:
    """What a chart shows, for someone who does not see it."""
    told = [f"{c.name} from {_figure(c.values[0])} to {_figure(c.values[-1])}" for c in chart.curves[:6]]
    if more := len(chart.curves) - len(told):
        told.append(f"{more} more in the table")
    steps = [step for curve in chart.curves for step in curve.steps]
    return f"{chart.title} over steps {min(steps):,} to {max(steps):,}: {'; '.join(told)}"


# ---- mistakes ------------------------------------------------------------------------------------------------------


def _shot(label: str, image: "np.ndarray", pictures: dict[str, bytes]) -> Shot | None:
    """Shrink and encode a picture into `pictures`; None where it has no area."""
    from jobs import overlay

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype.name != "uint8":
        raise ValueError(f"picture {label!r}: want (h, w, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if not image.size:
        return None
    small = overlay.photo_with_marks(image, [], longest_px=LONGEST_PX)
    name = f"mistake-{hashlib.sha256(small.jpeg).hexdigest()[:16]}.jpg"
    pictures[name] = small.jpeg
    return Shot(f"pictures/{name}", small.width, small.height)


# ---- printing ------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, bool]], list[list[Cell]]]:
    """Heads (name, whether its column is numbers) and cells; a key that a row lacks is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [(name, _is_number_column(row.get(name) for row in rows)) for name in names]
    return head, [[Cell(_cell(row.get(name)), number) for name, number in head] for row in rows]


def _is_number_column(values: Iterable[Any]) -> bool:
    """Nothing in it but numbers and gaps."""
    return all(value is None or (isinstance(value, Real) and not isinstance(value, bool)) for value in values)


def _cell(value: Any) -> str:
    """0.45678 -> 0.457; 1234 -> 1,234; None or no finite number -> a dash."""
    if isinstance(value, Real) and not isinstance(value, bool | Integral):
        return f"{float(value):z,.3f}" if math.isfinite(value) else "–"
    return _fact(value)


def _fact(value: Any) -> str:
    """A value as a person says it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return _figure(float(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(part) for part in value) or "–"
    return str(value)


def _figure(value: float) -> str:
    """Four digits that count; large numbers in full: 0.001234, 12,346."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["alt_text"] = alt_text
    return env.get_template("training.html.j2")
