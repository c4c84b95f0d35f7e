"""What the two locks hold, and installations as the documents describe them: a fresh environment, then a wheel.

How long each takes and how large it is stands at the end of the run's output.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.runs.versions import SOURCES
from jobs.training import launch
from store.errors import UserError

REPO = Path(__file__).resolve().parents[1]
DEV_ONLY = {"docker", "hypothesis", "moto", "mypy", "numba", "pandas", "playwright", "pytest", "ranx", "ruff"}
UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
SMALL = ["--set", "detectors=[atss-tiny]", "--set", "embedders=[lite0-sg]"]


def pinned(lock: Path) -> dict[str, set[str]]:
    """Package -> the versions a lock has of it; one for each Python where they differ."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_and_hashes_everything_and_names_no_address(lock: str) -> None:
    text = (REPO / lock).read_text(encoding="utf-8")
    assert "://" not in text and "\n--index" not in text
    for line in re.sub(r" \\\n +", " ", text).splitlines():
        assert line.lstrip().startswith("#") or re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_tests_run_with_the_packages_that_runs_have() -> None:
    run, dev = (pinned(REPO / name) for name in ("requirements.lock", "requirements-dev.lock"))
    assert run == {name: dev[name] for name in run}
    assert not DEV_ONLY & run.keys() and dev.keys() >= DEV_ONLY


# --- fresh environments -----------------------------------------------------------------------------------------------

Run = Callable[..., str]


@pytest.fixture
def run(record_property: Callable[[str, object], None]) -> Run:
    """A command's output; it must succeed. What it takes is recorded under its `title`."""

    def call(*command: str | Path, cwd: Path, title: str = "") -> str:
        keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        paths = os.pathsep.join([str(Path(str(UV)).parent), os.environ["PATH"]])
        begun = time.perf_counter()
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=keep | {"PATH": paths}, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        if title:
            record_property(title, f"{time.perf_counter() - begun:.0f} s")
        return done.stdout

    return call


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environment of the runtime lock is made by the first test that needs it."""
    if UV is None:
        pytest.skip("no uv on the PATH nor beside Python; `make install` brings it")
    return tmp_path_factory.mktemp("install") / "env"


@pytest.fixture
def python(environment: Path, run: Run, record_property: Callable[[str, object], None]) -> Path:
    made = environment / "bin" / "python"
    if not made.exists():
        run("make", "install", f"VENV={environment}", cwd=REPO, title="make install")
        listing = run(UV, "pip", "list", "--format", "json", "--python", made, cwd=REPO)
        size = sum(path.lstat().st_size for path in environment.rglob("*"))
        record_property("environment", f"{len(json.loads(listing))} packages, {size / 1e9:.1f} GB")
    return made


@pytest.mark.slow
def test_the_runtime_lock_is_enough_for_a_run_and_a_training(python: Path, tmp_path: Path, run: Run) -> None:
    drawn = ["drawn", "set", "--users", "24", "--shops", "60", "--seed", "1"]
    run(python, REPO / "jobs" / "ingest.py", *drawn, cwd=tmp_path)
    evaluation = ["--imageset", "set", "--output", "run", "--profile", "tiny"]
    run(python, REPO / "jobs" / "full_eval.py", *evaluation, cwd=tmp_path, title="84 photos, whole tiny profile")
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["images"] == {
        "total": 84,
        "done": 84,
        "failed": 0,
    }
    training = [
        "--model", "lite0-sg", "--imageset", "set", "--output", "trained", "--steps", "2", "--dim", "16",
        "--batch-size", "8", "--input-size", "32", "--stride", "32",
    ]  # fmt: skip
    run(python, REPO / "jobs" / "train_embedder.py", *training, cwd=tmp_path, title="a training of two steps")
    every = (
        "import importlib, pathlib, sys; sys.path.insert(0, '.'); from jobs.runs.versions import SOURCES\n"
        "for path in sorted(p for folder in SOURCES for p in pathlib.Path(folder).rglob('*.py')):\n"
        "    try: importlib.import_module('.'.join(path.with_suffix('').parts))\n"
        "    except ModuleNotFoundError as error: print(error.name)"
    )
    assert set(run(python, "-c", every, cwd=REPO).split()) == {"open_clip"}  # the extra `clip`


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(environment: Path, python: Path, tmp_path: Path, run: Run) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    here.mkdir()
    for folder in (*SOURCES, "weights"):  # a copy, for setuptools leaves a build folder beside the code
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / file, source)
    run(UV, "build", "--wheel", "--quiet", "--out-dir", tmp_path / "dist", source, cwd=here, title="build a wheel")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(UV, "pip", "install", "--quiet", "--no-deps", "--reinstall", "--python", python, wheel, cwd=here)
    shutil.rmtree(source)

    clothes = environment / "bin" / "clothes"
    assert run(clothes, "--version", cwd=here) == f"clothes {wheel.name.split('-')[1]}\n"
    run(clothes, *["ingest", "drawn", "set", "--users", "6", "--shops", "12", "--seed", "1"], cwd=here)
    evaluation = ["--imageset", "set", *SMALL]
    run(clothes, "full-eval", *evaluation, "--output", "run", cwd=here, title="clothes full-eval, 18 photos")
    assert (here / "run" / "report" / "index.html").is_file()
    # on Ray, whose workers find the packages too
    run(clothes, "full-eval", *evaluation, "--output", "ray", "--set", "actors=2", cwd=here, title="the same on Ray")
    assert "18 of 18 images done" in run(python, "-m", "jobs.full_eval", *evaluation, "--output", "run", cwd=here)
    run(clothes, *["reindex-gallery", "--imageset", "set", "--gallery", "gallery"], *SMALL, cwd=here)
    photo = REPO / "tests" / "data" / "user-000001.jpg"
    run(clothes, "search", photo, "--gallery", "gallery", "--html", "found.html", cwd=here, title="clothes search")
    assert (here / "found.html").is_file()


@pytest.mark.slow
def test_an_index_of_the_readers_own_gives_another_torch(tmp_path: Path, run: Run) -> None:
    """The index here holds a torch that asks for no CUDA, as public ones do; it is empty, and not installed."""
    if UV is None:
        pytest.skip("no uv on the PATH nor beside Python; `make install` brings it")
    (version,) = pinned(REPO / "requirements.lock")["torch"]
    folder, stem = tmp_path / "index" / "torch", f"torch-{version}+cpu"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+cpu\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{stem}-py3-none-any.whl">{stem}-py3-none-any.whl</a>')
    lock = tmp_path / "cpu.lock"
    index = f"UV_INDEX={folder.parent.as_uri()}"
    run("env", index, "make", "lock-here", f"LOCK={lock}", cwd=REPO, title="make lock-here")
    found, whole = pinned(lock), pinned(REPO / "requirements.lock")
    assert found["torch"] == {f"{version}+cpu"} and "://" not in lock.read_text()
    assert not [name for name in found if name.startswith("nvidia")]
    assert all(versions <= whole[name] for name, versions in found.items() if name != "torch")


def test_training_without_its_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(UserError, match=r"training needs tensorboard, .*\[train\]"):
        launch.launch("jobs.train_embedder", [], workers=1, device="cpu", threads=1)
