"""The models on a few photos: the answer of a night, the version's own models or none."""

import json
import subprocess
import sys
from pathlib import Path

import infer_with_stand_ins
import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins
from small_gallery import ask as ask_gallery
from small_gallery import publish

from jobs.gallery import infer, versions
from jobs.gallery.results import fingerprint_of
from jobs.runs.catalogue import choose_models
from jobs.runs.categories import with_category_ids
from jobs.runs.settings import FusionSettings, Settings
from jobs.runs.validation import build
from retrieval.gallery import open_gallery
from store.categories import DEEPFASHION2, recorded
from store.files import file_digest

SETTINGS = Settings(detectors=("near", "far"), embedders=("coarse", "fine"), device="cpu")


def photos(numbers: list[int], **how: object) -> dict[int, tuple[bytes, int, int]]:
    return {i: (stand_ins.photo(i, "user", 1 + i, **how).image, 48, 64) for i in numbers}  # type: ignore[arg-type]


def test_rows_and_boxes_are_those_of_a_night(small_set, tmp_path, calls):
    publish(small_set, tmp_path)
    gallery = open_gallery(tmp_path)
    settings = infer.settings_of(gallery.record, stand_ins.CATALOGUE)
    numbers = [14, 12, 23]  # in no order
    asked = {i: (stand_ins.photo(i, "shop", 1 + i % 12).image, 48, 64) for i in numbers}
    found = infer.infer(asked, settings.replace(device="cpu"), DEEPFASHION2, infer_with_stand_ins.SCRIPT)
    assert found.photo.tolist() == numbers and not found.failed
    assert found.vectors.dtype == np.float32 and found.vectors.shape == (3, sum(gallery.dims.values()))
    items = gallery.items.to_pylist()
    (results,) = {path.parent for path in (tmp_path / "results").rglob("*.items.parquet")}
    stored = [row for path in results.glob("*.items.parquet") for row in pq.read_table(path).to_pylist()]
    for row, number in enumerate(numbers):
        (mine,) = [item for item in items if item["image_id"] == number]
        assert found.bbox[row].tolist() == mine["bbox"] and found.category_id[row] == mine["category_id"]
        (then,) = [one for one in stored if one["digest"] == mine["digest"]]
        np.testing.assert_allclose(found.vectors[row], then["coarse"] + then["fine"], atol=1e-6)


def test_what_killed_a_process_is_found_and_the_rest_is_kept():
    asked = photos([0]) | photos([5], corner=stand_ins.KILLER) | photos([6], corner=stand_ins.STUMBLER)
    found = infer.infer(asked, SETTINGS, DEEPFASHION2, infer_with_stand_ins.SCRIPT)
    assert found.photo.tolist() == [0] and sorted(found.failed) == [5, 6]
    assert "ended with -9" in found.failed[5] and "stumbled" in found.failed[6]


def test_nothing_but_bad_photos():
    found = infer.infer(photos([5], corner=stand_ins.STUMBLER), SETTINGS, DEEPFASHION2, infer_with_stand_ins.SCRIPT)
    assert len(found) == 0 and list(found.failed) == [5]
    assert found.vectors.shape[0] == 0 and len(found.select(np.zeros(0, np.int64))) == 0


def test_a_process_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "START_S", 1)
    monkeypatch.setattr(infer, "PHOTO_S", 0)
    script = tmp_path / "hangs.py"  # from its start, however fast the machine is
    script.write_text("import time; time.sleep(3600)")
    found = infer.infer(photos([5]), SETTINGS, DEEPFASHION2, script)
    assert found.failed == {5: "the models took longer than 1 s"}


def test_what_a_version_records_makes_the_same_settings_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = SETTINGS.replace(
        weights_dir="mine", fusion=FusionSettings(weights=(2.0, 1.0), iou_threshold=0.4), max_pixels=1000
    )
    kept = json.loads(json.dumps(versions.settings_record(given)))
    again = build(Settings, kept, "")
    assert again == given.replace(weights_dir=str(tmp_path / "mine"), device="auto")
    assert not {"imageset", "output", "device"} & set(kept), "who asks has their own"


def test_a_version_says_with_what_it_was_made(small_set, tmp_path, calls, monkeypatch):
    monkeypatch.chdir(small_set.parent)
    publish(Path(small_set.name), tmp_path, "--set", "items.max_per_image=5")
    record = open_gallery(tmp_path).record
    assert record["settings"]["items"]["max_per_image"] == 5
    assert record["settings"]["detectors"] == ["near", "far"]
    assert [part["uri"] for part in record["imagesets"]] == [str(small_set)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.png").write_bytes(stand_ins.photo(13, "shop", 2).image)
    assert ask_gallery(tmp_path, "asked.png") == 0, "from any folder"


def test_a_version_from_before_hypotheses_is_searched(small_set, tmp_path, calls):
    """Its garments' boxes and embeddings are those of today; it has other settings, fingerprint and columns."""
    publish(small_set, tmp_path)
    (file,) = (tmp_path / "versions").glob("*/version.json")
    record = json.loads(file.read_text())
    settings = infer.settings_of(record, stand_ins.CATALOGUE)
    detectors, embedders = choose_models(settings, stand_ins.CATALOGUE)
    models = (*with_category_ids(detectors, recorded(record)), *embedders)
    record["results"] = fingerprint_of(settings, models, hypotheses=False)
    for name in ("hypotheses", "hypothesis_iou", "hypothesis_score"):
        del record["settings"]["items"][name]
    items = file.with_name("items.parquet")
    assert all(len(pairs) >= 1 for pairs in pq.read_table(items)["hypotheses"].to_pylist())
    pq.write_table(pq.read_table(items).drop_columns("hypotheses"), items)
    record["files"]["items.parquet"] = file_digest(items)
    file.write_text(json.dumps(record))
    (tmp_path / "asked.png").write_bytes(stand_ins.photo(13, "shop", 2).image)
    assert ask_gallery(tmp_path, str(tmp_path / "asked.png")) == 0


@pytest.mark.parametrize("line", [[], ["a", "b"]])
def test_the_script_wants_one_folder(line):
    done = subprocess.run([sys.executable, str(infer.SCRIPT), *line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "infer.py: error: want one folder, as jobs/search.py makes it\n"
