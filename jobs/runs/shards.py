"""A stage's shards through its workers, each finished one marked and counted: what detect, fuse and embed share."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from jobs.runs import cluster, events, gpu, one_process, tables
from jobs.runs.events import Meter
from jobs.runs.marks import Outcome, Unit
from jobs.runs.models import Model
from jobs.runs.one_process import OneProcess, ProcessLost
from jobs.runs.pool import IO_ATTEMPTS, NOTHING_BEGUN, Pool, Worker
from jobs.runs.progress import Progress, say
from jobs.runs.retries import Job, Trial
from jobs.runs.run import Run
from store.errors import UserError
from store.objects import ObjectStore

IN_PROCESS = 16  # so few shards of a cheap stage are done in this process: starting an actor would take longer
# So few photos are done by one process without Ray. On two cores, Ray and two actors would be as soon done with about a
# hundred photos through the eight small models (benchmarks/start.py), for half as much CPU time again.
FEW_PHOTOS = 100
WRITERS = 8  # threads that write marks: a bucket takes its time over each, and actors must not wait for that


@dataclass(frozen=True)
class Shards:
    """What is to do of one stage."""

    stage: str
    jobs: Sequence[Job]  # one for each shard with work left; `work` is a tuple of the unfinished keys
    total: int  # shards of the stage, finished ones included
    units: Mapping[str, Mapping[Any, Unit]]  # shard -> key that a worker's answer uses -> unit

    @classmethod
    def unfinished(cls, run: Run, stage: str, folders: Mapping[Any, str]) -> "Shards":
        """The jobs of a planned stage. `folders`: key -> its units' paths before the shard, STAGE/[BOXES/][MODEL/]."""
        planned, units, jobs = run.units[stage], {}, []
        for shard in run.selected.shards:
            of_shard = {key: planned[f"{folder}{shard.name}"] for key, folder in folders.items()}
            if todo := tuple(key for key, unit in of_shard.items() if run.reason(unit)):
                units[shard.name] = of_shard
                jobs.append(Job(shard.name, shard.row_numbers, todo))
        return cls(stage, jobs, len(run.selected.shards), units)


def model_groups(run: Run, models: tuple[Model, ...]) -> list[tuple[Model, ...]]:
    """The models that one actor loads together: all, or one after the other (`models_per_actor: 1`)."""
    return [models] if run.settings.models_per_actor == "all" else [(model,) for model in models]


def run_on_actors(run: Run, shards: Shards, worker: Worker, actors: int | str | None) -> None:
    """Do the jobs on a pool of actors that own the run's device, or in one process without Ray where they are few."""
    begun: dict[str, Trial] = {}
    if shards.jobs and _fit_one_process(run, shards, actors):
        shards, begun = _run_one_process(run, shards, worker)
    if shards.jobs:
        cluster.start_ray(run.settings)
        _run_pool(run, shards, worker, lambda n_jobs: cluster.share_out(run.settings, actors, n_jobs), begun)


def run_cheap(run: Run, shards: Shards, worker: Worker) -> None:
    """Do the jobs on CPU actors, or in this process where they are few."""
    if len(shards.jobs) > IN_PROCESS:
        cluster.start_ray(run.settings)
        _run_pool(run, shards, worker, lambda n_jobs: cluster.share_out(run.settings, None, n_jobs, gpu=False))
        return
    run_here(run, shards, worker)


def run_here(run: Run, shards: Shards, worker: Worker) -> None:
    """Do the jobs one by one in this process."""
    worker.load("cpu")
    progress = new_progress(shards)
    reporter = _Reporter(run, shards.stage, progress)
    for job in shards.jobs:
        answer = worker.run(job, {}, False)
        reporter.report("shard", shard=job.name, images=len(job.rows), answer=answer, **events.memory())
        write_marks(run, shards, job, answer)
        count_shard(progress, job, answer)
    reporter.finish()


def _fit_one_process(run: Run, shards: Shards, actors: int | str | None) -> bool:
    """Whether one process does these jobs as soon as a pool: few photos or one shard, on a CPU, and no cluster."""
    settings = run.settings
    few = len(shards.jobs) == 1 or sum(len(job.rows) for job in shards.jobs) <= FEW_PHOTOS
    one = (settings.actors if actors is None else actors) in ("auto", 1)
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not gpu.may_be_here())
    return few and one and on_cpu and not cluster.would_join()


def _run_one_process(run: Run, shards: Shards, worker: Worker) -> tuple[Shards, dict[str, Trial]]:
    """Do the jobs in the kept process; those that are left where it is lost, with the trial of the one it was doing."""
    settings, progress = run.settings, new_progress(shards)
    reporter = _Reporter(run, shards.stage, progress)
    process = one_process.kept(settings.threads_per_actor)
    how: dict[str, Any] = {"tick": reporter.tick}
    say(f"{shards.stage}: {progress.images} photos in one process, {settings.threads_per_actor} CPU")
    try:
        account, facts = process.load(worker, deadline_s=settings.node_wait_s, photos_done=lambda n: None, **how)
    except ProcessLost as lost:
        reporter.report(lost.how, actor=0, reason=str(lost))
        say(f"the process {lost.how} while it loaded its models; going on with Ray")
        return shards, {}
    _record_versions(run, [account])
    where: dict[str, Any] = {"actor": 0, "node": account["node"], "pid": account["pid"]}
    reporter.report("loaded", **where, device=account.get("device"), **facts)
    for number, job in enumerate(shards.jobs):
        trial, how["photos_done"] = Trial(job), functools.partial(progress.photos, job.name)
        try:
            answer, facts = _run_patiently(process, trial, reporter, deadline_s=settings.shard_deadline_s, **how)
        except ProcessLost as lost:
            trial.died(lost.how)
            reporter.report(lost.how, **where, shard=job.name, row=None, deaths=trial.deaths, reason=str(lost))
            reporter.finish()
            say(f"the process {lost.how} on {job.name}; going on with Ray")
            return replace(shards, jobs=shards.jobs[number:]), {job.name: trial}
        reporter.report("shard", **where, shard=job.name, images=len(job.rows), answer=answer, **facts)
        write_marks(run, shards, job, answer)
        count_shard(progress, job, answer)
    reporter.finish()
    return replace(shards, jobs=()), {}


def _run_patiently(process: OneProcess, trial: Trial, reporter: "_Reporter", **how: Any) -> tuple[Any, dict[str, Any]]:
    """`OneProcess.run`, tried again where storage fails, as often as a pool does."""
    while True:
        try:
            return process.run(trial.job, **how)
        except OSError as error:
            trial.io_errors += 1
            if trial.io_errors == IO_ATTEMPTS:
                raise
            reporter.report("again", shard=trial.job.name, reason=str(error))
            say(f"{trial.job.name}: {error}; trying again")
            time.sleep(2.0**trial.io_errors)


def _run_pool(
    run: Run,
    shards: Shards,
    worker: Worker,
    share_out: Callable[[int], cluster.Share],
    begun: Mapping[str, Trial] = NOTHING_BEGUN,
) -> None:
    share = share_out(len(shards.jobs))
    device = f"{share.gpus:g} GPU" if share.gpus else f"{share.cpus} CPU"
    say(f"{shards.stage}: {len(shards.jobs)} shards on {share.n} actors, {device} each{cluster.unused_gpus(share)}")
    progress = new_progress(shards, on_gpu=share.device == "cuda")
    reporter = _Reporter(run, shards.stage, progress)

    def target_actors(n_jobs: int) -> int:
        try:
            return share_out(n_jobs).n
        except UserError:  # the nodes with a GPU are gone for now; their actors come back with the next ones
            return 0

    marking: deque[tuple[Future[None], Job, Mapping[Any, Outcome]]] = deque()  # oldest first

    def count_marked(*, wait: bool) -> None:
        while marking and (wait or marking[0][0].done()):
            future, job, answer = marking.popleft()
            future.result()
            count_shard(progress, job, answer)

    deadline_s, node_wait_s = run.settings.shard_deadline_s, run.settings.node_wait_s
    calls: dict[str, Any] = {"tick": reporter.tick, "say": say, "report": reporter.report}
    calls["photos_done"] = progress.photos
    title = " ".join([shards.stage, *(model.name for model in getattr(worker, "models", ()))])
    pool = Pool(worker, share, deadline_s, target_actors, node_wait_s=node_wait_s, title=title, **calls)
    with ThreadPoolExecutor(WRITERS) as writers, pool:
        for job, answer in pool.run(shards.jobs, begun):
            marking.append((writers.submit(write_marks, run, shards, job, answer), job, answer))
            count_marked(wait=False)
        count_marked(wait=True)
        _record_versions(run, pool.accounts)
    reporter.finish()


@dataclass
class _Reporter:
    """Passes a pool's events on to the run's log, Ray's metrics and the progress line."""

    run: Run
    stage: str
    progress: Progress

    def __post_init__(self) -> None:
        self.meter = Meter(self.stage)

    def report(self, event: str, *, answer: Mapping[Any, Outcome] | None = None, **facts: Any) -> None:
        if event == "loaded":
            self.progress.began()
        if answer is not None:
            facts["failed"] = len(failed_images(answer))
            facts |= {f"{part}_s": round(seconds, 3) for part, seconds in seconds_of(answer).items()}
        if "waited_s" in facts:
            self.progress.waited(facts["waited_s"])
        if event == "shard" and "gpu_busy" in facts:
            self.progress.gpu(facts["gpu_busy"], facts["wall_s"])
        self.run.log.add(event, self.stage, **facts)
        self.meter.count(event, facts)

    def tick(self) -> None:
        self.progress.tick()
        self.run.log.tick()
        self.meter.left(self.progress.total - self.progress.done)

    def finish(self) -> None:
        progress = self.progress
        progress.finish()
        took = round(progress.clock() - progress.started, 3)
        counts = {"images": progress.images_done, "failed": progress.failed, "seconds": took}
        self.run.log.add("stage", self.stage, **counts, **events.memory())
        self.run.log.publish()
        self.meter.left(0)


def new_progress(shards: Shards, *, on_gpu: bool = False) -> Progress:
    images = sum(len(job.rows) for job in shards.jobs)
    return Progress(shards.stage, shards.total, shards.total - len(shards.jobs), images, on_gpu)


def write_table(
    output: ObjectStore,
    key: str,
    table: Callable[[], pa.Table],
    seconds: Mapping[str, float],
    failures: Iterable[dict[str, Any]],
    notes: Mapping[str, Any],
) -> Outcome:
    """Make and write a unit's table. `seconds` are those of its other parts; `failures` {image_id, reason}."""
    start = time.perf_counter()
    made = table()
    outputs = {key: tables.write(output, key, made)}
    seconds = {**seconds, "write": time.perf_counter() - start}
    return Outcome(outputs, made.num_rows, seconds, tuple(failures), dict(notes))


def write_marks(run: Run, shards: Shards, job: Job, answer: Mapping[Any, Outcome]) -> None:
    for key, outcome in answer.items():
        run.finish(shards.units[job.name][key], outcome)


def count_shard(progress: Progress, job: Job, answer: Mapping[Any, Outcome]) -> None:
    progress.add(job.name, len(job.rows), seconds_of(answer), len(failed_images(answer)))


def seconds_of(answer: Mapping[Any, Outcome]) -> dict[str, float]:
    """Seconds of read, infer and write of a shard, over all its units."""
    total: dict[str, float] = {}
    for outcome in answer.values():
        for part, seconds in outcome.seconds.items():
            total[part] = total.get(part, 0.0) + seconds
    return total


def failed_images(answer: Mapping[Any, Outcome]) -> set[int]:
    """image_ids without a result in some unit of a shard."""
    return {failure["image_id"] for outcome in answer.values() for failure in outcome.failures}


def _record_versions(run: Run, accounts: Iterable[Mapping[str, Any]]) -> None:
    """Write the packages and devices of the workers, by node, into run.json."""
    before = dict(run.versions)
    for account in accounts:
        run.versions[account["node"]] = {name: value for name, value in account.items() if name != "node"}
    if run.versions != before:
        run.record()
