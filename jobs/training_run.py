"""What both training jobs share: the rate's course, files that are whole or absent, a log a line at a time."""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.cli import UserError


def rate_share(step: int, steps: int, warm_up: int) -> float:
    """Share of the highest rate: a linear warm-up, then half a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def replace(path: Path, data: bytes) -> None:
    """Write beside the target, then rename over it: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def log(output: Path, line: Mapping[str, Any]) -> None:
    """One more line of OUTPUT/log.jsonl."""
    with open(output / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def save_checkpoint(path: Path, same: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint; `same` is what has to be equal for it to be continued."""
    import torch

    data = io.BytesIO()
    torch.save({**state, "args": dict(same)}, data)
    replace(path, data.getvalue())


def read_checkpoint(path: Path, same: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint to go on from; None where there is none. Nothing in it is executed.

    Raises:
        UserError: it is of another training: model, data, seed, length or rates.
    """
    import torch

    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in same.items():
        if state["args"].get(name) != value:
            raise UserError(
                f"{path} is of a training with {name} {state['args'].get(name)!r}, not {value!r}; use another --output"
            )
    print(f"going on at step {state['step']} after {state['seconds'] / 60:.1f} min", flush=True)
    return state


def shipped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as weights are shipped: float16 on the CPU; counters stay whole numbers.

    Raises:
        ValueError: a value does not fit float16.
    """
    import torch

    kept = {name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: a value does not fit float16; lower the rate or add weight decay")
    return kept


def to_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Weights as a file of safetensors, float16."""
    from safetensors.torch import save

    return save(shipped(tensors))


def export(tensors: Mapping[str, Any], path: Path) -> str:
    """Write weights as safetensors; returns their sha256."""
    data = to_bytes(tensors)
    replace(path, data)
    return hashlib.sha256(data).hexdigest()
