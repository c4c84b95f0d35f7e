"""Actors follow the cluster: a real autoscaler with fake nodes, a node that joins by hand, and other packages."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import cluster as ray_cluster
from jobs.runs import pool
from jobs.runs.pool import Pool
from jobs.runs.retries import Job
from jobs.runs.settings import Settings
from jobs.runs.versions import versions
from store.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Slow:
    """A worker that takes a second a shard and says which node it is on.

    With a folder it also waits until workers of two nodes have left a file there; a limit of two minutes guards against
    hanging.
    """

    folder: str = ""

    def load(self, device: str) -> dict[str, Any]:
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> str:
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        time.sleep(1.0)
        if self.folder:
            Path(self.folder, node).touch()
            end = time.monotonic() + 120
            while len(os.listdir(self.folder)) < 2 and time.monotonic() < end:
                time.sleep(0.1)
        return node

    def probe(self, job: Job, row: int) -> None: ...


def nodes_of(folder: Path, settings: Settings, n_jobs: int, tick: Any = lambda: None) -> list[str]:
    """The node each job was done on, in the order they finished; `folder` is where they wait for a second node."""

    def target_actors(n: int) -> int:
        return ray_cluster.share_out(settings, None, n).n

    share = ray_cluster.share_out(settings, None, n_jobs)
    jobs = [Job(f"shard-{i}", (0,)) for i in range(n_jobs)]
    folder.mkdir()
    with Pool(Slow(str(folder)), share, 240.0, target_actors, tick=tick) as actors:
        return [node for _, node in actors.run(jobs)]


@pytest.fixture
def left_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    assert not ray.is_initialized()
    yield
    ray.shutdown()


@pytest.fixture
def autoscaled(left_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head without a CPU whose autoscaler starts up to two nodes of a CPU and a make-believe GPU: processes here."""
    import own_ray  # here, as workers import this file and have no such path

    port = own_ray.free_port()
    nodes = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    nodes["gpu"] = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    fake = {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "gcs_address": f"127.0.0.1:{port}",
    }
    config: dict[str, Any] = {
        "cluster_name": "fake", "max_workers": 2, "provider": fake | {"disable_launch_config_check": True},
        "available_node_types": nodes, "head_node_type": "ray.head.default", "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0, "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
    }  # fmt: skip
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{name}_commands": [] for name in lists}
    config |= {"cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": []}
    (tmp_path / "cluster.json").write_text(json.dumps(config))
    env = own_ray.environment({"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"})
    options = ("--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={tmp_path / 'cluster.json'}")
    with own_ray.head(*options, env=env, port=port) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield
        import ray

        ray.shutdown()


def test_an_autoscaler_starts_gpu_nodes_for_waiting_actors_and_takes_them_back(
    autoscaled: None, tmp_path: Path
) -> None:
    import ray

    ray_cluster.join_ray()
    assert "GPU" not in ray.cluster_resources()
    assert ray_cluster.share_out(Settings(device="cpu", actors="auto"), None, 20).device == "cpu"
    for device in ("auto", "cuda"):  # none of the two nodes is there yet
        assert ray_cluster.share_out(Settings(device=device), None, 20) == ray_cluster.Share(2, "cuda", 1.0, 1)
    assert ray_cluster.share_out(Settings(), None, 1).n == 1
    assert len(set(nodes_of(tmp_path / "nodes", Settings(), 20))) == 2
    for _ in range(240):  # without actors the nodes are idle and go; two minutes are a guard against hanging
        if not ray.cluster_resources().get("GPU"):
            break
        time.sleep(0.5)
    assert not ray.cluster_resources().get("GPU")


@pytest.fixture
def cluster(left_alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import own_ray  # here, as workers import this file and have no such path

    with own_ray.Nodes() as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        ray_cluster.join_ray()
        yield nodes
        ray_cluster.leave_ray()


def test_a_node_that_joins_gets_an_actor(cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "RESIZE_EVERY_S", 1.0)
    joined: list[Any] = []

    def join() -> None:
        if not joined:
            joined.append(cluster.add())

    nodes = nodes_of(tmp_path / "nodes", Settings(device="cpu"), 16, join)
    assert len(nodes) == 16 and len(set(nodes)) == 2


def test_an_actor_that_no_node_has_room_for_is_said_in_time(cluster: Any) -> None:
    late = pytest.raises(UserError, match="no actor could start in 1 s: no node has 1 GPU and 1 CPU free")
    with Pool(Slow(), ray_cluster.Share(1, "cuda", 1.0, 1), 60.0, node_wait_s=1.0) as actors, late:
        list(actors.run([Job("shard-0", (0,))]))


def test_actors_without_work_go_while_others_finish(cluster: Any) -> None:
    cluster.add()
    with Pool(Slow(), ray_cluster.Share(2, "cpu", 0.0, 1), 60.0) as actors:
        left = [len(actors.slots) for _ in actors.run([Job(f"shard-{i}", (0,)) for i in range(3)])]
    assert left[-1] == 1


def test_a_node_with_other_packages_is_named(cluster: Any) -> None:
    ray_cluster.same_on_all_nodes()
    cluster.add()
    ray_cluster.same_on_all_nodes()
    here = versions()
    with pytest.raises(
        UserError, match=rf"node 10.0.0.7 has torch 1.0 \(here {here['torch']}\); install the same lock"
    ):
        ray_cluster.refuse_other_versions("10.0.0.7", here | {"torch": "1.0"})


def test_a_node_that_dies_while_it_is_asked_is_not_waited_for(cluster: Any) -> None:
    cluster.kill(cluster.add(), wait=False)  # Ray believes in it for some seconds yet
    ray_cluster.same_on_all_nodes()
