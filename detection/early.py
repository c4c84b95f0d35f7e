"""The first layers of a trunk, computed once for all detectors of a process that have the same.

    early = shared(facts_of(model), build, name, engine, examples)
    features = early(batch, lambda: key_of(photos, more))    # kept for the next detector that asks for the same photos

EfficientNet-Lite's stem and first two stages keep ImageNet's weights in training (`frozen_stages`), so that the shipped
detectors on one trunk agree in them to the bit. They take a fifth of a network's time.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from networks.engines import CompiledNetwork, Engine, noise
from store.files import hasher

STRIDE = 4  # of the features
KEPT_BYTES = 100_000_000  # of features of the batches seen last: a group of photos of the shipped detectors takes 60 MB

_living: "weakref.WeakValueDictionary[tuple[str, Engine], Early]" = weakref.WeakValueDictionary()


class Early:
    """The layers, compiled. Features of a batch are kept while more than one detector has these layers."""

    def __init__(self, network: CompiledNetwork) -> None:
        self.network, self.users = network, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def __call__(self, batch: Tensor, key: Callable[[], bytes]) -> Tensor:
        """Features (B, C, H / 4, W / 4) of a batch (B, 3, H, W); equal keys are those of equal batches."""
        if self.users < 2:
            return self.network(batch)[0]
        name = key()
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        (features,) = self.network(batch)
        self._kept[name] = features
        self._bytes += features.nbytes
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return features


def key_of(photos: Sequence[np.ndarray], more: Any) -> bytes:
    """A digest of the pixels of a batch's photos, (h, w, 3) uint8 each, and of `more`, what else decides the batch."""
    found = hasher(repr((more, [photo.shape for photo in photos])).encode())
    for photo in photos:
        found.update(np.ascontiguousarray(photo).data)
    return found.digest()


def facts_of(model: Any) -> dict[str, Any] | None:
    """A digest of the first layers of a model and the number of their channels; None where its trunk has no such.

    `model` may be the facts of one (`detection.head_facts`).
    """
    if isinstance(model, dict):
        known: dict[str, Any] | None = model["early"]
        return known
    trunk: Any = getattr(model, "backbone", None)
    if not hasattr(trunk, "EARLY"):
        return None
    layers = FirstLayers(trunk)
    found = hasher(repr(layers).encode())
    for name, tensor in layers.state_dict().items():
        found.update(name.encode() + (tensor.detach().cpu() + 0.0).numpy().tobytes())  # -0 is 0
    return {"digest": found.hexdigest(), "channels": trunk.early_channels}


def shared(facts: dict[str, Any], build: Callable[[], nn.Module], name: str, engine: Engine, examples: Any) -> Early:
    """The layers of these facts, one object for all detectors of this process that have them; `build` makes them."""
    key = (facts["digest"], engine)
    early = _living.get(key)
    if early is None:
        description = {"kind": "early", "digest": facts["digest"]}
        early = Early(CompiledNetwork(f"{name}, early", build, description, noise(*examples), engine))
        _living[key] = early
    early.users += 1
    return early


def shapes(facts: dict[str, Any], batches: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of the features of batches of these shapes."""
    return [(n, facts["channels"], height // STRIDE, width // STRIDE) for n, _, height, width in batches]


class FirstLayers(nn.Module):
    """A trunk's stem and first stages as a module: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([trunk.conv_stem, trunk.bn1, *trunk.blocks[: trunk.EARLY]])

    def forward(self, batch: Tensor) -> Tensor:
        for layer in self.layers:
            batch = layer(batch)
        return batch
