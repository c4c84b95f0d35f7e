"""One run at a time: a living holder is respected, a dead one is not waited for."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.runs import lock
from jobs.runs.lock import KEY, Lock, check_file
from store.errors import UserError
from store.objects import LocalStore, StorageError, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = open_store(tmp_path)
    assert isinstance(found, LocalStore)
    return found


def hold(store: LocalStore, **changes: object) -> None:
    """A lock of this very process, but for `changes`."""
    store.write(KEY, json.dumps(json.loads(Lock(store)._content()) | {"token": "other"} | changes).encode())


def test_taken_and_given_back(store: LocalStore) -> None:
    mine = Lock(store)
    mine.take()
    assert store.exists(KEY)
    with pytest.raises(UserError, match="is at work here"):
        Lock(store).take()
    mine.release()
    assert not store.exists(KEY)


def test_a_dead_process_of_this_host_is_not_waited_for(store: LocalStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hold(store, pid=ended.pid)
    mine = Lock(store)
    mine.take()
    mine.release()


def test_a_reused_process_number_is_another_process(store: LocalStore) -> None:
    hold(store, start="1")
    mine = Lock(store)
    mine.take()
    mine.release()


@pytest.mark.parametrize("pid", [2**70, 2**31, -1, 0, None, "1", 1.5, [1]])
def test_a_number_that_no_process_has_is_a_dead_holder(store: LocalStore, pid: object) -> None:
    hold(store, pid=pid, start="")
    mine = Lock(store)
    mine.take()
    check_file(mine)
    mine.release()


@pytest.mark.parametrize(
    "content",
    [b"[]", b"3", b"null", b'"a"', b"", b"{", b"[" * 100_000, b"\xff", b'{"token": "a", "host": "b", "beat": "now"}'],
)
def test_a_file_that_no_run_wrote_is_watched_and_taken_over(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.1)
    store.write(KEY, content)
    mine = Lock(store)
    mine.take()
    check_file(mine)
    store.write(KEY, content)
    with pytest.raises(UserError, match="another run took over meanwhile"):
        check_file(mine)
    mine.release()
    assert store.exists(KEY)  # it is not ours to delete


def test_another_host_is_watched_for_a_sign_of_life(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.5)
    hold(store, host="elsewhere", name="elsewhere")
    mine = Lock(store)
    start = time.monotonic()
    mine.take()
    assert time.monotonic() - start >= 0.5  # at least: a slow machine takes longer
    mine.release()

    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "SILENCE_S", 60.0)  # a guard: the next beat ends the wait
    beating = Lock(store)
    own = beating._content
    monkeypatch.setattr(beating, "_content", lambda: json.dumps(json.loads(own()) | {"host": "elsewhere"}).encode())
    beating.take()
    with pytest.raises(UserError, match="is at work here"):
        Lock(store).take()
    beating.release()


def test_who_was_taken_over_while_storage_was_away_stops(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    mine = Lock(store)
    mine.take()
    mine.check()
    while mine.thread.is_alive():  # a beat may be between its look and its writing
        hold(store, name="elsewhere")
        mine.thread.join(timeout=0.2)
    with pytest.raises(UserError, match="elsewhere took over while storage was out of reach"):
        mine.check()
    mine.release()
    assert json.loads(store.read(KEY))["token"] == "other"  # theirs stays


def test_a_lock_that_cannot_be_given_back_hides_no_other_error(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Lock(store)
    mine.take()

    def refused(key: str) -> bytes:
        raise StorageError("refused")

    monkeypatch.setattr(store, "read", refused)
    mine.release()
    assert "the lock stays behind, and the next run takes it over: refused" in capsys.readouterr().out
