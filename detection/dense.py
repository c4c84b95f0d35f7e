"""The networks without what follows them: modules of tensors alone, from a padded batch to a head's raw maps.

    fold(model)                      # batch norms into the convolutions before them
    maps = OneStage(model)(batch)    # (B, 3, H, W) -> the head's maps

The flow of control depends on no values, so `torch.jit.trace` records each module at a fixed shape.
`detection.families` turns the maps into boxes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = ("Conv2d", "Conv2dSame", "ConvTranspose2d")  # by name: mmcv and timm have their own of torch's classes


def fold(model: nn.Module) -> int:
    """Put every batch norm into the convolution that stands before it, in place: the same outputs up to rounding.

    A batch norm follows a convolution where it is the next module of the same parent, identities apart: so it is in
    mmdetection's ResNets, in mmcv's ConvModule and in timm's blocks. Returns how many were folded; the model is in
    evaluation mode, and a second call finds none.
    """
    folded = 0
    for parent in list(model.modules()):
        before: tuple[str, Any] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                key, convolution = before
                setattr(parent, key, fuse_conv_bn_eval(convolution, child, isinstance(convolution, nn.ConvTranspose2d)))
                setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's batch norm has its activation
                folded += 1
            if not isinstance(child, nn.Identity):
                before = (name, child) if type(child).__name__ in CONVOLUTIONS else None
    return folded


class OneStage(nn.Module):
    """Trunk, neck and head: (B, 3, H, W) float32, normalised -> the head's maps (B, C, h, w), kind by kind.

    Kinds are those that the head's `forward` gives (scores, boxes, centerness; heat, sizes, offsets), each finest level
    first.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        kinds = self.model.bbox_head(self.model.extract_feat(batch))
        return tuple(one for kind in kinds for one in kind)


class Proposing(nn.Module):
    """What a two-stage detector computes of a whole photo: (B, 3, H, W) -> the neck's maps, then the RPN's.

    As many maps of scores and as many of boxes follow as the neck has maps; finest level first.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(batch)
        scores, boxes = self.model.rpn_head(maps)
        return (*maps, *scores, *boxes)


class MaskHeads(nn.Module):
    """The mask heads of a cascade: (N, C, S, S) features of boxes -> (N, K, 2S, 2S), the mean probabilities."""

    def __init__(self, heads: nn.ModuleList) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack([head(features).float().sigmoid() for head in self.heads]).mean(0),)
