"""Networks as modules of tensors: folding changes nothing but the last digits, and tracing nothing at all."""

import dataclasses
from typing import Any

import pytest
import timm.layers
import torch
from torch import nn

from detection import dense, detector, models
from detection.families import CascadeFamily, family_of
from detection.models import DetectorSpec

TINY = models.PROFILES["tiny"]
LARGE = [*models.PROFILES["paper"], models.CENTERNET_HOURGLASS]


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def with_statistics(spec: DetectorSpec) -> Any:
    """The model with batch norms that do something: untrained ones multiply by 1 and add 0."""
    model = detector.build(spec).eval()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.bias, -0.1, 0.1),
            ):
                tensor.data.uniform_(low, high)
            module.weight.data *= torch.empty_like(module.weight).uniform_(0.8, 1.2)
    return model


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        *((spec, 0) for spec in TINY),
        *(pytest.param(spec, 3 if "dcn" in spec.name else 0, marks=pytest.mark.slow) for spec in LARGE),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_folded_batch_norms_give_the_same_maps(spec: DetectorSpec, left: int) -> None:
    """`left` stand after deformable convolutions."""
    model = with_statistics(spec)
    whole, batch = family_of(model), torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    assert whole is not None
    with torch.inference_mode():
        want, before = whole.dense(batch), norms(model)
        assert dense.fold(model) == before - left and norms(model) == left
        assert dense.fold(model) == 0
        for map_, expected in zip(whole.dense(batch), want, strict=True):
            torch.testing.assert_close(map_, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Block(nn.Module):
    """Norms that do and do not follow a convolution at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.none, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.Identity(), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.act, self.late = nn.ReLU(), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.act(self.up_norm(self.up(self.norm(self.none(self.first(x)))))))


def test_only_a_norm_after_a_convolution_is_folded() -> None:
    block = Block().eval()
    block.norm.running_mean.data.fill_(0.3)
    block.up_norm.running_var.data.fill_(2.0)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want = block(x)
    assert dense.fold(block) == 2 and isinstance(block.late, nn.BatchNorm2d)
    torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 1, 2)])
def test_a_convolution_padded_alike_is_timms(kernel: int, stride: int, dilation: int) -> None:
    """To the last bit, for every input whose sides the stride divides."""
    own: Any = timm.layers.create_conv2d(3, 4, kernel, stride=stride, dilation=dilation, padding="same")
    if type(own).__name__ != "Conv2dSame":  # timm pads by a constant itself where the stride is 1
        own = timm.layers.Conv2dSame(3, 4, kernel, stride, dilation=dilation)
    for height, width in ((2, 4), (10, 6), (32, 64)):
        maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(dense.PaddedAlike(own)(maps), own(maps), rtol=0, atol=0)


@pytest.mark.parametrize("multiple_px, want", [(32, 5), (128, 5), (16, 0), (48, 0), (1, 0)])
def test_padding_is_the_same_where_photos_are_of_whole_cells(multiple_px: int, want: int) -> None:
    """EfficientNet-Lite halves its maps five times."""
    model = detector.build(models.CENTERNET_TINY, initialise=False)
    assert dense.pad_alike(model, multiple_px) == want
    assert sum(type(each).__name__ == "PaddedAlike" for each in model.modules()) == want
    assert dense.pad_alike(model, multiple_px) == 0


@pytest.mark.parametrize(
    "spec", [*TINY[:4], *(pytest.param(s, marks=pytest.mark.slow) for s in LARGE)], ids=lambda s: s.name
)
@pytest.mark.filterwarnings("ignore")
def test_every_module_can_be_traced(spec: DetectorSpec) -> None:
    """The trace, recorded on one batch, gives another batch's tensors: nothing in it depended on values."""
    small = dataclasses.replace(spec, scale_px=(160, 128))
    ours = detector.load(small, "cpu", weights=None, allow_random_weights=True)
    parts = ours._family._parts()
    assert ("refining" in parts) == isinstance(ours._family, CascadeFamily)
    for part, examples in parts.items():
        module = getattr(ours._family, part)
        one, other = (tuple(map(torch.from_numpy, example)) for example in examples())
        with torch.inference_mode():
            traced = torch.jit.trace(module, one, check_trace=False)
            for got, want in zip(traced(*other), module(*other), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_features_of_boxes_are_those_of_mmdetections_extractor() -> None:
    """Boxes of each level, on the bounds between two, of no area, and partly outside of the photo."""
    head: Any = detector.build(models.CASCADE_MASK_RCNN_TINY).roi_head
    maps = [torch.randn(2, 64, 40 // 2**level, 32 // 2**level) for level in range(3)]
    sides = [(30, 20), (223.9, 224), (224, 224), (448, 448), (500, 900), (0, 0), (0, 40)]
    rois = torch.tensor([[n % 2, 3.0 * n - 2, 5, 3 * n - 2 + w, 5 + h] for n, (w, h) in enumerate(sides)])
    for extractor in (head.bbox_roi_extractor[0], head.mask_roi_extractor[0]):
        with torch.inference_mode():
            got, want = dense.RoiFeatures(extractor)(maps, rois), extractor(maps, rois)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        assert got[:5].abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    "changed, quarters",
    [
        ({}, True),
        ({"num_convs": 0, "class_agnostic": True}, True),
        ({"upsample_cfg": {"type": "deconv", "scale_factor": 3}}, False),
        ({"upsample_cfg": {"type": "nearest", "scale_factor": 2}}, False),
        ({"upsample_cfg": {"type": None}}, False),
    ],
)
def test_masks_of_the_own_class_are_those_of_mmdetections_heads(changed: dict, quarters: bool) -> None:
    config: Any = detector.build_config(models.CASCADE_MASK_RCNN_TINY)
    config["roi_head"]["mask_head"].update(changed)
    from mmdet.registry import MODELS

    heads: Any = MODELS.build(config).roi_head
    for tensor in (tensor for each in heads.mask_head for tensor in each.parameters()):
        tensor.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(tensor)))
    ours, labels = dense.MaskHeads(heads), torch.tensor([0, 12, 5])
    assert [dense._quarters(each) for each in heads.mask_head] == [quarters] * 3
    maps = [torch.randn(1, 64, 40 // 2**level, 32 // 2**level) for level in range(3)]
    rois = torch.tensor([[0.0, 10, 10, 90, 120], [0, 30, 5, 200, 250], [0, 0, 0, 20, 30]])
    with torch.inference_mode():
        (got,) = ours(rois, labels, *maps)
        features = heads.mask_roi_extractor[0](maps, rois)
        want = torch.stack([head(features).sigmoid() for head in heads.mask_head]).mean(0)
    own = torch.zeros_like(labels) if want.shape[1] == 1 else labels
    assert float(want.std()) > 0.01
    torch.testing.assert_close(got, want[torch.arange(3), own], rtol=0, atol=1e-6)
