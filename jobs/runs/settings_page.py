"""The tables of docs/settings.md, made of the settings' own descriptions, defaults and bounds.

python -m jobs.runs.settings_page
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.runs.settings import PROFILES, Settings
from jobs.runs.validation import Schema, allowed
from jobs.runs.yaml_text import read_yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
FIRST = "## The run\n"  # what stands above it is written by hand


def page() -> str:
    """The page as Markdown: the settings of the run itself first, then those of each group."""
    schema = Settings.model_json_schema()
    profiles = {path.stem: read_yaml(path, "profile") for path in sorted(PROFILES.glob("*.yaml"))}
    fields: dict[str, Schema] = schema["properties"]
    sections = [
        PAGE.read_text("utf-8").partition(FIRST)[0] + FIRST,
        *_table({name: f for name, f in fields.items() if "$ref" not in f}, profiles),
    ]
    for name, field in fields.items():
        if "$ref" in field:
            group = schema["$defs"][field["$ref"].rpartition("/")[2]]
            sections += [f"\n## `{name}`\n", f"{group['description']}\n"]
            changes = {profile: values.get(name, {}) for profile, values in profiles.items()}
            sections += _table(group["properties"], changes, f"{name}.")
    return "\n".join(sections) + "\n"


def _table(fields: Mapping[str, Schema], profiles: Mapping[str, Mapping], prefix: str = "") -> Iterator[str]:
    yield "| setting | what it says | allowed | default |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        defaults: dict[str, Any] = {"": field["default"]} if field["default"] not in ("", []) else {}
        defaults |= {f"{profile}: ": values[name] for profile, values in profiles.items() if name in values}
        cell = "; ".join(f"{profile}`{json.dumps(value)}`" for profile, value in defaults.items())
        description = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", field["description"])
        yield f"| `{prefix}{name}` | {description} | {allowed(field)} | {cell} |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
