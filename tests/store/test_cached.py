"""Objects kept on this machine: fetched once, checked, whole, and never another version."""

import hashlib
import threading
from pathlib import Path

import pytest

from store.cached import cache_folder, cached
from store.objects import ObjectMissing, ObjectStore, StorageError, open_store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bucket(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    store = open_store(f"{s3_bucket}/weights")
    store.write("a/model.safetensors", b"abc")
    return store


@pytest.fixture
def reads(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    read = type(bucket).read

    def counted(self: ObjectStore, key: str) -> bytes:
        done.append(key)
        return read(self, key)

    monkeypatch.setattr(type(bucket), "read", counted)
    return done


def test_a_folders_file_is_taken_as_it_lies(tmp_path: Path):
    (tmp_path / "w").write_bytes(b"abc")
    assert cached(open_store(tmp_path), "w", "not looked at") == tmp_path / "w"


def test_a_buckets_object_is_fetched_once_by_all(bucket: ObjectStore, reads: list[str], tmp_path: Path):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and found[0].read_bytes() == b"abc" and reads == ["a/model.safetensors"]


def test_what_was_damaged_on_the_disk_is_fetched_again(bucket: ObjectStore, reads: list[str], tmp_path: Path):
    path = cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path)
    path.write_bytes(b"ab")
    assert cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path).read_bytes() == b"abc" and len(reads) == 2


def test_a_new_version_does_not_meet_the_old_one(bucket: ObjectStore, tmp_path: Path):
    old = cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path)
    bucket.write("a/model.safetensors", b"new")
    new = cached(bucket, "a/model.safetensors", sha256(b"new"), tmp_path)
    assert old.read_bytes() == b"abc" and new.read_bytes() == b"new"


def test_other_bytes_than_asked_for_are_refused_and_not_kept(bucket: ObjectStore, tmp_path: Path):
    with pytest.raises(StorageError, match=f"model.safetensors has sha256 {sha256(b'abc')}, want {'0' * 64}"):
        cached(bucket, "a/model.safetensors", "0" * 64, tmp_path)
    assert [path.name for path in (tmp_path / ("0" * 64)).iterdir()] == ["lock"]


def test_what_is_not_there_is_named(bucket: ObjectStore, tmp_path: Path):
    with pytest.raises(ObjectMissing):
        cached(bucket, "b", sha256(b""), tmp_path)


def test_without_a_home_the_temporary_folder_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "clothes-retrieval"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().name.startswith("clothes-retrieval-")
