"""`clothes JOB …` is `python jobs/JOB.py …`."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("words, wants", [
    ("clothes se", ["search"]),
    ("clothes ", list(JOBS)),
    ("clothes search --ga", ["--gallery", "--gallery-version"]),
    ("clothes search --device c", ["cpu", "cuda"]),
    ("clothes evaluate --comp", ["--compare"]),
    ("clothes ingest parq", ["parquet"]),
    ("clothes ingest folder --meta", ["--metadata"]),  # flags of one kind of source
    ("clothes search READ", ["README.md"]),  # what is no flag is a file
])  # fmt: skip
def test_bash_completes_jobs_their_flags_and_files(bash_script: Path, words: str, wants: list[str]) -> None:
    asked = f"COMP_WORDS=({words}); COMP_CWORD={words.count(' ')}; _shtab_clothes; printf '%s\\n' ${{COMPREPLY[@]}}"
    told = subprocess.run(
        ["bash", "-c", f"source {bash_script}; {asked}"], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert (sorted(told.stdout.split()), told.stderr) == (sorted(wants), "")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "clothes.sh"
    path.write_text(clothes("--print-completion", "bash").stdout)
    assert subprocess.run(["bash", "-n", str(path)], timeout=60).returncode == 0
    return path


def test_other_shells_have_a_script_too() -> None:
    assert clothes("--print-completion", "zsh").stdout.startswith("#compdef clothes")
    assert "complete clothes" in clothes("--print-completion", "tcsh").stdout
    assert clothes("--print-completion", "fish").returncode == 2
