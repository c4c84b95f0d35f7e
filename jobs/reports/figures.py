"""The figures of metrics.json, in whole or in part, as the pages show them: tables with the best figure marked, the
order of names, a colour for each model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.reports.pages import Cell, Table, count, percent
from store.categories import DEEPFASHION2, recorded

BOXES = ("detected", "true")
KS = ("1", "5", "10", "15", "20")
AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50")
EXTRA_AP_COLUMNS = (("consumers", "AP10"), ("masks", "AP10_50"))  # consumer photos alone; masks instead of boxes
LIST_FIGURES = {"mAP": "map", "MRR": "mrr"}  # title -> name in metrics.json; nDCG@10 beside them
OTHER_TOPS = {"own category": "top_one_category", "any category": "top_any_category"}  # title -> name in metrics.json
OTHER_KS = ("1", "10")  # lengths at which they, and parts of the queries, are shown
COMBINED = ("fused", "concat", "steps")  # made of several models
N_COLOURS = 6  # of single models, in assets/report.css; a seventh has the first colour again, dotted
# DeepFashion2's meanings of the levels 1, 2, 3
ATTRIBUTES = {
    "scale": ("small", "modest", "large"),
    "occlusion": ("slight", "medium", "heavy"),
    "zoom_in": ("none", "medium", "large"),
    "viewpoint": ("not worn", "frontal", "side or back"),
}


def colours(metrics: dict[str, Any]) -> dict[str, int]:
    """The number of each model's colour, the same on every page: 1, 2, … for detectors and for embedders, in order.

    What is made of several models has 0, and concat beside further steps -1.
    """
    numbers: dict[str, int] = {}
    parts = [metrics.get("detection") or {}, *((metrics.get("retrieval") or {}).get(boxes) or {} for boxes in BOXES)]
    for part in parts:
        single = [name for name in part if name not in COMBINED]
        numbers |= {name: n for n, name in enumerate(single, 1)} | {name: 0 for name in part if name in COMBINED}
        numbers |= {"concat": -1} if {"concat", "steps"} <= set(part) else {}
    return numbers


def accuracy_at(figures: dict[str, Any], k: str) -> float | None:
    """Acc@k of one model, in [0, 1]; None where it was not measured."""
    return (figures.get("top") or {}).get(k)


def known_lengths(models: Mapping[str, dict[str, Any]], ks: Sequence[str]) -> list[str]:
    """Those of the lengths at which any model's Acc@k is known: lists end at `search.top_k`."""
    return [k for k in ks if any(accuracy_at(row, k) is not None for row in models.values())]


def main_length(models: Mapping[str, dict[str, Any]]) -> str | None:
    """The length whose Acc@k stands for a run: 10, or the longest that is known; None where none is."""
    return next(iter(known_lengths(models, ("10", "5", "1"))), None)


def final_list(boxes: str) -> str:
    """The name of a run's final list, which two runs may have made of different models."""
    return f"{boxes} boxes, final list"


def final_name(models: Iterable[str]) -> str | None:
    """The model whose list is rankings/BOXES.parquet: the one after all steps, else of all models together, else the
    only one.

    >>> final_name(["lite0", "lite1", "concat"])
    'concat'
    """
    names = list(models)
    return next((name for name in ("steps", "concat") if name in names), names[0] if names else None)


def detectors(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The detection figures; {} where none of them was measured."""
    rows = metrics.get("detection") or {}
    return rows if any(row.get(c) is not None for row in rows.values() for c in AP_COLUMNS) else {}


def judged_models(metrics: dict[str, Any], boxes: str) -> dict[str, dict[str, Any]]:
    """The retrieval figures of one kind of boxes; {} where there was no query to judge."""
    models = (metrics.get("retrieval") or {}).get(boxes) or {}
    return models if any(row.get("queries") for row in models.values()) else {}


def judged_images(metrics: dict[str, Any]) -> int | None:
    return next((row.get("images") for row in detectors(metrics).values()), None)


def ap_table(metrics: dict[str, Any]) -> Table | None:
    """AP of every detector and of the fused boxes; the extra columns where they were measured."""
    rows = detectors(metrics)
    shown = [c for c in AP_COLUMNS if not c.startswith("AP10") or recorded(metrics) == DEEPFASHION2]
    columns = {c: [row.get(c) for row in rows.values()] for c in shown}
    for part, measure in EXTRA_AP_COLUMNS:
        values = [(row.get(part) or {}).get(measure) for row in rows.values()]
        columns |= {f"{measure}, {part}": values} if any(value is not None for value in values) else {}
    return _table(rows, columns) if rows else None


def ap_categories(metrics: dict[str, Any]) -> Table | None:
    """AP per category: a column per detector, the best of each row bold, then AP50 of the fused boxes and the items."""
    named = {name: row.get("per_category") or {} for name, row in detectors(metrics).items()}
    categories = _in_order((category for figures in named.values() for category in figures), recorded(metrics))
    if not categories:
        return None
    last = "fused" if "fused" in named else next(iter(named))
    rows = []
    for category in categories:
        cells = _best_cells([(figures.get(category) or {}).get("AP") for figures in named.values()])
        fused = named[last].get(category) or {}
        rows.append((category, [*cells, Cell(percent(fused.get("AP50"))), Cell(count(fused.get("items")))]))
    return Table([*named, last, "items"], rows, (("AP", len(named)), ("AP50", 1), ("", 1)))


def accuracy_tables(metrics: dict[str, Any]) -> list[tuple[str, Table]]:
    """For each kind of boxes that was judged, Acc@k, mAP, MRR and nDCG of every model."""
    tables = []
    for boxes in BOXES:
        if models := judged_models(metrics, boxes):
            ks = known_lengths(models, KS)
            columns = {f"Acc@{k}": [accuracy_at(row, k) for row in models.values()] for k in ks}
            groups = [("", len(ks))]
            for title, key in other_tops(metrics, boxes).items():
                ks = known_lengths(models, OTHER_KS)
                columns |= {f"Acc@{k}, {title}": [row[key].get(k) for row in models.values()] for k in ks}
                groups.append((title, len(ks)))
            extra = {title: [row.get(name) for row in models.values()] for title, name in LIST_FIGURES.items()}
            extra["nDCG@10"] = [(row.get("ndcg") or {}).get("10") for row in models.values()]
            extra = {title: values for title, values in extra.items() if any(v is not None for v in values)}
            table = _table(models, columns | extra)
            for (_, cells), row in zip(table.rows, models.values(), strict=True):
                cells += [Cell(count(row.get("missed"))), Cell(count(row.get("queries")))]
            head = [*(title.partition(",")[0] for title in table.head), "missed", "queries"]
            several = (*groups, ("", len(extra) + 2)) if len(groups) > 1 else ()
            tables.append((boxes, Table(head, table.rows, several)))
    return tables


def other_tops(metrics: dict[str, Any], boxes: str) -> dict[str, str]:
    """Those of OTHER_TOPS that say more than `top`: with detected boxes, where boxes may have several categories."""
    rows = judged_models(metrics, boxes).values()
    return {
        title: key
        for title, key in OTHER_TOPS.items()
        if all(row.get(key) for row in rows) and any(row[key] != row.get("top") for row in rows)
    }


def graded_tables(metrics: dict[str, Any]) -> list[tuple[str, Table]]:
    """LookBench's figures where photos are graded: a table for each grade, subset and kind of boxes."""
    tables = []
    for boxes in BOXES:
        models = (metrics.get("retrieval") or {}).get(boxes) or {}
        for grade in ("fine", "coarse"):
            for subset in dict.fromkeys(name for row in models.values() for name in row.get(grade) or {}):
                parts = {name: row[grade][subset] for name, row in models.items() if subset in (row.get(grade) or {})}
                columns = {
                    f"{title}@{k}": [part[measure][k] for part in parts.values()]
                    for title, measure in (("Recall", "recall"), ("nDCG", "ndcg"))
                    for k in next(iter(parts.values()))[measure]
                    if any(part[measure][k] is not None for part in parts.values())
                }
                queries = next(iter(parts.values()))["queries"]
                title = f"{subset}, {grade}, {boxes} boxes, {count(queries)} queries"
                tables.append((title, _table(parts, columns)))
    return tables


def accuracy_parts(metrics: dict[str, Any], boxes: str) -> list[tuple[str, Table]]:
    """Acc@1 and Acc@10, as far as known, of every model per category and per level of each attribute with queries.

    The best model of each row is bold, the number of queries comes last.
    """
    models = judged_models(metrics, boxes)
    tables, ks = [], known_lengths(models, OTHER_KS)
    for name, rows in parts(models, recorded(metrics)):
        lines = []
        for row_name, figures in rows:
            cells = [cell for k in ks for cell in _best_cells([accuracy_at(f, k) for f in figures])]
            queries = next((f["queries"] for f in figures if f.get("queries") is not None), None)
            lines.append((row_name, [*cells, Cell(count(queries))]))
        groups = (*((f"Acc@{k}", len(models)) for k in ks), ("", 1))
        tables += [(name, Table([*models] * len(ks) + ["queries"], lines, groups))] if lines else []
    return tables


def parts(
    models: dict[str, dict[str, Any]], categories: Sequence[str]
) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """What accuracy is split by: a name, then for each category or level its name and the figures of every model."""
    per_category = [row.get("per_category") or {} for row in models.values()]
    asked = (name for per in per_category for name, part in per.items() if part.get("queries"))
    rows_of = [(name, [per.get(name) or {} for per in per_category]) for name in _in_order(asked, categories)]
    split = [("category", rows_of)]
    for attribute, meanings in ATTRIBUTES.items():
        per = [(row.get("per_attribute") or {}).get(attribute) or {} for row in models.values()]
        levels = [(f"{level} {word}", [p.get(str(level)) or {} for p in per]) for level, word in enumerate(meanings, 1)]
        split.append((attribute.replace("_", " "), [row for row in levels if any(row[1])]))
    return split


def better_alone(metrics: dict[str, Any], final: Mapping[str, str | None]) -> list[str]:
    """A sentence for every single model that beats what is made of all: in AP50 or AP10_50 the fused boxes, in Acc@10
    the final list. `final` names it for each kind of boxes; a model alone is not compared with itself."""
    rows = detectors(metrics)
    found = [
        _beaten(measure, "the fused boxes", {name: row.get(measure) for name, row in rows.items()}, "fused")
        for measure in ("AP50", "AP10_50")
    ]
    for boxes, name in final.items():
        models = {model: accuracy_at(row, "10") for model, row in judged_models(metrics, boxes).items()}
        if name in COMBINED:
            found.append(_beaten(f"Acc@10 with {boxes} boxes", "the final list", models, name))
    return [sentence for sentence in found if sentence]


def _beaten(measure: str, whole: str, values: Mapping[str, float | None], combined: str | None) -> str:
    single = {name: value for name, value in values.items() if value is not None and name not in COMBINED}
    together = values.get(combined or "")
    if not single or together is None:
        return ""
    best = max(single, key=lambda name: single[name])
    if round(single[best], 3) <= round(together, 3):
        return ""
    return f"{best} alone is better than {whole}: {measure} {percent(single[best])} against {percent(together)}."


def _table(names: Iterable[str], columns: dict[str, list[float | None]]) -> Table:
    """Columns of fractions as percent, the best of each bold; `names` are those of the rows."""
    rows = zip(*map(_best_cells, columns.values()), strict=True)
    return Table(list(columns), [(name, list(cells)) for name, cells in zip(names, rows, strict=True)])


def _best_cells(values: list[float | None]) -> list[Cell]:
    """Fractions as percent, the highest as printed bold; none is bold where fewer than two can be compared."""
    measured = [round(v, 3) for v in values if v is not None]
    bold = max(measured) if len(measured) > 1 else None
    return [Cell(percent(v), bold is not None and v is not None and round(v, 3) == bold) for v in values]


def _in_order(names: Iterable[str], categories: Sequence[str]) -> list[str]:
    """Each category name once, in the order of the run's categories, others after them."""
    places = {name: place for place, name in enumerate(categories)}
    return sorted(dict.fromkeys(names), key=lambda name: places.get(name, len(places)))
