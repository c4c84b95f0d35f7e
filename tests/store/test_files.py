"""Digests, publishing by rename, and the cache: fetched once, checked, whole, and never another version."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from store.files import cache_folder, cached, digest, file_digest, file_sha256, hasher, publish_file
from store.objects import HIDDEN, ObjectMissing, ObjectStore, StorageError, open_store


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


def test_a_damaged_cached_file_is_fetched_again(bucket: ObjectStore, reads: list[str], tmp_path: Path):
    path = cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path)
    path.write_bytes(b"ab")
    assert cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path).read_bytes() == b"abc" and len(reads) == 2


def test_two_versions_are_cached_apart(bucket: ObjectStore, tmp_path: Path):
    old = cached(bucket, "a/model.safetensors", sha256(b"abc"), tmp_path)
    bucket.write("a/model.safetensors", b"new")
    new = cached(bucket, "a/model.safetensors", sha256(b"new"), tmp_path)
    assert old.read_bytes() == b"abc" and new.read_bytes() == b"new"


def test_other_bytes_than_asked_for_are_refused_and_not_kept(bucket: ObjectStore, tmp_path: Path):
    with pytest.raises(StorageError, match=f"model.safetensors has sha256 {sha256(b'abc')}, want {'0' * 64}"):
        cached(bucket, "a/model.safetensors", "0" * 64, tmp_path)
    assert [path.name for path in (tmp_path / ("0" * 64)).iterdir()] == ["lock"]


def test_a_missing_object_is_named(bucket: ObjectStore, tmp_path: Path):
    with pytest.raises(ObjectMissing):
        cached(bucket, "b", sha256(b""), tmp_path)


def test_without_a_home_the_temporary_folder_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "clothes-retrieval"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().name.startswith("clothes-retrieval-")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert cache_folder().name.startswith("clothes-retrieval-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a container's user need not be listed
    assert cache_folder().name.startswith("clothes-retrieval-")


@pytest.mark.parametrize("data", [b"", b"abc", bytes(3_000_000)])
def test_the_digest_of_bytes_and_of_a_file_is_blake2b_128(tmp_path: Path, data: bytes):
    want = hashlib.blake2b(data, digest_size=16).hexdigest()
    (tmp_path / "file").write_bytes(data)
    assert (
        digest(data) == digest(memoryview(data)) == hasher(data).hexdigest() == file_digest(tmp_path / "file") == want
    )
    assert file_sha256(tmp_path / "file") == sha256(data)


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"sole_writer": True}])
def test_a_published_file_replaces_the_old_one_whole(tmp_path: Path, options: dict):
    (tmp_path / "file").write_bytes(b"old")
    with publish_file(tmp_path / "file", **options) as part:
        part.write_bytes(b"new")
        assert part.name.startswith(HIDDEN) and (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("options", [{}, {"durable": True}, {"sole_writer": True}])
def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path, options: dict):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), publish_file(tmp_path / "file", **options) as part:
        part.write_bytes(b"ne")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_the_leftover_of_a_killed_sole_writer_is_overwritten(tmp_path: Path):
    (tmp_path / f"{HIDDEN}file").write_bytes(b"half of a longer file")
    with publish_file(tmp_path / "file", sole_writer=True) as part:
        part.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"
