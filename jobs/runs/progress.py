"""A line now and then while a stage works: how far, how fast, where the time goes, how much went wrong, how long yet.

On a terminal the line stays at the bottom, with a bar, and is drawn again in its place; a log gets one every ten
seconds.

The rate is of this session, from the moment the first actor was ready: work that an earlier start finished counts as
done and not as speed. GPUs that spend less than half of their actors' time in the models are called out, with what they
wait for; so are those on which no kernel ran for half of that time.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MOST_IDLE = 0.5  # of a GPU actor's time, before it is said
MORE_ACTORS = "a smaller gpus_per_actor"
WAITS_FOR = {
    "read": f"waiting for photos: storage or decoding is slow; more, smaller actors ({MORE_ACTORS}) overlap it",
    "write": "waiting for results to be written: storage is slow",
    "wait": "waiting for shards: smaller shards, fewer actors, or a driver nearer to OUTPUT",
}


CLEAR = "\r\x1b[K"  # back to the start of a terminal's line, and all of it gone
BAR_WIDTH, REDRAW_S = 24, 0.2
_bar_is_shown = False  # in the terminal's last line


def say(line: str) -> None:
    """Print a line at once: whoever watches a log through a pipe sees it when it happens."""
    clear_bar()
    print(line, flush=True)


def clear_bar() -> None:
    """Take the bar away, if there is one, so that what is printed next has a line of its own."""
    global _bar_is_shown
    if _bar_is_shown:
        print(CLEAR, end="", flush=True)
        _bar_is_shown = False


def show_bar(stage: str, share: float, told: str) -> None:
    """Draw the terminal's last line anew: a bar that is full to `share`, in [0, 1], and as much text as has room."""
    from rich.console import Console  # here, as a log never needs it
    from rich.progress_bar import ProgressBar

    global _bar_is_shown
    console = Console()
    room = console.width - 1 - len(f"{stage}  ") - BAR_WIDTH  # in the last column some terminals begin a new line
    with console.capture() as drawn:
        console.print(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH), end="")
    told = told if len(told) <= room else f"{told[: max(room - 1, 0)]}…"
    print(f"{CLEAR}{stage} {drawn.get()} {told}", end="", flush=True)
    _bar_is_shown = True


def on_terminal() -> bool:
    """Whether somebody watches a terminal that can draw a line again."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@dataclass
class Progress:
    """One stage's counts."""

    stage: str
    total: int  # shards of the stage
    done: int  # those finished, at first those finished before this session
    images: int  # photos to do in this session
    on_gpu: bool = False  # whether the stage's actors own GPUs
    interval_s: float = 10.0
    say: Callable[[str], None] = say
    clock: Callable[[], float] = time.monotonic
    images_done: int = 0
    begun: dict[str, float] = field(default_factory=dict)  # unfinished shard -> photos done, and shares of photos
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_seconds: float = 0.0  # of shards whose actor told how busy its GPU was,
    gpu_busy_seconds: float = 0.0  # and those in which a kernel ran

    def __post_init__(self) -> None:
        self.started = self.last = self.clock()
        self.ready = False
        self.live = self.say is say and on_terminal()

    def began(self) -> None:
        """An actor is ready; the clock of the rate starts with the first."""
        if not self.ready:
            self.ready, self.started = True, self.clock()

    def photos(self, shard: str, n: float) -> None:
        """`n` photos of an unfinished shard are done so far; one that one of five models has done counts 0.2."""
        self.begun[shard] = n

    def add(self, shard: str, images: int, seconds: Mapping[str, float], failed: int) -> None:
        """A shard is finished."""
        self.done += 1
        self.begun.pop(shard, None)
        self.images_done += images
        self.failed += failed
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        self.tick()

    def waited(self, seconds: float) -> None:
        """An actor had nothing to do."""
        self.seconds["wait"] = self.seconds.get("wait", 0.0) + seconds

    def gpu(self, busy: float, seconds: float) -> None:
        """A shard's GPU was busy for this share of so many seconds."""
        self.gpu_seconds += seconds
        self.gpu_busy_seconds += busy * seconds

    def tick(self) -> None:
        if self.clock() - self.last < (REDRAW_S if self.live else self.interval_s):
            return
        self.last = self.clock()
        if self.live:
            share = (self.images_done + sum(self.begun.values())) / max(self.images, 1)
            show_bar(self.stage, share, self.line().removeprefix(f"{self.stage}: "))
        else:
            self.say(self.line())

    def line(self) -> str:
        elapsed = self.clock() - self.started
        head = f"{self.stage}: shard {self.done}/{self.total}"
        begun = sum(self.begun.values())
        done = self.images_done + begun
        if not self.ready and not done:
            return f"{head}, loading models, {elapsed:.0f} s"
        if begun:
            head += f", photo {done:.0f}/{self.images}"
        if not done:
            return f"{head}, models loaded, at work for {elapsed:.0f} s"
        rate = done / max(elapsed, 1e-9)
        spent = sum(self.seconds.values())
        shares = " ".join(f"{name} {value / spent:.0%}" for name, value in self.seconds.items()) if spent else ""
        told = [head, f"{rate:.1f} images/s", shares, f"bad {self.failed}"]
        return f"{', '.join(filter(None, told))}, {_duration((self.images - done) / rate)} to go{self.idle()}"

    def idle(self) -> str:
        """A remark where GPUs idle, outside the models with the largest cause, or within them; "" where they do not."""
        if not self.on_gpu:
            return ""
        spent = sum(self.seconds.values())
        idle = 1 - self.seconds.get("infer", 0.0) / spent if spent else 0.0
        if idle > MOST_IDLE:
            others = {name: value for name, value in self.seconds.items() if name != "infer"}
            return f"; GPUs idle {idle:.0%} of the time, {WAITS_FOR[max(others, key=others.__getitem__)]}"
        busy = self.gpu_busy_seconds / self.gpu_seconds if self.gpu_seconds else 1.0
        if busy < 1 - MOST_IDLE:
            remedy = f"the models are small for them: let more actors share one ({MORE_ACTORS})"
            return f"; GPUs busy {busy:.0%} of the time, {remedy}"
        return ""

    def finish(self) -> None:
        if self.images_done:
            elapsed = self.clock() - self.started
            rate = self.images_done / max(elapsed, 1e-9)
            head = f"{self.stage}: {self.images_done} images in {_duration(elapsed)}"
            self.say(f"{head}, {rate:.1f} images/s, bad {self.failed}{self.idle()}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
