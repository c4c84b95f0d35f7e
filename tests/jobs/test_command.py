"""`clothes JOB …` is `python jobs/JOB.py …`."""

import subprocess
import sys
from pathlib import Path

import jobs
from jobs.__main__ import JOBS

REPO = Path(__file__).resolve().parents[2]


def clothes(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jobs", *words], cwd=REPO, capture_output=True, text=True, timeout=300)


def test_every_script_is_a_job_and_the_help_names_it() -> None:
    scripts = {path.stem for path in (REPO / "jobs").glob("*.py") if "cli.run(main)\n" in path.read_text()} - {"cli"}
    assert {job.replace("-", "_") for job in JOBS} == scripts
    told = clothes("--help").stdout
    assert all(f"\n  {job} " in told for job in JOBS) and "\n  status           Status of a run or a gallery" in told
    assert clothes("--version").stdout == f"clothes {jobs.__version__}\n"


def test_arguments_and_exit_status_are_the_jobs(tmp_path: Path) -> None:
    done = clothes("status", str(tmp_path))
    why = "holds no run (no run.json) and no gallery (no CURRENT)"
    assert (done.returncode, done.stderr) == (2, f"clothes status: error: {tmp_path}: {why}\n")
    assert clothes("status", "--help").stdout.startswith("usage: clothes status [-h]")
    assert clothes("stauts").returncode == 2
