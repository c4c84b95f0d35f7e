"""What would have been right: the counted rank against the whole ranking, and the reasons in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs as runs
from report_runs import BOX, build, garment, make_set, photo, ranking_row, write_rows

from jobs.reports.pages import ordinal
from jobs.reports.reasons import Expected, why_missed, why_unranked
from jobs.runs import tables
from postproc.neighbours import nearest
from store.categories import DEEPFASHION2
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store

SHOPS = list(range(100, 140))
MODELS = ("a", "b")
ELSEWHERE = (0.0, 0.0, 20.0, 20.0)


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embedded(output: ObjectStore, images: ImageSet, steps: list[dict[str, Any]], **more: Any) -> dict[int, np.ndarray]:
    """Items, embeddings and index.json of a run, one item a photo; photo -> its rows side by side, as concat has them.

    Shop photos 110 and 111 look alike: their similarities are equal.
    """
    rng, joined = np.random.default_rng(3), {}
    for shard in images.shards:
        ids = images.read(shard.name, columns=["image_id"])["image_id"].to_pylist()
        items = [runs.item_rows([i])[0] | more.get(f"item_{i}", {}) for i in ids]
        write_rows(output, f"items/detected/{shard.name}.parquet", tables.ITEMS, items)
        for model in MODELS:
            rows = unit(rng, len(ids))
            if {110, 111} <= set(ids):
                rows[ids.index(111)] = rows[ids.index(110)]
            table = [{"image_id": i, "item": 0, "embedding": row.tolist()} for i, row in zip(ids, rows, strict=True)]
            write_rows(
                output,
                f"embeddings/detected/{model}/{shard.name}.parquet",
                tables.embeddings_schema(3, "float32"),
                table,
            )
            joined |= {i: np.r_[joined.get(i, []), row].astype(np.float32) for i, row in zip(ids, rows, strict=True)}
    about = {"models": [{"name": model} for model in MODELS], "weights": None, "steps": steps, "rows": len(SHOPS)}
    output.write("index/detected/index.json", json.dumps(about).encode())
    return {i: row / np.sqrt(2) for i, row in joined.items()}


def shop_set(folder: Path, answers: dict[int, int], **more: Any) -> ImageSet:
    """A consumer photo with its own pair for each of `answers`, whose shop photo is the value."""
    pairs = {shop: 5 + n for n, shop in enumerate(answers.values())}
    users = [photo(i, "user", garment(1), pair_id=pairs[shop]) for i, shop in answers.items()]
    shops = [photo(i, "shop", garment(1), pair_id=pairs.get(i, 1), **more.get(f"shop_{i}", {})) for i in SHOPS]
    return make_set(folder, users + shops, max_images=10)


@pytest.mark.parametrize("answer", [103, 110, 111, 139])
def test_the_rank_is_that_of_the_whole_ranking(tmp_path, answer):
    output, images = open_store(tmp_path / "run"), shop_set(tmp_path / "set", {1: answer})
    rows = embedded(output, images, [{"step": "concat"}])
    similarity, found = nearest(rows[1][None], np.stack([rows[i] for i in SHOPS]), len(SHOPS))
    place = found[0].tolist().index(SHOPS.index(answer))
    wrong = next(i for i in SHOPS if i != answer)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [wrong])])
    said = build(output, images).query(1)["answer"]
    assert said["place"] == f"ranked {ordinal(place + 1)} of 40" and said["name"] == f"000{answer}.jpg"
    assert said["similarity"] == pytest.approx(similarity[0, place], abs=1e-4)
    assert said["picture"][0] == f"pictures/shop-{answer}-0.jpg"


def test_by_photo_the_best_of_its_garments_counts(tmp_path):
    output = open_store(tmp_path / "run")
    users = [photo(1, "user", product_id="p")]
    shops = [photo(i, "shop", product_id="p" if i == 103 else "") for i in SHOPS]
    images = make_set(tmp_path / "set", users + shops, max_images=10)
    rows = embedded(output, images, [{"step": "concat"}])
    similarity = np.stack([rows[i] for i in SHOPS]) @ rows[1]
    rank = 1 + int((similarity > similarity[SHOPS.index(103)]).sum())
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [100])])
    assert build(output, images).query(1)["answer"]["place"] == f"ranked {ordinal(rank)} of 40"


def test_what_re_ranking_orders_has_no_rank_beyond_its_list(tmp_path):
    output, images = open_store(tmp_path / "run"), shop_set(tmp_path / "set", {1: 103})
    embedded(output, images, [{"step": "concat"}, {"step": "k_reciprocal", "k1": 6, "k2": 2}])
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [100])])
    one = build(output, images).query(1)
    assert one["answer"]["place"] == "" and one["answer"]["similarity"] is None
    assert one["reason"] == "Not among the first 20."


def test_queries_that_show_a_right_result_need_nothing(tmp_path):
    output, images = open_store(tmp_path / "run"), shop_set(tmp_path / "set", {1: 103, 2: 104})
    embedded(output, images, [{"step": "concat"}])
    rows = [
        ranking_row(1, [100, 103]),
        ranking_row(2, [*SHOPS[10:21], 104]),
    ]  # the second at rank 12, below those shown
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    found = build(output, images, top=10)
    assert found.query(1)["answer"] is None and found.query(1)["reason"] == ""
    assert found.query(2)["first"] == 12 and found.query(2)["answer"]["name"] == "000104.jpg"


def test_a_missed_garment_is_searched_with_its_box_of_another_category(tmp_path):
    output, images = open_store(tmp_path / "run"), shop_set(tmp_path / "set", {1: 103})
    rows = embedded(output, images, [{"step": "concat"}], item_1={"category_id": 8})
    similarity = np.stack([rows[i] for i in SHOPS]) @ rows[1]
    rank = 1 + int((similarity > similarity[SHOPS.index(103)]).sum())
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [103], category_id=8)])
    one = build(output, images).query(1)
    assert one["first"] == "missed"
    assert one["answer"]["place"] == f"ranked {ordinal(rank)} of 40, searched with box 1"
    assert one["reason"].startswith("Box of category trousers only (80.0)")


def test_a_shop_garment_without_a_box_is_shown_by_its_true_one(tmp_path):
    output, images = open_store(tmp_path / "run"), shop_set(tmp_path / "set", {1: 103})
    embedded(output, images, [{"step": "concat"}], item_103={"bbox": ELSEWHERE})
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [100])])
    one = build(output, images).query(1)
    assert one["reason"] == "The shop's garment has no box, so that no list can hold it."
    assert one["answer"]["place"] == "" and one["answer"]["picture"][0] == "pictures/shop-103-true-10-10.jpg"


def box(bbox: tuple, category_id: int, *others: int) -> dict[str, Any]:
    """A box of a score of 0.625; with `others` it was judged by these categories instead of its own."""
    judged = [{"category_id": one, "score": 0.25} for one in others]
    return {"bbox": bbox, "category_id": category_id, "score": 0.625, "hypotheses": judged}


@pytest.mark.parametrize(
    "bbox, boxes, words",
    [
        (BOX, [], "No box: nothing was detected where the garment is."),
        (BOX, [box(ELSEWHERE, 9)], "No box: nothing was detected where the garment is."),
        (BOX, [box(ELSEWHERE, 9), box(BOX, 8)], "Box of category trousers only (62.5), and the benchmark wants"),
        (BOX, [box(BOX, 9, 8, 1)], "Box of category trousers or short sleeve top only (62.5), and the benchmark"),
        (BOX, [box(BOX, 9, 8, 1, 5)], "Box of category trousers, short sleeve top or vest only (62.5), and the"),
        (BOX, [box(BOX, 8, 1, 9)], "Box 1 is taken: it overlaps another garment more"),
        (BOX, [box(BOX, 9)], "Box 1 is taken: it overlaps another garment more"),
        (None, [], "No box: nothing was detected in this photo."),
    ],
)
def test_a_missed_garment_has_a_reason(bbox, boxes, words):
    assert why_missed(9, bbox, boxes, DEEPFASHION2).startswith(words)


@pytest.mark.parametrize(
    "expected, words",
    [
        (None, "The shops have no photo of this garment."),
        (Expected(5, BOX), "The shop's garment has no box, so that no list can hold it."),
        (Expected(5, BOX, 0), "Not among the first 20."),
        (Expected(5, BOX, 0, 27, 0.5), ""),  # its rank says it
    ],
)
def test_a_list_without_a_right_result_has_a_reason(expected, words):
    assert why_unranked(expected, 20) == words
