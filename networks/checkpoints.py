"""Weights as other trainers write them: safetensors, or files of torch.save, wrapped and prefixed in the usual ways.

Nothing in a file is executed: torch.save's files are read with `weights_only`, and a pickle that names anything but
tensors and plain values is refused.
"""

import argparse
import hashlib
import io
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from networks.weight_files import WeightsError

# Keys under which trainers keep the weights, those of a moving average first, as timm takes them.
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict", "model_state_dict", "model",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "body.")


class _Losses:
    """Stands for mmengine's `HistoryBuffer`, the losses of a training, which nobody reads here."""


def _nothing(*_: Any) -> None:
    """Stands for `getattr`, by which such a buffer names its methods."""


def _harmless() -> list[Any]:
    """What may lie beside the weights: the flags of timm's trainer, mmengine's losses, NumPy's numbers and arrays under
    their old and new names."""
    allowed: list[Any] = [argparse.Namespace, (_Losses, "mmengine.logging.history_buffer.HistoryBuffer"), np.ndarray]
    allowed += [(_nothing, "builtins.getattr"), (_nothing, "__builtin__.getattr")]
    parts = np._core.multiarray  # type: ignore[attr-defined]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(parts._reconstruct, f"{module}._reconstruct"), (parts.scalar, f"{module}.scalar")]
    kinds = (type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64"))
    return [*allowed, np.dtype, *kinds]


HARMLESS = _harmless()


def read(path: Path, *, model: str, sha256: str = "", wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The tensors of a file by their names, without wrappers; what lies beside them, an optimiser's state, is left out.

    `sha256` is that of the file, in hex; "" accepts any. `model` is for messages. Of `wrappers` the first that the file
    has is opened. Raises WeightsError if the file cannot be read, has another sha256, holds more than tensors and plain
    values, or has no tensors by name in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{model}: cannot read weights {path}: {error.strerror or error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise WeightsError(f"{model}: {path} has sha256 {digest[:16]}…, want {sha256[:16]}…; fetch the weights again")
    # A file of safetensors begins with the eight bytes of a length, of which the first may be any, and a brace.
    of_torch = data.startswith((b"PK", b"\x80")) and data[8:9] != b"{"
    try:
        content = _unpickled(data) if of_torch else load(data)
        tensors = _tensors(content, wrappers)
    except Exception as error:
        text = " ".join(str(error).split())
        if "weights_only" in text.lower():
            what = text.partition("GLOBAL ")[2].partition(" ")[0]
            text = (
                f"it holds more than tensors{what and f' ({what[:60]})'}, and pickled code is never run; where it was "
                "made, save its weights alone: torch.save(model.state_dict(), FILE), or, if you trust it: "
                "c = torch.load(FILE, weights_only=False); torch.save(c['state_dict'], NEW)"
            )
        elif not of_torch:
            text = f"it is neither a safetensors file nor one of torch.save: {text}"
        raise WeightsError(f"{model}: {path}: {text[:400]}") from None
    if not tensors:
        raise WeightsError(f"{model}: {path}: no tensors by name in it; want a state_dict")
    return tensors


def without_prefixes(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors without what wrappers put before their names (`module.`, `backbone.`, `model.` …).

    A prefix goes where most names have it and none of the `wanted` does.

    >>> x = torch.zeros(1)
    >>> sorted(without_prefixes({"module.model.a": x, "module.model.b": x, "module.loss": x}, ["a", "b"]))
    ['a', 'b', 'loss']
    """
    named = dict(tensors)
    while True:
        for prefix in PREFIXES:
            most = 2 * sum(name.startswith(prefix) for name in named) > len(named)
            if most and not any(name.startswith(prefix) for name in wanted):
                named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
                break
        else:
            return named


def _unpickled(data: bytes) -> Any:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("it is a compressed archive, which torch.save does not write")
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensors(content: Any, wrappers: Sequence[str]) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in wrappers if isinstance(content.get(key), Mapping) and content[key]]
        if not inner:
            break
        content = inner[0]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value.detach() for key, value in entries if isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
            raise ValueError(f"{key[:200]} is no plain tensor of numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{key[:200]} {tuple(tensor.shape)} is larger than what the file holds of it")
    return tensors
