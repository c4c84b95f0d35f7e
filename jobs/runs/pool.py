"""Shards to workers and back: long-lived Ray actors, one call per shard, every death seen and answered.

In: `Job`s and a worker, which is copied into every actor. Out: each job with what its worker returned, as they finish.
An actor owns a device (a GPU, a share of one, or CPU cores) and loads its models once. `jobs.runs.retries` decides what
follows a death. A call that outlasts its deadline has its process ended and counts as a death.
"""

import contextlib
import ctypes
import functools
import math
import os
import socket
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.runs import events, gpu, photos, versions
from jobs.runs.retries import Job, Trial
from store.errors import UserError

LOADING_DEATHS = 5  # in a row, of one actor, before it is given up
RESTARTING = "The actor is restarting"  # Ray's words for a call between two processes of an actor
UNREACHABLE = "failed to connect"  # Ray's words for a call to a process that does not answer
RESIZE_EVERY_S = 5.0  # how often nodes that have joined are looked for
COUNT_EVERY_S = 5.0  # how often an actor is asked for the photos that it has done
IO_ATTEMPTS = 3  # of a shard whose storage fails
NOTHING_BEGUN: Mapping[str, Trial] = types.MappingProxyType({})


def _ignore(*_: Any, **__: Any) -> None:
    pass


class Worker(Protocol):
    """What runs inside an actor; it must pickle before it is loaded."""

    def load(self, device: str) -> dict[str, Any]:
        """Import and load everything onto "cuda" or "cpu"; return versions and device for the record."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> Any:
        """Do a shard, one image at a time if `single`; write its output and return a small account.

        `skip`: row -> reason; those rows fail without being looked at."""

    def probe(self, job: Job, row: int) -> None:
        """Do one image and write nothing, to see whether the process survives it."""


class Host:
    """The actor. It loads its worker at the first call, so that an error of loading is an answer and not a death.

    Every method answers with what the worker returned and the facts of the call: `began` (seconds since 1970),
    `wall_s`, `waited_s` (idle before it), by the actor's own clock, the process's memory after it, and `gpu_busy` where
    the actor has a GPU.
    """

    def __init__(
        self, worker: Worker, device: str, title: str = "worker", tell: Callable[[float], None] = _ignore
    ) -> None:
        """`tell` is called in the worker's thread with `photos_done` whenever that grows."""
        self.worker, self.device, self.title, self.tell = worker, device, title, tell
        self.done = 0.0
        self.ended: float | None = None
        self.gpu: gpu.GpuBusy | None = None
        photos.tell_done = self._count

    def __repr__(self) -> str:
        """What Ray's dashboard and `ray list actors --detail` call this actor."""
        return self.title

    def load(self) -> tuple[dict[str, Any], dict[str, float]]:
        """What the worker's `load` returned, with node and process."""
        return self._timed(lambda: self.account)

    def run(self, job: Job, skip: dict[int, str], single: bool) -> tuple[Any, dict[str, float]]:
        return self._timed(lambda: self.loaded.run(job, skip, single))

    def probe(self, job: Job, row: int) -> tuple[None, dict[str, float]]:
        return self._timed(lambda: self.loaded.probe(job, row))

    def photos_done(self) -> float:
        """How many photos of the call at work are done; 0 between two calls. On Ray it has a thread of its own."""
        return self.done

    def _count(self, n: float) -> None:
        self.done += n
        self.tell(self.done)

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        began, start = time.time(), time.monotonic()
        waited = 0.0 if self.ended is None else start - self.ended
        try:
            answer = call()
        finally:
            self.done = 0.0
        self.ended = time.monotonic()
        facts = {"began": round(began, 3), "wall_s": round(self.ended - start, 3), "waited_s": round(waited, 3)}
        if self.gpu and (busy := self.gpu.mean()) is not None:
            facts["gpu_busy"] = round(busy, 3)
        if helper := getattr(self.worker, "helper", None):
            facts["decoded_elsewhere"] = helper.taken()
        return answer, facts | events.memory()

    @property
    def loaded(self) -> Worker:
        """The worker, loaded in this process: Ray also restarts an actor that dies between two calls."""
        assert self.account
        return self.worker

    @functools.cached_property
    def account(self) -> dict[str, Any]:
        keep_freed_memory()
        account = self.worker.load(self.device)
        if account.get("device") == "cuda":
            self.gpu = gpu.watch()
        return account | {"node": socket.gethostname(), "pid": os.getpid()}


def keep_freed_memory() -> None:
    """Ask glibc to keep blocks of up to 32 MB, half a GB in all, when they are freed.

    Photos and activations come and go in megabytes. If they were given back each time, the system would clear their
    pages anew, which takes a third of the time of decoding (benchmarks/scaling.py). Another C library has no `mallopt`
    and is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        mallopt(trim_threshold, 1 << 29)
        mallopt(mmap_threshold, 1 << 25)


def thread_limits(n: int) -> dict[str, str]:
    """The environment in which a worker's libraries start `n` threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(n))


@dataclass(frozen=True)
class Share:
    """What one actor gets: `n` actors, the device they see, and what they ask Ray for."""

    n: int  # those that wait for a node to join included
    device: str  # "cuda" or "cpu"
    gpus: float
    cpus: int


@dataclass
class Slot:
    """One actor and its current call; times are monotonic seconds."""

    actor: Any
    number: int  # of the actor in the stage, from 0
    account: Mapping[str, Any] = field(default_factory=dict)  # what its `load` returned
    call: Any = None
    count: Any = None  # pending answer of `photos_done`, asked during this call
    asked: float = 0.0  # when `photos_done` was last called, or the call was made
    trial: Trial | None = None  # the shard it works on; None while it loads
    loaded: bool = False
    since: float = 0.0  # the call's start
    not_before: float = 0.0  # when the next call may be made
    deaths: int = 0  # while loading, in a row
    hung: bool = False  # whether its process is being ended because the deadline has passed

    def kill(self, *, restart: bool) -> None:
        import ray

        ray.kill(self.actor, no_restart=not restart)


@dataclass
class Pool:
    """The actors of one stage; a context manager, which ends them.

    All actors are requested at once, also those that no node has room for yet: that makes an autoscaler start nodes.
    While shards wait, `target_actors` is asked for a larger number; when none waits any more, actors without work end,
    so that their nodes may go. `report` is called with each event and its facts, as `jobs.runs.events` lists them; a
    shard's has `answer`.
    """

    worker: Worker
    share: Share
    deadline_s: float
    target_actors: Callable[[int], int] = lambda n_jobs: 0  # given the shards, how many there is room for now
    tick: Callable[[], None] = _ignore  # called about once a second
    say: Callable[[str], None] = _ignore
    report: Callable[..., None] = _ignore
    photos_done: Callable[[str, float], None] = _ignore  # called with a shard at work and its photos done so far
    node_wait_s: float = math.inf  # how long there may be no actor at all: at the start, or after all have died
    title: str = "worker"  # of the actors in Ray's dashboard, before their numbers
    accounts: list[dict[str, Any]] = field(default_factory=list)  # what each actor's `load` returned
    slots: list[Slot] = field(default_factory=list)
    answered: float = field(default_factory=time.monotonic)  # when an actor last answered, monotonic seconds
    resized: float = field(default_factory=time.monotonic)  # when `target_actors` was last called
    started: int = 0  # number of actors so far

    def __enter__(self) -> "Pool":
        self._start(self.share.n)
        return self

    def _start(self, n: int) -> None:
        import ray

        share = self.share
        options: dict[str, Any] = {"num_gpus": share.gpus, "num_cpus": share.cpus, "max_restarts": -1}
        options |= {"max_task_retries": 0, "concurrency_groups": {"count": 1}}
        # Ray calls an actor with such groups in threads. In an arena of its own, a thread gives freed blocks back in
        # spite of `keep_freed_memory`, which costs a detector in torch 8 % more time.
        environment = thread_limits(share.cpus) | {"MALLOC_ARENA_MAX": "1"}
        host: Any = ray.remote(**options, runtime_env=versions.our_code(environment))(Host)
        for number in range(self.started, self.started + n):
            actor = host.remote(self.worker, share.device, f"{self.title} {number}")
            self.slots.append(Slot(actor, number))
        self.started += n

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.kill(restart=False)

    def run(self, jobs: Sequence[Job], begun: Mapping[str, Trial] = NOTHING_BEGUN) -> Iterator[tuple[Job, Any]]:
        """Every job once, with the worker's account, in the order they finish. A worker's exception ends the run.

        `begun`: shard -> its trial, where that began elsewhere.
        """
        import ray

        waiting = [begun.get(job.name) or Trial(job) for job in jobs]
        left = len(waiting)
        while left:
            self._resize(waiting)
            self._hand_out(waiting)
            calls = {slot.call: slot for slot in self.slots if slot.call is not None}
            if not calls:
                time.sleep(0.1)  # all shards that are left pause after a death
            for call in ray.wait(list(calls), num_returns=1, timeout=1.0)[0] if calls else ():
                slot = calls[call]
                trial, slot.call, slot.trial, slot.count = slot.trial, None, None, None
                try:
                    answer, facts = ray.get(call)
                except ray.exceptions.RayTaskError as error:
                    self._raised(error, trial, waiting)
                except ray.exceptions.RayError as error:
                    self._died(slot, trial, waiting, error)
                else:
                    slot.deaths, slot.hung, self.answered = 0, False, time.monotonic()
                    if trial is None:
                        slot.loaded, slot.account = True, answer
                        versions.refuse_other_versions(answer["node"], answer)
                        self.accounts.append(answer)
                        self._report("loaded", slot, device=answer.get("device"), **facts)
                    elif not trial.survived():
                        waiting.insert(0, trial)
                    else:
                        left -= 1
                        self._hand_out(waiting)  # first, so that the actor works while the answer is processed
                        shard = {"shard": trial.job.name, "images": len(trial.job.rows), "answer": answer}
                        self._report("shard", slot, **shard, **facts)
                        yield trial.job, answer
            self._end_the_hung()
            self._count_photos()
            self.tick()

    def _report(self, event: str, slot: Slot, **facts: Any) -> None:
        where = {"actor": slot.number, "node": slot.account.get("node"), "pid": slot.account.get("pid")}
        self.report(event, **where, **facts)

    def _resize(self, waiting: list[Trial]) -> None:
        """Start actors where nodes have joined; end those without work when no shard waits.

        A UserError says that no actor has started for `node_wait_s`.
        """
        now = time.monotonic()
        if not any(slot.loaded for slot in self.slots) and now - self.answered > self.node_wait_s:
            device = f"{self.share.gpus:g} GPU and " if self.share.gpus else ""
            raise UserError(
                f"no actor could start in {self.node_wait_s:g} s: no node has {device}{self.share.cpus} CPU free, "
                "or loading takes longer; look at `ray status`, or raise node_wait_s"
            )
        busy = [slot for slot in self.slots if slot.trial is not None]
        if waiting and now - self.resized > RESIZE_EVERY_S:
            self.resized = now
            n_jobs = len(waiting) + len(busy)
            more = min(self.target_actors(n_jobs), n_jobs) - len(self.slots)
            if more > 0:
                self.say(f"room for {more} more actors")
                self._start(more)
        elif not waiting and busy:
            for slot in self.slots:
                if slot.trial is None:
                    slot.kill(restart=False)
            self.slots = busy

    def _hand_out(self, waiting: list[Trial]) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.call is not None or now < slot.not_before:
                continue
            slot.since = slot.asked = now
            if not slot.loaded:
                slot.call = slot.actor.load.remote()
                continue
            trial = next((trial for trial in waiting if trial.not_before <= now), None)
            if trial is not None:
                waiting.remove(trial)
                method, arguments = trial.next_call()
                call = getattr(slot.actor, method).options(name=f"{method} {trial.job.name}")
                slot.trial, slot.call = trial, call.remote(trial.job, *arguments)
                self.photos_done(trial.job.name, 0.0)  # it may have died on some before

    def _died(self, slot: Slot, trial: Trial | None, waiting: list[Trial], error: Exception) -> None:
        """A process ended: Ray restarts the actor, and its shard is tried again."""
        now = time.monotonic()
        event, slot.hung, slot.loaded = "hung" if slot.hung else "died", False, False
        reason = str(error).partition("\n")[0]
        if trial is None:
            if RESTARTING in str(error) or UNREACHABLE in str(error):
                if UNREACHABLE in str(error):  # the process or its node is frozen and would not end by itself
                    slot.kill(restart=True)
                slot.not_before = now + 1.0  # the next process, or the next node, has to come first
                return
            self._report(event, slot, reason=reason)
            slot.deaths += 1
            if slot.deaths == LOADING_DEATHS:
                raise RuntimeError(f"a worker ended {slot.deaths} times while it was loading its models: {error}")
            return
        self.answered = now
        trial.died(event)
        trial.not_before = now + trial.pause_s()
        waiting.insert(0, trial)
        row = trial.suspects[0] if trial.suspects and trial.strikes else None
        self._report(event, slot, shard=trial.job.name, row=row, deaths=trial.deaths, reason=reason)
        where = f"death {trial.deaths}" if row is None else f"row {row}"
        how = "image by image" if trial.suspects else "again"
        self.say(f"a worker {event} on {trial.job.name} ({where}); trying {how}")

    def _raised(self, error: Any, trial: Trial | None, waiting: list[Trial]) -> None:
        """A worker raised. A failure of storage is tried again, anything else ends the run."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if trial is not None and isinstance(cause, OSError):
            trial.io_errors += 1
            if trial.io_errors < IO_ATTEMPTS:
                trial.not_before = time.monotonic() + 2.0**trial.io_errors
                waiting.insert(0, trial)
                self.report("again", shard=trial.job.name, reason=str(cause))
                self.say(f"{trial.job.name}: {cause}; trying again")
                return
        if getattr(cause, "user_facing", False):
            raise cause
        if trial is None and isinstance(cause, ValueError | FileNotFoundError):
            raise UserError(str(cause)) from error
        raise error

    def _end_the_hung(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.trial is None or slot.call is None or slot.hung:
                continue
            limit = max(self.deadline_s / 10, min(self.deadline_s, 30.0)) if slot.trial.suspects else self.deadline_s
            if now - slot.since > limit:
                slot.hung = True
                self.say(f"{slot.trial.job.name}: no answer for {limit:g} s; ending the worker")
                slot.kill(restart=True)

    def _count_photos(self) -> None:
        """Ask the actors at work for the photos they have done, and pass on what has come, without waiting.

        An actor that dies does not answer; its death is seen by its call.
        """
        import ray

        now = time.monotonic()
        for slot in self.slots:
            if slot.trial is None:
                continue
            if slot.count is None and now - slot.asked >= COUNT_EVERY_S:
                slot.count, slot.asked = slot.actor.photos_done.options(concurrency_group="count").remote(), now
            elif slot.count is not None and ray.wait([slot.count], timeout=0)[0]:
                with contextlib.suppress(ray.exceptions.RayError):
                    self.photos_done(slot.trial.job.name, ray.get(slot.count))
                slot.count = None
