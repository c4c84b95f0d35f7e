"""A `ray start` of a test's own: ports and a folder nobody else has, and an end that leaves every other Ray of the machine alone."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import ray  # noqa: F401 - psutil comes with it

BIN = Path(sys.executable).parent  # `ray` and `python` of this environment
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
APART = ("--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1")  # several nodes on one machine


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, with these variables, no cluster's address and our commands first on the path."""
    ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return ours | QUIET | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | dict(more)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def head(*options: str, env: Mapping[str, str], port: int | None = None) -> Iterator[str]:
    """A head with these options of `ray start`; yields HOST:PORT and ends it with every node that joined."""
    import psutil

    own = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
    address = f"127.0.0.1:{port or free_port()}"
    start("--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={own}", *options, env=env)
    try:
        yield address
    finally:
        for process in psutil.process_iter(["cmdline"]):  # `ray stop` would end every Ray of the machine
            words = " ".join(process.info["cmdline"] or ())
            if f"{own}/" in words or address in words:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(own, ignore_errors=True)


def start(*options: str, env: Mapping[str, str], before: tuple[str, ...] = ()) -> None:
    """`ray start` with these options, carried out by the command `before` where there is one."""
    line = [*before, str(BIN / "ray"), "start", *APART, f"--dashboard-agent-listen-port={free_port()}", *options]
    done = subprocess.run(line, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
