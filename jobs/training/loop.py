"""The training loop of detectors and embedders: steps, log lines, measurements, checkpoints, the final files.

What differs between the two is a `ModelTraining`: see `jobs.training.detector` and `jobs.training.embedder`.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jobs.training.launch import World
from jobs.training.run import LogInterval, TrainingRun, rate_share
from store.errors import UserError


class ModelTraining(Protocol):
    """One worker's model and data; a checkpoint of another `identity` (plain JSON values) is not continued."""

    name: str
    identity: dict[str, Any]

    def build(self, *, fresh: bool) -> str:
        """Make the model and its optimiser; returns a line about the data. fresh: no checkpoint will be loaded."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values only."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; its "step" is the number of steps that were made."""

    def batches(self, steps: range) -> Iterator[tuple[int, Any]]:
        """Each step with this worker's part of its batch."""

    def gradients(self, step: int, batch: Any) -> dict[str, float]:
        """Gradients of all workers together; returns the losses, "loss" their sum. FloatingPointError: not finite."""

    def update(self, rate_share: float) -> None:
        """One step of the optimiser at this share of the highest learning rates."""

    def measure(self, run: TrainingRun, step: int) -> None:
        """Log figures on held-out data; called in the first worker alone."""

    def finish(self, run: TrainingRun, step: int, seconds: float) -> None:
        """Publish weights, report and summary; called in the first worker alone."""


def train(training: ModelTraining, args: argparse.Namespace, world: World) -> int:
    """Train from the newest checkpoint, or the start, to the last step or the end of --minutes; returns 0.

    UserError: the checkpoint is of another training, or the loss is not finite.
    """
    first = world.rank == 0
    how = {"keep": args.keep, "writes": first, "endpoint_url": args.endpoint_url}
    with TrainingRun(args.output, training.identity, **how) as run:
        state = run.resume()
        start, seconds = (state["step"], state["seconds"]) if state else (0, 0.0)
        if world.mean({"step": start})["step"] != start:
            raise UserError(f"{args.output}: workers see different checkpoints; use a bucket or a shared folder")
        data = training.build(fresh=state is None)
        if state:
            with run.restoring():
                training.load(state)
        if first:
            length = f"{args.steps} steps of {args.batch_size}"
            print(f"{training.name}: {data}, {length}, {world.size} worker(s)", flush=True)
        began = time.monotonic() - seconds
        done = _steps(training, args, world, run, start, began)
        if first:
            training.finish(run, done, time.monotonic() - began)
        world.wait()
    return 0


def _steps(
    training: ModelTraining, args: argparse.Namespace, world: World, run: TrainingRun, start: int, began: float
) -> int:
    """Make the steps that are left; returns how many are made in all.

    `began` is the moment at which the training would have begun, had it never been stopped in between.
    """
    interval = LogInterval(training.name, args.steps, start)
    drops = args.drops if args.schedule == "steps" else ()
    deadline = time.monotonic() + args.minutes * 60  # of this start
    done = start
    for step, batch in training.batches(range(start, args.steps)):
        try:
            losses = training.gradients(step, batch)
        except FloatingPointError as error:
            raise UserError(f"{training.name}, step {step}: {error}; try a lower --lr than {args.lr}") from None
        share = rate_share(step, args.steps, args.warm_up, drops)
        training.update(share)
        interval.add(losses)
        done = step + 1
        out_of_time = math.isfinite(args.minutes) and world.broadcast(time.monotonic() > deadline)
        last = out_of_time or done == args.steps
        if done % args.log_every == 0 or last:
            figures, line = interval.close(done, args.lr * share)
            run.log(done, "train", figures)
            if run.writes:
                print(line, flush=True)
        # `finish` measures the last step
        measure_now = args.eval_every and done % args.eval_every == 0 and not last
        if measure_now:
            with interval.paused():
                if run.writes:
                    training.measure(run, done)
                world.wait()
        if measure_now or last or done % args.save_every == 0:
            run.save(done, {**training.state(), "seconds": time.monotonic() - began})
        if out_of_time:
            break
    if run.writes and done < args.steps:
        over = f"{args.minutes:g} minutes are over at step {done}"
        print(f"{training.name}: {over}; repeat the command to continue", flush=True)
    return done
