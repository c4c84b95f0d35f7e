"""What follows a death, decided in plain Python; and the same with real actors, real kills and declared GPUs."""

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import cluster as ray_cluster
from jobs.runs import photos, pool
from jobs.runs import shards as engine
from jobs.runs.events import RunLog
from jobs.runs.marks import Outcome
from jobs.runs.pool import Pool, Share
from jobs.runs.progress import Progress
from jobs.runs.retries import Job, Trial
from jobs.runs.settings import Settings
from store.objects import open_store


def play(trial: Trial, kills: set[int]) -> list[str]:
    """Carry a trial to its end with a process that dies on the rows in `kills`; the story, a word per call."""
    story = []
    while True:
        method, arguments = trial.next_call()
        rows = {arguments[0]} if method == "probe" else set(trial.job.rows) - set(arguments[0])
        dies = bool(rows & kills)
        story.append(f"{method}{arguments[0] if method == 'probe' else ''}{'!' if dies else ''}")
        if dies:
            trial.died("died")
        elif trial.survived():
            return story


@pytest.mark.parametrize("rows, kills, story, guilty", [
    ((0, 1, 2), set(), ["run"], set()),                                                             # nothing happens
    ((0, 1, 2), {1}, ["run!", "run!", "probe0", "probe1!", "probe1!", "probe2", "run"], {1}),       # one kills
    ((4, 9), {4, 9}, ["run!", "run!", "probe4!", "probe4!", "probe9!", "probe9!", "run"], {4, 9}),  # all do
    ((0,), {0}, ["run!", "run!", "probe0!", "probe0!", "run"], {0}),                                # the last one kills
])  # fmt: skip
def test_only_the_image_that_kills_is_left_out(rows: tuple, kills: set, story: list, guilty: set) -> None:
    trial = Trial(Job("shard-00000", rows))
    assert play(trial, kills) == story
    assert set(trial.guilty) == guilty


def test_a_death_that_does_not_come_again_costs_no_image() -> None:
    trial = Trial(Job("shard-00000", (0, 1)))
    trial.died("died")
    assert trial.next_call() == ("run", ({}, False))
    assert trial.survived()


def test_a_shard_that_kills_though_no_image_does_ends_as_failures() -> None:
    trial = Trial(Job("shard-00000", (0, 1)))
    for _ in range(2):
        trial.died("died")
    for _ in range(2):
        assert trial.next_call()[0] == "probe" and not trial.survived()
    singles = []
    for _ in range(3):
        singles.append(trial.next_call()[1][1])
        trial.died("died")
    assert singles == [False, True, True]  # once more as a whole, then image by image
    assert set(trial.guilty) == {0, 1}


def test_pauses_grow_and_stop_growing() -> None:
    assert [Trial(Job("s", ()), deaths=n).pause_s() for n in (1, 2, 3, 20)] == [0.5, 1, 2, 30]


# ---------------------------------------------------------------------------------------------------------------------
# With Ray.


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two cores that believes it has four GPUs."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import own_ray  # here, as workers import this file and have no such path
    import ray

    own_ray.init(num_cpus=8, num_gpus=4, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass
class Odd:
    """A worker that dies on the rows of `kills`, hangs on those of `hangs`, raises on those of `raises`."""

    kills: tuple[int, ...] = ()
    hangs: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()

    def load(self, device: str) -> dict[str, Any]:
        return {
            "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "pid": os.getpid(),
        }

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[int, str]:
        for row in job.rows:
            if row not in skip:
                self.probe(job, row)
        return skip

    def probe(self, job: Job, row: int) -> None:
        if row in self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if row in self.hangs:
            time.sleep(600)
        if row in self.raises:
            raise ValueError(f"row {row} is odd")


@dataclass
class Frail(Odd):
    """A worker whose process ends the first `times` times it loads; the folder remembers."""

    folder: str = ""
    times: int = 0

    def load(self, device: str) -> dict[str, Any]:
        seen = len(os.listdir(self.folder))
        if seen < self.times:
            open(f"{self.folder}/{seen}", "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(device)


def run(worker: Odd, jobs: list[Job], n: int = 2, deadline_s: float = 60.0) -> dict[str, dict[int, str]]:
    with Pool(worker, Share(n, "cpu", 0.0, 1), deadline_s) as actors:
        return {job.name: answer for job, answer in actors.run(jobs)}


@pytest.mark.slow
def test_an_image_that_kills_its_process_fails_and_the_rest_is_done(cluster: None) -> None:
    jobs = [Job(f"shard-{i}", tuple(range(4 * i, 4 * i + 4))) for i in range(4)]
    answers = run(Odd(kills=(6,)), jobs)
    assert answers == {
        "shard-0": {},
        "shard-1": {6: "the process died on this image alone, twice"},
        "shard-2": {},
        "shard-3": {},
    }


@pytest.mark.slow
def test_an_image_that_hangs_is_ended_at_the_deadline_and_fails(cluster: None) -> None:
    answers = run(Odd(hangs=(1,)), [Job("shard-0", (0, 1, 2))], n=1, deadline_s=6.0)
    assert answers == {"shard-0": {1: "the process hung on this image alone, twice"}}


@pytest.mark.slow
@pytest.mark.parametrize("times, given_up", [(2, False), (99, True)])
def test_a_process_that_ends_while_it_loads(cluster: None, tmp_path: Path, times: int, given_up: bool) -> None:
    frail = Frail(folder=str(tmp_path), times=times)
    if given_up:
        with pytest.raises(RuntimeError, match="ended 5 times while it was loading"):
            run(frail, [Job("shard-0", (0,))], n=1)
        assert len(list(tmp_path.iterdir())) == 5
    else:
        assert run(frail, [Job("shard-0", (0,))], n=1) == {"shard-0": {}}


@dataclass
class Freezes(Odd):
    """A worker whose process stops, as on a machine that hangs, the first time it meets row 1; the folder remembers."""

    folder: str = ""

    def probe(self, job: Job, row: int) -> None:
        if row == 1 and not os.listdir(self.folder):
            open(f"{self.folder}/met", "x").close()
            os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_frozen_process_is_ended_at_the_deadline(cluster: None, tmp_path: Path) -> None:
    assert run(Freezes(folder=str(tmp_path)), [Job("shard-0", (0, 1))], n=1, deadline_s=6.0) == {"shard-0": {}}


@pytest.mark.slow
def test_every_event_of_a_pool_is_told(cluster: None) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    jobs = [Job("shard-0", (0, 1)), Job("shard-1", (2,))]
    with Pool(
        Odd(kills=(2,)), Share(1, "cpu", 0.0, 1), 60.0, report=lambda event, **facts: told.append((event, facts))
    ) as actors:
        answers = dict((job.name, answer) for job, answer in actors.run(jobs))
    assert [event for event, _ in told].count("shard") == 2 and told[0][0] == "loaded"
    deaths = [facts for event, facts in told if event == "died"]
    assert [(facts["shard"], facts["row"], facts["deaths"]) for facts in deaths] == [
        ("shard-1", None, 1), ("shard-1", None, 2), ("shard-1", 2, 2), ("shard-1", None, 2),
    ]  # fmt: skip
    for event, facts in told:
        if event == "shard":
            assert facts["answer"] == answers[facts["shard"]] and facts["rss_mb"] > 10 and facts["wall_s"] >= 0
            assert facts["actor"] == 0 and facts["pid"] and facts["waited_s"] >= 0


@pytest.mark.slow
def test_what_a_worker_raises_ends_the_run_and_is_no_death(cluster: None) -> None:
    with pytest.raises(ValueError, match="row 1 is odd"):
        run(Odd(raises=(1,)), [Job("shard-0", (0, 1, 2))], n=1)


@pytest.mark.slow
@pytest.mark.parametrize("gpus, n_jobs, n", [
    (1.0, 100, 4),       # a GPU each
    (1.0, 3, 3),         # never more actors than shards
    (0.5, 100, 4 * 2),   # two on each
    (0.25, 5, 5),        # four on one, the fifth beside them
    (2.0, 100, 4 // 2),  # two each
])  # fmt: skip
def test_actors_own_their_gpus(cluster: None, gpus: float, n_jobs: int, n: int) -> None:
    share = ray_cluster.share_out(Settings(gpus_per_actor=gpus), None, n_jobs)
    assert share == Share(n, "cuda", gpus, 1)
    with Pool(Odd(), share, 60.0) as actors:
        import ray

        loaded = ray.get([slot.actor.load.remote() for slot in actors.slots])  # all of them are there at once
    accounts = [account for account, _ in loaded]
    assert len({account["pid"] for account in accounts}) == n and all(account["threads"] == "1" for account in accounts)
    seen = [account["device"].split(",") for account in accounts]
    assert {len(devices) for devices in seen} == {math.ceil(gpus)}
    taken = Counter(device for devices in seen for device in devices)
    assert set(taken) <= {"0", "1", "2", "3"} and max(taken.values()) * min(gpus, 1) <= 1  # none is given out twice


@pytest.mark.slow
def test_device_settings_are_kept(cluster: None) -> None:
    assert ray_cluster.share_out(Settings(device="cpu"), 3, n_jobs=2) == Share(
        2, "cpu", 0.0, 1
    )  # never more than shards
    from store.errors import UserError

    with pytest.raises(UserError, match="cuda asks for 5 GPU"):
        ray_cluster.share_out(Settings(device="cuda", gpus_per_actor=5.0), None, n_jobs=2)


@dataclass
class Uneven:
    """A worker whose shards take as many seconds as `job.work` says; each leaves a file in `begun`."""

    begun: Path

    def load(self, device: str) -> dict[str, Any]:
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        (self.begun / job.name).touch()
        time.sleep(job.work)
        return {"all": Outcome({})}

    def probe(self, job: Job, row: int) -> None: ...


@dataclass
class SlowStore:
    """What a pool asks of a run, over a store that has written no mark before `n` shards have begun."""

    log: RunLog
    begun: Path
    n: int
    settings: Settings = field(default_factory=Settings)
    versions: dict[str, Any] = field(default_factory=dict)
    marked: list[str] = field(default_factory=list)

    def finish(self, unit: str, outcome: Outcome) -> None:
        end = time.monotonic() + 120  # a guard against hanging
        while len(os.listdir(self.begun)) < self.n:
            assert time.monotonic() < end, "an actor waits for a mark"
            time.sleep(0.05)
        self.marked.append(unit)

    def record(self) -> None: ...


@dataclass
class Counting:
    """A worker that ends a shard of four photos when `told` exists, after three of them; shard-1 kills it once."""

    told: Path
    died: Path

    def load(self, device: str) -> dict[str, Any]:
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> dict[str, Outcome]:
        for _ in range(3):
            photos.tell_done(1)
        if job.name == "shard-1" and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + 120  # a guard against hanging
        while not self.told.exists():
            assert time.monotonic() < end, "no photo is counted before its shard ends"
            time.sleep(0.05)
        return {"all": Outcome({})}

    def probe(self, job: Job, row: int) -> None: ...


@pytest.mark.slow
def test_photos_of_actors_count_before_their_shards_are_finished(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two actors waits with three photos of four done until the line has named all six; one of them died."""
    lines, told = list[str](), tmp_path / "told"

    def say(line: str) -> None:
        lines.append(line)
        if "shard 0/2, photo 6/8" in line:
            told.touch()

    monkeypatch.setattr(pool, "COUNT_EVERY_S", 0.0)
    monkeypatch.setattr(engine, "new_progress", lambda *_, **__: Progress("detect", 2, 0, 8, interval_s=0.0, say=say))
    run: Any = SlowStore(RunLog(open_store(tmp_path)), tmp_path, 0)
    jobs = [Job(f"shard-{i}", (0, 1, 2, 3)) for i in range(2)]
    shards: Any = engine.Shards("detect", jobs, 2, {job.name: {"all": job.name} for job in jobs})
    engine._run_pool(run, shards, Counting(told, tmp_path / "died"), lambda n_jobs: Share(2, "cpu", 0.0, 1))
    assert sorted(run.marked) == ["shard-0", "shard-1"] and (tmp_path / "died").exists()
    assert lines[-1].startswith("detect: 8 images in")
    counts = [int(line.partition(", photo ")[2].partition("/")[0]) for line in lines if ", photo " in line]
    assert max(counts) <= 7  # four of a finished shard and three; those of the process that died are not counted twice


@pytest.mark.slow
def test_no_actor_idles_while_shards_wait(cluster: None, tmp_path: Path) -> None:
    """No mark is awaited before the next shard; by the run's log, an actor stops only when no shard is left for it."""
    jobs = [Job(f"shard-{i}", (0,), 0.2 + 0.37 * (i * 7 % 5)) for i in range(15)]  # 0.2 to 1.68 s, mixed
    begun = tmp_path / "begun"
    begun.mkdir()
    run: Any = SlowStore(RunLog(open_store(tmp_path)), begun, len(jobs))
    shards: Any = engine.Shards("detect", jobs, len(jobs), {job.name: {"all": job.name} for job in jobs})
    engine._run_pool(run, shards, Uneven(begun), lambda n_jobs: Share(3, "cpu", 0.0, 1))
    (file,) = (tmp_path / "logs").iterdir()
    turns = [turn for turn in map(json.loads, file.read_text().splitlines()) if turn["event"] == "shard"]
    assert sorted(turn["shard"] for turn in turns) == sorted(run.marked) == sorted(job.name for job in jobs)
    actors = {turn["actor"] for turn in turns}
    assert len(actors) >= 2  # on a busy machine the third is not there in time
    for actor in actors:
        stopped = max(turn["began"] + turn["wall_s"] for turn in turns if turn["actor"] == actor)
        # others that ended just before it may get the last shards after it; more were left waiting for it
        assert sum(turn["began"] > stopped for turn in turns) < len(actors)
