"""A training's folder: what both training jobs write, how it is continued, and the lines that say how it goes.

    OUTPUT/checkpoints/step-00000200.pt   the newest `keep`, published whole; nothing in them is executed on reading
    OUTPUT/log.jsonl                      a line an interval: {"step", "part": train | held_out, …figures}
    OUTPUT/tensorboard/                   the same figures for TensorBoard
    OUTPUT/MODEL.safetensors              float16, what `weights/` ships
    OUTPUT/summary.json  report/          what it came to

OUTPUT is a folder or s3://BUCKET/PREFIX. The log of a step is published before its checkpoint, and lines after the
checkpoint one goes on from are dropped, so that no interval is lost or told twice.
"""

import contextlib
import hashlib
import io
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from jobs.cli import UserError
from store.objects import ObjectMissing, ObjectStore, open_store

CHECKPOINTS, LOG, SUMMARY, TENSORBOARD = "checkpoints/", "log.jsonl", "summary.json", "tensorboard/"


class TrainingRun:
    """One training's folder.

    Args:
        output: path or s3:// of the folder.
        same: what has to be equal for its checkpoints to be continued; plain JSON values.
        keep: how many of the newest checkpoints stay.
        writes: False for all but the first of several workers: they read checkpoints and write nothing.
        endpoint_url: of an S3-compatible server; None: AWS_ENDPOINT_URL, else AWS.
    """

    def __init__(
        self,
        output: str | Path,
        same: Mapping[str, Any],
        *,
        keep: int = 2,
        writes: bool = True,
        endpoint_url: str | None = None,
    ) -> None:
        self.store: ObjectStore = open_store(output, endpoint_url=endpoint_url)
        self.same = json.loads(json.dumps(same))
        self.keep, self.writes = keep, writes
        self.lines: list[dict[str, Any]] = []
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._events: Any = None
        self.step = 0

    # ------------------------------------------------------------------------------------------------ going on

    def resume(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that can be read; None where there is none.

        Raises:
            UserError: it is of another training (model, data, seed, length or rates), or holds more than tensors and plain
                values, which are never executed.
            StorageError: the store cannot be asked; nobody starts over because of that.
        """
        state = self._newest()
        if state is None:
            return None
        for name, value in self.same.items():
            if state["same"].get(name) != value:
                raise UserError(
                    f"{self.store.uri}: its checkpoint is of a training with {name} {state['same'].get(name)!r}, "
                    f"not {value!r}; use another --output"
                )
        self.step = state["step"]
        self.lines = [line for line in self._old_lines() if line["step"] <= self.step]
        if self.writes:
            print(f"going on at step {self.step} after {state['seconds'] / 60:.1f} min", flush=True)
        return state

    def _newest(self) -> dict[str, Any] | None:
        for key in reversed(self._checkpoints()):
            try:
                data = self.store.read(key)
            except ObjectMissing:  # another process kept only newer ones
                continue
            try:
                return self._loaded(key, data)
            except UserError:
                raise
            except Exception as error:  # whatever torch's reader stumbles over in a damaged file
                reason = str(error).partition("\n")[0].partition(". ")[0]
                print(f"{key} cannot be read ({reason}); trying the one before", flush=True)
        return None

    def _loaded(self, key: str, data: bytes) -> dict[str, Any]:
        import pickle

        import torch

        if not data.startswith(b"PK\x03\x04"):  # torch.save writes zip files; torch.load would try others as pickles
            raise ValueError("cut short, or not of torch.save")
        try:
            found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"{self.store.uri}: {key} is not read: {f'it asks for {named[1]},' if named else 'it is damaged or holds'} "
                "more than tensors and plain values; delete it to go on from the one before"
            ) from None
        kinds = {"step": int, "same": dict, "seconds": float | int}
        if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
            raise ValueError("no checkpoint of a training")
        if found["step"] < 1:
            raise ValueError(f"of step {found['step']}")
        return found

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Around putting a state where it belongs: one that does not fit is the user's to mend.

        Raises:
            UserError: names, shapes or kinds are not those of this model and optimiser.
        """
        try:
            yield
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.store.uri}: its checkpoint does not fit the model ({error}); use another --output"
            ) from error

    def _checkpoints(self) -> list[str]:
        return sorted(found.key for found in self.store.list(CHECKPOINTS) if found.key.endswith(".pt"))

    def _old_lines(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in self.store.read(LOG).decode().splitlines()]
        except ObjectMissing:
            return []

    # ------------------------------------------------------------------------------------------------ writing

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Publish the state after `step` steps (`seconds` spent among it); older checkpoints than the newest `keep` go."""
        if not self.writes:
            return
        import torch

        data = io.BytesIO()
        torch.save({**state, "step": step, "same": self.same}, data)
        self._publish_events()
        newest = f"{CHECKPOINTS}step-{step:08d}.pt"
        self.store.write(newest, data.getbuffer())
        for key in [key for key in self._checkpoints() if key <= newest][: -self.keep]:  # a later one was unreadable
            self.store.delete(key)

    def log(self, step: int, part: str, figures: Mapping[str, float]) -> None:
        """One more line of the log, and the same to TensorBoard; figures that are no numbers or None stay out of both."""
        if not self.writes:
            return
        kept = {k: _plain(v) for k, v in figures.items() if isinstance(v, Real) and math.isfinite(v)}
        # a training that is finished a second time tells its last lines again, not twice
        self.lines = [line for line in self.lines if (line["step"], line["part"]) != (step, part)]
        self.lines.append({"step": step, "part": part, **kept})
        self.store.write(LOG, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        for name, value in kept.items():
            self._tensorboard().add_scalar(f"{part}/{name}", value, step)

    def _tensorboard(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            if self.store.local_path is not None:
                folder = self.store.local_path / TENSORBOARD
            else:  # written here and published with each checkpoint
                self._scratch = tempfile.TemporaryDirectory()
                folder = Path(self._scratch.name)
            # what a stopped start wrote after its last checkpoint is not shown
            self._events = SummaryWriter(str(folder), purge_step=self.step + 1, flush_secs=30)
        return self._events

    def _publish_events(self) -> None:
        if self._events is not None:
            self._events.flush()
        if self._scratch is not None:
            for path in sorted(Path(self._scratch.name).iterdir()):
                self.store.write_file(TENSORBOARD + path.name, path)

    def write(self, key: str, data: bytes) -> None:
        if self.writes:
            self.store.write(key, data)

    def read(self, key: str) -> bytes:
        return self.store.read(key)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Publish the summary, print it, close TensorBoard's file."""
        if not self.writes:
            return
        self.store.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        print(json.dumps(summary), flush=True)
        self.close()

    def close(self) -> None:
        """Let TensorBoard's file go; safe to call again."""
        self._publish_events()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> int | float:
    """NumPy's numbers as JSON knows them."""
    return int(value) if isinstance(value, Integral) else float(value)


class Interval:
    """Sums of losses between two lines, and the line itself: rate and time to go."""

    def __init__(self, who: str, steps: int, done: int) -> None:
        self.who, self.steps = who, steps
        self._restart(done)

    def _restart(self, done: int) -> None:
        self.began, self.since = time.monotonic(), done
        self.sums: dict[str, float] = {}

    def add(self, parts: Mapping[str, float]) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close(self, done: int, rate: float) -> tuple[dict[str, float], str]:
        """Means since the last line, and the line a person reads. `rate`: the learning rate of this step."""
        count = max(1, done - self.since)
        seconds = max(time.monotonic() - self.began, 1e-9)
        means = {name: round(total / count, 5) for name, total in self.sums.items()}
        left_s = (self.steps - done) * seconds / count
        told = " ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in means.items())
        line = f"{self.who} {done}/{self.steps} {told} | {count / seconds:.2f} steps/s, {_duration(left_s)} to go"
        self._restart(done)
        return {**means, "rate": rate, "steps_per_s": round(count / seconds, 4)}, line


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def rate_share(step: int, steps: int, warm_up: int, drops: Sequence[float] = ()) -> float:
    """Share of the highest learning rate at a step.

    A linear warm-up over the first `warm_up` steps, then half a cosine down to a hundredth; with `drops`, shares of
    all steps in (0, 1), instead a tenth of the rate after each.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if drops:
        return float(0.1 ** sum(step >= drop * steps for drop in drops))
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def shipped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as weights are shipped: float16 on the CPU; counters stay whole numbers.

    Raises:
        ValueError: a value does not fit float16.
    """
    import torch

    kept = {name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: a value does not fit float16; lower the rate or add weight decay")
    return kept


def to_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Weights as a file of safetensors, float16."""
    from safetensors.torch import save

    return save(shipped(tensors))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
