"""What nodes the autoscaler of a cluster could still start, from its configuration.

Ray tells a driver which nodes there are, but not which there may be. After `ray up` the autoscaler is a process of the
head, started with a file that lies there; a job of `ray submit` or `ray job submit` runs on the same machine. KubeRay's
has a container of its own and reads the RayCluster from Kubernetes, which the head's service account may do too. A
driver on another machine knows nothing.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.runs.progress import say

MONITOR, FLAG = "monitor.py", "--autoscaling-config="  # Ray's process, and how it is told the file
KUBERAY_CLUSTER = "RAY_CLUSTER_NAME"  # in the environment of every container of KubeRay's
PAUSES_S = (1.0, 3.0)  # between attempts to read the RayCluster
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # Kubernetes' place in every container

Resources = Mapping[str, float]  # of a node: CPU, GPU, …


def startable(alive: Sequence[Resources]) -> list[Resources]:
    """The resources of each node that the autoscaler could start beside those alive; [] where that is unknown.

    Needs a Ray that is joined. `alive` counts the head.
    """
    import ray

    if cluster := os.environ.get(KUBERAY_CLUSTER):
        return nodes_left(_kuberay_config(cluster), alive)
    return nodes_left(_config(ray.get_runtime_context().gcs_address), alive)


def nodes_left(config: Mapping[str, Any], alive: Sequence[Resources]) -> list[Resources]:
    """`startable` of an autoscaler's configuration. A node alive is of the type whose CPU and GPU it has."""
    most = int(config.get("max_workers", 2))  # Ray's default
    types: Mapping[str, Mapping[str, Any]] = config.get("available_node_types", {})
    left: list[Resources] = []
    for name, kind in types.items():
        resources: Resources = kind.get("resources") or {}
        of_kind = int(kind.get("max_workers", 0 if name == config.get("head_node_type") else most))
        there = sum(_shape(node) == _shape(resources) for node in alive)
        left += [resources] * max(0, of_kind - there)
    left.sort(key=lambda node: -node.get("GPU", 0))  # only so many of all types may run: those with GPUs are wanted
    return left[: max(0, most - (len(alive) - 1))]


def _shape(resources: Resources) -> tuple[float, float]:
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def _config(gcs_address: str) -> dict[str, Any]:
    """The configuration of this cluster's autoscaler; {} where it has none or runs on another machine."""
    for words in _command_lines():
        if any(word.endswith(MONITOR) for word in words) and any(gcs_address in word for word in words):
            for word in words:
                if word.startswith(FLAG):
                    with contextlib.suppress(OSError, yaml.YAMLError):
                        content = yaml.safe_load(Path(word.removeprefix(FLAG)).expanduser().read_text())
                        return content if isinstance(content, dict) else {}
    return {}


@functools.cache  # asked once, as every stage wants it, and again whenever a node joins
def _kuberay_config(cluster: str) -> dict[str, Any]:
    """As `_config`, of the RayCluster of this name; says why where it cannot be read."""
    try:
        found = _ray_cluster(cluster)
        if not found["spec"].get("enableInTreeAutoscaling"):
            return {}
        from ray.autoscaler._private.kuberay import autoscaling_config  # heavy

        config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(found)
        return config
    except Exception as error:  # Ray's functions for its own use promise nothing, and this only counts what may come
        say(
            f"autoscaler: RayCluster {cluster} cannot be read ({type(error).__name__}: {error}), so nodes that are not "
            "there yet do not count; --set device=cuda --set actors=N asks for them all the same"
        )
        return {}


def _ray_cluster(name: str) -> dict[str, Any]:
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient  # heavy

    namespace = os.environ.get("RAY_CLUSTER_NAMESPACE") or NAMESPACE.read_text().strip()
    for pause_s in (*PAUSES_S, None):
        try:
            found: dict[str, Any] = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
            return found
        except OSError:  # of requests' errors it is the root
            if pause_s is None:
                raise
            time.sleep(pause_s)
    raise AssertionError  # the last attempt returns or raises


def _command_lines() -> Iterator[list[str]]:
    """Of the processes of this machine."""
    import psutil  # comes with Ray

    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []
