"""A worker that misbehaves as told; apart from the tests, so that a child process need not import theirs."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.runs import photos
from jobs.runs.marks import Outcome
from jobs.runs.retries import Job


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


@dataclass
class Odd:
    """A worker that does with a shard what `job.work` says, after one photo."""

    folder: Path
    trouble: str = ""  # while it loads

    def load(self, device: str) -> dict[str, Any]:
        self._meet(self.trouble)
        return {"device": device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        photos.tell_done(1)
        self._meet(job.work or "")
        return {"all": Outcome({}, rows=os.getpid())}

    def probe(self, job: Job, row: int) -> None: ...

    def _meet(self, trouble: str) -> None:
        match trouble:
            case "dies":
                print("last words", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                time.sleep(3600)
            case "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "misfits":
                raise ValueError("the weights do not fit")
            case "raises":
                raise Unpicklable("odd", "even")
            case "storage":  # fails twice; the folder remembers
                seen = len(os.listdir(self.folder))
                if seen < 2:
                    (self.folder / str(seen)).touch()
                    raise OSError("503 SlowDown")
