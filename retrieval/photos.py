"""Embeddings of garments without a job, for a notebook or a service: a photo and boxes in, rows out, in one process.

embedders = [load_embedder(name) for name in ("lite0-sg", "lite2-sm")]      # for a gallery, those of `gallery.dims`
rows = embed(embedders, photo, boxes)                                       # photo: (H, W, 3) uint8, upright RGB
similarity, ids = gallery.search(rows, k=5)                                 # see `retrieval.gallery`
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from networks import engines
from networks.shipped import shipped_file
from retrieval import models
from retrieval.crops import crop
from retrieval.embedder import Embedder, load


def load_embedder(
    name: str,
    device: str = "cpu",
    *,
    weights_dir: str | Path | None = None,
    engine: str = "auto",
    threads: int = 1,
) -> Embedder:
    """A shipped embedder, ready for crops.

    Args:
        name: of `retrieval.models`, or a view: lite0-sg, lite0-sg@flip.
        device: cpu, cuda or cuda:0.
        weights_dir: folder of the weight files; None: where those of the model's profile ship.
        engine: auto, torch, openvino or cudagraph, as the setting.
        threads: of the CPU, for OpenVINO.

    Raises:
        ValueError: no such embedder. UserError: no weights there, or an engine that is not here.
    """
    spec = models.named(name)
    weights = shipped_file(spec, models.PROFILES, weights_dir)
    return load(spec, device, weights=weights, engine=engines.choose(engine, device, threads))


def embed(embedders: Sequence[Embedder], image: np.ndarray, boxes: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """A photo's garments as a gallery is asked with them: (N, D) float32, each embedder's unit rows side by side.

    Args:
        embedders: in the order of the gallery's `dims`.
        image: (H, W, 3) uint8, upright RGB.
        boxes: (N, 4) float, px x1 y1 x2 y2; N may be 0.

    Raises:
        ValueError: no embedder, another shape or type, or a box that covers nothing of the photo, with its row.
    """
    if not embedders:
        raise ValueError("embed: want at least one embedder")
    rows = []
    for embedder in embedders:
        crops = crop(image, boxes, embedder.spec.input_size, getattr(embedder.spec, "margin", 0.0))
        rows.append(embedder.embed(crops, batch_size=batch_size))
    return np.concatenate(rows, axis=1)
