"""What happened in a run, a JSON object a line: OUTPUT/logs/START-PID-000.jsonl, one file for each start of the job.

The driver writes it from what actors send with their answers, so that one file tells of all of them, and a process that was killed is told
of too. Every line has `time` (UTC), `event` and `stage`; what else it has:

    loaded    actor, node, pid, device, wall_s, rss_mb, peak_mb
    shard     actor, node, pid, shard, images, failed, began, wall_s, waited_s (the actor idle before it), read_s, infer_s, write_s, rss_mb, peak_mb,
              gpu_mb: the most torch has held on a GPU; gpu_busy: share of the time in which a kernel ran on it, of whichever actor
    died hung actor, node, pid, shard, row (looked at alone), deaths, reason
    again     a shard whose storage failed: shard, reason
    stage     images, failed, seconds, rss_mb, peak_mb of the driver: a stage is over

Lines gather in memory and are published whole, every half minute and at the end of a stage, for a bucket cannot append; a file that has
grown to a megabyte is left alone and START-PID-001.jsonl goes on.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.objects import ObjectStore

PUBLISH_EVERY_S = 30.0
PART_BYTES = 1_000_000  # what is rewritten each time stays small in the longest run


@dataclass
class RunLog:
    """The lines of one start."""

    store: ObjectStore
    lines: list[str] = field(default_factory=list)
    published: float = field(default_factory=time.monotonic)
    part: int = 0
    start: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}")

    @property
    def key(self) -> str:
        return f"logs/{self.start}-{self.part:03d}.jsonl"

    def tell(self, event: str, stage: str, **facts: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "stage": stage} | facts
        self.lines.append(json.dumps(line, ensure_ascii=False, default=str))

    def tick(self) -> None:
        """Publish if the last time is half a minute ago."""
        if time.monotonic() - self.published >= PUBLISH_EVERY_S:
            self.publish()

    def publish(self) -> None:
        """Write all lines so far; storage that is away for a moment costs nothing but time."""
        self.published = time.monotonic()
        if not self.lines:
            return
        text = ("\n".join(self.lines) + "\n").encode()
        try:
            self.store.write(self.key, text)
        except OSError as error:
            print(f"{self.key}: not written now ({error})", file=sys.stderr, flush=True)
            return
        if len(text) >= PART_BYTES:
            self.lines, self.part = [], self.part + 1


def memory() -> dict[str, float]:
    """This process's memory in MB (10^6 bytes): resident now, its peak, and torch's on a GPU where there is one."""
    try:  # getrusage's peak is, after a fork, the parent's too
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        resident, peak = (int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    except OSError:  # no /proc: the peak is all the system tells, in bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        resident = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    found = {"rss_mb": round(resident, 1), "peak_mb": round(peak, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found
