"""Shards of a stage through its actors, each finished one marked and counted: the part detect, fuse and embed share."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs import ray_cluster, run_log
from jobs.cli import UserError
from jobs.ledger import Outcome, Run, Unit
from jobs.pool import Pool, Worker
from jobs.progress import Progress, say
from jobs.ray_metrics import Meter
from jobs.trial import Job

HERE = 16  # shards of a cheap stage that this process does itself: starting an actor would take longer
WRITERS = 8  # threads that write marks: a bucket takes its time over each, and actors are not to wait for that


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
    ray_cluster.start_ray(run.settings)
    _pooled(run, shards, make, lambda n_jobs: ray_cluster.share_out(run.settings, actors, n_jobs))


def cheaply(run: Run, shards: Shards, make: Callable[[str], Worker]) -> None:
    """Do the jobs on CPU actors, or in this process where they are few."""
    if len(shards.jobs) > HERE:
        ray_cluster.start_ray(run.settings)
        _pooled(run, shards, make, lambda n_jobs: ray_cluster.share_out(run.settings, None, n_jobs, gpu=False))
        return
    progress = _progress(shards)
    watch = _Watch(run, shards.stage, progress)
    worker = make("cpu")
    for job in shards.jobs:
        answer = worker.run(job, {}, False)
        watch.tell("shard", shard=job.name, images=len(job.rows), answer=answer, **run_log.memory())
        _finish(run, shards, progress, job, answer)
    progress.finish()
    watch.finish()


def _pooled(
    run: Run, shards: Shards, make: Callable[[str], Worker], share_out: Callable[[int], ray_cluster.Share]
) -> None:
    share = share_out(len(shards.jobs))
    what = f"{share.gpus:g} GPU" if share.gpus else f"{share.cpus} CPU"
    say(f"{shards.stage}: {len(shards.jobs)} shards on {share.n} actors, {what} each{ray_cluster.unused_gpus(share)}")
    progress = _progress(shards, on_gpu=share.device == "cuda")
    watch = _Watch(run, shards.stage, progress)
    maker = _Maker(make, share.device)

    def enough(n_jobs: int) -> int:
        try:
            return share_out(n_jobs).n
        except UserError:  # the nodes with a GPU are gone for now; their actors come back with the next ones
            return 0

    marked: deque[tuple[Future[None], Job, Mapping[Any, Outcome]]] = deque()  # oldest first

    def count(*, wait: bool) -> None:
        while marked and (wait or marked[0][0].done()):
            mark, job, answer = marked.popleft()
            mark.result()
            _count(progress, job, answer)

    with (
        ThreadPoolExecutor(WRITERS) as writers,
        Pool(
            maker,
            share,
            run.settings.shard_deadline_s,
            enough,
            tick=watch.tick,
            say=say,
            tell=watch.tell,
            node_wait_s=run.settings.node_wait_s,
        ) as actors,
    ):
        for job, answer in actors.run(shards.jobs):
            marked.append((writers.submit(_mark, run, shards, job, answer), job, answer))
            count(wait=False)
        count(wait=True)
        _note_versions(run, actors.accounts)
    progress.finish()
    watch.finish()


@dataclass(frozen=True)
class _Maker:
    """`make(device)` with the device filled in; picklable."""

    make: Callable[[str], Worker]
    device: str

    def __call__(self) -> Worker:
        return self.make(self.device)


@dataclass
class _Watch:
    """Where a pool's events go: the run's log, Ray's metrics, the progress line."""

    run: Run
    stage: str
    progress: Progress

    def __post_init__(self) -> None:
        self.meter = Meter(self.stage)

    def tell(self, event: str, *, answer: Mapping[Any, Outcome] | None = None, **facts: Any) -> None:
        if event == "loaded":
            self.progress.began()
        if answer is not None:
            facts |= {"failed": len(failed(answer))} | {f"{part}_s": round(s, 3) for part, s in seconds(answer).items()}
        if "waited_s" in facts:
            self.progress.waited(facts["waited_s"])
        if event == "shard" and "gpu_busy" in facts:
            self.progress.gpu(facts["gpu_busy"], facts["wall_s"])
        self.run.log.tell(event, self.stage, **facts)
        self.meter.tell(event, facts)

    def tick(self) -> None:
        self.progress.tick()
        self.run.log.tick()
        self.meter.left(self.progress.total - self.progress.done)

    def finish(self) -> None:
        progress = self.progress
        took = round(progress.clock() - progress.started, 3)
        self.run.log.tell(
            "stage", self.stage, images=progress.images_done, failed=progress.failed, seconds=took, **run_log.memory()
        )
        self.run.log.publish()
        self.meter.left(0)


def _progress(shards: Shards, *, on_gpu: bool = False) -> Progress:
    images = sum(len(job.rows) for job in shards.jobs)
    return Progress(shards.stage, shards.total, shards.total - len(shards.jobs), images, on_gpu)


def _finish(run: Run, shards: Shards, progress: Progress, job: Job, answer: Mapping[Any, Outcome]) -> None:
    _mark(run, shards, job, answer)
    _count(progress, job, answer)


def _mark(run: Run, shards: Shards, job: Job, answer: Mapping[Any, Outcome]) -> None:
    for key, outcome in answer.items():
        run.finish(shards.units[job.name][key], outcome)


def _count(progress: Progress, job: Job, answer: Mapping[Any, Outcome]) -> None:
    progress.add(len(job.rows), seconds(answer), len(failed(answer)))


def seconds(answer: Mapping[Any, Outcome]) -> dict[str, float]:
    """read, infer, write of a shard, over all its units."""
    total: dict[str, float] = {}
    for outcome in answer.values():
        for name, value in outcome.seconds.items():
            total[name] = total.get(name, 0.0) + value
    return total


def failed(answer: Mapping[Any, Outcome]) -> set[int]:
    """image_ids without a result in some unit of a shard."""
    return {failure["image_id"] for outcome in answer.values() for failure in outcome.failures}


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
