"""The Ray of a run: the one it joins or starts, whether its nodes are alike, and how GPUs and cores are shared out.

Ray is imported only where it is used: a run with nothing to do needs none.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.runs import autoscaler
from jobs.runs.pool import Share
from jobs.runs.settings import Settings
from jobs.runs.versions import our_code, refuse_other_versions, versions
from store.errors import UserError

START_ATTEMPTS = 3  # of a Ray of our own
ADDRESS = r"(?:ray://)?([^\s/:\[\]]+|\[[^\s/\[\]]+\]):([0-9]+)"  # host, port
ADDRESS_FILE = "ray_current_cluster"  # that `ray start` leaves in its folder
LONGEST_SOCKET = 107  # bytes that Linux allows in a Unix socket's path

started_here = False  # whether this process's Ray is its own, which no node ever joins


def start_ray(settings: Settings) -> None:
    """Join or start a Ray large enough for the settings' actors, on nodes that have what this process has.

    A UserError says that no cluster answers, or that a node has other packages or other code.
    """
    actors = (settings.actors, settings.detect.actors, settings.embed.actors)
    wanted = max((n for n in actors if isinstance(n, int)), default=1)
    join_ray(n_cpus=wanted * settings.threads_per_actor, output=settings.output)
    same_on_all_nodes()


def join_ray(n_cpus: int = 1, *, show_workers: bool = False, output: str = "") -> None:
    """Join the cluster RAY_ADDRESS names (or `ray start` left on this machine), or start one here; once per process.

    A Ray of our own says that it has `n_cpus` where the machine has fewer: with one thread each, workers share cores.
    With `show_workers`, what they print comes here. `output` goes into the job's metadata on a cluster.
    """
    global started_here
    if not os.environ.get("RAY_ADDRESS"):
        # unset, a private cluster may leave a token file that later ones ask for
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts Ray's helpers slowly
    import ray
    from ray.job_config import JobConfig

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": "error"}
    if show_workers:  # what they print; Ray Train's own helpers warn each second of a dashboard that we do without
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    address, silence = find_cluster()
    if address and not silence:
        try:
            with _process_kept():
                ray.init(job_config=JobConfig(metadata={"output": output} if output else {}), **quiet)
            started_here = False
            if output:
                _tell_submission(output)
            return
        except (ConnectionError, ValueError) as error:
            silence = str(error)
    if address and os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({silence}); is it up, and does it ask for a token "
            "(RAY_AUTH_MODE=token)?"
        )
    judge_folder(make=True)
    n_cpus = max(os.cpu_count() or 1, n_cpus)
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            with _process_kept():
                ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=200_000_000, **quiet)
            started_here = True
            return
        except Exception:  # Ray gives a busy machine 30 s to start its processes and then raises a bare Exception
            ray.shutdown()
            if not attempts_left:
                raise


def _tell_submission(output: str) -> None:
    """Add OUTPUT to the metadata of a submitted job, where the dashboard and `ray list jobs` show it.

    Ray keeps that record apart from the driver's own, which `ray.init` fills, and takes its metadata from `ray job
    submit` alone; it rewrites the record when the job ends. A job that was not submitted has none.
    """
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = told.get("metadata", {}).get("job_submission_id")
    if not submission:
        return
    import ray
    from ray.dashboard.modules.job.common import JobInfoStorageClient  # no public function adds to it

    joined: Any = ray._private.worker.global_worker

    async def add() -> None:
        records = JobInfoStorageClient(joined.gcs_client)
        if record := await records.get_info(submission):
            record.metadata = (record.metadata or {}) | {"output": output}
            await records.put_info(submission, record)

    asyncio.run(add())


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM and the root logger, both of which `ray.init` changes.

    Ray's own handler drains its node for half a minute, ends the cluster's processes and leaves the driver to wait for
    them. A `logging_config` is meant for workers here; Ray sets the driver's root logger by it too, for good, which
    hides the warnings of everything else in this process.
    """
    before, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    except SystemExit as end:  # from Ray's handler, as it starts
        raise KeyboardInterrupt from end
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def leave_ray() -> None:
    """Let go of the cluster, if this process ever joined one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def find_cluster() -> tuple[str, str]:
    """The cluster that a run would join, "" for none, and why it does not answer, "" where it does.

    It is RAY_ADDRESS's or the one that `ray start` left on this machine. A killed head leaves its address behind, and
    Ray itself would try it for minutes. A UserError says that RAY_ADDRESS is no address.
    """
    import ray

    named = os.environ.get("RAY_ADDRESS", "")
    address = ray._private.utils.read_ray_address() or named if named in ("", "auto") else named
    if address in ("", "auto", "local"):  # words of Ray's own
        return address.replace("local", ""), ""
    parts = re.fullmatch(ADDRESS, address)
    if not parts or int(parts[2]) > 65535:
        raise UserError(f"RAY_ADDRESS={address}: no address of a cluster; want HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=5).close()
    except (OSError, UnicodeError) as error:  # the latter: a host of a..b
        return address, str(error)
    return address, ""


def would_join() -> bool:
    """Whether `join_ray` would join a cluster or has done so. Ray is imported only where an address is to be judged."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return True
    named = bool(os.environ.get("RAY_ADDRESS"))
    # where Ray's own `get_ray_address_file` looks; a folder it would not look in costs a small run its short cut alone
    folders = (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", tempfile.gettempdir())
    if not named and not any(os.path.exists(f"{folder}/ray/{ADDRESS_FILE}") for folder in folders):
        return False
    address, silence = find_cluster()
    return bool(address) and (named or not silence)


def judge_folder(*, make: bool) -> None:
    """Raise UserError where a Ray of our own could not work in its folder, which RAY_TMPDIR or TMPDIR names."""
    import ray

    folder = ray._common.utils.get_default_ray_temp_dir()
    try:
        size = len(f"{folder}/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store".encode())
        if size > LONGEST_SOCKET:
            raise OSError(f"its sockets' paths would have {size} bytes, and {LONGEST_SOCKET} is the limit")
        place = next(part for part in (Path(folder), *Path(folder).parents) if part.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise OSError(f"{place} cannot be written")
        if make:  # a file system may refuse what the permissions allow
            os.makedirs(folder, exist_ok=True)
    except (OSError, UnicodeError) as error:
        advice = "name a short folder that can be written, such as RAY_TMPDIR=/tmp"
        raise UserError(f"Ray cannot work in {folder}, of RAY_TMPDIR or TMPDIR ({error}); {advice}") from error


def same_on_all_nodes() -> None:
    """Ask every other node for its versions, and refuse those that differ; a later worker is asked when it loads."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, ask = ray.get_runtime_context().get_node_id(), ray.remote(versions)
    asked = []  # a pair a node, as several nodes may share a machine's address
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = ask.options(num_cpus=0, scheduling_strategy=there, runtime_env=our_code()).remote()
            asked.append((node["NodeManagerAddress"], answer))
    for address, answer in asked:
        try:
            found: Any = ray.get(answer, timeout=120)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:  # it is gone or too busy: whoever comes in its place is asked as it loads
            continue
        refuse_other_versions(address, found)


def share_out(settings: Settings, actors: int | str | None, n_jobs: int, *, gpu: bool = True) -> Share:
    """How many actors a stage gets, at most one a shard, and what each owns.

    `actors` is the stage's own setting, None the run's; `gpu` is False for stages that have no use for one. Actors that
    the cluster has no room for are asked for all the same: `auto` counts the GPUs of nodes that its autoscaler could
    start, and where a number is given, nodes may join. A UserError says that a GPU is asked for and the cluster has
    none, nor may get one.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpu and settings.device != "cpu" and not started_here:
        nodes += [node for node in autoscaler.startable(nodes) if node.get("GPU")]
    actors = settings.actors if actors is None else actors
    wanted = math.inf if actors == "auto" else int(actors)
    threads = settings.threads_per_actor
    with_gpus = [(n, int(node.get("CPU", 0))) for node in nodes if (n := fitting(node, settings.gpus_per_actor))]
    may_come = settings.device == "cuda" and actors != "auto" and not started_here
    if gpu and settings.device == "cuda" and not with_gpus and not may_come:
        have = [node.get("GPU", 0) for node in nodes]
        apart = f", {max(have):g} on one node at most" if sum(have) >= settings.gpus_per_actor else ""
        raise UserError(
            f"device: cuda asks for {settings.gpus_per_actor:g} GPU an actor and the cluster has {sum(have):g}{apart}; "
            "use device: auto or cpu, or --set actors=N where nodes with a GPU will join"
        )
    if gpu and settings.device != "cpu" and (with_gpus or may_come):
        cpus = min([threads, *(max(1, int(n_cpus // min(n, wanted))) for n, n_cpus in with_gpus)])
        room = sum(min(n, n_cpus // cpus) for n, n_cpus in with_gpus)
        n = room if actors == "auto" else int(actors)
        return Share(max(1, min(n, n_jobs)), "cuda", settings.gpus_per_actor, cpus)
    n = sum(int(node.get("CPU", 0) // threads) for node in nodes) if actors == "auto" else int(actors)
    return Share(max(1, min(n, n_jobs)), "cpu", 0.0, threads)


def fitting(node: Mapping[str, float], gpus: float) -> int:
    """How many actors of so many GPUs each a node has the GPUs for; a share is of one GPU."""
    n_gpus = node.get("GPU", 0.0)
    return int(n_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(n_gpus // gpus)


def unused_gpus(share: Share) -> str:
    """A remark on GPUs of the cluster that no actor of this share will use; "" when there are none."""
    import ray

    have = ray.cluster_resources().get("GPU", 0.0)
    used = share.n * share.gpus
    return f"; {have - used:g} of {have:g} GPUs idle" if have - used >= 1 and share.device == "cuda" else ""
