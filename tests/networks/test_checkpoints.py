"""Files of weights as trainers write them: wrappers, prefixes, and what is refused."""

import argparse

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from networks.checkpoints import read, without_prefixes
from networks.weight_files import WeightsError

OWN = {"a.weight": torch.ones(2), "b.weight": torch.zeros(2)}
OTHER = {"a.weight": torch.full((2,), 7.0)}


@pytest.mark.parametrize(
    "content, first",
    [
        (OWN, 1),  # bare
        ({"state_dict": OWN, "epoch": 3}, 1),
        ({"model": OWN, "optimizer": {"state": {}, "param_groups": []}}, 1),
        ({"state_dict": OTHER, "state_dict_ema": OWN}, 1),  # the average first
        ({"model": OTHER, "model_ema": OWN}, 1),
        ({"model": {"state_dict": OWN}}, 1),  # one in the other
        ({"student": OTHER, "teacher": OWN}, 1),
        ({"state_dict": OWN, "state_dict_ema": None}, 1),
        ({"state_dict": OWN, "args": argparse.Namespace(lr=0.1)}, 1),  # as timm's trainer writes it
    ],
)
def test_wrappers_are_found(content, first, tmp_path):
    torch.save(content, tmp_path / "own.pth")
    tensors = read(tmp_path / "own.pth", model="own")
    assert sorted(tensors) == sorted(OWN) and tensors["a.weight"][0] == first


LOGS = {
    "message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0, 0.5], [1, 1])}, "lr": np.float64(0.1)},
    "meta": {"best": np.float32(0.5), "seen": np.arange(3), "mask": np.array([True])},
}


@pytest.mark.parametrize("zipped", [True, False])
def test_what_mmengine_writes_is_read(zipped, tmp_path):
    content = {"state_dict": OWN, "ema_state_dict": OTHER} | LOGS  # it swaps them: the average is the state_dict
    torch.save(content, tmp_path / "own.pth", _use_new_zipfile_serialization=zipped)
    tensors = read(tmp_path / "own.pth", model="own", wrappers=("state_dict", "ema_state_dict"))
    assert sorted(tensors) == sorted(OWN)


def test_the_bytes_tell_the_format_not_the_name(tmp_path):
    save_file(OWN, tmp_path / "own.pth")
    assert sorted(read(tmp_path / "own.pth", model="own")) == sorted(OWN)
    torch.save(OWN, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert sorted(read(tmp_path / "old.bin", model="own")) == sorted(OWN)


X = torch.zeros(1)


@pytest.mark.parametrize(
    "names, wanted, left",
    [
        (["a", "b"], ["a", "b"], ["a", "b"]),
        (["module.a", "module.b"], ["a", "b"], ["a", "b"]),
        (["module.model.a", "module.model.b"], ["a", "b"], ["a", "b"]),
        (["backbone.body.a", "backbone.body.b", "reductions.0.weight"], ["a", "b"], ["a", "b", "reductions.0.weight"]),
        (["model.a", "model.b"], ["model.a"], ["model.a", "model.b"]),  # the network's own
        (["model.a", "b"], ["a", "b"], ["b", "model.a"]),  # half of them: no wrapper did that
        ([], ["a"], []),
    ],
)
def test_prefixes_go_where_most_have_them(names, wanted, left):
    assert sorted(without_prefixes({name: X for name in names}, wanted)) == left


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "no tensors by name in it"),
        ([X], "no tensors by name in it"),
        (X, "no tensors by name in it"),
        ({"epoch": 3}, "no tensors by name in it"),
        (torch.nn.Linear(1, 1), r"holds more than tensors.*torch\.save\(model\.state_dict\(\), FILE\)"),
        ({"a": torch.zeros(1).expand(10**12)}, r"a \(1000000000000,\) is larger than what the file holds"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is no plain tensor"),
        ({"a": torch.eye(2).to_sparse()}, "a is no plain tensor"),
    ],
)
def test_what_holds_no_weights_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        read(tmp_path / "own.pth", model="own")
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith("own: ")


def test_a_missing_file_and_another_digest(tmp_path):
    with pytest.raises(WeightsError, match=r"own: cannot read weights .*gone\.pth: No such file"):
        read(tmp_path / "gone.pth", model="own")
    torch.save(OWN, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match="want 0000000000000000…; fetch the weights again"):
        read(tmp_path / "own.pth", model="own", sha256="0" * 64)
