"""Tuning the fusion on one half of the photos: it climbs, the other half has no say, the halves are alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from jobs.ablation.boxes import JudgedPhotos
from jobs.ablation.tuning import _ascend, _halves, tune
from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from jobs.runs.settings import FusionSettings, Settings, check_together
from jobs.runs.validation import build
from store.imageset import ImageSet
from store.objects import open_store
from tests.jobs.ablation.handwritten import NAMES


def test_tuning_gives_noise_less_weight_and_reports_the_half_it_did_not_see(fused: FinishedRun) -> None:
    answer = tune(fused, 1, n_draws=50)
    weights = dict(zip(NAMES, answer["settings"]["weights"], strict=True))
    assert weights["noise"] < weights["exact"]
    assert answer["AP10"]["tuned"]["A"] > answer["AP10"]["default"]["A"]
    assert answer["difference"] == pytest.approx(answer["AP10"]["tuned"]["B"] - answer["AP10"]["default"]["B"])
    assert answer["low"] <= answer["difference"] <= answer["high"]
    pasted = build(Settings, {"detectors": list(NAMES), **yaml.safe_load(answer["yaml"])}, "")
    assert list(check_together(pasted).fusion.weights) == answer["settings"]["weights"]
    again = tune(fused, 1, n_draws=50)
    assert {**answer, "seconds": 0, "peak_mb": 0} == {**again, "seconds": 0, "peak_mb": 0}


def test_half_b_has_no_say(fused: FinishedRun, images: ImageSet, tmp_path: Path) -> None:
    half_b = _halves(JudgedPhotos.of(fused), 1)[1]
    other = dataclasses.replace(fused, store=open_store(tmp_path))
    for shard in images.shards:
        for name in NAMES:
            key = f"detections/{name}/{shard.name}.parquet"
            rows = tables.read(fused.store, key)
            inside = np.isin(rows.column("image_id").to_numpy(), half_b)
            tables.write(other.store, key, rows.filter(pa.array(~inside)))
    want, got = tune(fused, 1, n_draws=5), tune(other, 1, n_draws=5)
    assert got["settings"] == want["settings"] and got["AP10"]["tuned"]["A"] == want["AP10"]["tuned"]["A"]
    assert got["AP10"]["tuned"]["B"] == 0 < want["AP10"]["tuned"]["B"]


@pytest.mark.parametrize("seed", range(3))
def test_halves_share_no_photo_and_have_consumers_and_shops_alike(fused: FinishedRun, seed: int) -> None:
    photos = JudgedPhotos.of(fused)
    a, b = _halves(photos, seed)
    assert sorted([*a.tolist(), *b.tolist()]) == photos.truth.photos.tolist()
    assert (photos.truth.photos % 10 != 1).all()  # weak boxes do not judge
    n_users = [int(np.isin(half, photos.consumers).sum()) for half in (a, b)]
    assert abs(n_users[0] - n_users[1]) <= 1 and abs(len(a) - len(b)) <= 2


def test_another_seed_gives_other_halves(fused: FinishedRun) -> None:
    photos = JudgedPhotos.of(fused)
    assert _halves(photos, 0)[0].tolist() != _halves(photos, 1)[0].tolist()


def test_the_ascent_climbs_one_number_at_a_time_to_the_top() -> None:
    def worth(fusion: FusionSettings) -> float:  # best at weights 2 and 1, thresholds 0.1 and 0.01, IoU 0.6
        away = abs(fusion.weights[0] - 2) + abs(fusion.weights[1] - 1) + abs(fusion.iou_threshold - 0.6)
        return 1 - 0.1 * (away + abs(fusion.thresholds[0] - 0.1) + abs(fusion.thresholds[1] - 0.01))

    start = FusionSettings(weights=(1.0, 1.0), thresholds=(0.01, 0.01))
    best, rounds = _ascend(worth, start, np.random.default_rng(0))
    assert best == start.replace(weights=(2.0, 1.0), thresholds=(0.1, 0.01), iou_threshold=0.6)
    assert rounds == 2 and worth(best) == 1  # the second finds nothing more
