"""Shards to workers and back: long-lived Ray actors, one call per shard, every death seen and answered.

In: `Job`s and a function that makes a worker. Out: each job with what its worker returned, as they finish. An actor owns a device
(a GPU, a share of one, or CPU cores) and loads its models once. What follows a death is `jobs.trial`'s to say. A call that outlasts its
deadline has its process ended and counts as a death.
"""

import ctypes
import functools
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs import gpu_busy, ray_cluster, run_log
from jobs.cli import UserError
from jobs.ray_cluster import Share
from jobs.trial import Job, Trial

LOADING_DEATHS = 5  # in a row, of one actor, before it is given up
RESTARTING = "The actor is restarting"  # Ray's words for a call that came between two processes of an actor,
UNREACHABLE = "failed to connect"  # and for one whose process does not speak
FIT_EVERY_S = 5.0  # between looks for nodes that have joined
IO_ATTEMPTS = 3  # of a shard whose storage fails


class Worker(Protocol):
    """What runs inside an actor."""

    def load(self) -> dict[str, Any]:
        """Import and load everything; return versions and device for the record."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> Any:
        """Do a shard, write its output, return a small account. `skip`: row -> reason; those rows fail without being
        looked at. `single`: one image at a time."""

    def probe(self, job: Job, row: int) -> None:
        """Do one image and write nothing: does the process survive it?"""


class Host:
    """The actor: makes its worker at the first call, so that what goes wrong there is an answer and not a death.

    Every method answers with what the worker said and the facts of the call: `began` (seconds since 1970), `wall_s`, `waited_s` (idle
    before it), by the actor's own clock, the process's memory after it, and `gpu_busy` where the actor has a GPU.
    """

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.make = make
        self.ended: float | None = None
        self.gpu: gpu_busy.GpuBusy | None = None

    def load(self) -> tuple[dict[str, Any], dict[str, float]]:
        """What the worker's `load` says, and where it is."""
        return self._timed(lambda: self.loaded[1])

    def run(self, job: Job, skip: dict[int, str], single: bool) -> tuple[Any, dict[str, float]]:
        return self._timed(lambda: self.loaded[0].run(job, skip, single))

    def probe(self, job: Job, row: int) -> tuple[None, dict[str, float]]:
        return self._timed(lambda: self.loaded[0].probe(job, row))

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        began, start = time.time(), time.monotonic()
        waited = start - (start if self.ended is None else self.ended)
        answer = call()
        self.ended = time.monotonic()
        facts = {"began": round(began, 3), "wall_s": round(self.ended - start, 3), "waited_s": round(waited, 3)}
        if self.gpu and (busy := self.gpu.mean()) is not None:
            facts["gpu_busy"] = round(busy, 3)
        return answer, facts | run_log.memory()

    @functools.cached_property
    def loaded(self) -> tuple[Worker, dict[str, Any]]:
        keep_freed_memory()
        worker = self.make()
        account = worker.load()
        if account.get("device") == "cuda":
            self.gpu = gpu_busy.watch()
        return worker, account | {"node": socket.gethostname(), "pid": os.getpid()}


def keep_freed_memory() -> None:
    """Ask glibc to keep blocks of up to 32 MB, half a GB in all, when they are freed.

    Photos and activations come and go in megabytes; each time they were given back, the system would clear their pages anew, a
    third of the time of decoding (benchmarks/scaling.py). Another C library has no `mallopt` and is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        mallopt(trim_threshold, 1 << 29)
        mallopt(mmap_threshold, 1 << 25)


def start_actor(make: Callable[[], Worker], share: Share) -> Any:
    import ray

    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(share.cpus))
    options = {"num_gpus": share.gpus, "num_cpus": share.cpus, "max_restarts": -1, "max_task_retries": 0}
    return ray.remote(Host).options(runtime_env=ray_cluster.our_code(threads), **options).remote(make)


@dataclass
class Slot:
    """One actor and what it is doing."""

    actor: Any
    number: int = 0  # in the stage, from 0
    account: Mapping[str, Any] = field(default_factory=dict)  # what its `load` said
    call: Any = None
    trial: Trial | None = None
    loaded: bool = False
    since: float = 0.0
    not_before: float = 0.0
    deaths: int = 0  # while loading, in a row
    hung: bool = False


def _silent(*_: Any, **__: Any) -> None:
    pass


@dataclass
class Pool:
    """The actors of one stage; a context manager, which ends them.

    All are asked for at once, those that no node has room for yet too: that is what makes an autoscaler start nodes. While
    shards wait, `enough` is asked for a larger number; when none waits any more, actors without work go, and their nodes may.
    """

    make: Callable[[], Worker]
    share: Share
    deadline_s: float
    enough: Callable[[int], int] = lambda n_jobs: 0  # how many actors the cluster has room for now, for so many shards
    tick: Callable[[], None] = _silent  # called about once a second
    say: Callable[[str], None] = _silent
    tell: Callable[..., None] = (
        _silent  # each event with its facts, as `jobs.run_log` lists them; a shard's has `answer`
    )
    accounts: list[dict[str, Any]] = field(default_factory=list)  # what each actor's `load` returned
    slots: list[Slot] = field(default_factory=list)
    node_wait_s: float = math.inf  # how long there may be no actor at all: at the start, or after all have died
    answered: float = field(default_factory=time.monotonic)  # when an actor last did
    fitted: float = field(default_factory=time.monotonic)  # when `enough` was last asked
    started: int = 0  # actors so far

    def __enter__(self) -> "Pool":
        self._start(self.share.n)
        return self

    def _start(self, n: int) -> None:
        """So many actors more."""
        self.slots += [Slot(start_actor(self.make, self.share), self.started + i) for i in range(n)]
        self.started += n

    def __exit__(self, *_: object) -> None:
        import ray

        for slot in self.slots:
            ray.kill(slot.actor)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        """Every job once, with the worker's account, in the order they finish.

        Raises:
            Whatever a worker raised that is no death: the run ends there.
        """
        import ray

        waiting = [Trial(job) for job in jobs]
        left = len(waiting)
        while left:
            self._fit(waiting)
            self._hand_out(waiting)
            calls = {slot.call: slot for slot in self.slots if slot.call is not None}
            if not calls:
                time.sleep(0.1)  # what is left to call rests after a death
            for call in ray.wait(list(calls), num_returns=1, timeout=1.0)[0] if calls else ():
                slot = calls[call]
                trial, slot.call, slot.trial = slot.trial, None, None
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
                        ray_cluster.refuse_other_versions(answer["node"], answer)
                        self.accounts.append(answer)
                        self._tell("loaded", slot, device=answer.get("device"), **facts)
                    elif not trial.survived():
                        waiting.insert(0, trial)
                    else:
                        left -= 1
                        self._hand_out(waiting)  # first of all: the actor works on while the answer is looked at
                        self._tell(
                            "shard", slot, shard=trial.job.name, images=len(trial.job.rows), answer=answer, **facts
                        )
                        yield trial.job, answer
            self._end_the_hung()
            self.tick()

    def _tell(self, event: str, slot: Slot, **facts: Any) -> None:
        where = {"actor": slot.number, "node": slot.account.get("node"), "pid": slot.account.get("pid")}
        self.tell(event, **where, **facts)

    def _fit(self, waiting: list[Trial]) -> None:
        """More actors where nodes have joined, fewer where nothing waits."""
        import ray

        now = time.monotonic()
        if not any(slot.loaded for slot in self.slots) and now - self.answered > self.node_wait_s:
            what = f"{self.share.gpus:g} GPU and " if self.share.gpus else ""
            raise UserError(
                f"no actor could start in {self.node_wait_s:g} s: no node has {what}{self.share.cpus} CPU free, or loading takes longer; "
                "look at `ray status`, or raise node_wait_s"
            )
        busy = [slot for slot in self.slots if slot.trial is not None]
        if waiting and now - self.fitted > FIT_EVERY_S:
            self.fitted = now
            more = min(self.enough(len(waiting) + len(busy)), len(waiting) + len(busy)) - len(self.slots)
            if more > 0:
                self.say(f"room for {more} more actors")
                self._start(more)
        elif not waiting and busy:
            for slot in self.slots:
                if slot.trial is None:
                    ray.kill(slot.actor)
            self.slots = busy

    def _hand_out(self, waiting: list[Trial]) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.call is not None or now < slot.not_before:
                continue
            slot.since = now
            if not slot.loaded:
                slot.call = slot.actor.load.remote()
                continue
            trial = next((trial for trial in waiting if trial.not_before <= now), None)
            if trial is not None:
                waiting.remove(trial)
                method, arguments = trial.next_call()
                call = getattr(slot.actor, method).options(name=f"{method} {trial.job.name}")
                slot.trial, slot.call = trial, call.remote(trial.job, *arguments)

    def _died(self, slot: Slot, trial: Trial | None, waiting: list[Trial], error: Exception) -> None:
        """A process ended: its shard is tried again, its actor comes back."""
        import ray

        now = time.monotonic()
        how, slot.hung, slot.loaded = "hung" if slot.hung else "died", False, False
        if trial is None:
            if RESTARTING in str(error) or UNREACHABLE in str(error):
                if UNREACHABLE in str(error):  # frozen, or its node is: it would not end by itself
                    ray.kill(slot.actor, no_restart=False)
                slot.not_before = now + 1.0  # the next process, or the next node, has to come first
                return
            self._tell(how, slot, reason=str(error).partition("\n")[0])
            slot.deaths += 1
            if slot.deaths == LOADING_DEATHS:
                raise RuntimeError(f"a worker ended {slot.deaths} times while it was loading its models: {error}")
            return
        self.answered = now
        trial.died(how)
        trial.not_before = now + trial.pause_s()
        waiting.insert(0, trial)
        row = trial.suspects[0] if trial.suspects and trial.strikes else None
        self._tell(how, slot, shard=trial.job.name, row=row, deaths=trial.deaths, reason=str(error).partition("\n")[0])
        where = f"death {trial.deaths}" if row is None else f"row {row}"
        self.say(
            f"a worker {how} on {trial.job.name} ({where}); trying {'image by image' if trial.suspects else 'again'}"
        )

    def _raised(self, error: Any, trial: Trial | None, waiting: list[Trial]) -> None:
        """A worker raised. Storage gets another chance, anything else ends the run."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if trial is not None and isinstance(cause, OSError):
            trial.io_errors += 1
            if trial.io_errors < IO_ATTEMPTS:
                trial.not_before = time.monotonic() + 2.0**trial.io_errors
                waiting.insert(0, trial)
                self.tell("again", shard=trial.job.name, reason=str(cause))
                self.say(f"{trial.job.name}: {cause}; trying again")
                return
        if getattr(cause, "user_facing", False) or isinstance(cause, UserError):
            raise cause
        if trial is None and isinstance(cause, ValueError | FileNotFoundError):
            raise UserError(str(cause)) from error
        raise error

    def _end_the_hung(self) -> None:
        import ray

        now = time.monotonic()
        for slot in self.slots:
            if slot.trial is None or slot.call is None or slot.hung:
                continue
            limit = max(self.deadline_s / 10, min(self.deadline_s, 30.0)) if slot.trial.suspects else self.deadline_s
            if now - slot.since > limit:
                slot.hung = True
                self.say(f"{slot.trial.job.name}: no answer for {limit:g} s; ending the worker")
                ray.kill(slot.actor, no_restart=False)
