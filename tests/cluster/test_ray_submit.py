"""`ray up`, `ray submit` and `ray down` for real, against an sshd on loopback.

The repository is copied and installed there, and the answer must be the one that a local run gives. The head's home is
a folder of the test's, so nothing of the user's is written. Needs sshd, ssh and rsync.

`ray up` and `ray down` end every Ray they see. Under root, sshd therefore gets processes and a /tmp/ray of its own;
elsewhere `make test-cluster` asks for the test by name.
"""

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs import full_eval, ingest

REPO = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
INSTALLERS = ("UV_", "PIP_", "SSL_", "HTTP_", "HTTPS_", "NO_PROXY", "REQUESTS_", "CURL_")  # variables of theirs
SAME = ("fused", "items", "embeddings", "rankings")  # folders whose bytes must agree; see README


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "sh", "-c")
IN_ITS_FOLDER = 'mount --bind "$0" /tmp/ray && exec "$@"'


@pytest.fixture(scope="module")
def apart() -> bool:
    """Whether sshd gets a process list of its own; the test is skipped where something is missing."""
    missing = [name for name in ("ssh", "ssh-keygen", "rsync") if not shutil.which(name)] + ["sshd"] * (not SSHD)
    if missing:
        how = "apt-get install openssh-server openssh-client rsync"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {', '.join(missing)}: {how}")
    alone = os.geteuid() == 0 and not subprocess.run([*APART, "true"], capture_output=True).returncode
    if not alone and not os.environ.get("CI") and not os.environ.get("MAY_END_EVERY_RAY"):
        pytest.skip(
            "would end every Ray of this user; `make test-cluster` does it all the same, and root keeps them apart"
        )
    return alone


@pytest.fixture(scope="module")
def sshd(apart, tmp_path_factory) -> Iterator[tuple[int, Path, Path]]:
    """Port, private key, and the home a session has."""
    folder = tmp_path_factory.mktemp("sshd")
    home = folder / "home"
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    uv = shutil.which("uv") or str(REPO / ".venv" / "bin" / "uv")
    cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    path = f"{Path(uv).parent}:{os.environ['PATH']}"
    # how packages are reached from here: a session of sshd starts without it
    passed = {name: value for name, value in os.environ.items() if name.upper().startswith(INSTALLERS)}
    passed |= {"HOME": str(home), "UV_CACHE_DIR": cache, "CI": os.environ.get("CI", "")}
    settings = " ".join(f'"{name}={value}"' for name, value in passed.items())
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nUsePAM no\n"
        f"SetEnv {settings}\n"
    )
    (home / ".bash_profile").write_text(f"export PATH={shlex.quote(path)}\n")  # sshd gives a bare one
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to be confined
    assert SSHD
    line = [SSHD, "-D", "-e", "-f", str(folder / "config")]
    if apart:
        for place in (folder / "ray", Path("/tmp/ray")):
            place.mkdir(exist_ok=True)
        line = [*APART, IN_ITS_FOLDER, str(folder / "ray"), *line]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as server:
        try:
            for _ in range(50):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, server.stderr.read().decode()
                time.sleep(0.1)
            yield port, folder / "user", home
        finally:
            (
                server.kill if apart else server.terminate
            )()  # unshare is deaf to the latter; with it go all its processes


def ray(*words: str, cwd: Path, timeout: int = 900) -> str:
    """The `ray` command beside this Python; its output, which must not be a failure's."""
    line = [str(Path(sys.executable).parent / "ray"), *words]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        line, cwd=cwd, env=environment, timeout=timeout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout[-6000:]}"
    return done.stdout


def test_a_submitted_evaluation_is_the_local_one(sshd, tmp_path):
    port, key, home = sshd
    config = yaml.safe_load((REPO / "cluster.local.yaml").read_text())
    config["cluster_name"] = f"test-{os.getpid()}"
    config["auth"] = {
        "ssh_user": getpass.getuser(), "ssh_private_key": str(key),
        "ssh_proxy_command": f"{sys.executable} {Path(__file__).with_name('to_port.py')} {port}",
    }  # fmt: skip
    config["file_mounts"] = {"~/clothes-retrieval": str(REPO)}
    head_port = free_port()
    config["head_start_ray_commands"] = [
        line.replace("--port=6379", f"--port={head_port} --node-ip-address=127.0.0.1")
        for line in config["head_start_ray_commands"]
    ]
    file = tmp_path / "cluster.local.yaml"
    file.write_text(yaml.safe_dump(config))

    images, there, here = tmp_path / "set", tmp_path / "there", tmp_path / "here"
    assert ingest.main(["drawn", str(images), "--users", "4", "--shops", "8", "--seed", "3"]) == 0
    line = [
        "--imageset",
        str(images),
        "--profile",
        "tiny",
        "--set",
        "detectors=[atss-tiny]",
        "--set",
        "embedders=[lite0-sg]",
    ]
    try:
        ray("up", "-y", "--no-config-cache", str(file), cwd=REPO)
        said = ray("submit", str(file), "jobs/full_eval.py", "--", *line, "--output", str(there), cwd=REPO)
        again = ray("submit", str(file), "jobs/full_eval.py", "--", *line, "--output", str(there), cwd=REPO)
    finally:
        ray("down", "-y", str(file), cwd=REPO)
    assert "index.html" in said and "to do:" in said and "to do:" not in again
    assert (home / "clothes-retrieval" / "jobs" / "full_eval.py").is_file()

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    script = [sys.executable, str(Path(full_eval.__file__)), *line, "--output", str(here)]
    subprocess.run(script, cwd=REPO, env=environment, check=True, timeout=600)
    compared = [path.relative_to(here) for folder in SAME for path in sorted((here / folder).rglob("*.parquet"))]
    assert compared
    for path in compared:
        assert (there / path).read_bytes() == (here / path).read_bytes(), path
