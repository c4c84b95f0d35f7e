"""A classifier fitted on a finished run of stand-in models, and what runs make of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stand_ins

from jobs import fit_categories
from retrieval.classifier import load
from store.errors import UserError
from store.imageset_write import write_imageset

Full = Callable[..., int]


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """48 photos, every second one of a garment that is held out of training."""
    pairs = [10 * (1 + i // 2 % 6) if i % 2 else 1 + i // 2 % 6 for i in range(48)]
    photos = (stand_ins.photo(i, "user" if i < 24 else "shop", pair) for i, pair in enumerate(pairs))
    write_imageset(photos, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    return tmp_path / "set"


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def test_fitted_on_a_run_and_used_by_the_next(
    annotated: Path, tmp_path: Path, calls: list, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "own.safetensors", tmp_path / "run"
    assert full(annotated, output, "--set", "search.classifier=null") == 0
    before = read(output, "metrics.json")["item_categories"]
    assert fit_categories.main([str(output), "--output", str(file)]) == 0
    assert "held out: the right category is first for 1.000 of 24 garments" in capsys.readouterr().out
    classifier = load(file.read_bytes())
    assert list(classifier.embedders) == ["coarse", "fine"] and len(classifier.categories) == 13

    calls.clear()
    assert full(annotated, output, "--set", f"search.classifier={file}") == 0
    assert not [stage for stage, *_ in calls if stage in ("detect", "embed")]  # no model runs again
    rankings = pq.read_table(output / "rankings" / "detected.parquet").to_pylist()
    assert len(rankings) == 24
    for row in rankings:
        likely, scores = zip(*[each.values() for each in row["query_hypotheses"]], strict=True)
        assert len(likely) == 5 and likely[0] == row["query_category_id"]
        assert list(scores) == sorted(scores, reverse=True) and sum(scores) <= row["query_score"] * (1 + 1e-6)
    after = read(output, "metrics.json")["item_categories"]
    assert before["boxes"] == after["boxes"] == sum(each["boxes"] for each in after["bins"]) == 48
    assert before["top_1"] == before["top_1_fused"] == after["top_1"] == 1
    assert 0 <= after["calibration_error"] <= 1
    assert "Categories of detected garments" in (output / "report" / "detection.html").read_text()
    true = pq.read_table(output / "rankings" / "true.parquet")["query_hypotheses"].to_pylist()
    assert all(len(each) == 1 for each in true)


@pytest.mark.parametrize(("more", "reason"), [
    (["--set", "embedders=[coarse]"], "own.safetensors wants embeddings that are not made here: fine"),
    (["--set", "search.classifier=absent.safetensors"], "no absent.safetensors in "),
])  # fmt: skip
def test_a_classifier_that_does_not_fit_is_told_and_left_out(
    annotated: Path, tmp_path: Path, calls: list, full: Full, more: list[str], reason: str
) -> None:
    file, output = tmp_path / "own.safetensors", tmp_path / "run"
    full(annotated, output, "--set", "search.classifier=null")
    fit_categories.main([str(output), "--output", str(file)])
    assert full(annotated, output, "--set", f"search.classifier={file}", *more) == 0
    notes = read(output, "metrics.json")["summary"]["notes"]
    assert any(f"the fused boxes alone say what a garment is: {reason}" in note for note in notes)


@pytest.mark.parametrize(("data", "reason"), [(None, "no own.safetensors in .*; make it"), (b"odd", "no classifier")])
def test_a_file_that_is_asked_for_must_be_one(
    annotated: Path, tmp_path: Path, calls: list, full: Full, data: bytes | None, reason: str
) -> None:
    file = tmp_path / "own.safetensors"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(UserError, match=reason):
        full(annotated, tmp_path / "run", "--set", f"search.classifier={file}")


def test_too_few_garments_held_out(small_set: Path, tmp_path: Path, calls: list, full: Full) -> None:
    full(small_set, tmp_path / "run", "--set", "max_failed_share=0.1")
    with pytest.raises(UserError, match="20 garments on photos held out"):
        fit_categories.main([str(tmp_path / "run"), "--output", str(tmp_path / "own.safetensors")])
