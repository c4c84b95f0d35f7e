"""Copies of marks: what a start asks a bucket for, and that a copy which is not the mark of today never counts."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from s3_proxy import Proxy

from jobs.runs.lock import Lock
from jobs.runs.marks import COPIES, read_marks, write_mark
from store import copies
from store.copies import Copies, read_copies
from store.objects import ObjectStore, open_store

MARKS, PER_FILE = 34, 10


def mark(n: int) -> dict[str, Any]:
    parts = {"fingerprint": f"{n}", "basis": {"settings": {"k": n}}, "outputs": {"a": "b"}, "seconds": {"read": 1.5}}
    return parts | {"failures": [{"image_id": n, "reason": "\udcff"}], "finished": "2030-01-02T03:04:05+00:00"}


def path(n: int) -> str:
    return f"detect/a/shard-{n:05d}"


@pytest.fixture
def few_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PER_FILE", PER_FILE)


@pytest.fixture
def run(s3_bucket: str, s3_proxy: Proxy, impatient: None, few_a_file: None) -> ObjectStore:
    """A run's folder in a bucket with the marks 0 to 33, 30 of them copied as a driver does it."""
    store = open_store(f"{s3_bucket}/run")
    kept = Copies(store, COPIES)
    for n in range(MARKS):
        write_mark(store, path(n), mark(n), kept)
    return store


def asked(proxy: Proxy, question: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a question answers, and which objects below done/ were read for it."""
    proxy.sent.clear()
    answer = question()
    return answer, [key.partition("/run/")[2] for method, key in proxy.sent if method == "GET" and "/run/done" in key]


def copy_files(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list(COPIES)]


def test_a_thousand_marks_are_one_request(run: ObjectStore, s3_proxy: Proxy) -> None:
    files = copy_files(run)
    found, keys = asked(s3_proxy, lambda: read_marks(run))
    assert found == {path(n): mark(n) for n in range(MARKS)}
    assert len(files) == MARKS // PER_FILE == 3
    assert sorted(keys) == sorted([*files, *(f"done/{path(n)}.json" for n in range(30, MARKS))])
    assert len(s3_proxy.sent) == 1 + 3 + 4  # the listing, the files, the marks that fill none yet


def test_a_start_copies_what_has_no_copy(s3_bucket: str, s3_proxy: Proxy, few_a_file: None) -> None:
    """As a release without copies left it."""
    store = open_store(f"{s3_bucket}/run")
    for n in range(MARKS):
        store.write(f"done/{path(n)}.json", json.dumps(mark(n)).encode())
    first, keys = asked(s3_proxy, lambda: read_marks(store, (), Copies(store, COPIES)))
    again, fewer = asked(s3_proxy, lambda: read_marks(store, (), Copies(store, COPIES)))
    assert first == again == {path(n): mark(n) for n in range(MARKS)}
    assert (len(keys), len(fewer)) == (MARKS, 3 + 4)


def test_only_who_may_write_copies(s3_bucket: str, few_a_file: None) -> None:
    store = open_store(f"{s3_bucket}/run")
    for n in range(PER_FILE):
        store.write(f"done/{path(n)}.json", json.dumps(mark(n)).encode())
    assert len(read_marks(store)) == PER_FILE
    assert copy_files(store) == []


def test_a_mark_that_was_replaced_or_deleted_is_as_it_is_now(run: ObjectStore, s3_proxy: Proxy) -> None:
    run.write(f"done/{path(3)}.json", json.dumps(mark(99)).encode())  # by a program that knows no copies
    run.delete(f"done/{path(4)}.json")
    want = {path(n): mark(99 if n == 3 else n) for n in range(MARKS) if n != 4}
    found, keys = asked(s3_proxy, lambda: read_marks(run))
    assert found == want
    assert f"done/{path(3)}.json" in keys and f"done/{path(4)}.json" not in keys
    assert read_marks(run, [path(4)]) == want  # asked for by name, where the store lists late


def test_of_two_copies_that_of_the_newer_mark_counts(run: ObjectStore, s3_proxy: Proxy) -> None:
    kept = Copies(run, COPIES)
    for n in range(PER_FILE):
        write_mark(run, path(n), mark(n + 1), kept)
    stale = {file for file in copy_files(run) if not read_copies(run, file, stamps(run))}
    found, keys = asked(s3_proxy, lambda: read_marks(run, (), Copies(run, COPIES)))
    assert found == {path(n): mark(n + 1 if n < PER_FILE else n) for n in range(MARKS)}
    assert len(keys) == 4 + 4
    assert len(stale) == 1 and not stale & set(copy_files(run))  # it only cost time


def stamps(store: ObjectStore) -> dict[str, str]:
    return {info.key: info.stamp for info in store.list("done/")}


def lines(*copies: Any) -> bytes:
    return packed("\n".join(map(json.dumps, copies)).encode())


def packed(data: bytes) -> bytes:
    """Without the time: the processes that run the tests want the same parameters."""
    return gzip.compress(data, mtime=0)


FALSE = {"key": f"done/{path(3)}.json", "content": mark(99)}


@pytest.mark.parametrize("damaged", [
    b"",
    b"no gzip",
    lines({"key": "a"})[:-5],
    packed(b'{"key": '),
    packed(b'{"a":' * 100_000),
    lines([], None, 3, {"key": 1}, {"key": [], "stamp": {}, "content": 0}),
    lines(FALSE, FALSE | {"stamp": ""}, FALSE | {"stamp": None}, FALSE | {"stamp": '0 "d41d8cd9"'}),
])  # fmt: skip
def test_a_damaged_file_costs_time_alone(run: ObjectStore, damaged: bytes) -> None:
    for file in copy_files(run):
        run.write(file, damaged)
    assert read_marks(run) == {path(n): mark(n) for n in range(MARKS)}


def test_a_file_that_breaks_off_or_cannot_be_written_costs_time_alone(run: ObjectStore, s3_proxy: Proxy) -> None:
    s3_proxy.cause("truncate", "GET", COPIES)
    s3_proxy.cause("507 XMinioStorageFull", "PUT", COPIES)
    want = {path(n): mark(n) for n in range(MARKS)}
    assert read_marks(run, (), Copies(run, COPIES)) == want
    assert {"truncate", "507 XMinioStorageFull"} == set(s3_proxy.caused)


def test_a_folder_has_no_copies(tmp_path: Any, few_a_file: None) -> None:
    store = open_store(tmp_path)
    kept = Copies(store, COPIES)
    for n in range(MARKS):
        write_mark(store, path(n), mark(n), kept)
    assert read_marks(store, (), kept) == {path(n): mark(n) for n in range(MARKS)}
    assert copy_files(store) == []


def test_a_store_that_lists_late_is_known_by_its_lock(s3_bucket: str, s3_proxy: Proxy) -> None:
    lock = Lock(open_store(f"{s3_bucket}/run"))
    lock.take()
    try:
        assert lock.is_listed()
        s3_proxy.late_s = 60
        assert not lock.is_listed()
    finally:
        lock.release()
