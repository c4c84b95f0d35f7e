"""`detectors: []`: the whole photo is the item, in runs and in galleries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stand_ins

from jobs import export, reindex_gallery
from store.imageset_write import write_imageset

Full = Callable[..., int]
Calls = list[tuple[str, str, Any]]
NONE = ("--set", "detectors=[]", "--set", "max_failed_share=1")


def test_a_run_without_detectors(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    assert full(small_set, tmp_path / "run", *NONE) == 0
    assert {stage for stage, _, _ in calls} == {"embed"}
    items = pq.read_table(tmp_path / "run/items/detected/shard-00000.parquet").to_pylist()
    assert items[0] == {
        "image_id": 0, "item": 0, "bbox": [0, 0, 48, 64], "score": 1, "category_id": 0, "votes": 0, "hypotheses": [],
    }  # fmt: skip
    assert [item["image_id"] for item in items] == list(range(6)) and {item["item"] for item in items} == {0}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {figures["AP"] for figures in metrics["detection"].values()} == {None}
    judged = metrics["retrieval"]["detected"]["concat"]
    assert (judged["truth"], judged["queries"], judged["missed"]) == ("photo", 12, 0)
    assert any("no detectors" in note for note in metrics["summary"]["notes"])
    calls.clear()
    assert full(small_set, tmp_path / "run", *NONE) == 0 and calls == []


def test_consumers_alone_have_no_results(tmp_path: Path, calls: Calls, full: Full) -> None:
    photos = [stand_ins.photo(number, "user", pair=number) for number in range(1, 4)]
    write_imageset(photos, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    assert full(tmp_path / "set", tmp_path / "run", *NONE) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "no shop photos: the gallery is empty, so queries have no results" in metrics["summary"]["notes"]
    judged = metrics["retrieval"]["detected"]["concat"]
    assert (judged["truth"], judged["queries"], judged["top"]["20"]) == ("photo", 3, 0)


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_without_categories_the_category_rule_changes_nothing(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, rule: str
) -> None:
    rankings = []
    for steps in ("[{step: concat}]", f"[{{step: concat}}, {{step: category, rule: {rule}}}]"):
        assert full(small_set, tmp_path, *NONE, "--set", "boxes=[detected]", "--set", f"search.steps={steps}") == 0
        rankings.append(pq.read_table(tmp_path / "rankings/detected.parquet"))
    assert rankings[0] == rankings[1]


def test_it_is_exported(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    assert full(small_set, tmp_path / "run", *NONE) == 0
    for form in ("coco", "trec", "csv"):
        assert export.main([str(tmp_path / "run"), "--to", form, str(tmp_path / form)]) == 0
    assert any("photo" in path.read_text() for path in (tmp_path / "csv").glob("*.csv"))


def test_a_gallery_of_whole_photos(small_set: Path, tmp_path: Path, calls: Calls) -> None:
    line = [*stand_ins.SETTINGS, "--set", "detectors=[]", "--set", "gallery.copies=0", *NONE[2:]]
    line += ["--imageset", str(small_set), "--gallery", str(tmp_path / "gallery")]
    assert reindex_gallery.main(line, stand_ins.CATALOGUE) == 0
    (items,) = (tmp_path / "gallery/versions").glob("*/items.parquet")
    table = pq.read_table(items).to_pylist()
    assert sorted(row["image_id"] for row in table) == list(range(12, 24))  # 25 cannot be decoded
    assert {row["category_id"] for row in table} == {0}
