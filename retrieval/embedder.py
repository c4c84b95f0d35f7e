"""One call for every embedder: square RGB crops in, embeddings of unit length out.

    embedder = load(models.LITE0_SG, "cpu", weights=Path("weights/tiny/lite0-sg.safetensors"))
    embeddings = embedder.embed(crops.crop(photo, boxes, embedder.spec.input_size))

torch is imported where it runs the network, or builds it for OpenVINO; neither is needed where OpenVINO's plan is on
disk.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from networks.engines import TORCH, CompiledNetwork, Engine, describe, noise
from retrieval.models import EmbedderSpec

if TYPE_CHECKING:
    from torch import nn

# Crops that OpenVINO takes at once; a last batch is filled up. On one thread 4 to 8 cost least a crop: one alone costs
# 10 to 17 % more, 32 cost 20 to 30 %, and a plan for batches of any size 5 to 8 %.
COMPILED_BATCH = 4


class Rows(Protocol):
    """What makes rows of crops: `retrieval.crop_networks.TorchCrops` or `CompiledCrops`."""

    notes: list[str]

    @property
    def engine(self) -> str: ...
    @property
    def module(self) -> Any: ...
    def rows(self, crops: np.ndarray, batch_size: int) -> np.ndarray: ...


def load(
    spec: EmbedderSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    engine: Engine = TORCH,
) -> "Embedder":
    """An embedder ready for crops.

    Raises WeightsError for no weights, another digest, or tensors that do not fit.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of safetensors, float16 or float32, checked against `spec.sha256` where that is given. None with
            `spec.weights` empty: the backbone as published, under an untrained head.
        allow_random_weights: build it untrained when there are no weights: for tests of the machinery, not for results.
        engine: what runs the network.
    """

    def build() -> "nn.Module":
        from retrieval import cgd_networks  # imports torch and timm

        return cgd_networks.with_weights(spec, weights, allow_random_weights=allow_random_weights)

    return Embedder(spec, network_of(spec, build, device, weights, engine), device)


def network_of(spec: Any, build: "Callable[[], nn.Module]", device: str, weights: Path | None, engine: Engine) -> Rows:
    """What makes rows of crops.

    Args:
        spec: that of an embedder, a frozen dataclass.
        build: makes its network, images (B, 3, S, S) to rows (B, D). It is called here unless a plan is on disk.
        device: as for `load`.
        weights: the file that `build` reads, None where it reads none.
        engine: what runs the network.
    """
    if engine.name == "openvino":
        return CompiledCrops(spec, build, weights, engine)
    from retrieval.crop_networks import CropNetwork, TorchCrops  # imports torch

    return TorchCrops(spec.name, CropNetwork(build(), spec), device, engine)


class CompiledCrops:
    """Rows of crops by OpenVINO, `COMPILED_BATCH` at a time. Without a file of weights no plan is kept."""

    def __init__(self, spec: Any, build: "Callable[[], nn.Module]", weights: Path | None, engine: Engine) -> None:
        def crop_network() -> "nn.Module":
            from retrieval.crop_networks import CropNetwork  # imports torch

            return CropNetwork(build(), spec).eval()

        examples = noise((COMPILED_BATCH, spec.input_size, spec.input_size, 3), dtype="uint8")
        self._network = CompiledNetwork(spec.name, crop_network, describe(spec, weights), examples, engine)
        self.notes = self._network.notes

    @property
    def engine(self) -> str:
        return self._network.engine

    @functools.cached_property
    def module(self) -> Any:
        return self._network.module

    def rows(self, crops: np.ndarray, batch_size: int) -> np.ndarray:
        found = []
        for start in range(0, len(crops), COMPILED_BATCH):
            batch = crops[start : start + COMPILED_BATCH]
            if missing := COMPILED_BATCH - len(batch):
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
            found.append(self._network.run(batch)[0][: len(crops) - start])
        return np.concatenate(found)


class Embedder:
    """A loaded model; `notes` has a line for what did not go as asked."""

    def __init__(self, spec: EmbedderSpec, network: Rows, device: str) -> None:
        self.spec, self.network, self.device = spec, network, device

    @property
    def notes(self) -> list[str]:
        """Those of its network, which its views share."""
        return self.network.notes

    @property
    def engine(self) -> str:
        """What runs its network: torch, openvino or cudagraph."""
        return self.network.engine

    @property
    def model(self) -> Any:
        """Its network in torch, without the normalisation; built where OpenVINO's plan was on disk."""
        return self.network.module.model

    def view(self, spec: EmbedderSpec) -> "Embedder":
        """Another view of the same embedder (`retrieval.models.viewed`), around the same network."""
        return type(self)(spec, self.network, self.device)

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Embeddings of crops, the same for the same crops and batches: (N, D) float32 of unit length.

        `crops` (N, S, S, 3) are uint8, RGB, S = `spec.input_size`, cut with the margin `spec.margin`, not mirrored; N
        may be 0. torch takes `batch_size` of them at once, and halves that, with a note, when the GPU runs out of
        memory. Raises ValueError for another shape or type, or a batch size under 1.
        """
        size = self.spec.input_size
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{self.spec.name}: want crops (N, {size}, {size}, 3) uint8, got {crops.shape} {crops.dtype}"
            )
        if batch_size < 1:
            raise ValueError(f"{self.spec.name}: want a batch size of at least 1, got {batch_size}")
        if not len(crops):
            return np.zeros((0, self.spec.dim), np.float32)
        return self.network.rows(self._seen(crops[:, :, ::-1] if self.spec.flip else crops), batch_size)

    def _seen(self, crops: np.ndarray) -> np.ndarray:
        """The crops as the network sees them, uint8."""
        return crops
