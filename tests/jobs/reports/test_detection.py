"""Precision and recall, confusion, misses and duplicates: by hand, and against COCO's own matching."""

from pathlib import Path

import numpy as np
import pytest
import report_runs as runs
from report_runs import garment, make_set, photo, write_rows

from detection import metrics
from jobs.reports import detection
from jobs.reports.truth import read_truth
from jobs.runs import tables
from store.categories import DEEPFASHION2
from store.objects import open_store

A, B, FAR = (0.0, 0.0, 40.0, 40.0), (0.0, 50.0, 40.0, 90.0), (60.0, 0.0, 79.0, 19.0)
UPPER = (0.0, 0.0, 40.0, 20.0)  # IoU 0.5 with A


def columns(rows: list[tuple[int, tuple, int, float]]) -> dict[str, np.ndarray]:
    """image_id, bbox, category_id, score of each row, as arrays."""
    return {
        "image_id": np.array([row[0] for row in rows], np.int64),
        "bbox": np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        "category_id": np.array([row[2] for row in rows], np.int64),
        "score": np.array([row[3] for row in rows], np.float64),
    }


@pytest.mark.parametrize(
    "score, right, n_items, at, want",
    [
        ([], [], 2, [0, 50, 100], [0, 0, 0]),  # nothing found
        ([0.9], [True], 1, [0, 50, 100], [1, 1, 1]),
        ([0.9], [True], 2, [50, 51], [1, 0]),  # half of the items, and no list reaches more
        (
            [0.9, 0.8],
            [False, True],
            1,
            [0, 100],
            [1 / 2, 1 / 2],
        ),  # the longer list is the better one: its precision counts from 0 on
        ([0.8, 0.9], [True, False], 1, [0, 100], [1 / 2, 1 / 2]),  # the same in another order
        ([0.5, 0.5], [True, False], 1, [100], [1]),  # equal scores as given
        ([0.9, 0.8, 0.7], [True, False, True], 2, [50, 51], [1, 2 / 3]),
    ],
)
def test_precision_at_a_recall_is_the_best_of_any_longer_list(score, right, n_items, at, want):
    curve = detection.precision(np.array(score, float), np.array(right, bool), n_items)
    np.testing.assert_allclose(curve[at], want)


def test_precision_without_items_is_not_a_number():
    assert np.isnan(detection.precision(np.array([0.9]), np.array([False]), 0)).all()


@pytest.mark.parametrize(
    "overlap, want",
    [
        ([[0.5]], [0]),  # from half up
        ([[0.49]], [-1]),
        ([[0.6], [0.9]], [0, -1]),  # the better score chooses first, though the other overlaps more
        ([[0.9, 0.6], [0.8, 0.55]], [0, 1]),
        ([[0.7, 0.7]], [1]),  # equal: the later item, as in COCO
        ([[], []], [-1, -1]),  # no true item
    ],
)
def test_the_best_boxes_choose_first(overlap, want):
    assert detection.match(np.array(overlap, float).reshape(len(overlap), -1)).tolist() == want


def examine(folder: Path, found: list[tuple[int, tuple, int, float]]) -> detection.Detection | None:
    """Photo 1 has a top at A and trousers at B, photo 2 nothing, photo 3 a weak box; `found`: fused boxes."""
    items = (garment(1, 1, A), garment(1, 8, B))
    images = make_set(
        folder / "set", [photo(1, "user", *items), photo(2, "shop"), photo(3, "shop", garment(1, 9, A), weak_box=True)]
    )
    output = open_store(folder / "run")
    rows = [{"image_id": i, "bbox": b, "category_id": c, "score": s, "votes": 1, "mask": None} for i, b, c, s in found]
    write_rows(output, "fused/shard-00000.parquet", tables.FUSED, rows)
    return detection.examine(output, images, read_truth(images), ["fused"])


def test_what_is_taken_for_what(tmp_path):
    found = examine(tmp_path, [(1, A, 2, 0.9), (1, FAR, 8, 0.5), (2, A, 4, 0.4), (2, B, 4, 0.29), (3, A, 1, 0.9)])
    none = len(DEEPFASHION2)
    want = {
        (0, 1): 1,
        (7, none): 1,
        (none, 7): 1,
        (none, 3): 1,
    }  # top as another top; trousers not found; two at nothing, one too weak
    assert {tuple(cell): int(found.confusion[tuple(cell)]) for cell in np.argwhere(found.confusion).tolist()} == want


def test_items_without_any_box_come_first_among_the_misses(tmp_path):
    found = examine(tmp_path, [(1, A, 1, 0.2), (1, FAR, 8, 0.9)])
    assert [(miss.category_id, round(miss.best, 3)) for miss in found.misses] == [
        (8, 0.0),
        (1, 0.2),
    ]  # nothing at all; a weak box
    assert found.n_misses == 2 and not found.duplicates


def test_an_item_with_two_boxes_is_a_duplicate(tmp_path):
    found = examine(tmp_path, [(1, A, 1, 0.6), (1, UPPER, 2, 0.8), (1, B, 8, 0.9), (1, B, 9, 0.1)])
    (duplicate,) = found.duplicates  # the second box of the trousers is too weak
    assert (duplicate.category_id, duplicate.categories, duplicate.boxes) == (
        1,
        (2, 1),
        (UPPER, A),
    ) and not found.misses
    assert duplicate.scores == pytest.approx((0.8, 0.6))


def test_a_shard_without_boxes_is_passed_over_and_no_truth_gives_nothing(tmp_path):
    images = make_set(tmp_path / "set", [photo(1, "user", garment(1, 1, A))])
    output = open_store(tmp_path / "run")
    assert detection.examine(output, images, read_truth(images), ["fused"]) is None
    write_rows(output, "fused/shard-00000.parquet", tables.FUSED, [])
    (miss,) = detection.examine(output, images, read_truth(images), ["fused"]).misses
    assert miss.bbox == A
    bare = make_set(tmp_path / "bare", [photo(1, "user")])
    assert detection.examine(output, bare, read_truth(bare), ["fused"]) is None


def test_the_mean_under_a_curve_is_ap50(tmp_path):
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    runs.with_figures(output)
    truth = read_truth(images)
    found = detection.examine(output, images, truth, ["atss", "fused"])
    rows = [images.read(shard, columns=["image_id", "source", "weak_box", "items"]) for shard in truth.shard_ids]
    shards = [
        tables.read(output, f"fused/{shard}.parquet", ["image_id", "bbox", "score", "category_id"])
        for shard in truth.shard_ids
    ]
    import pyarrow as pa

    true = metrics.truth_arrays(pa.concat_tables(rows))
    whole = pa.concat_tables(shards)
    seen = {name: whole[name].to_numpy() for name in ("image_id", "score", "category_id")} | {
        "bbox": tables.rows_of(whole["bbox"])
    }
    figures = metrics.evaluate_boxes(true, seen, true.pop("judged"))
    assert found.curves["fused"][0].mean() == pytest.approx(figures["AP50"])
    assert 0 < figures["AP50"] < 1


def test_of_hundreds_of_categories_the_matrix_names_the_most_frequent() -> None:
    names, n = tuple(f"c{i}" for i in range(300)), 300
    confusion = np.zeros((n + 1, n + 1), np.int64)
    confusion[np.arange(n), np.arange(n)] = np.arange(n)  # c299 is the most frequent
    confusion[299, 0], confusion[0, n], confusion[n, 1] = 5, 3, 2
    chart = detection.confusion_chart(detection.Detection(names, confusion))
    (series,) = chart["choices"][0]["series"]
    assert series["y"] == [*names[-detection.MOST_CONFUSED :], "others", "no garment"]
    assert series["x"] == [*names[-detection.MOST_CONFUSED :], "others", "not found"]
    others = sum(range(n - detection.MOST_CONFUSED))
    assert series["counts"][-2][-2:] == [others, 3] and series["counts"][-3][-3:] == [299, 5, 0]
    assert sum(map(sum, series["counts"])) == confusion.sum()
