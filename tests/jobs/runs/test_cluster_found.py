"""What is judged before any Ray is joined or started: the address that is named, and the folder of a Ray of our own."""

import os
import re
import socket
from pathlib import Path

import pytest

from jobs.runs import cluster
from jobs.stages.check import _ray
from store.errors import UserError


@pytest.mark.parametrize("address", [
    "127.0.0.1", "word", "ray://", "ray://head", "::1", "::1:6379", "127.0.0.1:99999", " 127.0.0.1:6379", "a b:1",
    "http://127.0.0.1:8265", "127.0.0.1:", ":6379",
])  # fmt: skip
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for judge in (cluster.join_ray, _ray):
        with pytest.raises(UserError, match=f"^RAY_ADDRESS={re.escape(address)}: no address .* want HOST:PORT.*auto$"):
            judge()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "ray://127.0.0.1:1", "a..b:6379"])
def test_an_address_where_nothing_answers_is_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert _ray().startswith(f"RAY_ADDRESS={address} does not answer (")
    with pytest.raises(UserError, match=f"^RAY_ADDRESS={re.escape(address)}: no Ray cluster answers"):
        cluster.join_ray()


LONGEST = 107 - len(f"/ray/session_2026-11-29_16-21-14_123456_{os.getpid()}/sockets/plasma_store")


@pytest.mark.parametrize("address", ["", "local"])
@pytest.mark.parametrize("folder, reason", [
    ("/tmp/" + "x" * 88, "paths would have 1[0-9][0-9] bytes, and 107 is the limit"),
    ("/tmp/".ljust(LONGEST + 1, "x"), "paths would have 108 bytes, and 107 is the limit"),
    ("/dev/null/below", "/dev/null cannot be written"),
    (os.fsdecode(b"/tmp/caf\xe9"), "surrogates not allowed"),
])  # fmt: skip
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_ray_cannot_work_in_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, folder: str, reason: str, variable: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(variable, folder)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for judge in (cluster.join_ray, _ray):
        with pytest.raises(UserError, match=f"^Ray cannot work in {folder}/ray.*{reason}.*RAY_TMPDIR=/tmp$"):
            judge()


def test_a_folder_that_permissions_allow_and_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    with pytest.raises(UserError, match=r"^Ray cannot work in /proc/none/ray.*RAY_TMPDIR=/tmp$"):
        cluster.judge_folder(make=True)


def test_the_longest_folder_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/tmp/".ljust(LONGEST, "x"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    try:
        cluster.judge_folder(make=False)
        assert not folder.exists()
        cluster.judge_folder(make=True)
        assert list((folder / "ray").iterdir()) == []
    finally:
        (folder / "ray").rmdir()
        folder.rmdir()


@pytest.mark.parametrize("named, left, answers, joins", [
    ("", False, True, False),  # Ray need not even be imported
    ("", True, True, True),
    ("", True, False, False),  # a dead head's: a run starts its own
    ("127.0.0.1:{port}", False, True, True),
    ("127.0.0.1:{port}", False, False, True),  # and fails, with the reason
    ("local", True, True, False),
])  # fmt: skip
def test_whether_a_run_would_join_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, left: bool, answers: bool, joins: bool
) -> None:
    """`left`: `ray start` left the address on this machine; `answers`: something listens there."""
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        if answers:
            head.listen()
        port = head.getsockname()[1]
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        monkeypatch.setenv("RAY_ADDRESS", named.format(port=port))
        if left:
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / cluster.ADDRESS_FILE).write_text(f"127.0.0.1:{port}")
        assert cluster.would_join() is joins
