"""Names of classes in checkpoints, by real writers: mmengine's layout through torch in both of its forms."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from networks.stored_names import stored_names
from networks.weight_header import metadata_of

STATE = {"state_dict": {"a": torch.zeros(2), "steps": torch.tensor(1)}}
LOGS = {"message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}, "lr": np.float64(0.1)}}
NEW = {"meta": {"epoch": 3, "dataset_meta": {"classes": ("cape", "hat"), "palette": [(1, 2, 3)]}}}


@pytest.mark.parametrize(
    ("content", "want"),
    [
        (STATE | NEW, ("cape", "hat")),
        (STATE | NEW | LOGS, ("cape", "hat")),  # objects beside the names
        (STATE | {"meta": {"dataset_meta": {"CLASSES": ["cape"]}}}, ("cape",)),
        (STATE | {"meta": {"CLASSES": ("cape", "hat")}}, ("cape", "hat")),  # mmdetection 2
        (STATE | {"meta": {"CLASSES": "cape"}}, ("cape",)),
        (STATE | {"meta": {"CLASSES": (1, 2)}}, None),
        (STATE | {"meta": {"epoch": 3}}, None),
        (STATE, None),
        ([1], None),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_names_are_read_without_torch(content: Any, want: Any, zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert stored_names(tmp_path / "x.pth") == want


def test_names_of_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a", metadata=metadata_of(("cape", "hat")))
    save_file({"a": torch.zeros(2)}, tmp_path / "b")
    assert stored_names(tmp_path / "a") == ("cape", "hat") and stored_names(tmp_path / "b") is None


class Runs:
    """Unpickled as its author means it, it makes a file."""

    def __reduce__(self) -> tuple:
        return open, ("owned", "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(STATE | NEW | {"x": Runs()}, "x.pth", _use_new_zipfile_serialization=zipped)
    assert stored_names(Path("x.pth")) == ("cape", "hat")
    Path("y.pth").write_bytes(pickle.dumps(Runs()))
    assert stored_names(Path("y.pth")) is None
    assert not Path("owned").exists()
