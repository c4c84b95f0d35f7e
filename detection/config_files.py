"""Configuration files of mmdetection as plain values: Python, YAML or JSON, with what they inherit (`_base_`).

A Python file is code and is executed, in this process, as mmengine does. YAML and JSON are read as data; they may
inherit from one another and from what an installed package ships (`mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py`). No
torch is imported.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import warnings
from pathlib import Path
from typing import Any

import yaml

LONGEST = 1_000_000  # bytes of a YAML or JSON file


class ConfigError(ValueError):
    """A configuration that cannot be read, or is of no use here; one line."""


def read(place: str) -> dict[str, Any]:
    """The configuration as dicts, lists, tuples, texts, numbers, true, false and None.

    `place` is a path, from the working folder where it is relative, or PACKAGE::PATH for a file that an installed
    package ships. Raises ConfigError for anything that cannot be read or holds other values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated in it
            config = _load(place, Path()).to_dict()
        return _plain(config, "")
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a Python file may raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"cannot be read ({type(error).__name__}: {reason})") from error


@functools.cache
def dataset_names(kind: str) -> tuple[str, ...]:
    """The classes of one of mmdetection's own data sets by its type, such as `CocoDataset`; () where it has none.

    They are read from the installed package's source, as importing it would import torch.
    """
    for path in sorted((_package("mmdet") / "datasets").glob("*.py")):
        if f"class {kind}(" not in (source := path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and node.name == kind:
                return _metainfo_classes(node)
    return ()


def _metainfo_classes(node: ast.ClassDef) -> tuple[str, ...]:
    for line in node.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "METAINFO":
            keys = line.value.keys if isinstance(line.value, ast.Dict) else ()
            for key, value in zip(keys, getattr(line.value, "values", ()), strict=False):
                if isinstance(key, ast.Constant) and key.value == "classes":
                    with contextlib.suppress(ValueError):
                        names = ast.literal_eval(value)
                        return (names,) if isinstance(names, str) else tuple(names)
    return ()


def _load(place: str, folder: Path) -> Any:
    """mmengine's `Config` of a file; a relative path is looked for in `folder`."""
    from mmengine.config import Config

    if "::" in place:
        return _run(_shipped(place))
    path = folder / Path(place).expanduser()
    if path.suffix == ".py" and folder == Path():
        return _run(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        here = ".py, .yaml or .json" if folder == Path() else ".yaml or .json, or PACKAGE::FILE.py"
        raise ConfigError(f"{place:.200} is no configuration file; want {here}")
    content = _data(path)
    bases = content.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"_base_ wants a path or a list of paths, got {bases!r:.200}")
    merged = Config()
    for base in bases:
        merged.merge_from_dict(_load(base, path.parent.resolve()).to_dict())
    merged.merge_from_dict(content)
    return merged


def _run(path: Path) -> Any:
    """Execute a Python configuration. What it imports by `custom_imports` waits for the workers."""
    from mmengine.config import Config

    if not path.is_file():
        raise ConfigError(f"no file {path!s:.200} here")
    with contextlib.redirect_stdout(io.StringIO()):
        return Config.fromfile(path, import_custom_modules=False, format_python_code=False)


def _shipped(place: str) -> Path:
    """The file behind PACKAGE::PATH, as `mim` installs them."""
    package, _, path = place.partition("::")
    if not package.isidentifier() or ".." in Path(path).parts or Path(path).suffix != ".py":
        raise ConfigError(f"{place:.200} is no PACKAGE::PATH.py")
    return _package(package) / ".mim" / "configs" / path


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ConfigError(f"package {name:.90} is not installed")
    return Path(found.origin).parent


def _data(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file."""
    with path.open("rb") as file:
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise ConfigError(f"{path.name} has more than {LONGEST} bytes")
    content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Values)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path.name} wants keys and values, got a {type(content).__name__}")
    return content


class _Values(yaml.SafeLoader):
    """YAML without anchors, with which a short file can hold a thousand million values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise ConfigError(f"anchors and aliases are refused, line {event.start_mark.line + 1}; write the value out")
        return super().compose_node(parent, index)


def _plain(value: Any, where: str) -> Any:
    """The value, if what is read from it holds nothing but what JSON has, and tuples."""
    if isinstance(value, dict):
        return {key: _plain(part, f"{where}.{key}" if where else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part, f"{where}[{i}]") for i, part in enumerate(value))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if where.partition(".")[0] not in ("model", "test_dataloader", "test_pipeline", "custom_imports"):
        return None  # nothing that is read from here
    raise ConfigError(f"{where} is a {type(value).__name__}; want plain values, and types by their names")
