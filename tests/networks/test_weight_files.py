"""Weights are read whole and checked, and put into a network all at once or not at all."""

import hashlib

import pytest
import torch
from safetensors.torch import save
from torch import nn

from networks.weight_files import WeightsError, fill, read

TENSORS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
TRAINER = "jobs/train.py"


def test_a_file_is_read_with_and_without_a_digest(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(TENSORS))
    for sha256 in ("", hashlib.sha256(path.read_bytes()).hexdigest()):
        tensors = read(path, model="small", sha256=sha256, trainer=TRAINER)
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"weight": [[1, 2]], "bias": [3]}


@pytest.mark.parametrize("data, sha256, message", [
    (None, "", "small: cannot read weights .*: No such file .*; train them with jobs/train.py or set weights_dir"),
    (save(TENSORS), "0" * 64, r"small: .* has sha256 .*, want 0{16}…; fetch the weights again"),
    (save(TENSORS)[:-1], "", "small: .* is not a safetensors file"),
    (b"", "", "small: .* is not a safetensors file"),
])  # fmt: skip
def test_a_file_that_is_not_the_one_wanted_is_refused(tmp_path, data, sha256, message):
    path = tmp_path / "weights.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        read(path, model="small", sha256=sha256, trainer=TRAINER)


def test_tensors_are_converted_to_the_types_of_the_model():
    model = nn.Linear(2, 1)
    fill(model, {name: tensor.half() for name, tensor in TENSORS.items()}, "small")
    assert model.weight.dtype == torch.float32 and model(torch.ones(1, 2)).item() == 1 + 2 + 3


@pytest.mark.parametrize("changes, message", [
    ({"bias": None}, r"small: bias wants \(1,\), has nothing"),
    ({"scale": torch.ones(1)}, r"scale wants nothing, has \(1,\)"),
    ({"weight": torch.ones(2, 1)}, r"weight wants \(1, 2\), has \(2, 1\); were they trained for another model"),
    ({"bias": torch.ones(1, dtype=torch.int64)}, "bias wants torch.float32, has torch.int64"),
    ({"bias": torch.ones(1, dtype=torch.complex64)}, "has torch.complex64"),
    ({"bias": torch.tensor([float("nan")])}, "bias is not all finite numbers"),
    ({"bias": torch.tensor([1e300], dtype=torch.float64)}, "bias is not all finite numbers"),  # infinite as float32
])  # fmt: skip
def test_tensors_that_do_not_fit_leave_the_model_as_it_was(changes, message):
    model = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}
    with pytest.raises(WeightsError, match=message):
        fill(model, tensors, "small")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
