"""A miniature training: it learns, it goes on where it was stopped, its file loads, and other settings are refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs import train_embedder
from jobs.cli import UserError
from retrieval import models
from store.imageset import write_imageset
from tests.jobs.pictures import pairs, patch

REPO = Path(__file__).parents[2]
SMALL = dataclasses.replace(
    models.LITE0_SG, name="small", input_size=32, dim=16, stride=32, weights="small.safetensors"
)


@pytest.fixture(scope="module")
def imageset(tmp_path_factory) -> str:
    return pairs(tmp_path_factory.mktemp("set"))


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(models, "ALL", (SMALL,))


def line(imageset: str, output: Path, *more: str) -> list[str]:
    fixed = ["--model", "small", "--imageset", imageset, "--output", str(output), "--threads", "1"]
    return [
        *fixed,
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--log-every",
        "2",
        "--save-every",
        "2",
        "--eval-every",
        "4",
        "--warm-up",
        "1",
        *more,
    ]


def test_a_stopped_training_ends_where_a_straight_one_does(imageset, tmp_path, capsys):
    assert train_embedder.main(line(imageset, tmp_path / "straight")) == 0
    for _ in range(4):
        assert train_embedder.main(line(imageset, tmp_path / "stopped", "--minutes", "0")) == 0  # one step a start
    assert "going on at step 3" in capsys.readouterr().out
    straight, stopped = ((tmp_path / name / "small.safetensors").read_bytes() for name in ("straight", "stopped"))
    assert straight == stopped
    assert train_embedder.main(line(imageset, tmp_path / "straight")) == 0  # finished: only says so again
    assert (tmp_path / "straight" / "small.safetensors").read_bytes() == straight
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["held_out"]["queries"] == 1 and summary["identities"] == 11  # pair 10 of 12
    assert not list(tmp_path.rglob(".tmp-*"))


def test_the_file_loads_with_its_digest_and_starts_another_training(imageset, tmp_path):
    from retrieval import embedder

    train_embedder.main(line(imageset, tmp_path / "first"))
    path = tmp_path / "first" / "small.safetensors"
    spec = dataclasses.replace(SMALL, sha256=json.loads((tmp_path / "first" / "summary.json").read_text())["sha256"])
    rows = embedder.load(spec, "cpu", weights=path).embed(np.zeros((1, 32, 32, 3), np.uint8))
    assert np.linalg.norm(rows) == pytest.approx(1, rel=1e-5)
    assert train_embedder.main(line(imageset, tmp_path / "second", "--init-from", str(path))) == 0


def test_training_ranks_better_in_the_end(imageset, tmp_path):
    train_embedder.main(line(imageset, tmp_path, "--steps", "24", "--eval-every", "24"))
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["cross_entropy"] for entry in lines if entry["part"] == "train"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("more, message", [
    (["--model", "nothing"], "no embedder named 'nothing'; there are: small"),
    (["--init-from", "gone.safetensors"], "cannot read weights gone.safetensors"),
])  # fmt: skip
def test_mistakes_are_said_in_one_line(imageset, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train_embedder.main(line(imageset, tmp_path, *more))


def test_another_training_in_the_same_folder_is_refused(imageset, tmp_path):
    train_embedder.main(line(imageset, tmp_path, "--minutes", "0"))
    with pytest.raises(UserError, match=r"is of a training with lr 0\.001, not 0\.1; use another --output"):
        train_embedder.main(line(imageset, tmp_path, "--lr", "0.1"))


def test_a_set_without_pairs_is_refused(tmp_path):
    write_imageset(
        [dataclasses.replace(patch(1, 1, "shop"), pair_id=0)],
        tmp_path / "set",
        source={"adapter": "test", "arguments": {}},
    )
    with pytest.raises(UserError, match="want garments of known pair_id and style in several photos, found 0"):
        train_embedder.main(line(str(tmp_path / "set"), tmp_path / "out"))


def test_help_imports_nothing_heavy():
    code = "import sys, jobs.train_embedder; sys.exit(any(name in sys.modules for name in ('torch', 'faiss', 'ray', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
