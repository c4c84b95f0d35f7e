"""Shards to workers and back: long-lived Ray actors, one call per shard, every death seen and answered.

In: `Job`s and a function that makes a worker. Out: each job with what its worker returned, as they finish. An actor owns a device
(a GPU, a share of one, or CPU cores) and loads its models once. The driver decides what happens after a death (`Trial`): the shard
is handed out again after a pause; after the second death its images are tried one by one, each in a process that has survived
the last, so that only the image that kills is left out. A call that outlasts its deadline has its process ended and counts as a death.
"""

import functools
import math
import os
import socket
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jobs import ledger, run_log
from jobs.cli import UserError
from jobs.config import Settings

ROOT = Path(__file__).resolve().parents[1]
MAX_PAUSE_S = 30.0
LOADING_DEATHS = 5  # in a row, of one actor, before it is given up
RESTARTING = "The actor is restarting"  # Ray's words for a call that came between two processes of an actor
START_ATTEMPTS = 3  # of a Ray of our own
FIT_EVERY_S = 5.0  # between looks for nodes that have joined
IO_ATTEMPTS = 3  # of a shard whose storage fails


@dataclass(frozen=True)
class Job:
    """One shard's work.

    Attributes:
        name: of the shard; `ray list tasks` and the dashboard show it.
        rows: row numbers of the shard to do.
        work: what the worker needs to know besides; small and picklable. Pixels stay in storage.
    """

    name: str
    rows: tuple[int, ...]
    work: Any = None


class Worker(Protocol):
    """What runs inside an actor."""

    def load(self) -> dict[str, Any]:
        """Import and load everything; return versions and device for the record."""

    def run(self, job: Job, skip: dict[int, str], single: bool) -> Any:
        """Do a shard, write its output, return a small account. `skip`: row -> reason; those rows fail without being
        looked at. `single`: one image at a time."""

    def probe(self, job: Job, row: int) -> None:
        """Do one image and write nothing: does the process survive it?"""


# ---------------------------------------------------------------------------------------------------------------------
# What follows a death. Plain Python, no Ray.


@dataclass
class Trial:
    """A job on its way, and what its deaths have taught."""

    job: Job
    deaths: int = 0
    io_errors: int = 0
    suspects: list[int] = field(default_factory=list)  # rows still to be tried alone; empty: the whole shard is tried
    strikes: int = 0  # deaths of the first suspect alone
    guilty: dict[int, str] = field(default_factory=dict)
    not_before: float = 0.0

    def next_call(self) -> tuple[str, tuple]:
        """Method of `Worker` and its arguments after the job."""
        if self.suspects:
            return "probe", (self.suspects[0],)
        return "run", (dict(self.guilty), self.deaths >= 3)

    def survived(self) -> bool:
        """The call came back; True when the whole job is done."""
        if not self.suspects:
            return True
        self.suspects.pop(0)
        self.strikes = 0
        return False

    def died(self, how: str) -> None:
        """Decide what to try next after the process ended; `how`: "died" or "hung"."""
        if self.suspects:
            self.strikes += 1
            if self.strikes == 2:
                self.guilty[self.suspects.pop(0)] = f"the process {how} on this image alone, twice"
                self.strikes = 0
            return
        self.deaths += 1
        if self.deaths == 2:
            self.suspects = list(self.job.rows)
        elif self.deaths == 5:  # twice whole, once without the guilty, twice image by image: nothing is left to try
            self.guilty |= {row: f"the process {how} on this shard, though on no image alone" for row in self.job.rows
                            if row not in self.guilty}  # fmt: skip

    def pause_s(self) -> float:
        """Seconds to wait after a death: 0.5, 1, 2 … up to half a minute."""
        return min(MAX_PAUSE_S, 0.5 * 2 ** min(10, max(0, self.deaths - 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Ray.


started_here = False  # whether this process's Ray is its own, which no node ever joins


@dataclass(frozen=True)
class Share:
    """What one actor gets: `n` actors, the device they see, and what they ask Ray for."""

    n: int  # those that wait for a node to join included
    device: str  # "cuda" or "cpu"
    gpus: float
    cpus: int


def start_ray(settings: Settings) -> None:
    """Join or start a Ray large enough for the settings' actors, on nodes that have what this process has.

    Raises:
        UserError: no cluster answers, or a node has other packages or other code.
    """
    wanted = max(
        [n for n in (settings.actors, settings.detect.actors, settings.embed.actors) if isinstance(n, int)], default=1
    )
    join_ray(n_cpus=wanted * settings.threads_per_actor)
    same_on_all_nodes()


def join_ray(n_cpus: int = 1, *, show_workers: bool = False) -> None:
    """Join the cluster RAY_ADDRESS names (or `ray start` left on this machine), or start one here; once per process.

    Args:
        n_cpus: what a Ray of our own says it has, where the machine has fewer: with one thread each, workers share cores.
        show_workers: whether what workers print comes here.
    """
    global started_here
    ours = "RAY_ADDRESS" not in os.environ
    if ours:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "disabled"
        )  # unset, a private cluster may leave a token file that later ones ask for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts Ray's helpers slowly
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": "error"}
    if show_workers:  # what they print; Ray Train's own helpers warn each second of a dashboard that we do without
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    if os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address():
        try:
            ray.init(**quiet)
            started_here = False
            return
        except ConnectionError as error:
            if not ours:
                raise UserError(
                    f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers ({error}); is it up, and does it ask for a token "
                    "(RAY_AUTH_MODE=token)?"
                ) from error
    n_cpus = max(os.cpu_count() or 1, n_cpus)
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=200_000_000, **quiet)
            started_here = True
            return
        except Exception:  # Ray gives a busy machine 30 s to start its processes and then raises a bare Exception
            ray.shutdown()
            if not attempts_left:
                raise


def same_on_all_nodes() -> None:
    """Ask every other node for its versions; a worker that joins later is asked when it loads (`Pool`).

    Raises:
        UserError: one differs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = [  # a pair a node, as several nodes may share a machine's address
        (
            address,
            ray.remote(ledger.versions)
            .options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), runtime_env=our_code()
            )
            .remote(),
        )
        for node, address in nodes.items()
        if node != here
    ]
    for address, answer in asked:
        there: Any = ray.get(answer, timeout=120)
        refuse_other_versions(address, there)


def refuse_other_versions(node: str, there: Mapping[str, Any]) -> None:
    """Raises:
    UserError: packages or our own code are not what this process has: results would depend on which node a shard met.
    """
    here = ledger.versions()
    other = [name for name in here if name != "machine" and name in there and there[name] != here[name]]
    if other:
        told = ", ".join(f"{name} {there[name]} (here {here[name]})" for name in other)
        raise UserError(f"node {node} has {told}; install the same lock and copy the same code on every node")


def share_out(settings: Settings, actors: int | str | None, n_jobs: int, *, gpu: bool = True) -> Share:
    """How many actors a stage gets and what each owns.

    Args:
        actors: the stage's own setting; None: the run's.
        n_jobs: never more actors than shards.
        gpu: False for stages that have no use for one.

    A number of actors that the cluster has no room for is asked for all the same: on a cluster that others started, nodes may join.

    Raises:
        UserError: a GPU is asked for and the cluster has none, nor may get one.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors = settings.actors if actors is None else actors
    wanted = math.inf if actors == "auto" else int(actors)
    threads = settings.threads_per_actor
    with_gpus = [(n, int(node.get("CPU", 0))) for node in nodes if (n := fitting(node, settings.gpus_per_actor))]
    may_come = settings.device == "cuda" and actors != "auto" and not started_here
    if gpu and settings.device == "cuda" and not with_gpus and not may_come:
        have = [node.get("GPU", 0) for node in nodes]
        apart = f", {max(have):g} on one node at most" if sum(have) >= settings.gpus_per_actor else ""
        raise UserError(
            f"device: cuda asks for {settings.gpus_per_actor:g} GPU an actor and the cluster has {sum(have):g}{apart}; use device: auto "
            "or cpu, or --set actors=N on a cluster whose autoscaler starts N of them"
        )
    if gpu and settings.device != "cpu" and (with_gpus or may_come):
        cpus = min([threads, *(max(1, int(n_cpus // min(n, wanted))) for n, n_cpus in with_gpus)])
        room = sum(min(n, n_cpus // cpus) for n, n_cpus in with_gpus)
        n = room if actors == "auto" else int(actors)
        return Share(max(1, min(n, n_jobs)), "cuda", settings.gpus_per_actor, cpus)
    n = sum(int(node.get("CPU", 0) // threads) for node in nodes) if actors == "auto" else int(actors)
    return Share(max(1, min(n, n_jobs)), "cpu", 0.0, threads)


def fitting(node: Mapping[str, float], gpus: float) -> int:
    """How many actors of so many GPUs each a node has the GPUs for; a share is of one GPU."""
    n_gpus = node.get("GPU", 0.0)
    return int(n_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(n_gpus // gpus)


def unused_gpus(share: Share) -> str:
    """A remark on GPUs of the cluster that no actor of this share will use; "" when there are none."""
    import ray

    have = ray.cluster_resources().get("GPU", 0.0)
    used = share.n * share.gpus
    return f"; {have - used:g} of {have:g} GPUs idle" if have - used >= 1 and share.device == "cuda" else ""


class Host:
    """The actor: makes its worker at the first call, so that what goes wrong there is an answer and not a death.

    Every method answers with what the worker said and the facts of the call: `began` (seconds since 1970), `wall_s`, `waited_s` (idle
    before it), by the actor's own clock, and the process's memory after it.
    """

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.make = make
        self.ended: float | None = None

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
        return answer, facts | run_log.memory()

    @functools.cached_property
    def loaded(self) -> tuple[Worker, dict[str, Any]]:
        worker = self.make()
        return worker, worker.load() | {"node": socket.gethostname(), "pid": os.getpid()}


def start_actor(make: Callable[[], Worker], share: Share) -> Any:
    import ray

    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(share.cpus))
    options = {"num_gpus": share.gpus, "num_cpus": share.cpus, "max_restarts": -1, "max_task_retries": 0}
    return ray.remote(Host).options(runtime_env=our_code(threads), **options).remote(make)


def our_code(env: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """A runtime environment whose processes find our packages where this process has them, and these variables."""
    found = dict(env)
    if "working_dir" not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):  # a submitted job brings its own copy
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {"env_vars": found}


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
    tick: Callable[[], None] = lambda: None  # called about once a second
    say: Callable[[str], None] = lambda line: None
    tell: Callable[..., None] = lambda event, **facts: (
        None
    )  # each event, as `jobs.run_log` lists them; `answer` with a shard's
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
                        refuse_other_versions(answer["node"], answer)
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
        now = self.answered = time.monotonic()
        how, slot.hung, slot.loaded = "hung" if slot.hung else "died", False, False
        if trial is None:
            if RESTARTING in str(error):  # the call found no process; a node may have to come first
                slot.not_before = now + 1.0
                return
            self._tell(how, slot, reason=str(error).partition("\n")[0])
            slot.deaths += 1
            if slot.deaths == LOADING_DEATHS:
                raise RuntimeError(f"a worker ended {slot.deaths} times while it was loading its models: {error}")
            return
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
