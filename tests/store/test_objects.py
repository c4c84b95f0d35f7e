"""Object storage: the same table of behaviour on a folder and on two S3 servers, then what only one can get wrong."""

import contextlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.utils import parse_timestamp
from racing import one_of_eight_wins

from store import s3
from store.files import digest
from store.objects import ObjectInfo, ObjectMissing, ObjectStore, StorageError, open_store


@pytest.fixture(params=["folder", "s3", "seaweedfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return open_store(tmp_path / "root")
    bucket = request.getfixturevalue({"s3": "s3_bucket", "seaweedfs": "seaweed_prefix"}[request.param])
    return open_store(bucket + "/some/prefix")


# ------------------------------------------------------------------------------------------------ both


def test_stamps_are_of_exactly_these_bytes(store: ObjectStore) -> None:
    """A folder tells none: between writing and asking another program may write."""
    written = store.write_stamped("a", b"1")
    data, read = store.read_stamped("a")
    listed = store.info("a").stamp
    assert data == b"1" and written == read == ("" if store.local_path else listed)
    assert store.list()[0].stamp == listed
    other = store.write_stamped("a", b"2")
    assert store.read_stamped("a") == (b"2", other) and (other != written or other == "")
    with pytest.raises(ObjectMissing):
        store.read_stamped("b")


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "deep/er/a.bin",
        "with space",
        "Kleid-größe/ドレス.jpg",
        "a+b&c=d?e#f%20",
        "..a/b..",
        "'quote\"",
        "UPPER/lower",
    ],
)
def test_what_is_written_is_read(store: ObjectStore, key: str):
    assert not store.exists(key)
    store.write(key, b"first")
    store.write(key, b"second")
    assert store.read(key) == b"second"
    assert store.size(key) == len("second")
    assert store.list() == [ObjectInfo(key, len("second"))]
    with store.open(key) as file:
        file.seek(2)
        assert file.read(3) == b"con"
        assert file.size() == 6
    store.delete(key)
    store.delete(key)  # an absent key is no error
    assert not store.exists(key)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "./a", ".tmp-x", "a/.tmp-x", "a\0b"])
def test_bad_keys_are_refused(store: ObjectStore, key: str):
    for call in (store.read, store.size, store.open, store.delete, store.exists, lambda k: store.write(k, b"")):
        with pytest.raises(ValueError, match="bad object key"):
            call(key)


def test_a_missing_object_says_its_key(store: ObjectStore):
    store.write("other", b"")
    for call in (store.read, store.size, store.open):
        with pytest.raises(ObjectMissing, match="nothing/here"):
            call("nothing/here")


def test_empty_objects(store: ObjectStore):
    store.write("empty", b"")
    assert store.read("empty") == b"" and store.size("empty") == 0
    with store.open("empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize(
    "prefix, want",
    [
        ("", ["a", "a-b", "a/1", "a/2/3", "ab", "b/1"]),  # by character: '-' before '/' before letters
        ("a", ["a", "a-b", "a/1", "a/2/3", "ab"]),
        ("a/", ["a/1", "a/2/3"]),
        ("a/2", ["a/2/3"]),
        ("a/2/3", ["a/2/3"]),
        ("c/", []),
    ],
)
def test_listing(s3_bucket: str, tmp_path: Path, prefix: str, want: list[str]):
    keys = ["b/1", "a/2/3", "ab", "a/1", "a-b"]
    folder = open_store(tmp_path)
    bucket = open_store(s3_bucket)
    for key in keys:
        folder.write(key, b"xy")
        bucket.write(key, b"xy")
    bucket.write("a", b"xy")  # a bucket can hold both "a" and "a/1"; a folder cannot
    assert bucket.list(prefix) == [ObjectInfo(key, 2) for key in want]
    assert folder.list(prefix) == [ObjectInfo(key, 2) for key in want if key != "a"]


def test_listing_nothing(store: ObjectStore):
    assert store.list() == []


def test_sub_is_a_prefix(store: ObjectStore):
    store.sub("x/y").write("z", b"1")
    assert store.read("x/y/z") == b"1"
    assert store.sub("x").list() == [ObjectInfo("y/z", 1)]
    assert store.sub("x/y").uri == f"{store.uri}/x/y"


def test_create_only_if_absent(store: ObjectStore):
    assert store.create("lock", b"me") is True
    assert store.create("lock", b"you") is False
    assert store.read("lock") == b"me"
    store.delete("lock")
    assert store.create("lock", b"you") is True


def test_of_eight_racing_creators_one_wins(store: ObjectStore):
    one_of_eight_wins(store)
    assert len(store.list()) == 1


def test_swap_only_what_is_expected(store: ObjectStore):
    assert store.swap("pointer", b"first", b"") is False and not store.exists("pointer")  # nothing there to be swapped
    store.create("pointer", b"first")
    assert store.swap("pointer", b"second", b"another") is False and store.read("pointer") == b"first"
    assert store.swap("pointer", b"second", b"first") is True and store.read("pointer") == b"second"
    assert store.swap("pointer", b"second again", b"first") is False
    assert [info.key for info in store.list()] == ["pointer"]


def test_of_eight_racing_swappers_one_wins(store: ObjectStore):
    store.write("pointer", b"before")
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: store.swap("pointer", b"%d" % i, b"before"), range(8)))
    assert sum(won) == 1 and store.read("pointer") == b"%d" % won.index(True)


def test_a_pickled_store_is_the_same_store(store: ObjectStore):
    store.write("key", b"bytes")
    again = pickle.loads(pickle.dumps(store))
    assert again.read("key") == b"bytes" and again.uri == store.uri


def test_files_are_published(store: ObjectStore, tmp_path: Path):
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 5000)
    store.write_file("copy", path)
    assert store.read("copy") == path.read_bytes()


def test_a_copy_has_the_bytes_and_their_digest(store: ObjectStore):
    store.write("a/old", bytes(range(256)) * 5000)
    store.copy("a/old", "b/new")
    store.delete("a/old")
    assert store.read("b/new") == bytes(range(256)) * 5000
    assert store.digest("b/new") == digest(bytes(range(256)) * 5000)
    with pytest.raises(ObjectMissing, match="a/old"):
        store.copy("a/old", "b/other")
    assert not store.exists("b/other")


def test_probe_leaves_nothing(store: ObjectStore):
    store.probe(write=True)
    store.probe(write=False)
    assert store.list() == []


@pytest.mark.parametrize(
    "uri", ["gs://bucket/x", "s3://", "s3:///x", "http://x/y", "file://host/x", "S3://", " s3://b", "s3:://b", ""]
)
def test_bad_addresses(uri: str):
    with pytest.raises(StorageError):
        open_store(uri)


@pytest.mark.parametrize(
    "uri, want",
    [
        ("s3://b", "s3://b"),
        ("s3://b/", "s3://b"),
        ("s3://b/x/y/", "s3://b/x/y"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("S3://B/x", "s3://B/x"),
        ("FILE:///a", "/a"),
    ],
)
def test_addresses(uri: str, want: str):
    assert open_store(uri).uri == want


@pytest.mark.parametrize("uri", [
    "s3:/bucket/set", "S3:/bucket", "s3:bucket", "s3:", "s3//bucket/set", " s3:/bucket", "file:/tmp/x", "file:x",
    "gs:/bucket", "gs:bucket", "https:/host/x", "http:host", "hdfs:/host/x", "s3a:/bucket",
])  # fmt: skip
@pytest.mark.parametrize("kind", [str, Path])
def test_a_mistyped_scheme_is_no_folder(uri: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    if kind is Path and "//" in uri:
        uri = "s3:/bucket"  # what `Path` makes of s3://bucket
    with pytest.raises(StorageError, match="a mistyped address\\? want s3://bucket/prefix"):
        open_store(kind(uri))
    (tmp_path / uri).mkdir(parents=True)  # a folder that is there is taken for what it is
    assert open_store(kind(uri)).local_path == tmp_path / uri


@pytest.mark.parametrize("path", [
    "C", "C:/x", "./a:b", "a:b", "2026-11-29T10:00/run", "./s3:/x", "../s3:x", "s3", "s3/x", "files/x", "s3-sets/a:/b",
    "/data/s3:/x", "a//b",
])  # fmt: skip
def test_real_paths_are_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_store(path).local_path == tmp_path / path


# ------------------------------------------------------------------------------------------------ folder


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_store("~/x").uri == open_store("x").uri == str(tmp_path / "x")


def test_an_interrupted_write_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path)
    store.write("key", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"writing key .*No space left"):
        store.write("key", b"new")
    assert store.read("key") == b"old"
    assert os.listdir(tmp_path) == ["key"]


def test_hidden_files_of_a_killed_writer_are_not_listed(tmp_path: Path):
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    assert open_store(tmp_path).list() == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="writing"):
        open_store(tmp_path / "file").write("key", b"")
    with pytest.raises(StorageError):
        open_store(tmp_path / "file").probe(write=True)


def test_probing_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(StorageError, match="nowhere"):
        open_store(tmp_path / "nowhere").probe(write=False)


# ------------------------------------------------------------------------------------------------ S3


def test_parts_of_a_large_object(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    store = open_store(s3_bucket)
    data = os.urandom((12 << 20) + 7)  # three parts
    store.write("large", memoryview(data))
    assert store.read("large") == data
    with store.open("large") as file:
        file.seek(11 << 20)
        assert file.read(9) == data[11 << 20 :][:9]


def test_a_missing_bucket_is_named(s3_bucket: str):
    store = open_store("s3://no-such-bucket-at-all/prefix")
    for call in (lambda: store.probe(write=False), lambda: store.write("a", b""), lambda: store.read("a")):
        with pytest.raises(StorageError, match=r"no bucket no-such-bucket-at-all at http"):
            call()


def test_an_endpoint_without_a_server(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str):
    store = open_store("s3://bucket", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        store.probe(write=True)


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no credentials found"):
        open_store(s3_bucket).probe(write=False)


@contextlib.contextmanager
def stub(*replies: tuple[int, bytes, int]) -> Iterator[str]:
    """A server that gives these replies in order, the last for ever: status, body, bytes missing from the body."""
    waiting = list(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers `Expect: 100-continue`, for which the client waits otherwise

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body, missing = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + missing))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def refusal(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said the server</Message></Error>".encode()


@pytest.mark.parametrize(
    "replies",
    [
        [(503, refusal("SlowDown"), 0), (500, refusal("InternalError"), 0), (200, b"body", 0)],
        [(200, b"bo", 2), (200, b"", 4), (200, b"body", 0)],  # the connection drops in the middle of the body
        [(200, b"bo", 2), (503, refusal("SlowDown"), 0), (200, b"body", 0)],
    ],
)
def test_reading_retries_through_trouble(impatient: None, replies: list[tuple[int, bytes, int]]):
    with stub(*replies) as url:
        assert open_store("s3://bucket", endpoint_url=url).read("key") == b"body"


@pytest.mark.parametrize(
    "reply, want",
    [
        ((503, refusal("SlowDown"), 0), r"reading key in s3://bucket: .*SlowDown: said the server \(6 attempts\)"),
        (
            (403, refusal("InvalidAccessKeyId"), 0),
            r"reading key in s3://bucket: refused .*InvalidAccessKeyId.*credentials",
        ),
        ((200, b"bo", 2), r"reading key in s3://bucket: .*\(6 attempts\)"),
    ],
)
def test_trouble_that_lasts_is_an_error(impatient: None, reply: tuple[int, bytes, int], want: str):
    with stub(reply) as url, pytest.raises(StorageError, match=want):
        open_store("s3://bucket", endpoint_url=url).read("key")


@pytest.mark.parametrize("stored, want", [(b"mine", True), (b"theirs", False)])
def test_a_create_whose_first_reply_was_lost(impatient: None, stored: bytes, want: bool):
    replies = [(500, refusal("InternalError"), 0), (412, refusal("PreconditionFailed"), 0), (200, stored, 0)]
    with stub(*replies) as url:
        assert open_store("s3://bucket", endpoint_url=url).create("lock", b"mine") is want


def test_a_create_in_conflict_is_retried(impatient: None):
    replies = [
        (409, refusal("ConditionalRequestConflict"), 0),
        (412, refusal("PreconditionFailed"), 0),
        (200, b"theirs", 0),
    ]
    with stub(*replies) as url:
        assert open_store("s3://bucket", endpoint_url=url).create("lock", b"mine") is False


def test_local_stores_import_no_cloud(tmp_path: Path):
    import subprocess
    import sys

    code = (
        "import sys; from store.objects import open_store; s = open_store(sys.argv[1]); s.write('a', b'1'); s.list();"
        "print([m for m in ('boto3', 'botocore', 'pyarrow', 'pyarrow.fs') if m in sys.modules])"
    )
    repo = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repo, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key, want", [
    ("report/index.html", "text/html"), ("report/a.svg", "image/svg+xml"), ("q.jpg", "image/jpeg"),
    ("metrics.json", "application/json"), ("a.safetensors", "application/octet-stream"),
])  # fmt: skip
def test_a_bucket_says_what_kind_of_file_it_holds(
    s3_bucket: str, s3_client: Any, tmp_path: Path, key: str, want: str
) -> None:
    store, bucket = open_store(s3_bucket + "/run"), s3_bucket.removeprefix("s3://")
    (tmp_path / "file").write_bytes(b"x")
    store.write(key, b"x")
    store.write_file("copy/" + key, tmp_path / "file")
    for name in (key, "copy/" + key):
        assert s3_client.head_object(Bucket=bucket, Key="run/" + name)["ContentType"] == want


@pytest.mark.parametrize("told", [
    "2026-11-30T10:53:49.000Z", "2026-11-30T10:53:49Z", "2026-11-30T10:53:49+01:00",
    "Mon, 30 Nov 2026 10:53:49 GMT", 1764500000, "1764500000",
])  # fmt: skip
def test_times_are_what_botocore_reads(told: object) -> None:
    assert s3._timestamp(told) == parse_timestamp(told)
