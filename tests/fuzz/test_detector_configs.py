"""Configurations of mmdetection's as data, entries that name them, names of classes in checkpoints: read or refused.

A Python configuration is the user's code and is executed; so none is made up here.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detection import own_config
from detection.config_files import dataset_names
from networks.stored_names import stored_names
from tests.detection.test_own_config import FLAT
from tests.fuzz import guard

ENTRY = {
    "name": "own", "config": "x.json", "checkpoint": "x.pth", "categories": ["cape", "hat"], "classes": {"cape": None},
    "scale_px": [320, 240], "fusion_weight": 1.5, "view": "flip@0.5",
}  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset_names("CocoDataset")  # what is kept of it was read outside the watch
    return tmp_path_factory.mktemp("configs")


def read(entry: object, box: Path) -> None:
    with guard.watched(box / "nothing"):
        try:
            spec = own_config.from_fields(entry)  # type: ignore[arg-type]
            spec.with_names(None)
        except ValueError as error:
            assert len(str(error)) < 1000 and len(str(error).splitlines()) == 1


@guard.fuzzed()
@given(data=st.data())
def test_any_configuration_is_read_or_refused(data, box):
    content = data.draw(st.one_of(guard.replaced(FLAT), st.just(FLAT)))
    name = data.draw(st.sampled_from(["x.json", "x.yaml"]))
    text = (json.dumps(content) if name == "x.json" else yaml.safe_dump(content)).encode("utf-8", "surrogatepass")
    (box / name).write_bytes(data.draw(st.one_of(st.just(text), guard.broken([text]))))
    read({"name": "own", "config": str(box / name)}, box)
    guard.inputs["test_detector_configs"] += 1


@guard.fuzzed()
@given(data=st.data())
def test_any_entry_is_read_or_refused(data, box):
    (box / "x.json").write_text(json.dumps(FLAT))
    entry = data.draw(guard.replaced(ENTRY))
    if isinstance(entry, dict) and entry.get("config") == "x.json":
        entry["config"] = str(box / "x.json")
    if isinstance(entry, dict) and not str(entry.get("config")).endswith(".py"):
        read(entry, box)
    guard.inputs["test_detector_configs"] += 1


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder, found = tmp_path_factory.mktemp("checkpoints"), []
    content = {"meta": {"dataset_meta": {"classes": ("cape", "hat")}}, "state_dict": {"a": torch.zeros(2)}}
    for zipped in (True, False):
        torch.save(content, folder / "x.pth", _use_new_zipfile_serialization=zipped)
        found.append((folder / "x.pth").read_bytes())
    return found


@guard.fuzzed()
@given(data=st.data())
def test_any_checkpoint_has_names_or_none(data, checkpoints, box):
    (box / "x.pth").write_bytes(data.draw(guard.broken(checkpoints)))
    with guard.watched(box / "nothing"):
        try:
            names = stored_names(box / "x.pth")
        except ValueError as error:
            assert len(str(error)) < 1000 and len(str(error).splitlines()) == 1
        else:
            assert names is None or all(isinstance(name, str) for name in names)
    guard.inputs["test_detector_configs"] += 1
