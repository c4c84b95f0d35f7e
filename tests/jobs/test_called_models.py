"""Detectors and embedders of the user's own classes: `call`, from the run file to the figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins

from jobs import full_eval, reindex_gallery
from jobs.runs.catalogue import SHIPPED, choose_models
from jobs.runs.settings import Settings
from networks import calls as called
from store.errors import UserError

Calls = list[tuple[str, str, Any]]
CLASSES = {f"class {i}": None for i in range(1, 14)}


@pytest.fixture(autouse=True)
def folder_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `own_models` lies: what the folder is that a user starts the command in."""
    monkeypatch.setenv(called.FOLDER, str(Path(__file__).parent))


@pytest.fixture
def run(calls: Calls, tmp_path: Path) -> Callable[..., int]:
    from store.categories import DEEPFASHION2

    def start(imageset: Path, detector: dict[str, Any], embedder: dict[str, Any], *more: str) -> int:
        classes = dict(zip(CLASSES, DEEPFASHION2, strict=True))
        detectors = [{"name": "own", "call": "own_models:Detector", "classes": classes} | detector]
        embedders = [{"name": "rows", "call": "own_models:Embedder"} | embedder]
        config = tmp_path / "run.yaml"
        config.write_text(json.dumps({"detectors": detectors, "embedders": embedders, "device": "cpu"}))
        line = ["--imageset", str(imageset), "--output", str(tmp_path / "run"), "--config", str(config)]
        return full_eval.main([*line, "--set", "max_failed_share=1", "--set", "report.queries=0", *more])

    return start


def test_called_models_give_what_the_stand_ins_give(
    small_set: Path, tmp_path: Path, calls: Calls, run: Callable[..., int]
) -> None:
    assert run(small_set, {}, {}) == 0
    other = tmp_path / "other"
    line = [
        "--set",
        "detectors=[near]",
        "--set",
        "embedders=[coarse]",
        "--set",
        "device=cpu",
        "--set",
        "report.queries=0",
    ]
    line += ["--imageset", str(small_set), "--output", str(other), "--set", "max_failed_share=1"]
    assert full_eval.main(line, stand_ins.CATALOGUE) == 0
    assert pq.read_table(tmp_path / "run/fused/shard-00000.parquet") == pq.read_table(
        other / "fused/shard-00000.parquet"
    )
    for kind in ("true", "detected"):
        ours, theirs = (pq.read_table(output / f"rankings/{kind}.parquet") for output in (tmp_path / "run", other))
        assert ours["gallery_image_id"] == theirs["gallery_image_id"]
        given, want = (np.array(table["similarity"].to_pylist()) for table in (ours, theirs))
        np.testing.assert_allclose(given, want, atol=1e-6)  # rows of three times the length have been scaled


def test_another_version_alone_is_another_model(
    small_set: Path, calls: Calls, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_set, {}, {})
    calls.clear()
    run(small_set, {}, {})
    assert calls == []
    capsys.readouterr()
    run(small_set, {"args": {"version": "2"}}, {})
    assert [call[0] for call in calls] == ["detect"] * 5  # the same boxes come out: nothing is embedded again
    assert "5 model changed: spec" in capsys.readouterr().out


def test_the_night_after_another_version_is_a_first_night(
    tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.imageset(tmp_path / "set", 24)
    version = tmp_path / "version.txt"
    version.write_text("1")
    embedder = {"name": "rows", "call": "own_models:Embedder", "args": {"version_file": str(version)}}
    config = tmp_path / "night.yaml"
    detectors = [{"name": "own", "call": "own_models:Detector", "classes": CLASSES | {"class 1": "short sleeve top"}}]
    settings = {"detectors": detectors, "embedders": [embedder], "device": "cpu", "gallery": {"copies": 0}}
    config.write_text(json.dumps(settings))
    line = ["--imageset", str(tmp_path / "set"), "--gallery", str(tmp_path / "gallery"), "--config", str(config)]

    def night() -> list[str]:
        calls.clear()
        assert reindex_gallery.main([*line, "--set", "gallery.most_lost=1", "--set", "max_failed_share=1"]) == 0
        return [stage for stage, _, _ in calls]

    first = night()
    assert "detect" in first and night() == []
    version.write_text("2")
    assert night() == first
    assert "models, weights or settings changed" in capsys.readouterr().out


@pytest.mark.parametrize("odd, reason", [
    ("nan", "is no x1 y1 x2 y2"),
    ("turned", "is no x1 y1 x2 y2"),
    ("score", "score 0 is 1.5, want 0 to 1"),
    ("category", "category 0 is 14, want 1 to 13"),
    ("shape", "want boxes (N, 4), scores (N,), categories (N,), got (2, 3)"),
])  # fmt: skip
def test_a_wrong_answer_is_a_failure_of_its_photo(
    tmp_path: Path, calls: Calls, run: Callable[..., int], odd: str, reason: str
) -> None:
    stand_ins.imageset(tmp_path / "set", 8, {2: (255, 0, 0)})
    assert run(tmp_path / "set", {"args": {"odd": odd}}, {}) == 0
    failures = {row["image_id"]: row["reason"] for row in pq.read_table(tmp_path / "run/failures.parquet").to_pylist()}
    assert failures.keys() == {2, 9} and reason in failures[2]


@pytest.mark.parametrize("how, reason", [
    ("nan", "the embedding of crop 0 is not finite"),
    ("zero", "the embedding of crop 0 is all zeros"),
    ("wide", "wants an array (1, 4), got (1, 5)"),
])  # fmt: skip
def test_a_wrong_embedding_is_a_failure_of_its_photo(
    tmp_path: Path, calls: Calls, run: Callable[..., int], how: str, reason: str
) -> None:
    stand_ins.imageset(tmp_path / "set", 8)
    assert run(tmp_path / "set", {}, {"call": "own_models:Wrong", "args": {"how": how}}) == 0
    failures = pq.read_table(tmp_path / "run/failures.parquet").to_pylist()
    told = [row for row in failures if row["stage"] == "embed" and reason in row["reason"]]
    assert {row["image_id"] for row in told} == set(range(8))


@pytest.mark.parametrize("entry, reason", [
    ({"call": "own_models"}, "call wants package.module:Class"),
    ({"call": "no_such_module:Embedder"}, "ModuleNotFoundError: No module named 'no_such_module'"),
    ({"call": "own_models:Nobody"}, "has no attribute 'Nobody'"),
    ({"call": "own_models:NoVersion"}, "it has no `version`"),
    ({"call": "own_models:Detector"}, "it has no method embed"),
    ({"call": "own_models:Embedder", "args": {"sice": 3}}, "unexpected keyword argument 'sice'"),
    ({"call": "own_models:Embedder", "args": {"size": 0}}, "input_size wants the side"),
    ({"call": "own_models:Embedder", "args": [1]}, "args wants a mapping"),
    ({"call": "own_models:Embedder", "dim": 3}, "unknown field 'dim'"),
])  # fmt: skip
def test_what_cannot_be_called_is_refused_in_one_line(entry: dict[str, Any], reason: str) -> None:
    settings = Settings(imageset=("x",), output="y", embedders=({"name": "own"} | entry,))
    with pytest.raises(UserError, match=r"embedders\[0\]") as error:
        choose_models(settings, SHIPPED)
    assert reason in str(error.value) and "\n" not in str(error.value)
