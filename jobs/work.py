"""Shards of a stage through its actors, each finished one marked and counted: the part detect, fuse and embed share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import pool
from jobs.cli import UserError
from jobs.ledger import Outcome, Run, Unit
from jobs.pool import Job, Pool, Worker
from jobs.progress import Progress, say

HERE = 16  # shards of a cheap stage that this process does itself: starting an actor would take longer


@dataclass(frozen=True)
class Shards:
    """What is to do of one stage.

    Attributes:
        stage: its name.
        jobs: one for each shard with work left.
        total: shards of the stage, finished ones included.
        units: shard -> key that a worker's answer uses -> unit.
    """

    stage: str
    jobs: Sequence[Job]
    total: int
    units: Mapping[str, Mapping[Any, Unit]]


def on_actors(run: Run, shards: Shards, make: Callable[[str], Worker], actors: int | str | None) -> None:
    """Do the jobs on a pool of actors that own the run's device; `make(device)` makes a worker."""
    if not shards.jobs:
        return
    pool.start_ray(run.settings)
    _pooled(run, shards, make, lambda n_jobs: pool.share_out(run.settings, actors, n_jobs))


def cheaply(run: Run, shards: Shards, make: Callable[[str], Worker]) -> None:
    """Do the jobs on CPU actors, or in this process where they are few."""
    if len(shards.jobs) > HERE:
        pool.start_ray(run.settings)
        _pooled(run, shards, make, lambda n_jobs: pool.share_out(run.settings, None, n_jobs, gpu=False))
        return
    progress = _progress(shards)
    worker = make("cpu")
    for job in shards.jobs:
        _finish(run, shards, progress, job, worker.run(job, {}, False))
    progress.finish()


def _pooled(run: Run, shards: Shards, make: Callable[[str], Worker], share_out: Callable[[int], pool.Share]) -> None:
    share = share_out(len(shards.jobs))
    what = f"{share.gpus:g} GPU" if share.gpus else f"{share.cpus} CPU"
    say(f"{shards.stage}: {len(shards.jobs)} shards on {share.n} actors, {what} each")
    progress = _progress(shards)
    maker = _Maker(make, share.device)

    def enough(n_jobs: int) -> int:
        try:
            return share_out(n_jobs).n
        except UserError:  # the nodes with a GPU are gone for now; their actors come back with the next ones
            return 0

    with Pool(
        maker,
        share,
        run.settings.shard_deadline_s,
        enough,
        tick=progress.tick,
        say=say,
        node_wait_s=run.settings.node_wait_s,
    ) as actors:
        for job, answer in actors.run(shards.jobs):
            _finish(run, shards, progress, job, answer)
        _note_versions(run, actors.accounts)
    progress.finish()


@dataclass(frozen=True)
class _Maker:
    """`make(device)` with the device filled in; picklable."""

    make: Callable[[str], Worker]
    device: str

    def __call__(self) -> Worker:
        return self.make(self.device)


def _progress(shards: Shards) -> Progress:
    return Progress(
        shards.stage, shards.total, shards.total - len(shards.jobs), sum(len(job.rows) for job in shards.jobs)
    )


def _finish(run: Run, shards: Shards, progress: Progress, job: Job, answer: Mapping[Any, Outcome]) -> None:
    for key, outcome in answer.items():
        run.finish(shards.units[job.name][key], outcome)
    seconds: dict[str, float] = {}
    for outcome in answer.values():
        for name, value in outcome.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    failed = {failure["image_id"] for outcome in answer.values() for failure in outcome.failures}
    progress.add(len(job.rows), seconds, len(failed))


def _note_versions(run: Run, accounts: Iterable[Mapping[str, Any]]) -> None:
    """Which packages and devices the workers had, by node, into run.json."""
    before = dict(run.versions)
    for account in accounts:
        node = dict(account)
        run.versions[node.pop("node")] = node
    if run.versions != before:
        run.record()


def rows_of(run: Run, shard: str) -> tuple[int, ...]:
    """The row numbers a run takes of a shard."""
    taken = next(taken for taken in run.selected.shards if taken.name == shard)
    return tuple(range(taken.images)) if taken.rows is None else taken.rows
