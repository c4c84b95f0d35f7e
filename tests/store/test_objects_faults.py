"""A bucket that misbehaves: each operation gives the right answer, or one line with key, attempts and reason."""

import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from racing import one_of_eight_wins
from s3_proxy import Proxy

from store import s3
from store.files import cached, digest
from store.imageset import ImageSetError, Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import ObjectInfo, ObjectMissing, ObjectStore, StorageError, open_store

SMALL, LARGE = os.urandom(10_000), os.urandom((11 << 20) + 7)  # LARGE: three parts
REQUESTS = [("GET", ""), ("HEAD", ""), ("PUT", ""), ("POST", r"\?uploads"), ("POST", "uploadId"), ("DELETE", "")]
BUCKET = "misbehaving"
PHOTO = Photo(7, SMALL, 10, 10, "shop")


@pytest.fixture(scope="module")
def behind(s3_endpoint: str, s3_client: Any) -> Iterator[tuple[Proxy, ObjectStore]]:
    """A proxy, and a bucket behind it for impatient clients; one for all tests, since making a client takes long."""
    s3_client.create_bucket(Bucket=BUCKET)
    with Proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "READ_TIMEOUT_S", 0.5)
        patch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"s3://{BUCKET}")
        store.probe(write=True)
        assert store.list() == []
        yield proxy, store


@pytest.fixture
def s3_proxy(behind: tuple[Proxy, ObjectStore]) -> Iterator[Proxy]:
    proxy = behind[0]
    proxy.stall_s = 0.8  # longer than those clients wait for an answer
    yield proxy
    proxy.heal()
    proxy.caused.clear()


@pytest.fixture
def store(
    behind: tuple[Proxy, ObjectStore], s3_proxy: Proxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """A fresh prefix of the bucket, with an object "old"."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    found = behind[1].sub(f"{secrets.token_hex(4)}/run")
    found.write("old", SMALL)
    return found


def write_file(store: ObjectStore, data: bytes, folder: Path) -> None:
    (folder / "file").write_bytes(data)
    store.write_file("new", folder / "file")


def a_range(store: ObjectStore) -> bytes:
    with store.open("old") as file:
        file.seek(5_000)
        return file.read(100)


def photos(store: ObjectStore) -> list[int]:
    return open_imageset(f"{store.uri}/set").read("shard-00000", columns=["image_id"])["image_id"].to_pylist()


OPERATIONS: dict[str, Callable[[ObjectStore, Path], Any]] = {
    "read": lambda store, folder: store.read("old") == SMALL,
    "open": lambda store, folder: a_range(store) == SMALL[5_000:5_100],
    "size": lambda store, folder: store.size("old") == 10_000,
    "exists": lambda store, folder: store.exists("old") and not store.exists("new"),
    "list": lambda store, folder: store.list() == [ObjectInfo("old", 10_000)],
    "write": lambda store, folder: store.write("new", SMALL) or store.read("new") == SMALL,
    "write, large": lambda store, folder: store.write("new", LARGE) or store.read("new") == LARGE,
    "write_file": lambda store, folder: write_file(store, SMALL, folder) or store.read("new") == SMALL,
    "write_file, large": lambda store, folder: write_file(store, LARGE, folder) or store.read("new") == LARGE,
    "copy": lambda store, folder: store.copy("old", "new") or store.read("new") == SMALL,
    "delete": lambda store, folder: store.delete("old") or not store.exists("old"),
    "create": lambda store, folder: store.create("new", b"token") and store.read("new") == b"token",
    "create, taken": lambda store, folder: not store.create("old", b"token") and store.read("old") == SMALL,
    "swap": lambda store, folder: store.swap("old", b"token", SMALL) and store.read("old") == b"token",
    "swap, changed": lambda store, folder: not store.swap("old", b"token", LARGE) and store.read("old") == SMALL,
    "probe": lambda store, folder: store.probe(write=True) or store.list() == [ObjectInfo("old", 10_000)],
}


@pytest.mark.parametrize(
    "operation, how",
    [
        (operation, how)
        for operation in OPERATIONS
        for how in ("503 SlowDown", "stall", "drop", "lose", "truncate")
        if (operation, how) != ("write_file, large", "stall")  # the same requests as "write, large"
    ],
)
def test_passing_faults_are_retried(
    store: ObjectStore, s3_proxy: Proxy, tmp_path: Path, operation: str, how: str
) -> None:
    for method, key in REQUESTS:
        s3_proxy.cause(how, method, key, first=1)
    assert OPERATIONS[operation](store, tmp_path)
    assert s3_proxy.caused[how] >= 1


STAYING = {
    "503 SlowDown": r"(SlowDown: said the proxy|503: Service Unavailable) \(6 attempts\)",
    "stall": r"[Tt]imeout.* \(6 attempts\)",
    "drop": r"([Cc]onnection|500: Internal Server Error).* \(6 attempts\)",
    "403 ExpiredToken": r"refused by the server, (ExpiredToken: said the proxy|403: Forbidden) \(1 attempt\); "
    "check the credentials",
    "507 XMinioStorageFull": r"the storage is full, (XMinioStorageFull: said the proxy|507: Insufficient Storage) "
    r"\(1 attempt\); make room",
}


@pytest.mark.parametrize(
    "operation, how",
    [
        (operation, how)
        for operation in ("read", "open", "size", "list", "write", "write_file, large", "delete", "create")
        for how in STAYING
        if how != "stall" or operation in ("open", "list", "write")  # each takes six time-outs
    ],
)
def test_lasting_faults_name_key_attempts_and_reason(
    store: ObjectStore, s3_proxy: Proxy, tmp_path: Path, operation: str, how: str
) -> None:
    s3_proxy.cause(how)
    key = {"list": "objects"}.get(operation, "(old|new)")
    doing = "(reading|opening|looking at|listing|writing|deleting|creating)"
    with pytest.raises(StorageError, match=rf"^{doing} {key} in s3://[^ ]+/run: .*{STAYING[how]}"):
        OPERATIONS[operation](store, tmp_path)
    s3_proxy.heal()
    assert store.read("old") == SMALL
    assert not store.exists("new") or how == "drop"


@pytest.mark.parametrize("operation, said", [
    (lambda store: store.read("old"), "5000 bytes that are not what was written"),
    (lambda store: store.swap("old", b"token", SMALL), "5000 bytes that are not what was written"),
    (a_range, "2500 bytes where 5000 lie"),
])  # fmt: skip
def test_an_object_that_is_always_truncated_is_refused(
    store: ObjectStore, s3_proxy: Proxy, operation: Callable[[ObjectStore], Any], said: str
) -> None:
    s3_proxy.cause("truncate", "GET")
    with pytest.raises(StorageError, match=rf"^reading old in s3://[^ ]+/run: {said}.*\(6 attempts\)$"):
        operation(store)


def by_hand(client: Any, store: ObjectStore, key: str, data: bytes, **more: Any) -> None:
    """Written past the store, as other programs do."""
    client.put_object(Bucket=BUCKET, Key=f"{store.uri.removeprefix(f's3://{BUCKET}/')}/{key}", Body=data, **more)


def test_an_object_stored_truncated_is_refused(store: ObjectStore, s3_client: Any) -> None:
    by_hand(s3_client, store, "old", SMALL[:5_000], Metadata={s3.DIGEST: digest(SMALL)})
    with pytest.raises(StorageError, match="5000 bytes that are not what was written"):
        store.read("old")
    by_hand(s3_client, store, "old", SMALL[:5_000])  # another program's own: it names no digest
    assert store.read("old") == SMALL[:5_000]


def test_ranges_come_from_one_version(store: ObjectStore) -> None:
    with store.open("old") as file:
        store.write("old", SMALL[::-1])
        with pytest.raises(StorageError, match=r"reading old in .*PreconditionFailed"):
            file.read(10)


def test_an_image_set_copied_by_another_program_is_checked_by_its_manifest(
    store: ObjectStore, s3_proxy: Proxy, s3_client: Any, tmp_path: Path
) -> None:
    write_imageset([PHOTO], tmp_path / "set", source={})
    for path in (tmp_path / "set").iterdir():
        by_hand(s3_client, store, f"set/{path.name}", path.read_bytes())
    images = open_imageset(f"{store.uri}/set")
    s3_proxy.cause("truncate", "GET", "shard-00000")
    with pytest.raises(ImageSetError, match=r"shard-00000.arrow has \d+ bytes, the manifest says \d+: cut short"):
        images.read("shard-00000")
    with pytest.raises(StorageError, match=r"reading shard-00000.arrow .* bytes where \d+ lie"):
        photos(store)
    s3_proxy.cause("truncate", "GET", "manifest.json")
    with pytest.raises(ImageSetError, match=r"manifest.json is not an image set's manifest"):
        open_imageset(f"{store.uri}/set")


def test_a_truncated_weight_file_is_not_cached(
    store: ObjectStore, s3_proxy: Proxy, s3_client: Any, tmp_path: Path
) -> None:
    by_hand(s3_client, store, "w.safetensors", SMALL)
    s3_proxy.cause("truncate", "GET", first=1)
    want = sha256(SMALL).hexdigest()
    with pytest.raises(StorageError, match=f"w.safetensors has sha256 .*, want {want}"):
        cached(store, "w.safetensors", want, tmp_path)
    assert cached(store, "w.safetensors", want, tmp_path).read_bytes() == SMALL


# ------------------------------------------------------------------------------------------------ a lock


@pytest.mark.parametrize("seed", range(4))
def test_of_racing_creators_one_wins_even_if_replies_are_lost(store: ObjectStore, s3_proxy: Proxy, seed: int) -> None:
    s3_proxy.chance.seed(seed)
    for how, first in (("lose", 2), ("drop", 2), ("503 SlowDown", 1)):  # 5 in all: nobody can meet 6
        s3_proxy.cause(how, "PUT", "lock", share=0.5, first=first)
    one_of_eight_wins(store)


def test_a_creator_without_replies_owns_its_object(store: ObjectStore, s3_proxy: Proxy) -> None:
    s3_proxy.cause("lose", "PUT")
    with pytest.raises(StorageError, match=r"creating lock .*\(6 attempts\)"):
        store.create("lock", b"mine")
    s3_proxy.heal()
    assert store.create("lock", b"theirs") is False and store.read("lock") == b"mine"


def test_an_object_deleted_between_two_attempts_can_be_created(store: ObjectStore, s3_proxy: Proxy) -> None:
    s3_proxy.cause("500 InternalError", "PUT", first=1)
    s3_proxy.cause("412 PreconditionFailed", "PUT", first=1)  # another's, which is gone when we look whose it is
    assert store.create("lock", b"mine") is True and store.read("lock") == b"mine"


# ------------------------------------------------------------------------------------------------ many at once


def test_readers_see_whole_files_while_one_is_replaced(store: ObjectStore, s3_proxy: Proxy) -> None:
    for how in ("drop", "lose", "truncate", "503 SlowDown"):
        s3_proxy.cause(how, "GET|PUT", "twin", share=0.05)
    versions = [bytes([i]) * (50_000 + i) for i in range(30)]
    store.write("twin", versions[0])
    writing, seen = threading.Event(), Counter[int]()

    def read() -> None:
        while not writing.is_set():
            data = store.read("twin")
            assert data == versions[data[0]]
            seen[data[0]] += 1

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for version in versions:
                store.write("twin", version)
        finally:
            writing.set()
        for reader in readers:
            reader.result()
    assert store.read("twin") == versions[-1] and len(seen) > 3
    assert set(s3_proxy.caused) == {"drop", "lose", "truncate", "503 SlowDown"}


def test_many_readers_through_throttling(store: ObjectStore, s3_proxy: Proxy) -> None:
    s3_proxy.cause("503 SlowDown", share=0.1)  # six in a row: once in a million
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: store.read("old"), range(400))) == {SMALL}
    assert s3_proxy.caused["503 SlowDown"] > 20


# ------------------------------------------------------------------------------------------------ a late listing


def test_a_late_listing_does_not_hide_objects_read_by_key(store: ObjectStore, s3_proxy: Proxy) -> None:
    s3_proxy.late_s = 60
    store.write("new", b"1")
    assert store.list() == []
    assert store.read("new") == b"1" and store.exists("new") and store.create("new", b"2") is False
    with pytest.raises(ObjectMissing):
        store.read("newer")


def test_a_finished_image_set_missing_in_a_listing_is_not_overwritten(store: ObjectStore, s3_proxy: Proxy) -> None:
    write_imageset([PHOTO], f"{store.uri}/set", source={})
    s3_proxy.late_s = 60
    with pytest.raises(ImageSetError, match="already holds an image set"):
        write_imageset([PHOTO], f"{store.uri}/set", source={})
    assert photos(store) == [7]


@pytest.mark.parametrize("name, value, want", [
    ("AWS_PROFILE", "nobody", r"profile \(nobody\) could not be found"),
    ("AWS_CONFIG_FILE", __file__, "parse config file.*test_objects_faults"),
    ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "Invalid endpoint: 127.0.0.1:9000"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:abc", "http://127.0.0.1:abc` was not a valid URI"),
    ("HTTP_PROXY", "http://x:abc", "'x:abc' is not a valid host or port"),
])  # fmt: skip
def test_a_faulty_environment_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, impatient: None, name: str, value: str, want: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://example.invalid")
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=want) as caught:
        open_store("s3://bucket/prefix").probe(False)
    assert "\n" not in str(caught.value)
