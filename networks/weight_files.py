"""Weight files: safetensors are read, checked and put into a network. Nothing in a file is executed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn


class WeightsError(ValueError):
    """Weights are absent, are not the ones named, or do not fit the model."""

    user_facing = True  # jobs.cli prints it as one line


def read(path: Path, *, model: str, sha256: str, trainer: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by their names.

    `sha256` is that of the file, in hex; "" accepts any. The name of the `model` and the `trainer`, the command that
    makes such weights, are for messages. Raises WeightsError if the file cannot be read, has another sha256 or is not
    safetensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        advice = f"train them with {trainer} or set weights_dir"
        raise WeightsError(f"{model}: cannot read weights {path}: {error.strerror or error}; {advice}") from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise WeightsError(f"{model}: {path} has sha256 {digest[:16]}…, want {sha256[:16]}…; fetch the weights again")
    try:
        return load(data)
    except Exception as error:
        raise WeightsError(f"{model}: {path} is not a safetensors file: {str(error)[:300]}") from None


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put tensors into a model, converted to its types; all of them or none. `source` is for messages.

    Raises WeightsError for the first tensor by name that is missing, unknown, of another shape or kind, or not finite.
    """
    advice = "were they trained for another model?"
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        given, own = tensors.get(key), wanted.get(key)
        if given is None or own is None or given.shape != own.shape:
            want = "nothing" if own is None else tuple(own.shape)
            has = "nothing" if given is None else tuple(given.shape)
            raise WeightsError(f"{source}: {key[:200]} wants {want}, has {has}; {advice}")
        if given.is_floating_point() != own.is_floating_point() or given.is_complex():
            raise WeightsError(f"{source}: {key} wants {own.dtype}, has {given.dtype}; {advice}")
        if not torch.isfinite(given.to(own.dtype)).all():
            raise WeightsError(f"{source}: {key} is not all finite numbers; train again, at a lower rate")
    model.load_state_dict({key: tensors[key].to(own.dtype) for key, own in wanted.items()})
