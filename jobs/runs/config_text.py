"""The settings as text: every one with its value and where that comes from, and their names by group for --help.

What `config_lines` gives is a run file: saved, it can be given to --config.
"""

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.runs.model_list import model_lines
from jobs.runs.models import Catalogue
from jobs.runs.progress import say
from jobs.runs.settings import Settings, check_together, layers, merged, record
from jobs.runs.validation import SettingsRecord, build

WIDEST = 60  # characters of a value beside which its source still stands


def asked(args: argparse.Namespace, catalogue: Catalogue) -> bool:
    """Print what --print-config or --list-models ask for; False where neither was given."""
    if args.print_config:
        say("\n".join(config_lines(layers(args))))
    if args.list_models:
        say("\n".join(model_lines(layers(args), catalogue)))
    return bool(args.print_config or args.list_models)


def config_lines(sources: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each setting, YAML, with its source as a comment; a UserError refuses an impossible value.

    `sources` are those of `jobs.runs.settings.layers`; a setting that none of them has is at its default.
    """
    values = record(check_together(build(Settings, merged(sources))))
    for name, value in values.items():
        if not isinstance(value, dict):
            yield _line(name, value, _source(sources, name))
            continue
        yield f"{name}:"
        for inner, of_inner in value.items():
            yield _line(f"  {inner}", of_inner, _source(sources, name, inner))


def _source(sources: Mapping[str, Mapping[str, Any]], *path: str) -> str:
    """The last layer that has a value at this path."""
    found = "default"
    for source, layer in sources.items():
        here: Any = layer
        for name in path:
            here = here.get(name, sources) if isinstance(here, Mapping) else sources  # which is no setting's value
        if here is not sources:
            found = source
    return found


def _line(name: str, value: Any, source: str) -> str:
    text = f"{name}: {json.dumps(value, ensure_ascii=False)}"
    return f"{text:{WIDEST}}  # {source}"


def groups_of_settings() -> str:
    """The settings' names by group, for the end of --help."""
    fields = Settings.model_fields
    inner = {name: list(kind.model_fields) for name, field in fields.items() if (kind := _group(field))}
    groups = {"": [name for name in fields if name not in inner]} | inner
    lines = ["settings, for --set and the run file (docs/settings.md says what each means, --print-config what it is):"]
    for group, names in groups.items():
        dotted = ", ".join(f"{group}.{name}" if group else name for name in names)
        lines += textwrap.wrap(dotted, 98, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def _group(field: Any) -> type[SettingsRecord] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsRecord) else None
