"""--list-models: the models that a run file and --set can name, and whether their weights are here.

In: the sources of the settings (`jobs.runs.settings.layers`). Out: a line for each model: the shipped ones of both
profiles, and the user's own that the settings name. No network is built.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import detection.models
import retrieval.models
from jobs.runs.catalogue import place_of_weights, weights_folder
from jobs.runs.models import Catalogue
from jobs.runs.settings import Settings, merged
from jobs.runs.validation import build

HEAD = ("name", "kind", "input px", "in this run", "weights")


def model_lines(layers: Mapping[str, Mapping[str, Any]], catalogue: Catalogue) -> Iterator[str]:
    """A table, its columns under HEAD; raises UserError for settings that are refused."""
    settings = build(Settings, merged(layers))
    rows: list[tuple[str, ...]] = [HEAD]
    for kind, ours, entries, find in (
        ("detector", detection.models, settings.detectors, catalogue.detector),
        ("embedder", retrieval.models, settings.embedders, catalogue.embedder),
    ):
        named = {entry if isinstance(entry, str) else entry["name"]: entry for entry in entries}
        for spec in ours.ALL:
            profile = (
                "tiny" if spec in ours.PROFILES["tiny"] else "paper"
            )  # whose folder of weights it is looked for in
            rows.append(_row(kind, spec, settings.replace(profile=profile), spec.name in named))
        shipped = {spec.name for spec in ours.ALL}
        for name, entry in named.items():
            if name in shipped:
                continue
            try:
                rows.append(_row(kind, find(entry), settings, True))
            except (ValueError, TypeError, KeyError) as error:
                rows.append((name, kind, "", "yes", f"refused: {error}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(kind: str, spec: Any, settings: Settings, used: bool) -> tuple[str, ...]:
    return spec.name, f"{kind}, {_architecture(spec)}", _input(spec), "yes" * used, _weights(spec, settings)


def _architecture(spec: Any) -> str:
    """What a spec builds, in the words of its package."""
    for name in ("timm_id", "open_clip", "call"):
        if told := getattr(spec, name, ""):
            return str(told)
    return str(getattr(spec, "model", {}).get("type", "stored results"))


def _input(spec: Any) -> str:
    """The sides of what the network sees, at most."""
    width, height = getattr(spec, "scale_px", (0, 0))
    size = getattr(spec, "input_size", 0)
    return f"{width} x {height}" if width else f"{size} x {size}" if size else ""


def _weights(spec: Any, settings: Settings) -> str:
    if getattr(spec, "stored", False):
        return f"none, results of {', '.join(spec.source)}"
    if not spec.weights:
        return "as published"
    folder, _, name = place_of_weights(spec, weights_folder(settings), settings)
    return f"{'present' if folder.exists(name) else 'absent'}: {folder.uri}/{name}"
