"""Ways to fuse boxes, on a small run written by hand: each has the figures of a run with such settings."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pictures import png

from detection.metrics import evaluate_boxes, truth_arrays
from jobs.ablation.boxes import BoxVariant, JudgedPhotos, judge, judge_boxes, variants
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import read_boxes
from jobs.runs.settings import FusionSettings
from store.errors import UserError
from store.imageset import ImageSet, Photo, open_imageset
from store.imageset_write import write_imageset
from tests.jobs.ablation.handwritten import NAMES, described, fused_run


def metric(run: FinishedRun, folder: str) -> dict[str, Any]:
    """The figures metrics.json would have."""
    truth = truth_arrays(run.images.truth())
    judged = truth.pop("judged")
    return evaluate_boxes(truth, read_boxes(run.store, folder, run.selected.names), judged)


def test_the_run_itself_first_then_each_part_changed(fused: FinishedRun, images: ImageSet) -> None:
    ways = variants(described(fused.store, images, FusionSettings(weights=(1, 2, 3), thresholds=(0.1, 0.2, 0.3))))
    assert [variant.name for variant in ways] == [
        "wbf (the run's)", *NAMES, "nms", "nmw", "voting", "soft_nms_linear", "soft_nms_gaussian",
        "wbf, max", "wbf, box_and_model_avg", "wbf, absent_model_aware_avg", "2 votes",
        "without exact", "without off", "without noise",
    ]  # fmt: skip
    without = ways[-2]
    assert without.detectors == ("exact", "noise")
    assert (without.fusion.weights, without.fusion.thresholds) == ((1, 3), (0.1, 0.3))
    assert len({variant.name for variant in ways}) == len(ways) and pickle.loads(pickle.dumps(ways)) == ways


def test_leaving_out_the_only_detector_that_counts_weighs_the_others_alike(
    fused: FinishedRun, images: ImageSet
) -> None:
    ways = variants(described(fused.store, images, FusionSettings(weights=(1, 0, 0), min_votes=3)))
    without = next(variant for variant in ways if variant.name == "without exact")
    assert without.fusion.weights is None and without.fusion.min_votes == 2


def test_one_detector_is_not_left_out(fused: FinishedRun, images: ImageSet) -> None:
    run = described(fused.store, images, FusionSettings(method="nms"))
    run = dataclasses.replace(run, record=dict(run.record) | {"detectors": [{"name": "exact"}]})
    names = [variant.name for variant in variants(run)]
    assert names[:3] == ["nms (the run's)", "exact", "wbf"]
    assert not any(name.startswith(("without", "2 votes", "wbf,")) for name in names)


@pytest.mark.parametrize("name", ["exact", "noise"])
def test_a_single_detector_has_the_figures_of_its_file(fused: FinishedRun, name: str) -> None:
    row = judge(fused, BoxVariant(name, (name,), None), n_draws=20)
    want = metric(fused, f"detections/{name}")
    for figure in ("AP10", "AP10_50", "AP"):
        assert row[figure] == pytest.approx(want[figure], abs=1e-9)
    assert row["difference"] == pytest.approx(want["AP10"] - metric(fused, "fused")["AP10"], abs=1e-9)
    assert row["low"] <= row["difference"] <= row["high"]


def test_every_variant_has_the_figures_of_a_run_with_these_settings(
    fused: FinishedRun, images: ImageSet, tmp_path: Path
) -> None:
    for variant in variants(fused):
        row = judge(fused, variant, n_draws=10)
        if variant.fusion is None or variant.detectors != NAMES:
            continue
        again = fused_run(tmp_path / variant.name.replace(" ", "-"), images, variant.fusion)
        want = metric(again, "fused")
        assert {key: row[key] for key in ("AP10", "AP10_50", "AP")} == pytest.approx(
            {key: want[key] for key in ("AP10", "AP10_50", "AP")}, abs=1e-9
        )
    assert set(row) == {"name", "AP10", "AP10_50", "AP", "difference", "low", "high", "seconds", "peak_mb"}


def test_the_run_differs_from_itself_by_nothing(fused: FinishedRun) -> None:
    row = judge(fused, variants(fused)[0], n_draws=20)
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0) and json.dumps(row)


def test_a_task_takes_the_variant_as_plain_json(fused: FinishedRun) -> None:
    for variant in variants(fused)[:2]:
        row = judge_boxes(fused, json.loads(json.dumps(variant.as_json())))
        want = judge(fused, variant)
        assert {**row, "seconds": 0, "peak_mb": 0} == {**want, "seconds": 0, "peak_mb": 0}


def test_a_limited_run_is_judged_by_its_own_photos(fused: FinishedRun, images: ImageSet) -> None:
    photos = JudgedPhotos.of(described(fused.store, images, FusionSettings(), limit=8))
    assert len(photos.image_id) == 8 and len(photos.truth.photos) <= 8


def test_a_set_without_ground_truth_is_refused(fused: FinishedRun, tmp_path: Path) -> None:
    photos = [Photo(n, png(n), 8, 6, "shop") for n in range(3)]
    write_imageset(photos, tmp_path, source={"adapter": "test", "arguments": {}})
    blank = described(fused.store, open_imageset(tmp_path), FusionSettings())
    with pytest.raises(UserError, match="want an image set with ground truth"):
        judge(blank, BoxVariant("exact", ("exact",), None))
