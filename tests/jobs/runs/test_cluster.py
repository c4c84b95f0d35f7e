"""Which actors go where on a cluster of unlike nodes: three real nodes here, with declared cores and GPUs."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import cluster as ray_cluster
from jobs.runs.pool import Pool, Share
from jobs.runs.retries import Job
from jobs.runs.settings import Settings
from store.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Placed:
    """A worker that says where it is."""

    def load(self, device: str) -> dict[str, Any]:
        import ray

        return {"id": ray.get_runtime_context().get_node_id(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> None: ...

    def probe(self, job: Job, row: int) -> None: ...


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[str]]:
    """Node ids: a head of one core, a node of two cores and two GPUs, one of one core and one GPU."""
    import own_ray  # here, as workers import this file and have no such path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with own_ray.Nodes() as nodes:
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield [nodes.head, *(nodes.add(n, n) for n in (2, 1))]
            ray_cluster.leave_ray()


@pytest.mark.parametrize("settings, n_jobs, want", [
    ({}, 100, Share(2 + 1, "cuda", 1.0, 1)),
    ({}, 2, Share(2, "cuda", 1.0, 1)),                                          # never more than shards
    ({"gpus_per_actor": 0.5}, 100, Share(2 + 1, "cuda", 0.5, 1)),               # GPUs for six, cores for three
    ({"gpus_per_actor": 2.0}, 100, Share(1, "cuda", 2.0, 1)),                   # two GPUs of one node; one left over
    ({"gpus_per_actor": 3.0}, 100, Share(1 + 2 + 1, "cpu", 0.0, 1)),            # no node has three: cores
    ({"threads_per_actor": 2}, 100, Share(2 + 1, "cuda", 1.0, 1)),              # a core a GPU is all there is
    ({"device": "cpu"}, 100, Share(1 + 2 + 1, "cpu", 0.0, 1)),
    ({"device": "cpu", "threads_per_actor": 2}, 100, Share(1, "cpu", 0.0, 2)),  # one node has two cores
    ({"device": "cuda", "actors": 5}, 100, Share(5, "cuda", 1.0, 1)),           # two more nodes may come
])  # fmt: skip
def test_actors_are_counted_node_by_node(cluster: list[str], settings: dict, n_jobs: int, want: Share) -> None:
    ray_cluster.join_ray()
    assert ray_cluster.share_out(Settings(**settings), None, n_jobs) == want


def test_joining_keeps_the_handler_of_sigterm(cluster: list[str]) -> None:
    ray_cluster.leave_ray()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ray_cluster.join_ray()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("show_workers", [False, True])
def test_joining_keeps_the_root_logger(
    cluster: list[str], show_workers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ray_cluster.leave_ray()
    caplog.set_level(logging.WARNING)
    before = logging.root.handlers[:]
    ray_cluster.join_ray(show_workers=show_workers)
    assert (logging.root.level, logging.root.handlers) == (logging.WARNING, before)


def test_gpus_of_several_nodes_are_not_one_actors(cluster: list[str]) -> None:
    ray_cluster.join_ray()
    with pytest.raises(UserError, match="asks for 3 GPU an actor and the cluster has 3, 2 on one node at most; use"):
        ray_cluster.share_out(Settings(device="cuda", gpus_per_actor=3.0), None, 100)


def test_each_gpu_of_each_node_has_one_actor(cluster: list[str]) -> None:
    import ray

    ray_cluster.join_ray()
    with Pool(Placed(), ray_cluster.share_out(Settings(), None, 100), 60.0) as actors:
        loaded = ray.get([slot.actor.load.remote() for slot in actors.slots], timeout=240)
    accounts = [account for account, _ in loaded]
    _, two, one = cluster
    assert sorted((account["id"], account["gpus"]) for account in accounts) == sorted(
        [(two, "0"), (two, "1"), (one, "0")]
    )


@pytest.mark.parametrize("models, said", [
    ("all", ["detect: 5 shards on 3 actors, 1 GPU each", "embed: 5 shards on 3 actors, 1 GPU each"]),
    ("1", ["detect: 5 shards on 3 actors, 1 GPU each"] * 2 + ["embed: 5 shards on 3 actors, 1 GPU each"] * 2),
])  # fmt: skip
def test_models_share_an_actor_or_have_their_own(
    cluster: list[str], small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture, full: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch, models: str, said: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the stand-ins, for the workers
    line = ["--set", "device=cuda", "--set", f"models_per_actor={models}", "--set", "max_failed_share=1"]
    assert full(small_set, tmp_path / "run", *line, "--set", "boxes=[detected]") == 0
    assert [row for row in capsys.readouterr().out.splitlines() if " actors, " in row] == said
