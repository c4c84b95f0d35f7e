"""A miniature training: it learns, it goes on where it was stopped, its file loads, and other settings are refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs import train_embedder
from retrieval import models
from store.errors import UserError
from store.imageset_write import write_imageset
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
    """A command; `more` goes in place of the flags that it names."""
    usual = {"--model": "small", "--threads": "1", "--steps": "4", "--batch-size": "4", "--log-every": "2"}
    usual |= {"--save-every": "2", "--eval-every": "4", "--warm-up": "1"}
    words = [word for flag, value in usual.items() if flag not in more for word in (flag, value)]
    return [*words, "--imageset", imageset, "--output", str(output), *more]


@pytest.mark.slow
def test_a_stopped_training_ends_where_a_straight_one_does(imageset, tmp_path, capsys):
    assert train_embedder.main(line(imageset, tmp_path / "straight")) == 0
    for _ in range(4):
        assert train_embedder.main(line(imageset, tmp_path / "stopped", "--minutes", "0")) == 0  # one step a start
    assert "continuing at step 3" in capsys.readouterr().out
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


def test_the_store_is_the_one_that_the_line_names(imageset, s3_bucket, s3_endpoint, s3_client, monkeypatch):
    """Image set and OUTPUT in a bucket whose address stands in no variable."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    bucket = s3_bucket.removeprefix("s3://")
    for path in Path(imageset).iterdir():
        s3_client.upload_file(str(path), bucket, f"set/{path.name}")
    more = ("--steps", "2", "--endpoint-url", s3_endpoint, "--device", "auto")
    assert train_embedder.main(line(f"{s3_bucket}/set", Path("out"), *more, "--output", f"{s3_bucket}/out")) == 0
    keys = {entry["Key"] for entry in s3_client.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]}
    assert {"out/small.safetensors", "out/summary.json", "out/log.jsonl"} <= keys


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
    heavy = ("torch", "faiss", "ray", "numpy")
    code = f"import sys, jobs.train_embedder; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


# ---- from a model of timm ----------------------------------------------------------------------------------------
TIMM = "{name: vit, timm: vit_tiny_patch16_224, input_size: 32}"


@pytest.fixture
def start(tmp_path, monkeypatch) -> Path:
    """A file of the network as timm saves it; models are asked about in this process."""
    import timm
    import torch
    from safetensors.torch import save_file

    from retrieval import timm_models, timm_networks

    monkeypatch.setattr(timm_models, "_described", timm_networks.answer)
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.mark.parametrize(
    "flags, entry, learns",
    [
        (["--descriptors", "spoc,gem", "--dim", "8"], {"branches": ["spoc", "gem"], "dim": 8}, True),
        (["--dim", "8", "--freeze"], {"dim": 8}, False),  # a linear head on the frozen network
    ],
)
def test_a_model_of_timm_learns_and_loads_as_an_entry_says(start, imageset, tmp_path, flags, entry, learns):
    from safetensors.torch import load_file

    from retrieval import timm_models, timm_networks

    own = ["--model", TIMM, "--init-from", str(start), "--layer-decay", "0.7", *flags]
    assert train_embedder.main(line(imageset, tmp_path / "out", *own)) == 0
    path = tmp_path / "out" / "vit.safetensors"
    fields = {
        "name": "vit",
        "timm": "vit_tiny_patch16_224",
        "input_size": 32,
        "crop": 1.0,
        "weights": "vit.safetensors",
    }
    spec = timm_models.from_fields(fields | entry)
    rows = timm_networks.load(spec, "cpu", weights=path).embed(np.zeros((1, 32, 32, 3), np.uint8))
    assert rows.shape == (1, 8)
    before, after = load_file(start), load_file(path)
    name = "blocks.11.mlp.fc1.weight"
    same = np.array_equal(before[name].half(), after[f"backbone.body.{name}"])
    assert same is not learns


@pytest.mark.parametrize(
    "more, message",
    [
        (["--model", "timm:vit_tiny_patch16_24"], "timm has no model 'vit_tiny_patch16_24'"),
        (["--model", TIMM, "--freeze"], "nothing would learn: with --freeze, add a head"),
        (["--model", TIMM, "--stride", "16"], "brings its own backbone and stride; leave out --stride"),
        (["--model", "{name: v, timm: resnet10t, weights: a.pth}"], "start from a file with --init-from"),
        (["--model", "{name: v, timm: resnet10t"], "--model"),
    ],
)
def test_a_model_of_timm_that_cannot_learn_is_one_line(start, imageset, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train_embedder.main(line(imageset, tmp_path / "out", *more))
