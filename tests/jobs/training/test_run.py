"""A training's folder: what is kept, what a stopped training goes on from, what is refused. Nothing is trained here."""

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.training.run import LogInterval, TrainingRun, rate_share, to_bytes
from store.errors import UserError
from store.objects import LocalStore, StorageError

SAME = {"model": "small", "imageset": ["a", "b"], "lr": 0.001}


@pytest.fixture(params=["folder", os.fsdecode(b"caf\xe9"), "bucket"], ids=["folder", "not UTF-8", "bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A training's folder on disk, one whose name is not UTF-8, then one in a bucket."""
    if request.param == "bucket":
        return f"{request.getfixturevalue('s3_bucket')}/train"
    return str(tmp_path / request.param / "train")


def train(output: str | Path, first: int, last: int, *, save_every: int = 2, **options: Any) -> None:
    """Steps `first` to `last`: a line each, a checkpoint every `save_every`; stopped without a word."""
    with TrainingRun(output, SAME, **options) as run:
        run.resume()
        for step in range(first, last + 1):
            run.log(step, "train", {"loss": step / 10})
            if step % save_every == 0:
                run.save(step, state_of(step))


def state_of(step: int) -> dict[str, Any]:
    import torch

    return {"seconds": 60.0 * step, "weight": torch.full((1000,), float(step))}


def names(output: str | Path, prefix: str) -> list[str]:
    return [info.key.removeprefix(prefix) for info in TrainingRun(output, SAME).store.list(prefix)]


def lines(output: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in TrainingRun(output, SAME).store.read("log.jsonl").splitlines()]


def scalars(output: str, tag: str, copy: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag: (step, value) in its order.

    It reads files by name, which begins with the second they were made in and ends with a count that has no leading
    zeros; starts within a second happen only here, so they are copied under names that keep their order.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = TrainingRun(output, SAME).store
    copy.mkdir()
    by_start = sorted(names(output, "tensorboard/"), key=lambda name: (name.split(".")[3], int(name.split(".")[-1])))
    for number, name in enumerate(by_start):
        (copy / f"{number:03}.tfevents").write_bytes(store.read(f"tensorboard/{name}"))
    events = EventAccumulator(str(copy), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


# ------------------------------------------------------------------------------------------------ going on


def test_it_goes_on_from_the_newest_checkpoint(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(output, 1, 4)
    run = TrainingRun(output, SAME)
    state = run.resume()
    assert state is not None and state["step"] == 4 and state["weight"].tolist() == [4.0] * 1000
    assert state["same"] == SAME and run.step == 4
    assert "continuing at step 4 after 4.0 min" in capsys.readouterr().out


def test_lines_after_the_checkpoint_are_told_once(output: str) -> None:
    train(output, 1, 5)  # step 5 is in the log and in no checkpoint
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4, 5]
    train(output, 5, 6)
    assert lines(output) == [{"step": step, "part": "train", "loss": step / 10} for step in range(1, 7)]


def test_a_new_start_without_a_checkpoint_begins_the_log_again(output: str) -> None:
    train(output, 1, 1)
    assert TrainingRun(output, SAME).resume() is None
    train(output, 1, 2)
    assert [line["step"] for line in lines(output)] == [1, 2]


def test_the_log_of_a_step_is_out_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    whole = LocalStore.write

    def spy(self: LocalStore, key: str, data: bytes | memoryview) -> None:
        order.append(key)
        whole(self, key, data)

    monkeypatch.setattr(LocalStore, "write", spy)
    train(tmp_path, 1, 2, save_every=1)
    assert order == ["log.jsonl", "checkpoints/step-00000001.pt", "log.jsonl", "checkpoints/step-00000002.pt"]


@pytest.mark.parametrize(("keep", "left"), [(1, [10]), (2, [8, 10]), (3, [6, 8, 10]), (9, [2, 4, 6, 8, 10])])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    train(tmp_path, 1, 10, keep=keep)
    assert names(tmp_path, "checkpoints/") == [f"step-{step:08d}.pt" for step in left]


def test_another_process_may_have_kept_only_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, 1, 4)
    monkeypatch.setattr(TrainingRun, "_checkpoints", lambda run: [f"checkpoints/step-{step:08d}.pt" for step in (4, 9)])
    state = TrainingRun(tmp_path, SAME).resume()
    assert state is not None and state["step"] == 4


# ------------------------------------------------------------------------------------------------ damaged, refused


@pytest.mark.parametrize("left", [0, 1, 10, 100, 0.5, -1])  # bytes; a share of them; all but one
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, left: float, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 1, 4)
    newest = tmp_path / "checkpoints" / "step-00000004.pt"
    data = newest.read_bytes()
    newest.write_bytes(data[: int(len(data) * left) if isinstance(left, float) else left])
    run = TrainingRun(tmp_path, SAME)
    state = run.resume()
    assert state is not None and state["step"] == 2 and [line["step"] for line in run.lines] == [1, 2]
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert len(said) == 1 and said[0].endswith("trying the one before") and len(said[0]) < 160


def test_an_unreadable_checkpoint_does_not_push_out_those_written_after_it(tmp_path: Path) -> None:
    train(tmp_path, 1, 9, save_every=9, keep=1)
    (tmp_path / "checkpoints" / "step-00000009.pt").write_bytes(b"")
    train(tmp_path, 1, 4, keep=1)
    state = TrainingRun(tmp_path, SAME).resume()
    assert state is not None and state["step"] == 4


def test_a_store_that_does_not_answer_is_no_reason_to_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 1, 2)

    def fail(self: LocalStore, key: str) -> bytes:
        raise StorageError("reading: the server answered 503")

    monkeypatch.setattr(LocalStore, "read", fail)
    with pytest.raises(StorageError, match="503"):
        TrainingRun(tmp_path, SAME).resume()


class Runs:
    """Unpickled without care, it makes a folder."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.where),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import torch

    train(tmp_path / "train", 1, 4)
    trap = tmp_path / "trap"
    path = tmp_path / "train" / "checkpoints" / "step-00000004.pt"
    torch.save({"step": 4, "same": SAME, "seconds": 1.0, "bad": Runs(trap)}, path)
    with pytest.raises(UserError, match=r"step-00000004.pt is not read: it asks for \w+.mkdir, more than") as caught:
        TrainingRun(tmp_path / "train", SAME).resume()
    assert "\n" not in str(caught.value) and not trap.exists()
    torch.load(path, weights_only=False)  # the trap is a trap
    assert trap.exists()


def test_a_bare_pickle_is_not_even_opened(tmp_path: Path) -> None:
    import torch

    train(tmp_path / "train", 1, 4)
    trap, folder = tmp_path / "trap", tmp_path / "train" / "checkpoints"
    (folder / "step-00000005.pt").write_bytes(pickle.dumps(Runs(trap)))
    torch.save({"bad": Runs(trap)}, folder / "step-00000006.pt", _use_new_zipfile_serialization=False)
    state = TrainingRun(tmp_path / "train", SAME).resume()
    assert state is not None and state["step"] == 4 and not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, r"with lr 0\.001, not 0\.1; use another --output"),
        ({"imageset": ["a"]}, r"with imageset \['a', 'b'\], not \['a'\]; use another --output"),
        ({"warm_up": 5}, r"with warm_up None, not 5; use another --output"),  # an option younger than the checkpoint
    ],
)
def test_another_training_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    train(tmp_path, 1, 2)
    with pytest.raises(UserError, match=message) as caught:
        TrainingRun(tmp_path, {**SAME, **change}).resume()
    assert "\n" not in str(caught.value)


def test_tuples_and_lists_are_the_same_settings(tmp_path: Path) -> None:
    train(tmp_path, 1, 2)
    assert TrainingRun(tmp_path, {**SAME, "imageset": ("a", "b")}).resume() is not None


# ------------------------------------------------------------------------------------------------ what is written


def test_figures_that_are_no_numbers_stay_out(tmp_path: Path) -> None:
    import numpy as np

    figures: dict[str, Any] = {"loss": 0.5, "nan": float("nan"), "inf": float("inf"), "none": None, "word": "high"}
    with TrainingRun(tmp_path, SAME) as run:
        run.log(1, "held_out", figures | {"half": np.float32(0.5), "images": np.int64(7)})
    assert lines(tmp_path) == [{"step": 1, "part": "held_out", "loss": 0.5, "half": 0.5, "images": 7}]


def test_workers_that_do_not_write_read_and_leave_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 1, 2)
    before = names(tmp_path, "")
    with TrainingRun(tmp_path, SAME, writes=False) as run:
        state = run.resume()
        run.log(3, "train", {"loss": 1.0})
        run.save(3, state_of(3))
        run.write("best.safetensors", b"")
        run.finish({"steps": 3})
    assert state is not None and state["step"] == 2
    assert names(tmp_path, "") == before and capsys.readouterr().out == ""


def test_the_summary_is_published_and_printed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = TrainingRun(output, SAME)
    run.log(1, "train", {"loss": 0.5})
    run.finish({"steps": 1})
    run.close()  # once more is no error
    assert json.loads(run.store.read("summary.json")) == {"steps": 1} == json.loads(capsys.readouterr().out)
    assert len(names(output, "tensorboard/")) == 1


# ------------------------------------------------------------------------------------------------ TensorBoard


def test_tensorboard_shows_every_step_once_after_a_stop(output: str, tmp_path: Path) -> None:
    train(output, 1, 5)  # 5 is after the last checkpoint
    train(output, 5, 8)
    train(output, 9, 10)
    assert len(names(output, "tensorboard/")) == 3
    assert scalars(output, "train/loss", tmp_path / "copy") == [(step, step / 10) for step in range(1, 11)]


def test_tensorboard_forgets_a_start_that_left_no_checkpoint(output: str, tmp_path: Path) -> None:
    train(output, 1, 3, save_every=9)
    train(output, 1, 2, save_every=9)
    assert scalars(output, "train/loss", tmp_path / "copy") == [(1, 0.1), (2, 0.2)]


def test_a_bucket_gets_log_checkpoints_and_events(s3_bucket: str, s3_client: Any) -> None:
    output = f"{s3_bucket}/train"
    with TrainingRun(output, SAME) as run:
        run.log(1, "train", {"loss": 0.5})
        run.save(1, state_of(1))
        listed = s3_client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"))["Contents"]
        keys = [entry["Key"] for entry in listed]  # while it runs
        scratch = Path(run._scratch.name)  # type: ignore[union-attr]
    assert keys[:2] == ["train/checkpoints/step-00000001.pt", "train/log.jsonl"]
    assert len(keys) == 3 and keys[2].startswith("train/tensorboard/events.out.tfevents.")
    assert not scratch.exists()


# ------------------------------------------------------------------------------------------------ lines, rates, weights


def test_an_interval_tells_means_speed_and_time_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    interval = LogInterval("small", steps=1004, done=0)
    for loss in (1.0, 2.0, 3.0, 6.0):
        interval.add({"loss": loss, "loss_box": loss / 2})
    now[0] += 2.0
    figures, line = interval.close(4, rate=0.001)
    assert figures == {"loss": (1 + 2 + 3 + 6) / 4, "loss_box": 1.5, "rate": 0.001, "steps_per_s": 4 / 2}
    assert line == "small 4/1004 loss 3 box 1.5 | 2.00 steps/s, 8 min to go"  # 1000 steps at 2 a second: 500 s
    interval.add({"loss": 1.0})
    now[0] += 0.5
    figures, line = interval.close(5, rate=0.001)  # nothing of the interval before
    assert figures == {"loss": 1.0, "rate": 0.001, "steps_per_s": 2.0}


@pytest.mark.parametrize(
    ("step", "drops", "want"),
    [
        (0, (), 1 / 10),  # the first of ten steps of warm-up
        (9, (), 10 / 10),
        (10, (), 1.0),
        (60, (), 0.01 + 0.99 / 2),  # half of the hundred steps after the warm-up
        (110, (), 0.01),
        (0, (0.5, 0.9), 1 / 10),
        (54, (0.5, 0.9), 1.0),
        (55, (0.5, 0.9), 0.1),  # 0.5 of 110
        (98, (0.5, 0.9), 0.1),
        (99, (0.5, 0.9), 0.01),  # 0.9 of 110
    ],
)
def test_the_rate_warms_up_then_falls(step: int, drops: tuple[float, ...], want: float) -> None:
    assert rate_share(step, steps=110, warm_up=10, drops=drops) == pytest.approx(want)


@pytest.mark.parametrize(("steps", "warm_up", "want"), [(1, 0, 1.0), (5, 5, 1.0)])
def test_a_training_without_warm_up_or_nothing_else_starts(steps: int, warm_up: int, want: float) -> None:
    assert rate_share(warm_up, steps, warm_up) == want


def test_weights_are_shipped_in_half_precision() -> None:
    import torch
    from safetensors.torch import load

    data = to_bytes({"w": torch.tensor([0.1, 2.0]), "n": torch.tensor(7)})
    found = load(data)
    assert found["w"].dtype == torch.float16 and found["n"].dtype == torch.int64 and int(found["n"]) == 7
    with pytest.raises(UserError, match="w: a value does not fit float16; try a lower --lr"):
        to_bytes({"w": torch.tensor([70_000.0])})  # float16 ends at 65,504
