"""Fusing anew, on a small run written by hand: one detector is exact, one is off, one sees nothing but noise."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pictures import png

from detection.metrics import evaluate_boxes, truth_arrays
from jobs import config, score, tables
from jobs.ablation import boxes as ablation
from jobs.ablation.boxes import BoxVariant, judge, tune, variants
from jobs.cli import UserError
from jobs.config import Fusion, Settings
from jobs.fuse_shard import FuseShard
from jobs.selection import select
from jobs.trial import Job
from store.imageset import ImageSet, Item, Photo, open_imageset, write_imageset
from store.objects import ObjectStore, open_store

NAMES = ("exact", "off", "noise")
SHIFT_PX = {"exact": 0.5, "off": 9, "noise": 60}
N_PHOTOS = 40


def record(fusion: Fusion, images: ImageSet, limit: int | None = None) -> dict[str, Any]:
    """What is looked at of run.json."""
    settings = Settings(imageset=images.uri, detectors=NAMES, fusion=fusion, limit=limit)
    kept = {
        "settings": config.record(settings), "detectors": [{"name": name} for name in NAMES],
        "imageset": {"selected": select(images, limit).as_json()},
    }  # fmt: skip
    return json.loads(json.dumps(kept))


def write_detections(output: ObjectStore, images: ImageSet) -> None:
    """Each detector's boxes: the true ones, moved by so many pixels, and a stray one a photo."""
    rng = np.random.default_rng(5)
    for shard in images.shards:
        photos = images.read(shard.name, columns=["image_id", "items"]).to_pylist()
        for name in NAMES:
            rows = [(p["image_id"], item["bbox"], item["category_id"]) for p in photos for item in p["items"]]
            near = np.array([row[1] for row in rows]) + rng.normal(0, SHIFT_PX[name], (len(rows), 4))
            corner = rng.uniform(0, 100, (len(photos), 2))
            ids = [*(row[0] for row in rows), *(p["image_id"] for p in photos)]
            columns = {
                "image_id": np.array(ids), "bbox": np.concatenate([near, np.concatenate([corner, corner + 70], axis=1)]),
                "score": rng.uniform(0.2, 1, len(ids)), "category_id": np.array([*(row[2] for row in rows), *[1] * len(photos)]),
            }  # fmt: skip
            columns["bbox"][:, 2:] = np.maximum(columns["bbox"][:, 2:], columns["bbox"][:, :2] + 1)
            key = f"detections/{name}/{shard.name}.parquet"
            tables.write(output, key, tables.table(tables.DETECTIONS, columns))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    rng = np.random.default_rng(3)
    photos = []
    for number in range(1, N_PHOTOS + 1):
        items = []
        for category in rng.choice([1, 2, 8], 2, replace=False).tolist():
            x, y = rng.uniform(0, 100, 2).tolist()
            items.append(Item(category, 1, (x, y, x + 80, y + 90)))
        source = "user" if number % 4 == 0 else "shop"
        photos.append(
            Photo(number, png(number, 200, 200), 200, 200, source, weak_box=number % 10 == 1, items=tuple(items))
        )
    folder = tmp_path_factory.mktemp("images")
    write_imageset(photos, folder, source={"adapter": "test", "arguments": {}}, max_images=15)
    return open_imageset(folder)


@pytest.fixture(scope="module")
def run(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, dict[str, Any]]:
    output = open_store(tmp_path_factory.mktemp("run"))
    write_detections(output, images)
    kept = record(Fusion(), images)
    fuse_all(output, images, Fusion())
    return output, kept


def fuse_all(output: ObjectStore, images: ImageSet, fusion: Fusion) -> None:
    worker = FuseShard(Settings(fusion=fusion), NAMES, images, output)
    for shard in images.shards:
        worker.run(Job(shard.name, tuple(range(shard.rows)), ("detected",)), {}, False)


def metric(output: ObjectStore, images: ImageSet, folder: str) -> dict[str, Any]:
    """The figures metrics.json would have."""
    truth = truth_arrays(images.truth())
    judged = truth.pop("judged")
    keys = [f"{folder}/{shard.name}.parquet" for shard in images.shards]
    return evaluate_boxes(truth, score.boxes(output, keys), judged)


def test_the_run_itself_first_then_each_part_changed(images: ImageSet) -> None:
    found = variants(record(Fusion(weights=(1, 2, 3), thresholds=(0.1, 0.2, 0.3)), images))
    assert [one.name for one in found] == [
        "wbf (the run's)", *NAMES, "nms", "nmw", "voting", "soft_nms_linear", "soft_nms_gaussian",
        "wbf, max", "wbf, box_and_model_avg", "wbf, absent_model_aware_avg", "2 votes",
        "without exact", "without off", "without noise",
    ]  # fmt: skip
    without = found[-2]
    assert (without.detectors, without.fusion.weights, without.fusion.thresholds) == (("exact", "noise"), (1, 3), (0.1, 0.3))  # fmt: skip
    assert len({one.name for one in found}) == len(found) and pickle.loads(pickle.dumps(found)) == found


def test_leaving_out_the_only_detector_that_counts_weighs_the_others_alike(images: ImageSet) -> None:
    kept = record(Fusion(weights=(1, 0, 0), min_votes=3), images)
    without = next(one for one in variants(kept) if one.name == "without exact")
    assert without.fusion.weights is None and without.fusion.min_votes == 2


def test_one_detector_is_not_left_out(images: ImageSet) -> None:
    kept = record(Fusion(method="nms"), images) | {"detectors": [{"name": "exact"}]}
    names = [one.name for one in variants(kept)]
    assert names[:3] == ["nms (the run's)", "exact", "wbf"]
    assert not any(name.startswith(("without", "2 votes", "wbf,")) for name in names)


@pytest.mark.parametrize("name", ["exact", "noise"])
def test_a_single_detector_has_the_figures_of_its_file(
    run: tuple[ObjectStore, dict[str, Any]], images: ImageSet, name: str
) -> None:
    output, kept = run
    row = judge(output, images, kept, BoxVariant(name, (name,), None), n_draws=20)
    want = metric(output, images, f"detections/{name}")
    for figure in ("AP10", "AP10_50", "AP"):
        assert row[figure] == pytest.approx(want[figure], abs=1e-9)
    assert row["difference"] == pytest.approx(want["AP10"] - metric(output, images, "fused")["AP10"], abs=1e-9)
    assert row["low"] <= row["difference"] <= row["high"]


def test_every_variant_has_the_figures_of_a_run_with_these_settings(
    run: tuple[ObjectStore, dict[str, Any]], images: ImageSet, tmp_path: Path
) -> None:
    output, kept = run
    for variant in variants(kept):
        row = judge(output, images, kept, variant, n_draws=10)
        if variant.fusion is None or variant.detectors != NAMES:
            continue
        again = open_store(tmp_path / variant.name.replace(" ", "-"))
        write_detections(again, images)
        fuse_all(again, images, variant.fusion)
        want = metric(again, images, "fused")
        assert {key: row[key] for key in ("AP10", "AP10_50", "AP")} == pytest.approx(
            {key: want[key] for key in ("AP10", "AP10_50", "AP")}, abs=1e-9
        )
    assert set(row) == {"name", "AP10", "AP10_50", "AP", "difference", "low", "high", "seconds", "peak_mb"}


def test_the_run_differs_from_itself_by_nothing(run: tuple[ObjectStore, dict[str, Any]], images: ImageSet) -> None:
    row = judge(*(run[0], images, run[1]), variants(run[1])[0], n_draws=20)
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0) and json.dumps(row)


def test_a_limited_run_is_judged_by_its_own_photos(run: tuple[ObjectStore, dict[str, Any]], images: ImageSet) -> None:
    kept = record(Fusion(), images, limit=8)
    photos = ablation._photos(images, kept)
    assert sum(len(ids) for ids in photos.shards.values()) == 8 and len(photos.truth.photos) <= 8


def test_tuning_weighs_the_noise_less_and_reports_what_was_not_looked_at(
    run: tuple[ObjectStore, dict[str, Any]], images: ImageSet
) -> None:
    output, kept = run
    found = tune(output, images, kept, 1, n_draws=50)
    weights = dict(zip(NAMES, found["settings"]["weights"], strict=True))
    assert weights["noise"] < weights["exact"]
    assert found["AP10"]["tuned"]["A"] > found["AP10"]["default"]["A"]
    assert found["difference"] == pytest.approx(found["AP10"]["tuned"]["B"] - found["AP10"]["default"]["B"])
    assert found["low"] <= found["difference"] <= found["high"]
    pasted = config.build(Settings, {"detectors": list(NAMES), **yaml.safe_load(found["yaml"])}, "")
    assert list(config.consistent(pasted).fusion.weights) == found["settings"]["weights"]
    again = tune(output, images, kept, 1, n_draws=50)
    assert {**found, "seconds": 0, "peak_mb": 0} == {**again, "seconds": 0, "peak_mb": 0}


def test_half_b_never_has_a_say(run: tuple[ObjectStore, dict[str, Any]], images: ImageSet, tmp_path: Path) -> None:
    output, kept = run
    half_b = ablation._halves(ablation._photos(images, kept), 1)[1]
    other = open_store(tmp_path)
    for shard in images.shards:
        for name in NAMES:
            rows = tables.read(output, f"detections/{name}/{shard.name}.parquet")
            inside = np.isin(rows.column("image_id").to_numpy(), half_b)
            tables.write(other, f"detections/{name}/{shard.name}.parquet", rows.filter(pa.array(~inside)))
    want, got = tune(output, images, kept, 1, n_draws=5), tune(other, images, kept, 1, n_draws=5)
    assert got["settings"] == want["settings"] and got["AP10"]["tuned"]["A"] == want["AP10"]["tuned"]["A"]
    assert got["AP10"]["tuned"]["B"] == 0 < want["AP10"]["tuned"]["B"]


@pytest.mark.parametrize("seed", range(3))
def test_halves_share_no_photo_and_have_consumers_and_shops_alike(
    run: tuple[ObjectStore, dict[str, Any]], images: ImageSet, seed: int
) -> None:
    photos = ablation._photos(images, run[1])
    a, b = ablation._halves(photos, seed)
    assert sorted([*a.tolist(), *b.tolist()]) == photos.truth.photos.tolist()
    assert (photos.truth.photos % 10 != 1).all()  # weak boxes do not judge
    consumers = [int(np.isin(half, photos.consumers).sum()) for half in (a, b)]
    assert abs(consumers[0] - consumers[1]) <= 1 and abs(len(a) - len(b)) <= 2


def test_another_seed_halves_otherwise(run: tuple[ObjectStore, dict[str, Any]], images: ImageSet) -> None:
    photos = ablation._photos(images, run[1])
    assert ablation._halves(photos, 0)[0].tolist() != ablation._halves(photos, 1)[0].tolist()


def test_a_set_without_ground_truth_is_refused(run: tuple[ObjectStore, dict[str, Any]], tmp_path: Path) -> None:
    photos = [Photo(n, png(n), 8, 6, "shop") for n in range(3)]
    write_imageset(photos, tmp_path, source={"adapter": "test", "arguments": {}})
    blank = open_imageset(tmp_path)
    with pytest.raises(UserError, match="want an image set with ground truth"):
        judge(run[0], blank, record(Fusion(), blank), BoxVariant("exact", ("exact",), None))


def test_the_ascent_climbs_one_number_at_a_time_to_the_top() -> None:
    def worth(fusion: Fusion) -> float:  # best at weights 2 and 1, thresholds 0.1 and 0.01, IoU 0.6
        away = abs(fusion.weights[0] - 2) + abs(fusion.weights[1] - 1) + abs(fusion.iou_threshold - 0.6)
        return 1 - 0.1 * (away + abs(fusion.thresholds[0] - 0.1) + abs(fusion.thresholds[1] - 0.01))

    search = ablation._Search(worth)
    start = Fusion(weights=(1.0, 1.0), thresholds=(0.01, 0.01))
    best, rounds = ablation._ascend(search, start, np.random.default_rng(0))
    assert best == dataclasses.replace(start, weights=(2.0, 1.0), thresholds=(0.1, 0.01), iou_threshold=0.6)
    assert rounds == 2 and worth(best) == 1  # the second finds nothing more
