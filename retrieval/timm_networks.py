"""What `retrieval.timm_models` describes, as networks: square RGB crops in, embeddings of unit length out.

    python -m retrieval.timm_networks < QUESTION      # one line of JSON, for a driver that must not import torch

Weights go through timm's own conversion of older and foreign key names and position embeddings; what is then missing,
unknown or of another shape is refused by name.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from networks import checkpoints, hub, weight_files
from networks.engines import TORCH, Engine
from networks.packages import timm
from networks.weight_files import WeightsError
from retrieval.cgd import CGD, refuse_unknown
from retrieval.descriptors import DESCRIPTORS
from retrieval.embedder import Embedder, Rows, network_of
from retrieval.timm_models import ONE_MEAN, TimmSpec

HUB = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm looks for them
CLASSIFIERS = ("head", "head_dist", "fc", "classifier", "last_linear", "heads")  # of files that others trained
HEADS = ("pools.", "reductions.")  # of our own files, beside the backbone's tensors


# ---- what a model is ---------------------------------------------------------------------------------------------
def describe(timm_id: str, input_size: int | None, pool: str) -> dict[str, Any]:
    """Fields of the spec for a model, and `width`, how many numbers the pool gives; without the model's weights.

    `pool` is one of `retrieval.timm_models.POOLS`, or "map" for a CGD head. Raises ValueError where timm has no such
    model, cannot build it at that size, or it has nothing for that pool.
    """
    arguments: dict[str, Any] = {}
    architecture = timm_id
    if timm_id.startswith(HUB):
        repo, _, revision = timm_id.removeprefix(HUB).partition("@")
        commit = hub.commit_of(hub.fetch(repo, ("config.json",), revision))  # of the weights too; cached, so no network
        config, architecture, stored = timm.models.load_model_config_from_hf(f"{repo}@{commit}")
        arguments = dict(stored or {})
        published: tuple[str, ...] = (repo, commit, *_names(config.get("hf_hub_filename")))
    refuse_unknown(architecture)
    if not timm_id.startswith(HUB):
        found = timm.get_pretrained_cfg(architecture)
        if found is None:
            raise ValueError(f"timm has no weights tag {timm_id!r}")
        config = found.to_dict()
        repo, _, revision = (config.get("hf_hub_id") or "").partition("@")
        published = (repo, revision, *_names(config.get("hf_hub_filename"))) if repo else ()
    size = input_size or int(config["input_size"][-1])
    if input_size and config.get("fixed_input_size"):
        arguments["img_size"] = input_size
    try:
        with torch.device("meta"):  # shapes only; nothing is allocated or computed
            body = timm.create_model(architecture, num_classes=0, **arguments).eval()
            width = int(Features(body, pool)(torch.zeros(1, 3, size, size)).shape[1])
    except Exception as error:
        raise ValueError(f"{timm_id} at {size} px, pool {pool}: {' '.join(str(error).split())[:300]}") from None
    data = timm.data.resolve_model_data_config(body) | {
        key: config[key] for key in ("mean", "std", "crop_pct") if config.get(key)
    }
    return {
        "timm_id": timm_id, "architecture": architecture, "arguments": arguments, "input_size": size,
        "mean": [255 * value for value in data["mean"]], "std": [255 * value for value in data["std"]],
        "interpolation": config.get("interpolation") or data["interpolation"], "crop": data["crop_pct"],
        "published": published, "width": width,
    }  # fmt: skip


def _names(given: str | None) -> tuple[str, ...]:
    return (given.replace("pytorch_model.bin", "model.safetensors"), given) if given else HUB_FILES


# ---- networks ----------------------------------------------------------------------------------------------------
class Features(nn.Module):
    """A timm model (`body`) and what is taken from it: (B, C) for the pools "model" and "cls", else (B, C, h, w).

    A transformer's tokens are places in a column, (B, C, N, 1), without class and register tokens.
    """

    def __init__(self, body: nn.Module, pool: str) -> None:
        super().__init__()
        self.body: Any = body
        self.pool = pool
        self.channels: int = cast(Any, body).num_features
        self.prefix_tokens: int = getattr(self.body, "num_prefix_tokens", 0)
        holders = (self.body, getattr(self.body, "embeds", None))  # NaFlex keeps its tokens inside the latter
        has_class_token = any(getattr(holder, "cls_token", None) is not None for holder in holders)
        if pool == "cls" and not (self.prefix_tokens and has_class_token):
            raise ValueError("it has no class token; take pool model or avg")

    def forward(self, images: Tensor) -> Tensor:
        found = self.body.forward_features(images)
        if self.pool == "model":
            return cast(Tensor, self.body.forward_head(found, pre_logits=True))
        if not isinstance(found, Tensor) or found.ndim not in (3, 4):
            raise ValueError("it gives no feature map and no tokens; take pool model")
        if self.pool == "cls":
            return found[:, 0]
        if found.ndim == 3:
            return found[:, self.prefix_tokens :].transpose(1, 2).unsqueeze(-1)
        channels_last = getattr(self.body, "output_fmt", "") == "NHWC" or found.shape[1] != self.channels
        return found.permute(0, 3, 1, 2) if channels_last else found


class Pooled(nn.Module):
    """Features to unit rows, with a linear layer where `dim` is given, and class scores where there are classes.

    `describe` and `forward` are as those of `retrieval.cgd.CGD`, which learns and is stored in the same way.
    """

    def __init__(self, backbone: Features, pool: str, width: int, dim: int | None, classes: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        own = pool in ("model", "cls")
        self.pool: nn.Module = nn.Identity() if own else DESCRIPTORS[ONE_MEAN.get(pool, pool)]()
        self.reductions = nn.ModuleList([nn.Linear(width, dim, bias=False)] if dim else [])
        for reduction in self.reductions:
            nn.init.orthogonal_(cast(nn.Linear, reduction).weight)
        self.classifier: nn.Module | None = None
        if classes is not None:
            self.classifier = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows, first = self.describe(images)
        return rows if self.classifier is None else (rows, self.classifier(first))

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, dim) of unit length, and the pooled features (B, width), which the classifier reads."""
        pooled = self.pool(self.backbone(images))
        rows = self.reductions[0](pooled) if len(self.reductions) else pooled
        return F.normalize(rows.float(), dim=1, eps=1e-6), pooled


def build(
    spec: TimmSpec, *, tensors: Mapping[str, Tensor] | None = None, source: str = "", classes: int | None = None
) -> nn.Module:
    """The network of a spec, filled with a file's tensors, or at random but the same in every process.

    `source` is for messages; `classes` is the number of training identities, None: without a classifier. A file of the
    backbone alone, as published, leaves a head untrained. Raises WeightsError for tensors that do not fit.
    """
    heads: dict[str, Tensor] = {}
    if tensors is not None:
        tensors, heads = _split(spec, tensors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = _body(spec, tensors, source)
        if spec.branches:
            model: nn.Module = CGD(Features(body, "map"), spec.branches, spec.dim, classes)
        else:
            dim = spec.dim if spec.linear else None
            model = Pooled(Features(body, spec.pool), spec.pool, spec.width, dim, classes)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(HEADS)}
    if heads and not own:
        raise WeightsError(f"{source}: it has a head, {min(heads)} …; give the entry its `branches` or `dim`")
    if own and tensors is not None and (heads or spec.weights):
        weight_files.fill(nn.ModuleDict({n: m for n, m in model.named_children() if f"{n}." in HEADS}), heads, source)
    return model


def _split(spec: TimmSpec, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's tensors under timm's names, without those of a classifier, and the head's."""
    with torch.device("meta"):
        body: Any = timm.create_model(spec.architecture, num_classes=0, **spec.arguments)
    wanted = body.state_dict().keys()
    named = checkpoints.without_prefixes(tensors, wanted)
    heads = {name: tensor for name, tensor in named.items() if name.startswith(HEADS)}
    classifiers = body.pretrained_cfg.get("classifier") or ()
    classifiers = {*CLASSIFIERS, *((classifiers,) if isinstance(classifiers, str) else classifiers)}
    rooms = {name.partition(".")[0] for name in wanted}

    def is_classifiers(name: str) -> bool:
        room, owner = name.partition(".")[0], name.rpartition(".")[0]
        return name not in wanted and (owner in classifiers or room in classifiers - rooms)

    return {n: t for n, t in named.items() if n not in heads and not is_classifiers(n)}, heads


def _body(spec: TimmSpec, tensors: Mapping[str, Tensor] | None, source: str) -> nn.Module:
    """timm's network without a classifier; what loads the tensors is timm's own loading, held to every name."""
    options: dict[str, Any] = {"num_classes": 0, **spec.arguments}
    if tensors is None:
        return cast(nn.Module, timm.create_model(spec.architecture, pretrained=False, **options))
    told = {"state_dict": dict(tensors), "num_classes": 0, "label_offset": 0}  # as if saved without a classifier
    body: Any
    try:
        body = timm.create_model(spec.architecture, pretrained=True, pretrained_cfg_overlay=told, **options)
    except Exception as error:
        text = " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")
        advice = "were they trained for another model?"
        raise WeightsError(f"{source}: {text[:300] or type(error).__name__}; {advice}") from None
    body.pretrained_cfg.pop("state_dict", None)  # or it would keep them in memory
    for name, value in body.state_dict().items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{source}: {name} is not all finite numbers")
    return cast(nn.Module, body)


# ---- in use ------------------------------------------------------------------------------------------------------
def load(
    spec: TimmSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    engine: Engine = TORCH,
) -> "TimmEmbedder":
    """An embedder ready for crops.

    Raises WeightsError for no weights, another digest, or tensors that do not fit; UserError where published ones can
    be neither found nor fetched on this machine.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of the model's own, checked against `spec.sha256` where that is given. None: the published ones,
            of the digest that the spec was given with `fetched`.
        allow_random_weights: build it untrained when there are no weights: for tests of the machinery, not for results.
        engine: what runs the network.
    """
    if weights is None and spec.sha256 and spec.published and not spec.weights:
        weights = published_file(spec)
    if weights is None and not allow_random_weights:
        raise WeightsError(f"{spec.name}: no weights given; name a file with `weights`, or set allow_random_weights")

    def network() -> nn.Module:
        if weights is None:
            return build(spec)
        tensors = checkpoints.read(Path(weights), model=spec.name, sha256=spec.sha256)
        return build(spec, tensors=tensors, source=f"{spec.name}: {weights}")

    return TimmEmbedder(cast(Any, spec), network_of(spec, network, device, weights, engine), device)


def published_file(spec: TimmSpec) -> Path:
    """The published weights as a file of this machine. UserError: they can be neither found nor fetched."""
    repo, revision, *names = spec.published
    return hub.fetch(repo, names, revision)


class TimmEmbedder(Embedder):
    """An `Embedder` whose crops pass through timm's evaluation transform first, on the CPU."""

    def __init__(self, spec: Any, network: Rows, device: str) -> None:
        super().__init__(spec, network, device)
        size = spec.input_size
        unchanged = math.floor(size / spec.crop) == size  # nothing is enlarged, so nothing is cut
        self._transform: Any = None
        if not unchanged:
            how: dict[str, Any] = {"interpolation": spec.interpolation, "crop_pct": spec.crop, "normalize": False}
            self._transform = timm.data.create_transform((3, size, size), **how)

    def _seen(self, crops: np.ndarray) -> np.ndarray:
        if self._transform is None:
            return crops
        return np.stack([self._transform(Image.fromarray(crop)).permute(1, 2, 0).numpy() for crop in crops])


def answer(question: str) -> str:
    """JSON for the JSON of `describe`'s arguments; what is wrong with them is an answer too, under "error"."""
    try:
        return json.dumps(describe(**json.loads(question)))
    except Exception as error:
        return json.dumps({"error": " ".join(str(error).split())[:500] or type(error).__name__})


if __name__ == "__main__":
    print(answer(sys.stdin.read()))
