"""The Ray a run stands on: which one is joined or started, whether its nodes are alike, and how its GPUs and cores are shared out.

Ray is imported only where it is used: a run with nothing to do needs none.
"""

import math
import os
import socket
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs import ledger
from jobs.cli import UserError
from jobs.config import ROOT, Settings

START_ATTEMPTS = 3  # of a Ray of our own

started_here = False  # whether this process's Ray is its own, which no node ever joins


@dataclass(frozen=True)
class Share:
    """What one actor gets: `n` actors, the device they see, and what they ask Ray for."""

    n: int  # those that wait for a node to join included
    device: str  # "cuda" or "cpu"
    gpus: float
    cpus: int


def start_ray(settings: Settings) -> None:
    """Join or start a Ray large enough for the settings' actors, on nodes that have what this process has.

    Raises:
        UserError: no cluster answers, or a node has other packages or other code.
    """
    wanted = max(
        [n for n in (settings.actors, settings.detect.actors, settings.embed.actors) if isinstance(n, int)], default=1
    )
    join_ray(n_cpus=wanted * settings.threads_per_actor)
    same_on_all_nodes()


def join_ray(n_cpus: int = 1, *, show_workers: bool = False) -> None:
    """Join the cluster RAY_ADDRESS names (or `ray start` left on this machine), or start one here; once per process.

    Args:
        n_cpus: what a Ray of our own says it has, where the machine has fewer: with one thread each, workers share cores.
        show_workers: whether what workers print comes here.
    """
    global started_here
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(
            "RAY_AUTH_MODE", "disabled"
        )  # unset, a private cluster may leave a token file that later ones ask for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts Ray's helpers slowly
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": "error"}
    if show_workers:  # what they print; Ray Train's own helpers warn each second of a dashboard that we do without
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    address, silence = found()
    if address and not silence:
        try:
            ray.init(**quiet)
            started_here = False
            return
        except ConnectionError as error:
            silence = str(error)
    if os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({silence}); is it up, and does it ask for a token "
            "(RAY_AUTH_MODE=token)?"
        )
    n_cpus = max(os.cpu_count() or 1, n_cpus)
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=200_000_000, **quiet)
            started_here = True
            return
        except Exception:  # Ray gives a busy machine 30 s to start its processes and then raises a bare Exception
            ray.shutdown()
            if not attempts_left:
                raise


def leave_ray() -> None:
    """Let go of the cluster, if this process ever joined one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def found() -> tuple[str, str]:
    """The cluster a run would join, RAY_ADDRESS's or the one `ray start` left on this machine, "" for none; and why it is silent,
    "" where it answers. A killed head leaves its address behind, and Ray itself would ask it for minutes."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # none, or a word of Ray's own: auto
        return address, ""
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        return address, str(error)
    return address, ""


def same_on_all_nodes() -> None:
    """Ask every other node for its versions; a worker that joins later is asked when it loads (`Pool`).

    Raises:
        UserError: one differs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = [  # a pair a node, as several nodes may share a machine's address
        (
            address,
            ray.remote(ledger.versions)
            .options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), runtime_env=our_code()
            )
            .remote(),
        )
        for node, address in nodes.items()
        if node != here
    ]
    for address, answer in asked:
        try:
            there: Any = ray.get(answer, timeout=120)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:  # it is gone or too busy: whoever comes in its place is asked as it loads
            continue
        refuse_other_versions(address, there)


def refuse_other_versions(node: str, there: Mapping[str, Any]) -> None:
    """Raises:
    UserError: packages or our own code are not what this process has: results would depend on which node a shard met.
    """
    here = ledger.versions()
    other = [name for name in here if name != "machine" and name in there and there[name] != here[name]]
    if other:
        told = ", ".join(f"{name} {there[name]} (here {here[name]})" for name in other)
        raise UserError(f"node {node} has {told}; install the same lock and copy the same code on every node")


def share_out(settings: Settings, actors: int | str | None, n_jobs: int, *, gpu: bool = True) -> Share:
    """How many actors a stage gets and what each owns.

    Args:
        actors: the stage's own setting; None: the run's.
        n_jobs: never more actors than shards.
        gpu: False for stages that have no use for one.

    A number of actors that the cluster has no room for is asked for all the same: on a cluster that others started, nodes may join.

    Raises:
        UserError: a GPU is asked for and the cluster has none, nor may get one.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors = settings.actors if actors is None else actors
    wanted = math.inf if actors == "auto" else int(actors)
    threads = settings.threads_per_actor
    with_gpus = [(n, int(node.get("CPU", 0))) for node in nodes if (n := fitting(node, settings.gpus_per_actor))]
    may_come = settings.device == "cuda" and actors != "auto" and not started_here
    if gpu and settings.device == "cuda" and not with_gpus and not may_come:
        have = [node.get("GPU", 0) for node in nodes]
        apart = f", {max(have):g} on one node at most" if sum(have) >= settings.gpus_per_actor else ""
        raise UserError(
            f"device: cuda asks for {settings.gpus_per_actor:g} GPU an actor and the cluster has {sum(have):g}{apart}; use device: auto "
            "or cpu, or --set actors=N on a cluster whose autoscaler starts N of them"
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


def our_code(env: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """A runtime environment whose processes find our packages where this process has them, and these variables."""
    found = dict(env)
    if "working_dir" not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):  # a submitted job brings its own copy
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {"env_vars": found}
