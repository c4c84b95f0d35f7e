"""What every fuzz test shares: a command run in this process and watched, and valid bytes made invalid.

`run` does what `python jobs/X.py …` does, through `jobs.cli.run`, and watches what Python does meanwhile: files opened
for writing, moved or removed outside the allowed folder, processes, connections, unpickled names. `watched` does the
same around any call. FUZZ_EXAMPLES is the number of inputs of a kind (500; `make soak` takes 10000). FUZZ_SEED repeats
a run (0; "random" draws one).
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import boto3  # noqa: F401 - as it is loaded it tries a socket, which would be told as the input's doing
import hypothesis
import ray  # noqa: F401 - likewise
from hypothesis import strategies as st

from jobs import cli

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
SEED = int(random.randrange(2**32) if (_seed := os.environ.get("FUZZ_SEED", "0")) == "random" else _seed)
DEADLINE_S = 10.0  # of one input, seconds of the processor
CLOCK_SHARE = 30  # so many times as long by the clock: a guard against hanging, on a machine however busy
inputs: Counter[str] = Counter()  # kind -> inputs tried so far


def fuzzed(per_example: int = 1) -> Callable[[Any], Any]:
    """A Hypothesis test of EXAMPLES inputs, `per_example` in each example. The test counts them in `inputs`."""
    options = hypothesis.settings(
        max_examples=max(1, EXAMPLES // per_example),
        # `watched` has one
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    return lambda test: hypothesis.seed(SEED)(options(test))


# ------------------------------------------------------------------------------------------------ watching


class TooSlow(BaseException):
    """An input outlasted the deadline; no `except Exception` catches it."""


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOVING = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime",
)  # fmt: skip
_NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open", "ftplib.connect",
    "pickle.find_class",
)  # fmt: skip
_allowed: Path | None = None  # the folder that may be written to; None: nobody watches
_seen: list[str] = []


def _hook(event: str, arguments: tuple) -> None:
    if _allowed is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and (flags or 0) & _WRITING and not _may_write(path):
            _seen.append(f"open for writing {path!r}")
    elif event in _MOVING:
        paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
        _seen.extend(f"{event} {path!r}" for path in paths if not isinstance(path, int) and not _may_write(path))
    elif event in _NEVER:
        _seen.append(f"{event} {arguments!r:.200}")


def _may_write(path: Any) -> bool:
    assert _allowed is not None
    place = os.path.realpath(os.fsdecode(path))
    return place == os.devnull or place == str(_allowed) or place.startswith(f"{_allowed}/")


sys.addaudithook(_hook)  # stays for the life of the process, and does nothing while nobody watches


@contextlib.contextmanager
def watched(allowed: Path, *, deadline_s: float = DEADLINE_S) -> Iterator[None]:
    """Fails when the block runs on after its deadline or does what data must never make a program do."""
    global _allowed

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"no answer after {deadline_s:g} s of the processor, {CLOCK_SHARE * deadline_s:g} s of the clock")

    by_clock_s = CLOCK_SHARE * deadline_s
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, deadline_s), (signal.SIGALRM, signal.ITIMER_REAL, by_clock_s))
    before = {number: signal.signal(number, stop) for number, _, _ in timers}
    faulthandler.dump_traceback_later(2 * by_clock_s, exit=True, file=sys.__stderr__)  # where no signal is looked at
    _seen.clear()
    _allowed = Path(os.path.realpath(allowed))
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        with (
            mock.patch.object(sys, "dont_write_bytecode", True),
            mock.patch.object(
                os, "fsync", lambda _: None
            ),  # a third of the time, and nothing here survives a power cut
        ):
            yield
    except TooSlow as slow:
        raise AssertionError(str(slow)) from slow  # for Hypothesis, which tells the input
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        _allowed = None
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not _seen, _seen


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error; fails where there is a traceback, another status, or more to read."""
        assert self.status == 2 and self.err.count("\n") == 1 and ": error: " in self.err, self
        assert len(self.err) < 2000 and self.err.rstrip("\n").isprintable(), (
            f"{len(self.err)} letters: {self.err[:2500]!r}"
        )
        return self.err.partition(": error: ")[2].rstrip("\n")


def run(
    main: Callable[[list[str] | None], Any], argv: list[str], allowed: Path, *, deadline_s: float = DEADLINE_S
) -> Said:
    """`main` as its script's last line runs it, with the standard streams of a process in a UTF-8 locale."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace")
    )
    with (
        mock.patch.object(sys, "argv", ["job.py", *argv]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        watched(allowed, deadline_s=deadline_s),
    ):
        try:
            cli.run(main)
        except SystemExit as end:
            status = end.code
    said = Said(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
    if status == 2:
        assert said.line
    else:
        assert status in (0, 3) and ": error: " not in said.err, said
    return said


@contextlib.contextmanager
def untouched(folder: Path, *, but: str) -> Iterator[None]:
    """Fails when anything under `folder` changes, except below `folder/but`.

    Unlike `watched`, it also sees what native code writes.
    """
    before = _tree(folder, but)
    yield
    assert _tree(folder, but) == before


def _tree(folder: Path, but: str) -> dict[str, tuple[int, int]]:
    found = {}
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != but]
        for name in (*folders, *names):
            info = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (info.st_size, info.st_mtime_ns)
    return found


# ------------------------------------------------------------------------------------------------ breaking


_LOUD = [
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
]
_EDIT = st.tuples(
    st.sampled_from(("flip", "set", "set", "insert", "remove", "cut", "repeat")),
    st.one_of(st.floats(0, 1), st.floats(0, 0.02)),  # where; half of them in the header
    st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(_LOUD)),
)


def broken(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the files with one to six edits.

    An edit flips bits, sets bytes, inserts or removes some, cuts off the end, or repeats a part.
    """
    return st.builds(_edited, st.sampled_from(valid), st.lists(_EDIT, min_size=1, max_size=6))


def _edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, what in edits:
        at = int(where * len(data))
        head, tail = data[:at], data[at:]
        if how == "flip":
            flipped = bytes(a ^ b for a, b in zip(tail, what, strict=False))
            data = head + flipped + tail[len(flipped) :]
        elif how == "set":
            data = head + what + tail[len(what) :]
        elif how == "insert":
            data = head + what + tail
        elif how == "remove":
            data = head + tail[len(what) :]
        elif how == "cut" and where > 0.02:
            data = head
        elif how == "repeat":
            data = head + tail[: 16 * len(what)] + tail
    return data


_NUMBERS = [
    0,
    -1,
    1,
    13,
    14,
    127,
    128,
    2**31,
    2**63,
    2**64,
    10**400,
    -(10**30),
    0.5,
    1e308,
    1e39,
    float("nan"),
    float("inf"),
    -float("inf"),
]
ODD = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from(["", "..", "../../x", "\0", "\ud800", "<script>", "x" * 3000, "user", "shop"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=6,
)  # fmt: skip
"""Any plain value, the troublesome ones often."""


@st.composite
def replaced(draw: Any, valid: Any, most: int = 3) -> Any:
    """A copy of plain JSON in which one to `most` values are replaced, taken out or renamed."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(value))
        if not places:
            return draw(ODD)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(("value", "value", "value", "gone", "renamed")))
        if how == "value":
            holder[key] = draw(ODD)
        elif how == "gone":
            del holder[key]
        elif isinstance(holder, dict):
            names = st.one_of(st.text(max_size=8), st.sampled_from(["item9", "itemx", "name", "base"]))
            holder[draw(names)] = holder.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
