"""Embedders of the user's own code: `{name: ours, call: package.module:Class, args: {…}}`.

The class has `embed(crops)`: (N, S, S, 3) uint8 RGB in, (N, D) numbers out, which are scaled to unit length here;
`input_size`, S in pixels; `version`; and `dim`, D, or it is measured on a crop. `networks.calls` says how it is found.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from networks import calls
from networks.engines import TORCH, Engine
from retrieval.models import viewed


@dataclass(frozen=True)
class CalledEmbedderSpec:
    """An embedder that a class of the user's gives."""

    LOADER: ClassVar[str] = "retrieval.calls:load"

    name: str
    call: str  # package.module:Class
    args: Mapping[str, Any]
    version: str  # as the object says; results are made again when it changes
    input_size: int  # side of the square crops in pixels
    dim: int
    flip: bool = False  # it is shown mirrored crops
    margin: float = 0.0  # of its crops, as `retrieval.crops.crop` takes it
    weights: str = ""  # its own matter
    sha256: str = ""


def from_fields(entry: Mapping[str, Any]) -> CalledEmbedderSpec:
    """The embedder of a run file's entry. Raises ValueError for a wrong field, and as `networks.calls.describe`."""
    fields = calls.fields_of(entry, ("view",), "embedder")
    spec = CalledEmbedderSpec(**fields, **calls.describe(fields["call"], fields["args"], "embed"))
    return viewed(spec, str(entry["view"])) if "view" in entry else spec


def load(
    spec: CalledEmbedderSpec,
    device: str,
    *,
    weights: Path | None = None,
    allow_random_weights: bool = False,
    engine: Engine = TORCH,
) -> "CalledEmbedder":
    """The user's object behind our checks; it runs as it will, whatever the engine."""
    return CalledEmbedder(spec, calls.make(spec.call, spec.args, device))


class CalledEmbedder:
    """Answers as `retrieval.embedder.Embedder` does."""

    def __init__(self, spec: CalledEmbedderSpec, model: Any) -> None:
        self.spec, self.model = spec, model
        self.notes: list[str] = []

    def view(self, spec: CalledEmbedderSpec) -> "CalledEmbedder":
        """Another view of the same embedder, around the same object."""
        return CalledEmbedder(spec, self.model)

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """(N, D) float32 of unit length. ValueError: rows that are none, with what was seen."""
        crops = np.ascontiguousarray(crops[:, :, ::-1]) if self.spec.flip else crops
        parts = [np.zeros((0, self.spec.dim), np.float32)]
        for start in range(0, len(crops), batch_size):
            batch = crops[start : start + batch_size]
            parts.append(unit_rows(self.model.embed(batch), len(batch), self.spec.dim))
        return np.concatenate(parts)


def unit_rows(rows: Any, n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 of unit length. ValueError: another shape, a number that is not finite, or a row of zeros."""
    rows = np.asarray(rows, np.float32)
    if rows.shape != (n, dim):
        raise ValueError(f"embed of {n} crops wants an array ({n}, {dim}), got {rows.shape}")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    for row in np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))):
        raise ValueError(f"the embedding of crop {row} is {'all zeros' if lengths[row, 0] == 0 else 'not finite'}")
    return (rows / lengths).astype(np.float32)
