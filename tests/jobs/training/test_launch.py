"""Several workers are one worker: the same losses step by step, the same weights, and they may take turns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import train_embedder
from jobs.training.launch import World
from store.errors import UserError
from tests.jobs.pictures import pairs


@pytest.mark.parametrize("n, size, want", [
    (8, 1, [slice(0, 8)]),
    (8, 2, [slice(0, 4), slice(4, 8)]),
    (3, 3, [slice(0, 1), slice(1, 2), slice(2, 3)]),
])  # fmt: skip
def test_parts_cover_the_batch_in_order(n, size, want):
    assert [World(rank, size).part(n) for rank in range(size)] == want


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="a batch of 7 does not divide into 2 workers"):
        World(0, 2).part(7)


def test_one_worker_needs_nobody():
    rows, world = torch.ones(2, 3, requires_grad=True), World()
    assert world.gather(rows) is rows and world.mean({"loss": 0.5}) == {"loss": 0.5} and world.broadcast(True)
    world.sum_gradients([rows])
    world.wait()
    assert rows.grad is None


@pytest.fixture(scope="module")
def imageset(tmp_path_factory) -> str:
    return pairs(tmp_path_factory.mktemp("set"))


def line(imageset: str, output: Path, workers: int, *more: str) -> list[str]:
    words = (
        f"--model lite0-sg --imageset {imageset} --output {output} --workers {workers} --threads 1 --steps 4 --dim 16"
    )
    words += " --batch-size 8 --input-size 32 --stride 32 --log-every 1 --save-every 2 --eval-every 4 --warm-up 1"
    return [*words.split(), *more]


def logged(output: Path) -> list[dict]:
    return [json.loads(text) for text in (output / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_give_one_workers_losses_at_twice_the_batch(imageset, tmp_path):
    """A worker's share is 4 crops; BatchNorm of the backbone is frozen, classifier and proxies see the whole batch."""
    assert train_embedder.main(line(imageset, tmp_path / "one", 1, "--loss", "proxy-anchor")) == 0
    assert train_embedder.main(line(imageset, tmp_path / "two", 2, "--loss", "proxy-anchor")) == 0
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two] == [1, 2, 3, 4, 4]
    for mine, theirs in zip(one[:4], two[:4], strict=True):
        for name in ("ranking", "cross_entropy"):
            assert theirs[name] == pytest.approx(mine[name], rel=2e-3, abs=2e-4)

    from safetensors.numpy import load_file

    a, b = (load_file(tmp_path / name / "lite0-sg.safetensors") for name in ("one", "two"))
    apart = max(float(np.abs(a[key].astype(np.float64) - b[key]).max()) for key in a)
    assert sorted(a) == sorted(b) and apart < 5e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_go_on_where_one_stopped(imageset, tmp_path, capfd):
    assert train_embedder.main(line(imageset, tmp_path / "run", 1, "--minutes", "0")) == 0
    assert train_embedder.main(line(imageset, tmp_path / "run", 2)) == 0
    assert "continuing at step 1" in capfd.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_at"] == 4 and [e["step"] for e in logged(tmp_path / "run")] == [1, 2, 3, 4, 4]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mistake_seen_by_workers_is_one_line(imageset, tmp_path):
    with pytest.raises(UserError, match="no loss 'tripplet'"):
        train_embedder.main(line(imageset, tmp_path / "run", 2, "--loss", "tripplet"))
