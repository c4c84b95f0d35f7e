"""The stand-in models and the pool without Ray of tests/jobs, for the fuzz tests; and how many inputs they tried."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))  # stand_ins

from tests.fuzz import guard
from tests.jobs.conftest import calls, full, small_set  # noqa: F401


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if guard.inputs:
        told = ", ".join(f"{n:,} of {kind.removeprefix('test_')}" for kind, n in sorted(guard.inputs.items()))
        terminalreporter.write_line(f"fuzzed inputs: {told}; FUZZ_SEED={guard.SEED} repeats them")
