"""One shard on its way through a stage, and what follows a death. Plain Python, no Ray.

A shard that ended its process is handed out again after a pause; after the second death its images are tried one by
one, each in a process that has survived the last, so that only the image that kills is left out.
"""

from dataclasses import dataclass, field
from typing import Any

MAX_PAUSE_S = 30.0


@dataclass(frozen=True)
class Job:
    """One shard's work."""

    name: str  # of the shard; `ray list tasks` and the dashboard show it
    rows: tuple[int, ...]  # row numbers of the shard to do
    work: Any = None  # what the worker needs to know besides; small and picklable. Pixels stay in storage


@dataclass
class Trial:
    """A job on its way, and what its deaths have taught."""

    job: Job
    deaths: int = 0
    io_errors: int = 0
    suspects: list[int] = field(default_factory=list)  # rows still to be tried alone; empty: the whole shard is tried
    strikes: int = 0  # deaths of the first suspect alone
    guilty: dict[int, str] = field(default_factory=dict)
    not_before: float = 0.0

    def next_call(self) -> tuple[str, tuple]:
        """Method of `Worker` and its arguments after the job."""
        if self.suspects:
            return "probe", (self.suspects[0],)
        return "run", (dict(self.guilty), self.deaths >= 3)

    def survived(self) -> bool:
        """The call came back; True when the whole job is done."""
        if not self.suspects:
            return True
        self.suspects.pop(0)
        self.strikes = 0
        return False

    def died(self, how: str) -> None:
        """Decide what to try next after the process ended; `how`: "died" or "hung"."""
        if self.suspects:
            self.strikes += 1
            if self.strikes == 2:
                self.guilty[self.suspects.pop(0)] = f"the process {how} on this image alone, twice"
                self.strikes = 0
            return
        self.deaths += 1
        if self.deaths == 2:
            self.suspects = list(self.job.rows)
        elif self.deaths == 5:  # twice whole, once without the guilty, twice image by image: nothing is left to try
            self.guilty |= {row: f"the process {how} on this shard, though on no image alone" for row in self.job.rows
                            if row not in self.guilty}  # fmt: skip

    def pause_s(self) -> float:
        """Seconds to wait after a death: 0.5, 1, 2 … up to half a minute."""
        return min(MAX_PAUSE_S, 0.5 * 2 ** min(10, max(0, self.deaths - 1)))
