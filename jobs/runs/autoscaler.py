"""What nodes the autoscaler of a cluster could still start, from its configuration on the head.

Ray tells a driver which nodes there are, but not which there may be. The autoscaler is a process of the head, started
with the file that `ray up` left there; a job of `ray submit` or `ray job submit` runs on the same machine. Elsewhere
(a driver on another machine, KubeRay, whose autoscaler has a container of its own) nothing is known.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

MONITOR, FLAG = "monitor.py", "--autoscaling-config="  # Ray's process, and how it is told the file

Resources = Mapping[str, float]  # of a node: CPU, GPU, …


def startable(alive: Sequence[Resources]) -> list[Resources]:
    """The resources of each node that the autoscaler could start beside those alive; [] where that is unknown.

    Needs a Ray that is joined. `alive` counts the head.
    """
    import ray

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


def _command_lines() -> Iterator[list[str]]:
    """Of the processes of this machine."""
    import psutil  # comes with Ray

    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []
