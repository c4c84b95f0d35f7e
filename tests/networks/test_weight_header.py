"""The names of categories in a file of weights: written and read again, absent, and hostile."""

import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from networks import weight_header

WEIGHTS = {"w": torch.zeros(3)}


def header(content: bytes, size: int | None = None) -> bytes:
    return (len(content) if size is None else size).to_bytes(8, "little") + content


def named(names: object) -> bytes:
    return header(json.dumps({"__metadata__": {"categories": json.dumps(names)}}).encode())


def test_names_are_read_as_they_were_saved() -> None:
    names = ("robe d'été", "cape", "コート")
    data = save(WEIGHTS, weight_header.metadata_of(names))
    assert weight_header.read_categories(io.BytesIO(data).read) == names


@pytest.mark.parametrize("data", [
    b"", b"weights", save(WEIGHTS), save(WEIGHTS, {"format": "pt"}), b"PK\x03\x04 a zip file of torch.save",
    header(b"{}", size=2**63), header(b"[" * 100_000), header(b'{"__metadata__": 3}'),
    header(b'{"__metadata__": {"categories": "[1"}}'), header(b"\xff\xfe"),
])  # fmt: skip
def test_a_file_without_names_has_none(data: bytes) -> None:
    assert weight_header.read_categories(io.BytesIO(data).read) is None


@pytest.mark.parametrize("names, reason", [
    ([], "at least one name"), ({"a": 1}, "at least one name"), ("dress", "at least one name"),
    (["a", "a"], "named twice"), (["a", 3], "want a name"), ([" a"], "want a name"),
])  # fmt: skip
def test_names_that_cannot_be_categories_are_refused(names: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        weight_header.read_categories(io.BytesIO(named(names)).read)


@given(st.binary(max_size=200))
def test_any_bytes_are_names_or_none_or_refused(data: bytes) -> None:
    try:
        names = weight_header.read_categories(io.BytesIO(header(data)).read)
    except ValueError:
        return
    assert names is None or all(isinstance(name, str) for name in names)
