"""The bench on which the variants of an ablation are judged as Ray tasks.

In: a finished run (`jobs.runs.finished`). Out: answers, each stored under OUTPUT/ablation/, so that a stopped ablation
goes on where it was.
"""

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.cli import one_line
from jobs.runs import cluster
from jobs.runs.finished import FinishedRun
from jobs.runs.marks import as_json, fingerprint, read_json
from jobs.runs.progress import say

ANSWERS = "ablation/"  # folder of the answers, a file a variant


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a technique is asked for: its name fits one of the patterns, or there are none."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@dataclass
class Bench:
    """Judges variants on Ray, each once: answers are stored and taken from there the next time."""

    run: FinishedRun
    basis: str  # fingerprint of what every answer follows from besides the variant
    n_parallel: int | None = None  # variants judged at once; None: as cores and memory allow
    failures: dict[str, str] = field(default_factory=dict)  # "PART, VARIANT" -> why it could not be judged

    @cached_property
    def answers(self) -> dict[str, dict[str, Any]]:
        """Fingerprint -> answer, of everything that was ever judged in this folder."""
        keys = [info.key for info in self.run.store.list(ANSWERS) if info.key.endswith(".json")]
        stored = {key.removeprefix(ANSWERS).removesuffix(".json"): read_json(self.run.store, key) for key in keys}
        return {key: answer for key, answer in stored.items() if answer}

    def judge(
        self, part: str, variants: Mapping[str, Mapping[str, Any]], task: Callable[..., dict[str, Any]],
        shared: Any, need_mb: float, task_name: str,
    ) -> dict[str, dict[str, Any]]:  # fmt: skip
        """Judge the variants that have no stored answer.

        Args:
            part: which part of the run is judged: "boxes", or the kind of boxes that searches are judged on.
            variants: name -> keyword arguments of the task, plain JSON: the answer follows from them and the basis.
            task: a function of a module, called with `shared` first; returns plain JSON.
            shared: goes to Ray's object store, once.
            need_mb: memory of one task besides `shared`.
            task_name: part of the answers' fingerprints; under another name every variant is judged again.

        Returns:
            name -> answer; variants that failed are absent.
        """
        keys = {
            name: fingerprint({"basis": self.basis, "on": part, "task": task_name, "arguments": arguments})
            for name, arguments in variants.items()
        }
        if todo := {name: variants[name] for name, key in keys.items() if key not in self.answers}:
            self._run(part, todo, keys, task, shared, need_mb)
        return {name: self.answers[key] for name, key in keys.items() if key in self.answers}

    def _run(
        self, part: str, todo: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str],
        task: Callable[..., dict[str, Any]], shared: Any, need_mb: float,
    ) -> None:  # fmt: skip
        import ray  # takes seconds; an ablation with nothing to do needs none

        cluster.join_ray()
        reference = ray.put(shared)
        environment = cluster.our_code({"OMP_NUM_THREADS": "1"})
        remote = ray.remote(task).options(num_cpus=1, max_retries=1, runtime_env=environment)
        resources = ray.cluster_resources()
        room_mb = 0.8 * resources.get("memory", 4e9) / 1e6
        n = self.n_parallel or max(1, int(min(resources.get("CPU", 1), room_mb / need_mb)))
        waiting, started = list(todo), time.monotonic()
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and len(running) < n:
                name = waiting.pop(0)
                running[remote.remote(reference, **todo[name])] = name
            (done,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = self.failures[f"{part}, {name}"] = _reason(error)
                say(f"ablation: {part}, {name} could not be judged: {reason}")
                continue
            self.run.store.write(f"{ANSWERS}{keys[name]}.json", as_json(answer))
            self.answers[keys[name]] = answer
            left = len(waiting) + len(running)
            say(f"ablation: {part}, {name} judged, {left} to go, {time.monotonic() - started:.0f} s")


def _reason(error: Exception) -> str:
    """Why a Ray task failed, in one line: what it raised, else the first line of what Ray says."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return one_line(f"{type(cause).__name__}: {cause}" if cause is not None else (lines or [repr(error)])[0])[:300]
