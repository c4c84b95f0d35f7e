"""The line a person watches at night: what it counts, and what it calls out."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from jobs.runs.progress import Progress

REPO = Path(__file__).resolve().parents[3]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stage(clock: Clock, **more: object) -> tuple[Progress, list[str]]:
    """Ten shards of which four were done before; 60 photos to do."""
    said: list[str] = []
    arguments: dict = {"total": 10, "done": 4, "images": 60, "say": said.append, "clock": clock} | more
    return Progress("detect", **arguments), said


def test_what_an_earlier_start_did_is_done_and_no_speed_and_loading_is_not_slowness() -> None:
    clock = Clock()
    progress, said = stage(clock)
    clock.now = 12.0
    progress.tick()
    clock.now = 20.0
    progress.began()
    clock.now = 30.0
    progress.add("shard-4", 10, {"read": 1.0, "infer": 8.0, "write": 1.0}, failed=2)
    assert said == [
        "detect: shard 4/10, loading models, 12 s",
        "detect: shard 5/10, 1.0 images/s, read 10% infer 80% write 10%, bad 2, 50 s to go",  # 10 photos in 10 s
    ]
    clock.now = 80.0
    progress.add("shard-5", 50, {"read": 5.0, "infer": 40.0, "write": 5.0}, failed=0)
    progress.finish()
    assert said[-1] == "detect: 60 images in 60 s, 1.0 images/s, bad 2"


def test_photos_count_before_their_shard_is_finished() -> None:
    """Two models: a photo that one of them has done counts half; with its shard, a photo counts once."""
    clock = Clock()
    progress, said = stage(clock)
    progress.began()
    clock.now = 11.0
    progress.tick()
    progress.photos("shard-4", 4.0)
    progress.photos("shard-4", 8.0)
    progress.photos("shard-5", 1.0)
    progress.photos("shard-5", 0.0)  # its process died
    clock.now = 22.0
    progress.tick()
    progress.add("shard-4", 10, {"read": 1.0, "infer": 1.0}, failed=0)
    clock.now = 33.0
    progress.tick()
    assert said == [
        "detect: shard 4/10, models loaded, at work for 11 s",
        "detect: shard 4/10, photo 8/60, 0.4 images/s, bad 0, 2 min to go",  # 52 photos at 8 in 22 s: 143 s
        "detect: shard 5/10, 0.3 images/s, read 50% infer 50%, bad 0, 3 min to go",  # 50 at 10 in 33 s: 165 s
    ]


@pytest.mark.parametrize("on_gpu, seconds, waited, told", [
    (True, {"read": 6.0, "infer": 3.0, "write": 1.0}, 0.0, "GPUs idle 70% of the time, waiting for photos"),
    (True, {"read": 1.0, "infer": 3.0, "write": 6.0}, 0.0,
     "GPUs idle 70% of the time, waiting for results to be written"),
    (True, {"read": 1.0, "infer": 3.0, "write": 0.0}, 8.0, "GPUs idle 75% of the time, waiting for shards"),
    (True, {"read": 4.0, "infer": 5.0, "write": 1.0}, 0.0, ""),  # half is not called out
    (False, {"read": 9.0, "infer": 1.0, "write": 0.0}, 0.0, ""),  # no GPU, no idle one
])  # fmt: skip
def test_an_idle_gpu_is_called_out_with_what_it_waits_for(
    on_gpu: bool, seconds: dict, waited: float, told: str
) -> None:
    clock = Clock()
    progress, _ = stage(clock, on_gpu=on_gpu)
    progress.waited(waited)
    clock.now = 10.0
    progress.add("shard-4", 10, seconds, failed=0)
    assert progress.idle().removeprefix("; ").startswith(told) and bool(told) == bool(progress.idle())


@pytest.mark.parametrize("on_gpu, busy, told", [
    (True, [(0.1, 10.0), (0.3, 30.0)], "GPUs busy 25% of the time"),  # (1 + 9) of 40 s
    (True, [(0.1, 10.0), (0.7, 20.0)], ""),  # half is not called out
    (True, [], ""),  # nobody told
    (False, [(0.1, 10.0)], ""),
])  # fmt: skip
def test_a_gpu_that_idles_while_its_actors_are_in_the_models_is_called_out(
    on_gpu: bool, busy: list[tuple[float, float]], told: str
) -> None:
    progress, _ = stage(Clock(), on_gpu=on_gpu)
    for share, seconds in busy:
        progress.gpu(share, seconds)
    progress.add("shard-4", 10, {"read": 1.0, "infer": 9.0}, failed=0)
    assert progress.idle().removeprefix("; ").startswith(told) and bool(told) == bool(progress.idle())


SCRIPT = """
from jobs.runs.progress import Progress, say
now = [0.0]
progress = Progress("detect", total=2, done=0, images=60, clock=lambda: now[0])
progress.began()
progress.photos("shard-0", 15)
now[0] = 11.0
progress.tick()
say("a worker died")
now[0] = 22.0
progress.add("shard-0", 30, {"read": 1.0, "infer": 3.0}, failed=1)
now[0] = 22.1
progress.tick()  # too soon to draw again
progress.finish()
"""
LOG = [
    "detect: shard 0/2, photo 15/60, 1.4 images/s, bad 0, 33 s to go",  # 45 at 15 in 11 s
    "a worker died",
    "detect: shard 1/2, 1.4 images/s, read 25% infer 75%, bad 1, 22 s to go",
    "detect: 30 images in 22 s, 1.4 images/s, bad 1",
]


def printed(columns: int, term: str) -> str:
    """What the script prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    left_out = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")  # which rich obeys
    env = {name: value for name, value in os.environ.items() if name not in left_out} | {"TERM": term}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=REPO, env=env, stdout=theirs, stdin=theirs)
    os.close(theirs)
    read = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other side is closed
        while part := os.read(ours, 4096):
            read += part
    os.close(ours)
    assert process.wait() == 0
    return read.decode().replace("\r\n", "\n")


def lines_of(drawn: str) -> list[str]:
    """What stood in the terminal's lines one after the other, without colours."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    return [line for line in re.split(r"\r\x1b\[K|\n", plain) if line]


def test_a_terminal_gets_a_bar_in_its_last_line() -> None:
    drawn = printed(100, "xterm")
    first, worker, second, last = lines_of(drawn)
    assert re.fullmatch(r"detect ━{6}╺━+ shard 0/2, photo 15/60, 1.4 images/s, bad 0, 33 s to go", first)
    assert re.fullmatch(rf"detect ━{{12}}╺━+ {LOG[2].removeprefix('detect: ')}", second)
    assert (worker, last) == (LOG[1], LOG[3])
    assert drawn.count("\n") == 2, "the bar is drawn again in its place"


def test_a_bar_is_cut_to_a_narrow_terminal() -> None:
    first = lines_of(printed(60, "xterm"))[0]
    assert first.startswith("detect ━") and len(first) == 59 and first.endswith("…")


def test_what_is_no_terminal_gets_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.splitlines() == LOG
    assert printed(100, "dumb").splitlines() == LOG
