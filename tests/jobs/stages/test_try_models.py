"""--check builds each model and passes one photo through it; what cannot run ends there, in one line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import full_eval
from jobs.runs.settings import Settings
from jobs.stages.try_models import decoding_line
from networks import calls as called
from store.errors import UserError


@pytest.fixture(autouse=True)
def folder_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(called.FOLDER, str(Path(__file__).parents[1]))


def check(imageset: Path, folder: Path, *more: str, **settings: Any) -> int:
    """`full_eval --check` with the shipped models that the settings do not replace."""
    given = {"detectors": ["atss-tiny"], "embedders": ["lite0-sg"], "device": "cpu"} | settings
    (folder / "run.yaml").write_text(json.dumps(given))
    line = ["--imageset", str(imageset), "--output", str(folder / "run"), "--config", str(folder / "run.yaml")]
    return full_eval.main([*line, "--check", *more])


def test_what_each_model_is_stands_in_a_line(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"image_id": [0, 1], "embedding": [[1.0, 0.0], [0.0, 1.0]]})
    pq.write_table(table, tmp_path / "rows.parquet")
    classes = {f"class {i}": None for i in range(2, 14)} | {"class 1": "skirt"}
    own = {"name": "own", "call": "own_models:Detector", "classes": classes}
    rows = {"name": "rows", "from": str(tmp_path / "rows.parquet")}
    assert check(small_set, tmp_path, detectors=["atss-tiny", own], embedders=["lite0-sg", rows]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model: ")]
    atss, own_line, lite, rows_line = lines
    for part in (
        "model: atss-tiny", "M parameters", "photos within 320 x 320 px", "mean 127.5 127.5 127.5, std 127.5",
        "weights atss-tiny.safetensors 91b61462d22d", "13 classes, 13 used: short sleeve top", "ms for a photo",
    ):  # fmt: skip
        assert part in atss
    assert "own_models:Detector version 1" in own_line and "13 classes, 1 used: class 1 -> skirt" in own_line
    assert "crops of 160 px" in lite and "512 dimensions" in lite and "ms for a photo" in lite
    assert "rows.parquet" in rows_line and "2 dimensions" in rows_line


def vit(folder: Path) -> dict[str, Any]:
    return {"embedders": [{"name": "dino", "timm_id": "vit_small_patch14_dinov2.lvd142m", "input_size": 224}]}


def hub(folder: Path) -> dict[str, Any]:
    return {"embedders": [{"name": "hub", "timm_id": "hf-hub:timm/resnet18.a1_in1k"}]}


def published(folder: Path) -> dict[str, Any]:
    return {"embedders": [{"name": "pub", "timm_id": "resnet18.a1_in1k"}]}


def swin(folder: Path) -> dict[str, Any]:
    return {"embedders": [{"name": "swin", "timm_id": "swin_tiny_patch4_window7_224"}], "allow_random_weights": True}


def other_keys(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    save_file({"layer1.0.weight": torch.zeros(3)}, folder / "model.safetensors")
    entry = {"name": "plain", "base": "lite0-sg", "weights": str(folder / "model.safetensors")}
    return {"embedders": [entry]}


@pytest.mark.parametrize("settings", [vit, hub, published, swin, other_keys])
def test_a_configuration_that_cannot_run_is_refused_in_one_line(small_set: Path, tmp_path: Path, settings: Any) -> None:
    """Five that `--check` used to accept. Kinds of models that came since are tested where they are."""
    with pytest.raises((UserError, ValueError)) as error:
        check(small_set, tmp_path, **settings(tmp_path))
    name = settings(tmp_path)["embedders"][0]["name"]
    assert name in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, UserError) or getattr(error.value, "user_facing", False)


def test_a_model_that_fails_on_a_photo_is_refused(small_set: Path, tmp_path: Path) -> None:
    wrong = {"name": "wrong", "call": "own_models:Wrong", "args": {"how": "nan"}}
    with pytest.raises(UserError, match="wrong: fails on a photo of 48 x 64 pixels: the embedding of crop 0 is not"):
        check(small_set, tmp_path, embedders=[wrong])


@pytest.mark.parametrize(
    "device, tasks, decoding_s, want",
    [
        ("cpu", "auto", 0.030, "decoding: 30 ms for a photo, the detectors 10 ms: photos do not hold them up"),
        ("cuda", "auto", 0.015, "decoding: 15 ms for a photo, the detectors 10 ms: photos do not hold them up"),
        ("cuda", "auto", 0.030, "wants 4 cores to decode and has 2; decoders=auto takes others from"),
        ("cuda", 0, 0.030, "wants 4 cores to decode and has 2; set decoders=auto, which takes free cores of the"),
    ],
)  # fmt: skip
def test_decoding_beside_detecting(device: str, tasks: int | str, decoding_s: float, want: str) -> None:
    settings = Settings(threads_per_actor=2, decoders=tasks)
    assert want in decoding_line(settings, device, decoding_s, 0.010)
