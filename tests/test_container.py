"""The container image: its Dockerfile linted, compared with the files that use it, its steps run in an empty folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs

REPO = Path(__file__).resolve().parents[1]
DOCKERFILE = REPO / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile in order, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def of(instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == instruction]


def test_hadolint_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint; `make install-dev` brings it")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_it_is_pinned_and_ends_as_a_user_without_rights() -> None:
    (base,) = of("FROM")
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-base-\w+\d+\.\d+", base)
    assert int(of("USER")[-1]) > 0 and f"--uid {of('USER')[-1]} " in of("RUN")[0]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    let_through = {line[1:] for line in Path(f"{DOCKERFILE}.dockerignore").read_text().split() if line[0] == "!"}
    copied = {source for arguments in of("COPY") for source in arguments.split()[:-1]}
    assert copied == let_through and all((REPO / source).exists() for source in copied)


@pytest.mark.parametrize("name", ["kuberay.yaml", "kuberay-nightly.yaml"])
def test_kubernetes_takes_the_image_of_this_version(name: str) -> None:
    text = (REPO / "deploy" / name).read_text()
    assert set(re.findall(r"clothes-retrieval:(\S+)", text)) == {jobs.__version__}
    assert f"clothes-retrieval:{jobs.__version__} ." in DOCKERFILE.read_text()


@pytest.mark.slow
def test_its_steps_give_the_command(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Where there is no Docker: an empty folder is the image's root, the system's packages are only asked for.

    /opt and /src are folders in it, and the environment is the Dockerfile's alone, but for the package index and the
    cache of packages.
    """

    def inside(text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt/clothes|src)\b", rf"{tmp_path}/\1", text)

    system, *steps = [step for step in instructions() if step[0] in ("RUN", "COPY", "ENV")]
    apt_get = re.search(r"apt-get install .*?(?=&&)", system[1])
    assert apt_get is not None
    if os.geteuid() == 0 and shutil.which("apt-get"):
        asked = shlex.split(apt_get[0].replace("--yes", "--simulate"))
        assert subprocess.run(asked, capture_output=True, text=True, timeout=120).returncode == 0
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
    environment |= {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}
    environment |= {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv")}
    (tmp_path / "src").mkdir()
    begun = time.perf_counter()
    for instruction, arguments in steps:
        if instruction == "ENV":
            told = dict(word.split("=", 1) for word in shlex.split(inside(arguments)))
            environment |= {name: value.replace("$PATH", environment["PATH"]) for name, value in told.items()}
            del environment["UV_NO_CACHE"]
        elif instruction == "COPY":
            *sources, target = inside(arguments).split()
            for source in sources:
                if (REPO / source).is_dir():
                    shutil.copytree(REPO / source, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(REPO / source, target)
        else:
            command = inside(arguments).replace("python3 -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(["sh", "-c", command], env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    assert done.stdout == f"clothes {jobs.__version__}\n"
    record_property("steps of the Dockerfile", f"{time.perf_counter() - begun:.0f} s")
    shipped = {path.name for path in (REPO / "weights" / "tiny").glob("*.safetensors")}
    assert {path.name for path in (tmp_path / "opt").rglob("weights/tiny/*.safetensors")} == shipped
