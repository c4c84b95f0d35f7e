"""What an autoscaler could still start, from its configuration and the nodes that are there."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.runs import autoscaler

HEAD, GPU, CPU = {"CPU": 8, "GPU": 0}, {"CPU": 8, "GPU": 1}, {"CPU": 32}
TYPES = {
    "head": {"resources": HEAD, "max_workers": 0},
    "gpu": {"resources": GPU, "max_workers": 3},
    "cpu": {"resources": CPU},
}
CONFIG: dict[str, Any] = {"max_workers": 4, "head_node_type": "head", "available_node_types": TYPES}


@pytest.mark.parametrize("alive, want", [
    ([HEAD], [GPU, GPU, GPU, CPU]),                    # four in all, those with a GPU first
    ([HEAD, GPU | {"memory": 1e9}], [GPU, GPU, CPU]),  # one of the four is there, and it is one of the three
    ([HEAD, GPU, GPU, GPU], [CPU]),
    ([HEAD, CPU, CPU, CPU, CPU], []),                  # all four are there, and none has a GPU
    ([HEAD] + [GPU] * 9, []),                          # nodes may also have joined by hand
])  # fmt: skip
def test_a_type_has_so_many_nodes_left_and_the_cluster_too(alive: list[dict], want: list[dict]) -> None:
    assert autoscaler.nodes_left(CONFIG, alive) == want


def test_a_head_is_not_started_twice() -> None:
    types = {"head": {"resources": GPU}, "other": {"resources": GPU}}
    assert autoscaler.nodes_left(CONFIG | {"available_node_types": types}, [GPU]) == [GPU] * 3


def test_without_an_autoscaler_there_is_nothing_to_start() -> None:
    assert autoscaler.nodes_left({}, [HEAD]) == []


def test_our_cluster_file_starts_eight_nodes_of_a_gpu() -> None:
    config = yaml.safe_load((Path(__file__).resolve().parents[3] / "cluster.yaml").read_text())
    assert autoscaler.nodes_left(config, [HEAD]) == [GPU] * 8


@pytest.mark.parametrize("words, found", [
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379", "--autoscaling-config={file}"], True),
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379"], False),  # a cluster of a fixed size
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.2:6379", "--autoscaling-config={file}"], False),
    (["vi", "--autoscaling-config={file}", "10.0.0.1:6379"], False),
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379", "--autoscaling-config={file}-gone"], False),
])  # fmt: skip
def test_the_monitor_of_this_cluster_names_the_file(
    words: list[str], found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    lines = [[sys.executable], [word.format(file=file) for word in words]]
    monkeypatch.setattr(autoscaler, "_command_lines", lambda: iter(lines))
    assert autoscaler._config("10.0.0.1:6379") == (CONFIG if found else {})
