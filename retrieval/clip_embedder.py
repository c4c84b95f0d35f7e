"""CLIP models loaded: crops and texts in, rows of unit length of one space out. See `retrieval.clip_models`.

    embedder = load(spec, "cpu", weights=None)
    embedder.embed(crops) @ embedder.embed_text(["red midi skirt"]).T      # cosines, (N, 1)

open_clip builds the network and reads the weights: safetensors, or torch's files with `weights_only`, so that nothing
in them is executed.
"""

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from networks import hub
from networks.engines import TORCH, Engine
from networks.weight_files import WeightsError
from retrieval.clip_models import CONFIG, FOLDER, WEIGHTS, ClipSpec
from retrieval.clip_text import tokenizer
from retrieval.embedder import Embedder, network_of
from store.files import file_sha256

MAX_REASON = 300  # characters


def load(
    spec: ClipSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    engine: Engine = TORCH,
) -> "ClipEmbedder":
    """A CLIP model ready for crops and texts.

    `weights` is the user's own file; None: the published ones, of the digest that the spec was given with `fetched`.
    `engine` is what runs the image tower; torch runs that of texts.
    Raises WeightsError for no weights (unless `allow_random_weights`), another digest, or tensors that do not fit;
    UserError where published ones can be neither found nor fetched on this machine.
    """
    if weights is None and spec.sha256 and spec.published and not spec.weights:
        repository, revision, *names = spec.published
        weights = hub.fetch(repository, names, revision)
    if weights is None and not allow_random_weights:
        raise WeightsError(f"{spec.name}: no weights given; name a file with `weights`, or set allow_random_weights")
    if weights is not None and spec.sha256 and (digest := file_sha256(weights)) != spec.sha256:
        raise WeightsError(f"{spec.name}: {weights} has sha256 {digest[:16]}…, want {spec.sha256[:16]}…")

    def image_tower() -> nn.Module:
        return _Image(_network(spec, weights))

    return ClipEmbedder(cast(Any, spec), network_of(spec, image_tower, device, weights, engine), device)


def _network(spec: ClipSpec, weights: Path | None) -> nn.Module:
    """open_clip's model of a folder as open_clip reads it: the configuration, and a link to the weights."""
    with tempfile.TemporaryDirectory(prefix="clip-") as folder, torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        Path(folder, CONFIG).write_text(json.dumps({"model_cfg": spec.network}), encoding="utf-8")
        if weights is not None:
            os.symlink(weights.absolute(), Path(folder, WEIGHTS[weights.suffix != ".safetensors"]))
        size = spec.input_size if spec.resized else None
        try:
            model = open_clip.create_model(
                FOLDER + folder, load_weights=weights is not None, force_image_size=size, pretrained_text=False
            )
        except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).replace(folder, "").split())[:MAX_REASON]
            raise WeightsError(f"{spec.name}: {weights or spec.open_clip} cannot be loaded: {reason}") from error
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{spec.name}: {weights}: {name} is not all finite numbers")
    return cast(nn.Module, model)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns of random weights, and of what it chose; both are decided here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Image(nn.Module):
    """The image tower as a network of `Embedder`: images (B, 3, S, S), normalised, to unit rows (B, D) float32."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip: Any = clip

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)


class ClipEmbedder(Embedder):
    """A loaded CLIP model: `embed` for crops, `embed_text` for texts."""

    spec: Any  # ClipSpec, which has what Embedder asks of its own

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Rows of texts in the space of the crops: (N, D) float32 of unit length; N may be 0.

        ValueError: a text that is longer than the model reads, or a vocabulary that cannot be had.
        """
        if not texts:
            return np.zeros((0, self.spec.dim), np.float32)
        tokens = tokenizer(self.spec)(texts).to(self.device)
        rows: np.ndarray = F.normalize(self.model.clip.encode_text(tokens).float(), dim=-1).cpu().numpy()
        return rows
