"""A million photos' bookkeeping with empty work: nothing is lost or done twice, and memory stays within bounds.

`make soak` sets BOOKKEEPING_PHOTOS=16000000.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PHOTOS = int(os.environ.get("BOOKKEEPING_PHOTOS", "1000000"))
# MB for a million photos, about twice what is measured (benchmarks/README.md)
MOST_MB = {"manifest": 50, "plan": 100, "marks": 50, "rerun": 400, "status": 250, "night": 800}


@pytest.mark.slow
@pytest.mark.timeout(300 + PHOTOS // 10_000)
@pytest.mark.parametrize("step", MOST_MB)
def test_a_step_of_bookkeeping_fits(step: str) -> None:
    """The step itself asserts what it finds."""
    line = [sys.executable, "benchmarks/bookkeeping.py", "--step", step, "--photos", str(PHOTOS)]
    done = subprocess.run(line, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.partition("|")[2]) < MOST_MB[step] * max(1, PHOTOS / 1e6)
