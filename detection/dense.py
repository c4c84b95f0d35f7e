"""The networks without what follows them: modules of tensors alone, from a padded batch to a head's raw maps.

    fold(model)                      # batch norms into the convolutions before them
    pad_alike(model, 32)             # convolutions that pad by their input's size: by the same for all batches
    maps = OneStage(model)(batch)    # (B, 3, H, W) -> the head's maps

The flow of control depends on no values, so `torch.jit.trace` records each module at a fixed shape.
`detection.families` turns the maps into boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detection.decode import from_deltas

CONVOLUTIONS = ("Conv2d", "Conv2dSame", "ConvTranspose2d")  # by name: mmcv and timm have their own of torch's classes

LAST_STRIDE = 32  # of timm's trunks: sides that it divides are whole at every convolution


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


class PaddedAlike(nn.Module):
    """timm's `Conv2dSame` for inputs whose sides its stride divides: zeros all round as TensorFlow's SAME puts them.

    For such inputs the padding depends on kernel and stride alone. `Conv2dSame` asks for the input's size, so that
    OpenVINO would pad by a copy, 5 % of a trunk's time; a constant padding is part of its convolution.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.convolution = convolution
        reaches = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
        top, left = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, dilation, stride in reaches)
        self.sides = [left // 2, left - left // 2, top // 2, top - top // 2]  # left, right, top, bottom

    def forward(self, maps: Tensor) -> Tensor:
        own = self.convolution
        return functional.conv2d(
            functional.pad(maps, self.sides), own.weight, own.bias, own.stride, 0, own.dilation, own.groups
        )


def pad_alike(model: nn.Module, multiple_px: int) -> int:
    """Put `PaddedAlike` in the place of every `Conv2dSame`, in place: the same outputs to the last bit.

    Photos are padded to multiples of `multiple_px`; where that is none of 32, the last stride of timm's trunks, nothing
    is replaced. Returns how many were.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "Conv2dSame" and not isinstance(parent, PaddedAlike)
    ]
    if multiple_px % LAST_STRIDE:
        return 0
    for parent, name, child in found:
        setattr(parent, name, PaddedAlike(child))
    return len(found)


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


class RoiFeatures(nn.Module):
    """mmdetection's SingleRoIExtractor with average pooling: the features of boxes, each from the map of its size.

    In: maps (B, C, h, w) of the pyramid's levels, finest first; rois (N, 5) float32, the photo's row in the batch and a
    box in its pixels. Out: (N, C, S, S), zeros for a box without an area. Every level looks at all boxes, those of the
    others moved outside its map, so that shapes follow from the input's alone.
    """

    OUTSIDE = (-9.0, -9.0, -8.0, -8.0)  # a box left of and above a map, in cells

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        layer = extractor.roi_layers[0]
        self.strides, self.finest_px = list(extractor.featmap_strides), extractor.finest_scale
        self.size, self.samples = layer.output_size, layer.sampling_ratio
        self.shape = (extractor.out_channels, *self.size)  # of one box's features

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        sides = rois[:, 3:] - rois[:, 1:3]
        level = (sides.prod(1).sqrt() / self.finest_px + 1e-6).log2().floor().clamp(0, len(self.strides) - 1)
        solid = (sides > 0).all(1)
        total: Any = 0
        for number, (one, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = (solid & (level == number))[:, None]
            boxes = torch.where(here, rois[:, 1:] / stride, rois.new_tensor(self.OUTSIDE))
            if torch.jit.is_tracing():
                # OpenVINO aligns boxes six times faster in channels last, which it uses after convolutions only: this
                # one changes nothing
                one = functional.conv2d(one, one.new_ones(self.shape[0], 1, 1, 1), groups=self.shape[0])
            cells = torch.cat([rois[:, :1], boxes], 1)
            total = total + torch.ops.torchvision.roi_align(one, cells, 1.0, *self.size, self.samples, True)
        return total


class Refining(nn.Module):
    """The box heads of a cascade, one after the other.

    In: rois (N, 5) as for `RoiFeatures`; limits (N, 2), width and height of each one's photo; the maps. Out:
    rois (N, 5) as the last head gets them, mean scores (N, K + 1), and that head's deltas, (N, 4) or (N, 4 K).
    """

    def __init__(self, roi_head: Any) -> None:
        super().__init__()
        self.heads, self.coders = roi_head.bbox_head, [head.bbox_coder for head in roi_head.bbox_head]
        self.features = nn.ModuleList(map(RoiFeatures, roi_head.bbox_roi_extractor))

    def forward(self, rois: Tensor, limits: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total: Any = 0
        for number, (head, features) in enumerate(zip(self.heads, self.features, strict=True)):
            scores, deltas = (one.float() for one in head(features(maps, rois)))
            total = total + scores
            if number < len(self.heads) - 1:
                moved = self.moved(number, rois, deltas, scores[:, :-1].argmax(1), limits)
                rois = torch.cat([rois[:, :1], moved], 1)
        return rois, total / len(self.heads), deltas

    def moved(self, number: int, rois: Tensor, deltas: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
        """(N, 4) boxes moved by the deltas of that head, which has one for all classes or one for each."""
        if deltas.shape[1] > 4:
            deltas = deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas), device=deltas.device), labels]
        return from_deltas(rois[:, 1:], deltas, self.coders[number].means, self.coders[number].stds, limits)


class MaskHeads(nn.Module):
    """The mask heads of a cascade: mean probabilities of each box's own class.

    In: rois (N, 5) and maps, as for `RoiFeatures`; labels (N,) int64, from 0 up. Out: (N, 2S, 2S) in [0, 1]. Features
    are computed once for all heads.
    """

    def __init__(self, roi_head: Any) -> None:
        super().__init__()
        self.heads, self.features = roi_head.mask_head, RoiFeatures(roi_head.mask_roi_extractor[0])

    def forward(self, rois: Tensor, labels: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        features = self.features(maps, rois)
        logits = [_mask_logits(head, features, labels) for head in self.heads]
        return (torch.stack([one.float().sigmoid() for one in logits]).mean(0),)


def _mask_logits(head: Any, features: Tensor, labels: Tensor) -> Tensor:
    """(N, 2S, 2S): those that mmdetection's `FCNMaskHead` gives for each box's own class, 0 where it tells none apart.

    Its last two layers become a convolution to the four places of each cell, and a sum over them with the weights of
    the class: the heads take a tenth less time, and their outputs are of one class instead of all.
    """
    own = labels if head.conv_logits.out_channels > 1 else torch.zeros_like(labels)
    if not _quarters(head):
        return head(features)[torch.arange(len(labels), device=labels.device), own]
    for convolution in head.convs:
        features = convolution(features)
    up, last = head.upsample, head.conv_logits
    weight = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels, 1, 1)
    places = functional.conv2d(features, weight, up.bias.repeat(4)).relu()  # (N, 4 C, S, S)
    weighed = places * last.weight[own].repeat(1, 4, 1, 1)
    sums = torch.eye(4, device=weight.device).repeat_interleave(up.out_channels, 1)[..., None, None]
    logits = functional.conv2d(weighed, sums.to(weighed)) + last.bias[own].view(-1, 1, 1, 1)
    return functional.pixel_shuffle(logits, 2)[:, 0]


def _quarters(head: Any) -> bool:
    """Whether a mask head doubles its map by a deconvolution, whose windows do not overlap in mmdetection."""
    last = type(head.conv_logits).__name__  # by name: mmcv has classes of torch's that do more
    return head.upsample_method == "deconv" and head.scale_factor == 2 and last == "Conv2d"
