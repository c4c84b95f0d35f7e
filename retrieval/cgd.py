"""Combination of multiple global descriptors: crops in, unit rows out; torch. Source: CGD, arXiv:1903.10663.

One feature map is pooled by every branch, reduced to dim / branches numbers by a linear layer without bias and brought
to unit length; the branches are joined and brought to unit length again. The first branch also feeds a classifier,
which only training uses.

Departures from the paper: any timm backbone, and reductions that start orthogonal, so that an untrained head keeps most
of what the backbone's features tell apart.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.packages import timm
from retrieval.descriptors import DESCRIPTORS


class CGD(nn.Module):
    """Crops to unit rows, and class scores where there are classes.

    `forward` takes images (B, 3, H, W) float, normalised as the backbone wants, to rows (B, dim) of unit length, and
    with `classes` to a pair (rows, logits (B, classes)), logits not yet divided by a temperature.

    Args:
        backbone: a timm model name (random weights, last down-sampling removed), or (B, 3, H, W) -> (B, C, h, w).
        descriptors: branch names out of `retrieval.descriptors.DESCRIPTORS`; the first feeds the classifier.
        dim: D, length of one row; a multiple of the number of branches.
        classes: number of training identities; None: no classifier.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        descriptors: tuple[str, ...] = ("spoc", "gem"),
        dim: int = 1536,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        _check(tuple(descriptors), dim, classes)
        self.backbone: nn.Module = fine_map(backbone) if isinstance(backbone, str) else backbone
        channels = _channels(self.backbone)
        self.pools = nn.ModuleList(DESCRIPTORS[name]() for name in descriptors)
        self.reductions = nn.ModuleList(nn.Linear(channels, dim // len(descriptors), bias=False) for _ in descriptors)
        for reduction in self.reductions:
            nn.init.orthogonal_(cast(nn.Linear, reduction).weight)
        self.classifier: nn.Module | None = None
        if classes is not None:
            # the paper classifies the pooled map itself, before its reduction; BatchNorm keeps its scale in bounds
            self.classifier = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows, first = self.describe(images)
        return rows if self.classifier is None else (rows, self.classifier(first))

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, dim), and the first branch's pooled map (B, C), which the classifier reads."""
        features = self.backbone(images)
        pooled = [pool(features) for pool in self.pools]
        return self.combine(pooled), pooled[0]

    def combine(self, pooled: list[Tensor]) -> Tensor:
        """Pooled maps, one (B, C) per branch, to (B, dim) float32 unit rows."""
        parts = [_unit(reduce(vector)) for reduce, vector in zip(self.reductions, pooled, strict=True)]
        return _unit(torch.cat(parts, dim=1))


class FeatureMap(nn.Module):
    """A timm `features_only` model that gives its last map alone, (B, C, h, w)."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(images)[-1])


class Trunk(nn.Module):
    """An EfficientNet's stem and the first of its stages and blocks, under timm's names for them.

    `body` is a timm `features_only` EfficientNet; `blocks` tells how many blocks of each stage stay, and stages beyond
    are left out. Raises ValueError where the network has no such stages, or fewer blocks in one.
    """

    def __init__(self, body: nn.Module, blocks: tuple[int, ...]) -> None:
        super().__init__()
        whole: Any = getattr(body, "blocks", None)
        has = [len(cast(nn.Sequential, stage)) for stage in whole] if isinstance(whole, nn.Sequential) else []
        if len(blocks) > len(has) or any(kept > n for kept, n in zip(blocks, has, strict=False)):
            raise ValueError(f"blocks {blocks}: the network has stages of {has or 'no'} blocks")
        self.conv_stem, self.bn1 = cast(nn.Module, body.conv_stem), cast(nn.Module, body.bn1)
        self.blocks = nn.Sequential(*(stage[:kept] for stage, kept in zip(whole, blocks, strict=False)))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.blocks(self.bn1(self.conv_stem(images)))]


def fine_map(timm_id: str, *, stride: int = 16, blocks: tuple[int, ...] = ()) -> FeatureMap:
    """A timm backbone whose last map has one cell per `stride` pixels instead of the usual 32; random weights.

    For networks in stages (ResNets, SE-ResNeXts, EfficientNets, RegNets, ConvNeXts …) timm's `output_stride` turns the
    last strides into dilations, and we undo the dilations. As in the paper, the filters are those of the published
    network and only the down-sampling is missing (dilated depthwise filters are also several times slower on a CPU).
    stride=32 changes nothing. Transformers have one fixed stride and are built as they are. `blocks` cuts an
    EfficientNet short, see `Trunk`. Raises ValueError for a name that timm does not know, or blocks that the network
    has not.
    """
    refuse_unknown(timm_id)
    options: dict[str, Any] = {"pretrained": False, "features_only": True, "out_indices": (-1,)}
    try:
        body = timm.create_model(timm_id, output_stride=stride, **options)
    except (TypeError, RuntimeError, NotImplementedError, AssertionError):  # a network without stages
        body = timm.create_model(timm_id, **options)
    else:
        _undilate(body)
    if blocks:
        trunk = Trunk(body, blocks)
        return FeatureMap(trunk, cast(Any, cast(nn.Sequential, trunk.blocks[-1])[-1]).bn3.num_features)
    info: Any = body.feature_info
    return FeatureMap(body, info.channels()[-1])


def refuse_unknown(timm_id: str) -> None:
    """ValueError for a name that timm does not know, with some that are near."""
    if not timm.is_model(timm_id):
        near = timm.list_models(f"*{timm_id.split('.')[0][:8]}*")[:5]
        raise ValueError(f"timm has no model {timm_id!r}; near it: {', '.join(near) or 'none'}")


def _undilate(body: nn.Module) -> None:
    """Undo the dilation of every convolution, with the padding that keeps the map's size."""
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d) and max(layer.dilation) > 1:
            if not isinstance(layer.padding, str):  # layers with padding "same" compute their own
                layer.padding = tuple(pad // by for pad, by in zip(layer.padding, layer.dilation, strict=True))
            layer.dilation = (1, 1)


def _check(descriptors: tuple[str, ...], dim: int, classes: int | None) -> None:
    if not descriptors:
        raise ValueError(f"CGD: want at least one descriptor out of {', '.join(DESCRIPTORS)}")
    for name in descriptors:
        if name not in DESCRIPTORS:
            raise ValueError(f"CGD: no descriptor {name!r}; there are: {', '.join(DESCRIPTORS)}")
    if dim <= 0 or dim % len(descriptors):
        raise ValueError(f"CGD: dim {dim} does not divide into {len(descriptors)} branches; take a multiple of them")
    if classes is not None and classes < 1:
        raise ValueError(f"CGD: want at least 1 class or None, got {classes}")


def _channels(backbone: nn.Module) -> int:
    """C of the backbone's map: its `channels` where it has that attribute, else measured on one small image."""
    declared = getattr(backbone, "channels", None)
    if isinstance(declared, int):
        return declared
    training = backbone.training
    with torch.no_grad():
        first = next(iter(backbone.parameters()), torch.zeros(()))
        features = backbone.eval()(torch.zeros(1, 3, 64, 64, device=first.device, dtype=first.dtype))
    backbone.train(training)
    if features.ndim != 4:
        raise ValueError(f"CGD: the backbone must give (B, C, h, w), it gives {tuple(features.shape)}")
    return int(features.shape[1])


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1, eps=1e-6)
