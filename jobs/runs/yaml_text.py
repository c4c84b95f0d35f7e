"""YAML of run files, comparisons and `--set`: texts, finite numbers, truth values, null, lists and mappings only.

A file may come from a stranger. Tags of other programs, anchors (a few lines can stand for billions of values) and
values that only look like text (dates, sets, bytes) are refused with the line they stand in.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from store.errors import UserError

MAX_CHARACTERS = 200_000
TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a file; `what` names its kind in messages. An empty file has none.

    A UserError refuses a file that cannot be read, that `parse_yaml` refuses, or that holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    content = parse_yaml(text, f"{what} {path}")
    if not isinstance(content, dict | None):
        raise UserError(f"{what} {path}: want keys and values, got a {type(content).__name__}")
    return content or {}


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=[1, 2]` -> {"a": {"b": [1, 2]}}."""
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {override}: want KEY=VALUE, e.g. --set fusion.method=nms")
    content = parse_yaml(value, f"--set {key}")
    for name in reversed(key.split(".")):
        content = {name: content}
    return content


def parse_yaml(text: str, where: str) -> Any:
    """Parse a text as one YAML document and return its value; every message begins with `where`.

    Raises:
        UserError: not YAML, too long, nested too deeply, an anchor or alias, a tag, or a number that is not finite.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: {len(text)} characters; want {MAX_CHARACTERS} at most")
    try:
        return _Loader(text, where).get_single_data()
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    # PyYAML does not wrap what its constructors raise: `!!int many` is a plain ValueError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = where

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        place = f"{self.where}, line {event.start_mark.line + 1}"
        if getattr(event, "anchor", None) is not None:  # an alias has its anchor's name
            names = f"&{event.anchor}, *{event.anchor}"
            raise UserError(f"{place}: anchors and aliases ({names}) are refused; write the value out")
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise UserError(f"{place}: {kind} is no plain value; put quotes around what is meant as text")
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":float"):
            number = self.construct_yaml_float(node)
            if not math.isfinite(number):
                raise UserError(f"{place}: want a number, got {node.value}")
        return node
