"""`run_with_stand_ins.py` without Ray or waits between attempts: for tests of the storage, not of the workers."""

import functools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import botocore.retryhandler
import run_with_stand_ins
import stand_ins

from jobs import cli
from jobs.runs import shards
from store import s3

if __name__ == "__main__":
    shards.run_on_actors = functools.partial(stand_ins.here, [])
    s3.READ_TIMEOUT_S = 1
    s3._pause_s = lambda _: 0.0
    botocore.retryhandler.delay_exponential = lambda *_, **__: 0.0
    cli.run(run_with_stand_ins.main)
