"""The stand-in models and the pool without Ray of tests/jobs, for the fuzz tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))  # stand_ins

from tests.jobs.conftest import calls, full, small_set  # noqa: F401
