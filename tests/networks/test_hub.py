"""Files from a hub cache laid out as huggingface_hub lays it out; no network anywhere."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from networks import hub
from store.errors import UserError
from tests.hub_cache import put

NAMES = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "there, taken",
    [
        ({"model.safetensors": b"1", "pytorch_model.bin": b"2"}, b"1"),  # the best first
        ({"pytorch_model.bin": b"2"}, b"2"),
    ],
)
def test_a_cached_file_needs_no_network(tmp_path, there, taken):
    commit = put(tmp_path, "timm/x", there)
    path = hub.fetch("timm/x", NAMES)
    assert path.read_bytes() == taken and hub.commit_of(path) == commit
    assert hub.fetch("timm/x", NAMES, commit) == path == hub.fetch("timm/x", (path.name,), commit)


def test_a_newer_main_branch_leaves_the_older_commit(tmp_path):
    """A run that goes on takes the bytes it was planned with."""
    old = put(tmp_path, "timm/x", {NAMES[0]: b"old"})
    new = put(tmp_path, "timm/x", {NAMES[0]: b"new"})
    assert old != new
    assert hub.fetch("timm/x", NAMES).read_bytes() == b"new"
    assert hub.fetch("timm/x", NAMES, old).read_bytes() == b"old"


@pytest.mark.parametrize(
    "repo, message",
    [
        ("timm/gone", r"model\.safetensors or pytorch_model\.bin of timm/gone is not in .* and cannot be fetched \("),
        ("not a name//", r"not a name//: "),
    ],
)
def test_what_is_neither_cached_nor_to_be_had_is_one_line(tmp_path, repo, message):
    put(tmp_path, "timm/gone", {"README.md": b""})
    with pytest.raises(UserError, match=message) as caught:
        hub.fetch(repo, NAMES)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


def test_a_file_of_elsewhere_has_no_commit():
    assert hub.commit_of(Path("/weights/model.safetensors")) == ""
