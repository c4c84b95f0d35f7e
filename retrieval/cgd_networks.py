"""What `retrieval.models` describes, as networks: CGD on a timm backbone, filled with the weights of a file.

Weight files are safetensors: nothing in them is executed.
"""

from pathlib import Path

import torch

from networks import efficientnet_lite, weight_files
from networks.weight_files import WeightsError
from retrieval.cgd import CGD, fine_map
from retrieval.models import EmbedderSpec

TRAINER = "jobs/train_embedder.py"


def build(spec: EmbedderSpec, *, classes: int | None = None, pretrained_backbone: bool = False) -> CGD:
    """The network of a spec, at random but the same in every process.

    `classes` is the number of training identities; None: without a classifier. With `pretrained_backbone` the backbone
    has its published ImageNet weights, and WeightsError is raised where none are installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = fine_map(spec.timm_id, stride=spec.stride, blocks=spec.blocks)
        model = CGD(backbone, spec.branches, spec.dim, classes)
    if pretrained_backbone:
        efficientnet_lite.load_into(backbone.body, _published_name(spec))
    return model


def _published_name(spec: EmbedderSpec) -> str:
    return spec.timm_id.partition(".")[0]


def with_weights(spec: EmbedderSpec, weights: Path | None, *, allow_random_weights: bool) -> CGD:
    """The network of a spec with its weights; the arguments and errors are those of `retrieval.embedder.load`."""
    if weights is None and not allow_random_weights and spec.weights:
        raise WeightsError(f"{spec.name}: no weights given; train them with {TRAINER}, or set allow_random_weights")
    published = weights is None and not spec.weights and _published_name(spec) in efficientnet_lite.NAMES
    if weights is None and not published and not allow_random_weights:
        raise WeightsError(
            f"{spec.name}: no published weights of {spec.timm_id} are installed; give a weight file or set "
            "allow_random_weights"
        )
    model = build(spec, pretrained_backbone=published)
    if weights is not None:
        tensors = weight_files.read(Path(weights), model=spec.name, sha256=spec.sha256, trainer=TRAINER)
        weight_files.fill(model, tensors, f"{spec.name}: {weights}")
    return model
