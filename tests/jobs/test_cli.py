"""How scripts end, and where they import from."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        ("raise cli.UserError('no file x;\\n  try y')", 2, "job.py: error: no file x; try y"),
        ("raise Mine('bad bucket')", 2, "job.py: error: bad bucket"),
        ("raise ValueError('a mistake of ours')", 1, "ValueError: a mistake of ours"),
        ("raise KeyboardInterrupt", 130, "job.py: stopped"),
        ("print('x' * 100); raise BrokenPipeError", 1, ""),
        ("sys.exit(2)", 2, ""),
    ],
)
def test_endings(tmp_path, body, status, last_line):
    done = run(tmp_path / "elsewhere" / "job.py", body, REPO)
    assert done.returncode == status, done.stderr
    assert (done.stderr.strip().splitlines() or [""])[-1] == last_line
    assert ("Traceback" in done.stderr) == (status == 1 and last_line != "")


def test_a_script_in_jobs_imports_from_the_repository(tmp_path):
    """Its neighbours do not hide other modules: a jobs/config.py must not be what `import config` finds."""
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
