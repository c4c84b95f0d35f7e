"""The child process of a small run: what it answers, how it is lost, and that it never outlives its driver."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401 - psutil comes with it
import stand_ins
from agreement import contract
from odd_worker import Odd

from jobs.runs import cluster, gpu, one_process
from jobs.runs import shards as engine
from jobs.runs.events import RunLog
from jobs.runs.marks import Outcome
from jobs.runs.one_process import OneProcess, ProcessLost
from jobs.runs.retries import Job, Trial
from jobs.runs.settings import Settings
from store.errors import UserError
from store.objects import open_store

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def process() -> Iterator[OneProcess]:
    started = OneProcess(1)
    yield started
    started.end()


def how(deadline_s: float = 300.0, told: list[float] | None = None) -> dict[str, Any]:
    """What every call takes; the default deadline guards against hanging."""
    photos_done: Callable[[float], None] = (lambda n: None) if told is None else told.append
    return {"deadline_s": deadline_s, "tick": lambda: None, "photos_done": photos_done}


def ended(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_process_serves_one_worker_after_another(process: OneProcess, tmp_path: Path) -> None:
    told: list[float] = []
    pids = set()
    for _ in range(2):
        account, facts = process.load(Odd(tmp_path), **how())
        assert account["device"] == "cpu" and facts["rss_mb"] > 10
        answer, _ = process.run(Job("shard-0", (0,)), **how(told=told))
        pids |= {account["pid"], answer["all"].rows}
    assert len(pids) == 1 and pids != {os.getpid()} and told == [1, 1]


def test_what_a_worker_raises_is_no_death(process: OneProcess, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the weights do not fit"):
        process.load(Odd(tmp_path, "misfits"), **how())
    pid = process.load(Odd(tmp_path), **how())[0]["pid"]
    with pytest.raises(ValueError, match="the weights do not fit"):
        process.run(Job("shard-0", (0,), "misfits"), **how())
    with pytest.raises(RuntimeError, match="Unpicklable: odd"):  # as text
        process.run(Job("shard-0", (0,), "raises"), **how())
    assert process.run(Job("shard-0", (0,)), **how())[0]["all"].rows == pid


@pytest.mark.parametrize("trouble, deadline_s, lost, told", [
    ("dies", 300.0, "died", "ended with -9: last words"),
    ("hangs", 0.5, "hung", "no answer for 0.5 s"),
    ("stops", 0.5, "hung", "no answer for 0.5 s"),
])  # fmt: skip
def test_a_lost_process_is_told_and_the_next_call_starts_another(
    process: OneProcess, tmp_path: Path, trouble: str, deadline_s: float, lost: str, told: str
) -> None:
    pid = process.load(Odd(tmp_path), **how())[0]["pid"]
    with pytest.raises(ProcessLost, match=told) as error:
        process.run(Job("shard-0", (0,), trouble), **how(deadline_s))
    assert error.value.how == lost and ended(pid)
    assert process.load(Odd(tmp_path), **how())[0]["pid"] != pid


def test_it_ends_although_a_signal_left_the_lock_of_its_end_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As KeyboardInterrupt does between the two lines in which Popen.poll takes the lock and sees to its release."""
    monkeypatch.setattr(one_process, "REAP_S", 0.1)
    process = OneProcess(1)
    pid = process.load(Odd(Path(".")), **how())[0]["pid"]
    assert process.process is not None
    child: Any = process.process
    child._waitpid_lock.acquire()
    process.end()
    assert process.process is None
    child._waitpid_lock.release()
    assert child.wait(timeout=60) == -signal.SIGKILL and ended(pid)


# ---------------------------------------------------------------------------------------------------------------------
# The driver ends.

DRIVER = """
from pathlib import Path
from jobs import cli
from jobs.runs import one_process
from jobs.runs.retries import Job
from odd_worker import Odd

def main(argv):
    process = one_process.kept(1)
    how = {"deadline_s": 300.0, "tick": lambda: None, "photos_done": lambda n: None}
    print(process.load(Odd(Path(".")), **how)[0]["pid"], flush=True)
    process.run(Job("shard-0", (0,), "hangs"), **how)

cli.run(main)
"""


@pytest.mark.parametrize("number, status", [
    (signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL),
])  # fmt: skip
def test_the_process_ends_with_its_driver_even_in_the_middle_of_a_shard(number: int, status: int) -> None:
    paths = os.pathsep.join(str(path) for path in (REPO, REPO / "tests" / "jobs"))
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        child = int(driver.stdout.readline())
        driver.send_signal(number)
        try:
            assert driver.wait(timeout=120) == status
        finally:
            driver.kill()  # one that hangs would be waited for
        end = time.monotonic() + 120  # a guard against hanging
        while not ended(child):
            assert time.monotonic() < end
            time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------------
# A stage.


@dataclass
class Run:
    """What a stage asks of a run."""

    log: RunLog
    settings: Settings = field(default_factory=lambda: Settings(device="cpu"))
    versions: dict[str, Any] = field(default_factory=dict)
    marked: list[str] = field(default_factory=list)

    def finish(self, unit: str, outcome: Outcome) -> None:
        self.marked.append(unit)

    def record(self) -> None: ...


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Do shards with these works on actors: returns the run, and what was left to Ray: shards and what their trials
    know."""
    left: list[tuple[list[str], dict[str, Trial]]] = []
    pool = lambda run, shards, worker, share_out, begun: left.append(([job.name for job in shards.jobs], begun))  # noqa: E731
    monkeypatch.setattr(engine, "_run_pool", pool)
    monkeypatch.setattr(cluster, "start_ray", lambda settings: None)
    monkeypatch.setattr(cluster, "would_join", lambda: False)
    (tmp_path / "worker").mkdir()

    def do(*works: str, loading: str = "", **settings: Any) -> Any:
        jobs = [Job(f"shard-{number}", (0, 1), work) for number, work in enumerate(works)]
        run: Any = Run(RunLog(open_store(tmp_path)), Settings(**{"device": "cpu"} | settings))
        units: Any = {job.name: {"all": job.name} for job in jobs}
        shards = engine.Shards("detect", jobs, len(jobs), units)
        engine.run_on_actors(run, shards, Odd(tmp_path / "worker", loading), None)
        return run, left

    yield do
    one_process.end()


def test_a_small_stage_needs_no_ray(stage: Callable[..., Any]) -> None:
    run, left = stage("", "")
    assert run.marked == ["shard-0", "shard-1"] and not left and len(run.versions) == 1


def test_what_is_left_when_the_process_dies_is_the_pools(
    stage: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing finished is lost or done twice; the shard it died on has one death on its account."""
    run, left = stage("", "dies", "")
    assert run.marked == ["shard-0"]
    ((shards, begun),) = left
    assert shards == ["shard-1", "shard-2"]
    assert {name: (trial.deaths, trial.suspects) for name, trial in begun.items()} == {"shard-1": (1, [])}
    assert "the process died on shard-1; going on with Ray" in capsys.readouterr().out


def test_a_process_that_dies_while_it_loads_costs_no_shard_a_death(stage: Callable[..., Any]) -> None:
    run, left = stage("", "", loading="dies")
    assert run.marked == [] and left == [(["shard-0", "shard-1"], {})]


def test_storage_that_fails_is_tried_again(stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(engine.time, "sleep", waited.append)
    run, left = stage("storage")
    assert run.marked == ["shard-0"] and not left and waited == [2.0, 4.0]


@pytest.mark.parametrize("n_photos, changes, gpu_here, cluster_here, fits", [
    (engine.FEW_PHOTOS, {}, False, False, True),
    (engine.FEW_PHOTOS + 1, {}, False, False, False),
    (2, {"actors": 1}, False, False, True),
    (2, {"actors": 2}, False, False, False),
    (2, {"actors": 2, "detect": {"actors": 1}}, False, False, True),  # the stage's own number counts
    (2, {"device": "cuda"}, False, False, False),
    (2, {"device": "auto"}, False, False, True),
    (2, {"device": "auto"}, True, False, False),
    (2, {"device": "cpu"}, True, False, True),
    (2, {}, False, True, False),
])  # fmt: skip
def test_which_stages_fit(
    monkeypatch: pytest.MonkeyPatch, n_photos: int, changes: dict, gpu_here: bool, cluster_here: bool, fits: bool
) -> None:
    monkeypatch.setattr(gpu, "may_be_here", lambda: gpu_here)
    monkeypatch.setattr(cluster, "would_join", lambda: cluster_here)
    own = changes.pop("detect", {}).get("actors")
    run: Any = Run(None, Settings(**{"device": "cpu"} | changes))  # type: ignore[arg-type]
    jobs = [Job("shard-0", (0,)), Job("shard-1", tuple(range(n_photos - 1)))]
    assert engine._fit_one_process(run, engine.Shards("detect", jobs, 2, {}), own) is fits


def test_one_shard_fits_however_large_since_a_pool_would_have_one_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "would_join", lambda: False)
    run: Any = Run(None)  # type: ignore[arg-type]
    job = Job("shard-0", tuple(range(10 * engine.FEW_PHOTOS)))
    assert engine._fit_one_process(run, engine.Shards("detect", [job], 1, {}), None)


def test_a_run_in_one_process_leaves_the_bytes_of_any_other(
    small_set: Path, tmp_path: Path, full: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "would_join", lambda: False)
    monkeypatch.setattr(cluster, "start_ray", lambda settings: pytest.fail("started Ray"))
    assert full(small_set, tmp_path / "child", "--set", "max_failed_share=1") == 0
    monkeypatch.setattr(engine, "run_on_actors", lambda run, shards, *more: stand_ins.here([], run, shards, *more))
    assert full(small_set, tmp_path / "here", "--set", "max_failed_share=1") == 0
    assert contract(tmp_path / "child") == contract(tmp_path / "here")
    assert one_process._kept is None
