"""The tables of a report: metrics.json's figures as cells to print, the best marked; how numbers are spelt; a colour for each model.

In: metrics.json as the contract has it, in whole or in part. Out: `Table` records for the page templates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from detection.categories import AP10_IDS, CATEGORIES

BOXES = ("detected", "true")
KS = ("1", "5", "10", "15", "20")
AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50")
APART = (("consumers", "AP10"), ("masks", "AP10_50"))  # consumers' photos alone; masks instead of boxes
TOGETHER = ("fused", "concat", "steps")  # what is made of several models
N_COLOURS = 6  # of single models, in assets/report.css; more begin anew, with dashes
ATTRIBUTES = {  # DeepFashion2's meanings of the levels 1, 2, 3
    "scale": ("small", "modest", "large"),
    "occlusion": ("slight", "medium", "heavy"),
    "zoom_in": ("none", "medium", "large"),
    "viewpoint": ("not worn", "frontal", "side or back"),
}


@dataclass(frozen=True)
class Cell:
    """One figure of a table: what to print, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[tuple[str, list[Cell]]]  # name of the row, its cells; as many as `head` has entries
    groups: tuple[tuple[str, int], ...] = ()  # a line over the head: words, columns they span


def colours(metrics: dict[str, Any]) -> dict[str, int]:
    """Each model's colour, the same on every page: detectors and embedders 1, 2, … in their order, what is made of several 0, concat
    beside the steps that go beyond it -1."""
    found: dict[str, int] = {}
    parts = [metrics.get("detection") or {}, *((metrics.get("retrieval") or {}).get(boxes) or {} for boxes in BOXES)]
    for part in parts:
        single = [name for name in part if name not in TOGETHER]
        found |= {name: n for n, name in enumerate(single, 1)} | {name: 0 for name in part if name in TOGETHER}
        found |= {"concat": -1} if {"concat", "steps"} <= set(part) else {}
    return found


def tiles(metrics: dict[str, Any]) -> list[tuple[str, str, str, tuple[str, str]]]:
    """The figures on top of the first page: name, value, a word of explanation; owner and measure as `earlier` has them."""
    if not metrics:
        return []
    fused = (metrics.get("detection") or {}).get("fused") or {}
    found = [
        ("AP50, fused", percent(fused.get("AP50")), "boxes right at IoU 0.5, 13 categories", ("fused", "AP50")),
        (
            "AP10_50, fused",
            percent(fused.get("AP10_50")),
            f"the same over {len(AP10_IDS)} categories",
            ("fused", "AP10_50"),
        ),
    ]
    for boxes in BOXES:
        models = judged_models(metrics, boxes)
        name = final_name(models)
        figures: dict[str, Any] = models[name] if name else {}
        note = f"{name}, {count(figures.get('queries'))} queries" if name else "not measured"
        value = percent((figures.get("top") or {}).get("10"))
        found.append((f"Acc@10, {boxes} boxes", value, note, (final_list(boxes), "top-10")))
    images = metrics.get("images") or {}
    told = f"of {count(images.get('total'))}, {count(images.get('failed'))} failed"
    found.append(("images done", count(images.get("done")), told, ("", "")))
    seconds = [s for s in (metrics.get("seconds") or {}).values() if s is not None]
    found.append(("worker time", duration(sum(seconds) if seconds else None), "all stages, all workers", ("", "")))
    return found


def final_list(boxes: str) -> str:
    """What the list of `final_name` is called beside those of the models, whichever it is in either of two runs."""
    return f"{boxes} boxes, final list"


def final_name(models: Iterable[str]) -> str | None:
    """Whose list rankings/BOXES.parquet is: that after all steps, else of all models together, else of the one there is.

    >>> final_name(["lite0", "lite1", "concat"])
    'concat'
    """
    names = list(models)
    return next((name for name in ("steps", "concat") if name in names), names[0] if names else None)


def detectors(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The detection figures; {} where none of them was measured."""
    found = metrics.get("detection") or {}
    return found if any(row.get(c) is not None for row in found.values() for c in AP_COLUMNS) else {}


def judged_models(metrics: dict[str, Any], boxes: str) -> dict[str, dict[str, Any]]:
    """The retrieval figures of one kind of boxes; {} where there was no query to judge."""
    found = (metrics.get("retrieval") or {}).get(boxes) or {}
    return found if any(row.get("queries") for row in found.values()) else {}


def judged_images(metrics: dict[str, Any]) -> int | None:
    return next((row.get("images") for row in detectors(metrics).values()), None)


def ap_table(metrics: dict[str, Any]) -> Table | None:
    rows = detectors(metrics)
    columns: dict[str, list[float | None]] = {c: [row.get(c) for row in rows.values()] for c in AP_COLUMNS}
    for part, measure in APART:  # where they were measured
        values = [(row.get(part) or {}).get(measure) for row in rows.values()]
        columns |= {f"{measure}, {part}": values} if any(value is not None for value in values) else {}
    by_row = zip(*columns.values(), strict=True)
    named = [(name, list(values)) for name, values in zip(rows, by_row, strict=True)]
    return _table(tuple(columns), named) if rows else None


def ap_categories(metrics: dict[str, Any]) -> Table | None:
    """AP per category: a column per detector, the best of each row bold, the item count last."""
    named = {name: row.get("per_category") or {} for name, row in detectors(metrics).items()}
    categories = _in_order(category for figures in named.values() for category in figures)
    if not categories:
        return None
    rows = []
    for category in categories:
        figures = [(per.get(category) or {}).get("AP") for per in named.values()]
        fused = named.get("fused") or next(iter(named.values()))
        extra = fused.get(category) or {}
        cells = [Cell(percent(v), b) for v, b in zip(figures, _best(figures), strict=True)]
        rows.append((category, [*cells, Cell(percent(extra.get("AP50"))), Cell(count(extra.get("items")))]))
    last = "fused" if "fused" in named else next(iter(named))
    return Table([*named, last, "items"], rows, (("AP", len(named)), ("AP50", 1), ("", 1)))


def accuracy(metrics: dict[str, Any], boxes: str) -> Table | None:
    """Top-k accuracy of every model with one kind of boxes."""
    models = judged_models(metrics, boxes)
    if not models:
        return None
    whole = _table(
        [f"top-{k}" for k in KS], [(name, [(row.get("top") or {}).get(k) for k in KS]) for name, row in models.items()]
    )
    counts = [[Cell(count(row.get("missed"))), Cell(count(row.get("queries")))] for row in models.values()]
    rows = [(name, [*cells, *more]) for (name, cells), more in zip(whole.rows, counts, strict=True)]
    return Table([*whole.head, "missed", "queries"], rows)


def accuracy_parts(metrics: dict[str, Any], boxes: str) -> list[tuple[str, Table]]:
    """The same per category and per level of each attribute, where there are queries."""
    models = judged_models(metrics, boxes)
    return [(name, _part(list(models), rows)) for name, rows in parts(models) if rows]


def parts(models: dict[str, dict[str, Any]]) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """What accuracy is told apart by: name, then for each category or level its name and the figures of every model."""
    per_category = [row.get("per_category") or {} for row in models.values()]
    categories = _in_order(name for per in per_category for name, part in per.items() if part.get("queries"))
    found = [("category", [(name, [per.get(name) or {} for per in per_category]) for name in categories])]
    for attribute, meanings in ATTRIBUTES.items():
        per = [(row.get("per_attribute") or {}).get(attribute) or {} for row in models.values()]
        levels = [(f"{level} {word}", [p.get(str(level)) or {} for p in per]) for level, word in enumerate(meanings, 1)]
        found.append((attribute.replace("_", " "), [row for row in levels if any(row[1])]))
    return found


def _part(models: list[str], rows: list[tuple[str, list[dict[str, Any]]]]) -> Table:
    """Top-1 and top-10 of every model per row, the best model of each row bold, the number of queries last."""
    done = []
    for name, figures in rows:
        cells: list[Cell] = []
        for k in ("1", "10"):
            values = [(f.get("top") or {}).get(k) for f in figures]
            cells += [Cell(percent(v), b) for v, b in zip(values, _best(values), strict=True)]
        queries = next((f["queries"] for f in figures if f.get("queries") is not None), None)
        done.append((name, [*cells, Cell(count(queries))]))
    return Table([*models, *models, "queries"], done, (("top-1", len(models)), ("top-10", len(models)), ("", 1)))


def _table(head: Iterable[str], rows: list[tuple[str, list[float | None]]]) -> Table:
    """Fractions as percent, the best of each column marked."""
    best = [_best([values[c] for _, values in rows]) for c in range(len(rows[0][1]))]
    cells = [
        (name, [Cell(percent(v), best[c][r]) for c, v in enumerate(values)]) for r, (name, values) in enumerate(rows)
    ]
    return Table(list(head), cells)


def _best(values: list[float | None]) -> list[bool]:
    """Which values are the highest as printed; none where fewer than two can be compared."""
    known = [round(v, 3) for v in values if v is not None]
    return [len(known) > 1 and v is not None and round(v, 3) == max(known) for v in values]


def _in_order(names: Iterable[str]) -> list[str]:
    """Each category name once, in DeepFashion2's order, others after them."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES))


# ---- printing ------------------------------------------------------------------------------------------------------


def percent(fraction: float | None) -> str:
    """0.4567 -> 45.7; nothing measured -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def signed(fraction: float | None) -> str:
    """A difference in points of percent, with its sign; what rounds to nothing has none.

    >>> signed(0.0123), signed(-0.5), signed(0.0), signed(None)
    ('+1.2', '−50.0', '0.0', '–')
    """
    if fraction is None:
        return "–"
    points = round(100 * fraction, 1)
    return "0.0" if points == 0 else f"{'+' if points > 0 else '−'}{abs(points):.1f}"


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 8.4 s, 12 min 05 s, 3 h 07 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def category(category_id: int) -> str:
    return CATEGORIES[category_id - 1] if 1 <= category_id <= len(CATEGORIES) else f"category {category_id}"
