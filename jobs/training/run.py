"""A training's folder, and the lines that report its progress.

    OUTPUT/checkpoints/step-00000200.pt   the newest `keep`, published whole; reading one executes nothing in it
    OUTPUT/log.jsonl                      a line per interval: {"step", "part": train | held_out, …figures}
    OUTPUT/tensorboard/                   the same figures for TensorBoard
    OUTPUT/MODEL.safetensors              float16, what `weights/` ships
    OUTPUT/summary.json  report/          the final figures

OUTPUT is a folder or s3://BUCKET/PREFIX. The log of a step is published before its checkpoint, and lines after the
checkpoint a training continues from are dropped, so that no interval is lost or counted twice.
"""

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from jobs.runs.places import refuse_other_kinds
from store.errors import UserError
from store.objects import ObjectMissing, ObjectStore, open_store

CHECKPOINTS, LOG, SUMMARY, TENSORBOARD = "checkpoints/", "log.jsonl", "summary.json", "tensorboard/"


class TrainingRun(contextlib.AbstractContextManager):
    """One training's folder, a path or s3://.

    `same`, plain JSON values, has to be equal for its checkpoints to be continued; the newest `keep` of them stay. Only
    the first of several workers `writes`; the others read checkpoints and write nothing.
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
        refuse_other_kinds(self.store, "a training")
        self.same = json.loads(json.dumps(same))
        self.keep, self.writes = keep, writes
        self.lines: list[dict[str, Any]] = []
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._events: Any = None
        self.step = 0

    # ---- continuing ---------------------------------------------------------------------------------------------
    def resume(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that can be read; None where there is none.

        UserError: it is of another training (model, data, seed, length or rates), or holds more than tensors and plain
        values, which are never executed. StorageError: the store does not answer; a training never starts over then.
        """
        state = self._newest()
        if state is None:
            return None
        for name, value in self.same.items():
            if (stored := state["same"].get(name)) != value:
                reason = f"its checkpoint is of a training with {name} {stored!r}, not {value!r}"
                raise UserError(f"{self.store.uri}: {reason}; use another --output")
        self.step = state["step"]
        with contextlib.suppress(ObjectMissing):
            lines = map(json.loads, self.store.read(LOG).decode().splitlines())
            self.lines = [line for line in lines if line["step"] <= self.step]
        if self.writes:
            print(f"continuing at step {self.step} after {state['seconds'] / 60:.1f} min", flush=True)
        return state

    def _newest(self) -> dict[str, Any] | None:
        for key in reversed(self._checkpoints()):
            try:
                data = self.store.read(key)
            except ObjectMissing:  # another process has deleted it since
                continue
            try:
                return self._loaded(key, data)
            except UserError:
                raise
            except Exception as error:  # torch's reader fails in many ways on a damaged file
                reason = str(error).partition("\n")[0].partition(". ")[0]
                print(f"{key} cannot be read ({reason}); trying the one before", flush=True)
        return None

    def _loaded(self, key: str, data: bytes) -> dict[str, Any]:
        import torch

        if not data.startswith(b"PK\x03\x04"):  # torch.save writes zip files; torch.load would try others as pickles
            raise ValueError("cut short, or not of torch.save")
        try:
            state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {wanted[1]}," if wanted else "it is damaged or holds"
            advice = "more than tensors and plain values; delete it to continue from the one before"
            raise UserError(f"{self.store.uri}: {key} is not read: {reason} {advice}") from None
        kinds = {"step": int, "same": dict, "seconds": float | int}
        if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
            raise ValueError("no checkpoint of a training")
        if state["step"] < 1:
            raise ValueError(f"of step {state['step']}")
        return state

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Around loading a state into model and optimiser: UserError if its names, shapes or kinds are not theirs."""
        try:
            yield
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"its checkpoint does not fit the model ({' '.join(str(error).split())})"
            raise UserError(f"{self.store.uri}: {reason}; use another --output") from error

    def _checkpoints(self) -> list[str]:
        return sorted(entry.key for entry in self.store.list(CHECKPOINTS) if entry.key.endswith(".pt"))

    # ---- writing ------------------------------------------------------------------------------------------------
    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Publish the state after `step` steps, which has "seconds"; only the newest `keep` checkpoints stay."""
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

    def log(self, step: int, part: str, figures: Mapping[str, Any]) -> None:
        """Write a line of the log, and the same to TensorBoard; values that are no finite numbers are left out."""
        if not self.writes:
            return
        finite = {  # JSON cannot write NumPy's numbers
            name: int(value) if isinstance(value, Integral) else float(value)
            for name, value in figures.items() if isinstance(value, Real) and math.isfinite(value)
        }  # fmt: skip
        # a training that is finished a second time replaces its last lines
        self.lines = [line for line in self.lines if (line["step"], line["part"]) != (step, part)]
        self.lines.append({"step": step, "part": part, **finite})
        self.store.write(LOG, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        for name, value in finite.items():
            self._tensorboard().add_scalar(f"{part}/{name}", value, step)

    def _tensorboard(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            local = self.store.local_path
            if local is not None and str(local).encode(errors="replace").decode() == str(local):
                folder = local / TENSORBOARD
            else:  # TensorBoard takes UTF-8 alone: written here and published with each checkpoint
                self._scratch = tempfile.TemporaryDirectory()
                folder = Path(self._scratch.name)
            # hide what an interrupted start wrote after its last checkpoint
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

    def publish_weights(self, name: str, data: bytes) -> dict[str, Any]:
        """Write NAME.safetensors; returns what the summary says of it."""
        self.write(f"{name}.safetensors", data)
        return {"weights": f"{name}.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Publish the summary, print it, close TensorBoard's file."""
        if not self.writes:
            return
        self.store.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        print(json.dumps(summary), flush=True)
        self.close()

    def close(self) -> None:
        """Close TensorBoard's file; may be called again."""
        self._publish_events()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def __exit__(self, *_: object) -> None:
        self.close()


class LogInterval:
    """Sums of losses between two lines of the log, and the line itself: speed and time to go."""

    def __init__(self, model: str, steps: int, done: int) -> None:
        self.model, self.steps = model, steps
        self._restart(done)

    def _restart(self, done: int) -> None:
        self.began, self.since = time.monotonic(), done
        self.sums: dict[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work between steps whose time does not count."""
        paused = time.monotonic()
        yield
        self.began += time.monotonic() - paused

    def close(self, done: int, rate: float) -> tuple[dict[str, float], str]:
        """Figures since the last line, and that line. `rate`: the learning rate of this step."""
        count = max(1, done - self.since)
        seconds = max(time.monotonic() - self.began, 1e-9)
        means = {name: round(total / count, 5) for name, total in self.sums.items()}
        left_s = (self.steps - done) * seconds / count
        left = f"{left_s:.0f} s" if left_s < 90 else f"{left_s / 60:.0f} min"
        losses = " ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in means.items())
        line = f"{self.model} {done}/{self.steps} {losses} | {count / seconds:.2f} steps/s, {left} to go"
        self._restart(done)
        return {**means, "rate": rate, "steps_per_s": round(count / seconds, 4)}, line


def rate_share(step: int, steps: int, warm_up: int, drops: Sequence[float] = ()) -> float:
    """Share of the highest learning rate at a step: a linear warm-up, then half a cosine down to a hundredth.

    With `drops`, shares of all steps in (0, 1), the rate after the warm-up is a tenth of itself after each instead.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if drops:
        return float(0.1 ** sum(step >= drop * steps for drop in drops))
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def shipped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as weights are shipped: float16 on the CPU, whole numbers as they are. UserError: one does not fit."""
    import torch

    half = {name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in half.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{name}: a value does not fit float16; try a lower --lr or another --weight-decay")
    return half


def to_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """Weights as the bytes of a safetensors file, float16; `metadata` goes into its header."""
    from safetensors.torch import save

    return save(shipped(tensors), None if metadata is None else dict(metadata))
