"""The head against its formula, the finer map, and the refusals."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retrieval.cgd import CGD, fine_map


class Patches(nn.Module):
    """A stand-in backbone: one convolution, (B, 3, H, W) -> (B, 6, H / 8, W / 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x):
        return self.layer(x).relu()


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def test_rows_are_the_formula(images):
    """spoc and gem pooled, reduced, to unit length each; joined, to unit length: each branch has length sqrt(1/2)."""
    model = CGD(Patches(), ("spoc", "gem"), dim=8).eval()
    features = model.backbone(images)
    spoc = features.mean((2, 3)) @ model.reductions[0].weight.T
    gem = features.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3) @ model.reductions[1].weight.T
    want = torch.cat([F.normalize(spoc), F.normalize(gem)], dim=1) / 2**0.5
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-5)
    assert all(reduction.bias is None for reduction in model.reductions)


@pytest.mark.parametrize("descriptors", [("spoc",), ("mac", "gem"), ("spoc", "mac", "gem"), ("gem", "gem")])
def test_rows_have_unit_length_and_classes_come_beside_them(descriptors, images):
    model = CGD(Patches(), descriptors, dim=12, classes=5)
    rows, logits = model(images)
    assert rows.shape == (4, 12) and logits.shape == (4, 5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_the_classifier_looks_at_the_first_branch_only(images):
    model = CGD(Patches(), ("spoc", "gem"), dim=8, classes=3)
    model(images)[1].sum().backward()
    assert model.pools[1].p.grad is None and model.reductions[0].weight.grad is None
    assert model.backbone.layer.weight.grad is not None


def test_a_picture_of_nothing_has_a_row_of_numbers():
    model = CGD(Patches(), dim=8).eval()
    model.backbone.layer.bias.data.zero_()
    assert torch.isfinite(model(torch.zeros(1, 3, 16, 16))).all()


@pytest.mark.parametrize(
    "timm_id, stride, channels, cells",
    [
        ("tf_efficientnet_lite0", 16, 320, 6),  # "same" padding, depthwise strides
        ("tf_efficientnet_lite0", 32, 320, 3),  # as published
        ("resnet18", 16, 512, 6),
        ("convnext_atto", 16, 320, 6),
    ],
)
def test_the_last_down_sampling_is_left_out(timm_id, stride, channels, cells):
    body = fine_map(timm_id, stride=stride).eval()
    assert body.channels == channels
    assert body(torch.zeros(1, 3, 96, 96)).shape == (1, channels, cells, cells)
    assert all(layer.dilation == (1, 1) for layer in body.modules() if isinstance(layer, nn.Conv2d))


def test_the_finer_map_has_the_published_tensors_names_and_shapes():
    fine, plain = (fine_map("resnet18", stride=stride).state_dict() for stride in (16, 32))
    assert {k: v.shape for k, v in fine.items()} == {k: v.shape for k, v in plain.items()}


def test_blocks_cut_a_network_short_and_leave_the_rest_as_it_was():
    whole, cut = (fine_map("tf_efficientnet_lite2", blocks=blocks).eval() for blocks in ((), (1, 3, 3, 4, 4, 2)))
    own = cut.state_dict()
    assert cut.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own})
    maps = []
    whole.body.blocks[5][1].register_forward_hook(lambda *call: maps.append(call[-1]))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        whole(images)
        found = cut(images)
    assert found.shape == (1, cut.channels, 4, 4) == (1, 208, 4, 4)
    torch.testing.assert_close(found, maps[0])


@pytest.mark.parametrize("timm_id, blocks, has", [
    ("tf_efficientnet_lite0", (1, 2, 3), "[1, 2, 2, 3, 3, 4, 1]"),
    ("tf_efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1, 1), "[1, 2, 2, 3, 3, 4, 1]"),
    ("resnet18", (1,), "no blocks"),
])  # fmt: skip
def test_blocks_a_network_has_not_are_refused(timm_id, blocks, has):
    with pytest.raises(ValueError, match=re.escape(f"blocks {blocks}: the network has stages of {has}")):
        fine_map(timm_id, blocks=blocks)


def test_a_timm_name_will_do():
    assert CGD("resnet18", dim=6, descriptors=("spoc", "mac", "gem")).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 6)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"dim": 7}, "dim 7 does not divide into 2 branches"),
        ({"dim": 0}, "dim 0"),
        ({"descriptors": ()}, "at least one"),
        ({"descriptors": ("spoc", "sum")}, "no descriptor 'sum'; there are: spoc, mac, gem"),
        ({"classes": 0}, "at least 1 class"),
    ],
)
def test_what_cannot_be_built_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        CGD(Patches(), **{"dim": 8, **more})


def test_an_unknown_backbone_is_refused_with_those_near_it():
    with pytest.raises(ValueError, match="no model 'resnet19'; near it: "):
        CGD("resnet19")
    with pytest.raises(ValueError, match=r"\(B, C, h, w\), it gives \(1, 12\)"):
        CGD(nn.Sequential(Patches(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten()), dim=8)
