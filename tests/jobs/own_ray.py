"""A `ray start` of a test's own, or nodes to kill.

Their ports and their folder are nobody else's, and their end leaves every other Ray alone.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ray  # psutil comes with it

from jobs.runs.cluster import START_ATTEMPTS

BIN = Path(sys.executable).parent  # `ray` and `python` of this environment
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
APART = ("--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1")  # several nodes on one machine


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, with these variables, no cluster's address and our commands first on the path."""
    ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return ours | QUIET | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | dict(more)


def init(**options: Any) -> None:
    """A Ray in this process. Ray gives a busy machine 30 s to start its processes, so it is tried several times."""
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init("local", include_dashboard=False, object_store_memory=100_000_000, **options)
            return
        except Exception:  # Ray raises a bare one
            ray.shutdown()
            if not attempts_left:
                raise


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


# ------------------------------------------------------------------------------------------------ nodes that are killed


class Nodes:
    """A head of one core and the nodes added to it. A context manager; `end` is the same.

    They are started by a process of their own: Ray silently ends a process whose head does not answer it in time, and
    what a test has of a dead cluster is better not left for this process to collect.
    """

    def __init__(self) -> None:
        self._keeper = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pid = self._keeper.submit(os.getpid).result()
        try:
            self.address, self.head = self._keeper.submit(_begin).result()
        except BaseException:
            self.end()
            raise
        self.others: list[str] = []

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, n_cpus: int = 1, n_gpus: int = 0) -> str:
        """One more node; its id."""
        self.others.append(self._keeper.submit(_add, n_cpus, n_gpus).result())
        return self.others[-1]

    def kill(self, node: str, *, wait: bool = True) -> None:
        """Kill a node beside the head; wait until Ray knows."""
        self.others.remove(node)
        self._keeper.submit(_kill, node, wait).result()

    def workers(self) -> list[int]:
        """Process numbers of the actors."""
        import psutil

        found = []
        for process in psutil.Process(self._pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process.pid] if (process.cmdline() or [""])[0].startswith("ray::Host") else []
        return sorted(found)

    def end(self) -> None:
        """Kill all of them at once, and who started them."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            keeper = psutil.Process(self._pid)
            keeper.suspend()  # it starts no more
            for process in [*keeper.children(recursive=True), keeper]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._keeper.shutdown()


_cluster: Any = None  # in the process that started the nodes


def _begin() -> tuple[str, str]:
    global _cluster
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    _cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    return _cluster.address, _cluster.head_node.node_id


def _add(n_cpus: int, n_gpus: int) -> str:
    return _patiently(lambda: _cluster.add_node(num_cpus=n_cpus, num_gpus=n_gpus)).node_id


def _kill(node_id: str, wait: bool) -> None:
    node = next(node for node in _cluster.list_all_nodes() if node.node_id == node_id)
    if wait:
        _cluster.remove_node(node, allow_graceful=False)
    else:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def _patiently(begin: Callable[[], Any]) -> Any:
    """Start a node; a busy machine does not always get there in the half minute Ray gives it."""
    for attempts_left in (2, 1, 0):
        try:
            return begin()
        except Exception:
            if not attempts_left:
                raise
    raise AssertionError("unreachable")
