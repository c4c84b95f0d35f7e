"""The table of a comparison: rows of finished trainings in, a line per variant out, as records and as Markdown."""

import statistics
from typing import Any

import numpy as np

from postproc.bootstrap import paired_interval

MEASURES = ("acc@1", "acc@10")
COLUMNS = tuple(f"{part} {measure}" for part in ("held_out", "validation") for measure in MEASURES)


def compare_rows(rows: list[dict[str, Any]], variants: list[str], against: list[str]) -> list[dict[str, Any]]:
    """A line per variant: each seed's figures, mean and sample spread, and the difference from those of `against`."""
    by_variant = {name: [row for row in rows if row["variant"] == name] for name in variants}
    lines = []
    for name, own in by_variant.items():
        line: dict[str, Any] = {"variant": name, "seeds": [row["seed"] for row in own]}
        for column in COLUMNS:
            part, measure = column.split()
            line[column] = spread([row[part][measure] for row in own if row[part] and row[part].get("queries")])
        line["minutes"] = round(sum(row["seconds"] for row in own) / 60 / len(own), 1) if own else None
        line["against"] = {}
        for other in against:
            theirs = {row["seed"]: row for row in by_variant[other]} if other != name else {}
            pairs = [(row, theirs[row["seed"]]) for row in own if row["seed"] in theirs]
            line["against"][other] = difference(pairs) if pairs else None
        lines.append(line)
    return lines


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "each": values,
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
    }


def difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any] | None:
    """Acc@10 less the other variant's on the same seeds: mean and 95 % interval over photos.

    `pairs` are rows of this variant and of the other one, a pair for each seed. A query's value is the share of seeds
    in which it was right. None where the two were judged on different queries.
    """
    photo = pairs[0][0]["ranks"]["photo"]
    if not photo or any(row["ranks"]["photo"] != photo for pair in pairs for row in pair):
        return None
    ranks = np.array([[row["ranks"]["rank"] for row in pair] for pair in pairs])
    ours, theirs = ((ranks >= 1) & (ranks <= 10)).mean(axis=0)
    mean, low, high = paired_interval(ours, theirs, np.array(photo))
    return {"acc@10": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "seeds": len(pairs)}


def winner(lines: list[dict[str, Any]]) -> str:
    """The variant with the best held-out mean of Acc@1 plus Acc@10, the first on ties."""
    best = max(lines, key=lambda line: sum(line[f"held_out {measure}"]["mean"] or 0.0 for measure in MEASURES))
    return best["variant"]


def as_markdown(lines: list[dict[str, Any]]) -> str:
    """The table a person reads."""
    columns = [column for column in COLUMNS if any(line[column]["each"] for line in lines)]
    against = list(lines[0]["against"]) if lines else []
    titles = [column.replace("_", " ").replace("acc@", "Acc@") for column in columns]
    titles += [f"Acc@10 against {name}" for name in against]
    text = ["| " + " | ".join(["variant", *titles, "minutes"]) + " |", "|---|" + "--:|" * (len(titles) + 1)]
    for line in lines:
        cells = [line["variant"], *(_figure(line[column]) for column in columns)]
        cells += [_difference(line["against"].get(name)) for name in against]
        text.append("| " + " | ".join([*cells, "–" if line["minutes"] is None else f"{line['minutes']:.1f}"]) + " |")
    return "\n".join(text) + "\n"


def _figure(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    if value["spread"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} ± {value['spread']:.3f} ({', '.join(f'{figure:.3f}' for figure in value['each'])})"


def _difference(value: dict[str, Any] | None) -> str:
    return "–" if value is None else f"{value['acc@10']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
