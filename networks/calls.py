"""Models of the user's own code: `call: package.module:Class` with `args`, for detectors and embedders.

The class is imported from the packages installed, from PYTHONPATH, or from the folder that the command was started in.
It is made as `Class(**args)`, with `device` too where it takes one. That is running code: a run file with a `call` is
trusted as much as a program. What the driver must know of the object (`version`, sizes, names) is asked of it in a
process of its own, for the driver does without packages of networks, which take seconds and gigabytes.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = "CALLS_FOLDER"  # environment of a worker: the folder that the command was started in
LIMIT_S = 600  # to import the class and to make an object of it


def fields_of(entry: Mapping[str, Any], optional: Sequence[str], noun: str) -> dict[str, Any]:
    """The entry of a run file without `call`'s own fields checked: a ValueError for a wrong call, args or field."""
    who = f"{noun} {entry.get('name', '?')!r}"
    allowed = ("name", "call", "args", *optional)
    if unknown := sorted(str(key) for key in entry if key not in allowed):
        raise ValueError(f"{who}: unknown field {unknown[0]!r}; allowed with `call`: {', '.join(allowed)}")
    call, args = entry["call"], entry.get("args", {})
    if not isinstance(call, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", call):
        raise ValueError(f"{who}: call wants package.module:Class, got {call!r}")
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        raise ValueError(f"{who}: args wants a mapping of the class's own arguments, got {args!r}")
    return {"name": entry["name"], "call": call, "args": dict(args)}


def describe(call: str, args: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What an object of the class says of itself, asked in another process.

    Args:
        call: package.module:Class. args: of the class.
        method: `detect` or `embed`, which the object must have.

    Returns:
        `version`, text; and those of `class_names`, `input_size` and `dim` that it has. An embedder's `dim` that it
        does not tell is measured on one grey crop.

    Raises:
        ValueError: the class cannot be imported or made, or lacks the method or `version`.
    """
    with tempfile.TemporaryDirectory(prefix="call-") as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, "-P", "-m", "networks.calls", str(answer)]  # -P: not the folder first
        paths = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {FOLDER: os.environ.get(FOLDER, os.getcwd()), "PYTHONPATH": paths}
        request = json.dumps({"call": call, "args": args, "method": method})
        try:
            process = subprocess.run(
                command, input=request, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{call}: making it took longer than {LIMIT_S} s") from None
        if not answer.is_file():
            last = (process.stderr.strip() or "nothing said").splitlines()[-1]
            raise ValueError(f"{call}: its process ended with {process.returncode}: {last[:300]}")
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in told:
        raise ValueError(f"{call}: {told['error']}")
    return told


def make(call: str, args: Mapping[str, Any], device: str) -> Any:
    """The object, in a process that may import anything. Raises what the class raises."""
    module, _, name = call.partition(":")
    folder = os.environ.get(FOLDER, os.getcwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file there never hides an installed package
    made = getattr(importlib.import_module(module), name)
    takes_device = "device" in inspect.signature(made).parameters and "device" not in args
    return made(**args, **({"device": device} if takes_device else {}))


def _asked(call: str, args: Mapping[str, Any], method: str) -> dict[str, Any]:
    model = make(call, args, "cpu")
    if not callable(getattr(model, method, None)):
        raise ValueError(f"it has no method {method}")
    version = getattr(model, "version", None)
    if not isinstance(version, str | int | float) or version == "":
        raise ValueError("it has no `version`: a text to change whenever its results change")
    told: dict[str, Any] = {"version": str(version)}
    names = getattr(model, "class_names", getattr(model, "categories", None))
    if names is not None:
        told["class_names"] = [str(name) for name in names]
    if method == "embed":
        size = told["input_size"] = getattr(model, "input_size", None)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"input_size wants the side of its square crops in pixels, got {size!r}")
        told["dim"] = int(getattr(model, "dim", 0)) or _measured_dim(model, size)
    return told


def _measured_dim(model: Any, size: int) -> int:
    import numpy as np

    rows = np.asarray(model.embed(np.full((1, size, size, 3), 127, np.uint8)))
    if rows.ndim != 2 or len(rows) != 1:
        raise ValueError(f"embed of 1 crop wants an array (1, D), got {rows.shape}")
    return int(rows.shape[1])


def main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        told = _asked(request["call"], request["args"], request["method"])
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    Path(sys.argv[1]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
