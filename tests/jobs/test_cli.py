"""How scripts end, where they import from, and how they read their arguments."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jobs import (
    cli,
    train_detector,
    train_embedder,
)

REPO = Path(__file__).resolve().parents[2]

SCRIPT = '''"""A script as jobs/ has them."""
import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli


class Mine(ValueError):
    user_facing = True


def main(argv: list[str] | None = None) -> int | None:
{body}


cli.run(main)
'''


def run(path: Path, body: str, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT.format(body="    " + body))
    env = {"PYTHONPATH": str(python_path)} if python_path else {}
    return subprocess.run([sys.executable, str(path)], cwd=path.parent, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "body, status, last_line",
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        (
            "from store.errors import UserError; raise UserError('no file x;\\n  try y')",
            2,
            "job.py: error: no file x; try y",
        ),
        ("raise Mine('bad bucket')", 2, "job.py: error: bad bucket"),
        ("raise ValueError('a mistake of ours')", 1, "ValueError: a mistake of ours"),
        ("raise KeyboardInterrupt", 130, "job.py: stopped"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 130, "job.py: stopped"),
        ("print('x' * 100); raise BrokenPipeError", 1, ""),
        ("sys.exit(2)", 2, ""),
    ],
)
def test_endings(tmp_path, body, status, last_line):
    done = run(tmp_path / "elsewhere" / "job.py", body, REPO)
    assert done.returncode == status, done.stderr
    assert (done.stderr.strip().splitlines() or [""])[-1] == last_line
    assert ("Traceback" in done.stderr) == (status == 1 and last_line != "")


def test_a_working_folder_that_was_deleted_is_told_in_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path}/gone; rmdir {tmp_path}/gone; {sys.executable} {REPO}/jobs/status.py run"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    reason = "the working folder has been deleted; change to one that exists"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"status.py: error: {reason}")
    assert "Traceback" not in done.stderr


def test_a_script_in_jobs_imports_from_the_repository(tmp_path):
    """Its neighbours hide no other modules: `import config` must not find jobs/config.py."""
    for name in ("__init__.py", "cli.py"):
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).write_text((REPO / "jobs" / name).read_text())
    (tmp_path / "jobs" / "config.py").write_text("")
    done = run(
        tmp_path / "jobs" / "job.py",
        "print(sys.path[0]); import importlib.util as u; return u.find_spec('config') and 9",
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path)), done.stderr


def test_a_copy_elsewhere_uses_the_installed_package(tmp_path):
    """`ray submit` copies the script alone."""
    done = run(tmp_path / "home" / "job.py", "print(sys.path[0], cli.__file__)", REPO)
    assert done.stdout.split() == [str(tmp_path / "home"), str(REPO / "jobs" / "cli.py")]


@pytest.mark.parametrize("shell, status, told", [
    ("{0} >&-", 0, ""),  # closed
    ("{0} > /dev/full", 0, "job.py: the work is done, but standard output was cut: No space left on device\n"),
    ("{0} > out", 0, ""),
    ("{0} | head -c 5", 1, ""),
])  # fmt: skip
@pytest.mark.parametrize("buffered", ["", "-u"])
def test_work_goes_on_when_standard_output_is_full_or_closed(
    tmp_path: Path, shell: str, status: int, told: str, buffered: str
) -> None:
    """A line half-way, another at the end; the file says that what comes after the first was done."""
    script = tmp_path / "job.py"
    more = "; open('done', 'w').close(); print('caf\\udce9')" if status == 0 else ""
    script.write_text(SCRIPT.format(body=f"    print('x' * 200_000, flush=True){more}"))
    line = shell.format(f"{sys.executable} {buffered} {script}") + "; exit ${PIPESTATUS[0]}"
    env = {"PYTHONPATH": str(REPO)}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (status, told)
    assert (tmp_path / "done").exists() is (status == 0)


@pytest.mark.parametrize("shell", ["{0} 2> /dev/full", "{0} > /dev/full 2> /dev/full", "{0} 2>&-", "{0} 2> >(true)"])
@pytest.mark.parametrize("ending, status", [
    ("return 0", 0),
    ("raise Mine('a mistake of the user')", 2),
    ("raise ValueError('a mistake of ours')", 1),
])  # fmt: skip
def test_standard_error_that_is_full_or_closed_changes_nothing(
    tmp_path: Path, shell: str, ending: str, status: int
) -> None:
    script = tmp_path / "job.py"
    told = "print('told'); [print('x' * 100_000, file=sys.stderr, flush=True) for _ in range(3)]"
    script.write_text(SCRIPT.format(body=f"    {told}; open('done', 'w').close(); {ending}"))
    line = shell.format(f"{sys.executable} {script}")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (status, b"" if "> /dev/full 2" in shell else b"told\n")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("command", [train_detector, train_embedder])
def test_one_image_set_beside_several_is_refused_twice(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--imageset", "a", "--imageset", "b", "--validation", "c", "--validation", "d"]
    with pytest.raises(SystemExit) as ended:
        command.main(["--model", "m", *sets, "--output", "o"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.rstrip().endswith("--validation is given twice, and takes one value")


def test_a_parser_may_read_several_lines() -> None:
    parser = cli.Parser()
    parser.add_argument("place")
    parser.add_argument("--n", type=int)
    parser.add_argument("--each", action="append")
    lines = (["a", "--n", "1"], ["b", "--n", "2", "--each", "x", "--each", "y"])
    assert [(args.place, args.n, args.each) for args in map(parser.parse_args, lines)] == [
        ("a", 1, None), ("b", 2, ["x", "y"]),
    ]  # fmt: skip
