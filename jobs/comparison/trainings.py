"""The trainings of a comparison as Ray tasks, and the row that each finished one leaves in its folder."""

import argparse
import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.comparison.plan import SeedRun
from jobs.reports.training import fact_text
from jobs.runs import cluster
from jobs.runs.progress import say
from jobs.training.launch import World
from store.errors import UserError
from store.objects import ObjectMissing, ObjectStore

TRAINING = "jobs.train_embedder"  # called by name, as `jobs.training.launch` does: commands are above this room
ROW = "compared.json"
CROPS = "crops"  # folder under OUTPUT for cut garments, until nothing is left to train


def train_all(
    store: ObjectStore, todo: Sequence[SeedRun], args: argparse.Namespace, ends: float
) -> tuple[dict[SeedRun, dict[str, Any]], dict[SeedRun, str]]:
    """Run these trainings, with output, threads and device of `args`; none begins after `time.monotonic` is `ends`.

    Returns the rows of those that finished, and why others failed; those without time are in neither.
    """
    rows: dict[SeedRun, dict[str, Any]] = {}
    failures: dict[SeedRun, str] = {}
    # cut garments are mapped files, which a bucket cannot hold; a plan's own --crops comes later in the line and wins
    crops = ["--crops", str(store.local_path / CROPS)] if store.local_path else []
    for seed_run, failure in _run_tasks(todo, crops, args, ends) if todo else ():
        row = None if failure else _finish(store, seed_run)
        if failure:
            failures[seed_run] = failure
        elif row:
            rows[seed_run] = row
        result = failure or (f"held out: {fact_text(row['held_out'])}" if row else "time is over before its last step")
        say(f"{seed_run.variant}, seed {seed_run.seed}: {result}")
    return rows, failures


def _run_tasks(
    todo: Sequence[SeedRun], crops: Sequence[str], args: argparse.Namespace, ends: float
) -> Iterator[tuple[SeedRun, str]]:
    """Each training as it ends, with why it failed, or ""."""
    import ray  # takes seconds; a finished comparison needs none

    cluster.join_ray(args.threads, show_workers=True)
    there = ray.cluster_resources()
    device = args.device if args.device != "auto" else "cuda" if there.get("GPU") else "cpu"
    if device.startswith("cuda") and not there.get("GPU"):
        raise UserError(f"--device {device}: the cluster has no GPU; take one of: cpu")
    slots = max(1, int(there.get("CPU", 1)) // args.threads)
    n_gpus = 1 if device.startswith("cuda") else 0
    # max_calls: each training has a process of its own, so that its memory is freed
    task: Any = ray.remote(max_calls=1, max_retries=0, num_cpus=args.threads, num_gpus=n_gpus)(train)
    waiting = list(todo)
    running: dict[Any, SeedRun] = {}
    while waiting or running:
        while waiting and len(running) < slots and time.monotonic() < ends:
            seed_run = waiting.pop(0)
            minutes = max(0.1, (ends - time.monotonic()) / 60)
            more = ["--output", f"{args.output.rstrip('/')}/{seed_run.folder}", "--minutes", f"{minutes:.2f}"]
            more += ["--threads", str(args.threads), "--device", device]
            more += ["--endpoint-url", args.endpoint_url] if args.endpoint_url else []
            running[task.remote([*crops, *seed_run.argv, *more])] = seed_run
        if not running:
            return
        for done in ray.wait(list(running), num_returns=1)[0]:
            seed_run = running.pop(done)
            try:
                yield seed_run, ray.get(done)
            except ray.exceptions.RayError as error:
                yield seed_run, f"its process died: {' '.join(str(error).split())[:200]}"


def train(argv: list[str]) -> str:
    """One training, in the process of a Ray task; returns "" or why it failed."""
    try:
        importlib.import_module(TRAINING).train(argv, World())
    except Exception as error:  # another variant may well succeed; the table says why this one did not
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def read_row(store: ObjectStore, seed_run: SeedRun) -> dict[str, Any] | None:
    """The row of a finished training; None where it is unfinished or was done with other flags."""
    try:
        row: dict[str, Any] = json.loads(store.read(f"{seed_run.folder}/{ROW}"))
    except ObjectMissing:
        return None
    return row if row["argv"] == list(seed_run.argv) else None


def _finish(store: ObjectStore, seed_run: SeedRun) -> dict[str, Any] | None:
    """Turn a training's summary into a row, written last; None where time was over before its last step."""
    summary: Mapping[str, Any] = json.loads(store.read(f"{seed_run.folder}/summary.json"))
    if summary["stopped_at"] < summary["of_steps"]:
        return None
    row = {
        "variant": seed_run.variant, "seed": seed_run.seed, "argv": list(seed_run.argv),
        "held_out": summary["held_out"], "validation": summary.get("validation"), "seconds": summary["seconds"],
        "crops": summary["crops"], "ranks": json.loads(store.read(f"{seed_run.folder}/ranks.json")),
    }  # fmt: skip
    store.write(f"{seed_run.folder}/{ROW}", json.dumps(row).encode())
    return row
