"""Plans on disk: what is written is read back, and what is damaged, foreign or too much is not."""

import os
from pathlib import Path

import pytest

from networks import plan_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clothes-retrieval" / "plans"


def test_a_plan_is_read_back_under_its_key_alone(cache: Path) -> None:
    path = plan_files.path_of({"shape": [4, 3], "weights": "a"})
    assert plan_files.read(path) is None
    plan_files.write(path, b"plan")
    assert path.parent == cache and plan_files.read(path) == b"plan"
    assert plan_files.path_of({"weights": "a", "shape": [4, 3]}) == path, "the order of a key's parts says nothing"
    assert plan_files.path_of({"weights": "b", "shape": [4, 3]}) != path
    assert os.listdir(cache) == [path.name], "nothing but the plan is left"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],  # less than a digest
        lambda data: data[:-1],  # cut short
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # one bit
        lambda data: bytes([data[0] ^ 1]) + data[1:],  # of the digest
    ],
)
def test_a_damaged_file_counts_as_absent(damage) -> None:
    path = plan_files.path_of({})
    plan_files.write(path, b"plan")
    path.write_bytes(damage(path.read_bytes()))
    assert plan_files.read(path) is None
    plan_files.write(path, b"plan")
    assert plan_files.read(path) == b"plan"


def test_a_file_of_another_user_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    path = plan_files.path_of({})
    plan_files.write(path, b"plan")
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert plan_files.read(path) is None


def test_a_folder_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    path = plan_files.path_of({})
    plan_files.write(path, b"plan")
    assert plan_files.read(path) is None


def test_the_least_recently_read_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    size = plan_files.DIGEST + 10
    monkeypatch.setattr(plan_files, "LARGEST", 3 * size)
    first, second, third, fourth = (plan_files.path_of({"n": n}) for n in range(4))
    for moment, path in enumerate((first, second, third)):
        plan_files.write(path, bytes(10))
        os.utime(path, (moment, moment))
    assert plan_files.read(first) == bytes(10)  # and is the most recent now
    plan_files.write(fourth, bytes(10))
    assert [path.exists() for path in (first, second, third, fourth)] == [True, False, True, True]
    plan_files.write(second, bytes(3 * size + 1))
    assert not second.exists(), "larger than all together may be"
