"""Precision and recall, confusion, misses and doubles: by hand, and against COCO's own matching."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs as runs
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import garment, make_set, photo, write_rows

from detection import metrics
from jobs import tables
from jobs.reporting import detection, queries
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


side = st.sampled_from([0.0, 10.0, 20.0, 30.0, 40.0])
boxes = st.tuples(side, side, st.sampled_from([10.0, 20.0, 40.0]), st.sampled_from([10.0, 20.0, 40.0])).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None, max_examples=60)
@given(
    true=st.lists(st.tuples(st.integers(1, 3), boxes, st.integers(1, 2)), max_size=8),
    found=st.lists(
        st.tuples(st.integers(1, 4), boxes, st.integers(1, 2), st.sampled_from([0.2, 0.5, 0.9])), max_size=12
    ),
)
def test_matching_is_cocos(true, found):
    """Photo 4 is not judged; equal scores and equal boxes are among them."""
    truth: dict[str, Any] = columns([(*one, 0.0) for one in true])
    truth["area"] = (truth["bbox"][:, 2] - truth["bbox"][:, 0]) * (truth["bbox"][:, 3] - truth["bbox"][:, 1])
    del truth["score"]
    judged = np.array([1, 2, 3])
    ours, theirs = detection.at_half(truth, columns(found), judged), metrics.matches(truth, columns(found), judged)
    for category in (1, 2, 13):
        want = theirs[category]
        assert ours[category]["items"][0] == want["items"].sum()
        curves = [detection.precision(one["score"], right, int(want["items"].sum())) for one, right in
                  ((ours[category], ours[category]["right"]), (want, want["right"][0]))]  # fmt: skip
        np.testing.assert_array_equal(*curves)


def examine(folder: Path, found: list[tuple[int, tuple, int, float]]) -> detection.Detection | None:
    """Photo 1 has a top at A and trousers at B, photo 2 nothing, photo 3 a weak box; `found` are fused boxes of any of them."""
    items = (garment(1, 1, A), garment(1, 8, B))
    images = make_set(
        folder / "set", [photo(1, "user", *items), photo(2, "shop"), photo(3, "shop", garment(1, 9, A), weak_box=True)]
    )
    output = open_store(folder / "run")
    rows = [{"image_id": i, "bbox": b, "category_id": c, "score": s, "votes": 1, "mask": None} for i, b, c, s in found]
    write_rows(output, "fused/shard-00000.parquet", tables.FUSED, rows)
    return detection.examine(output, images, queries.read_truth(images), ["fused"])


def test_what_is_taken_for_what(tmp_path):
    found = examine(tmp_path, [(1, A, 2, 0.9), (1, FAR, 8, 0.5), (2, A, 4, 0.4), (2, B, 4, 0.29), (3, A, 1, 0.9)])
    none = detection.N
    want = {
        (0, 1): 1,
        (7, none): 1,
        (none, 7): 1,
        (none, 3): 1,
    }  # top as another top; trousers not found; two at nothing, one too weak
    assert {tuple(cell): int(found.confusion[tuple(cell)]) for cell in np.argwhere(found.confusion).tolist()} == want


def test_misses_come_surest_first(tmp_path):
    found = examine(tmp_path, [(1, A, 1, 0.2), (1, FAR, 8, 0.9)])
    assert [(miss.category_id, round(miss.best, 3)) for miss in found.misses] == [
        (8, 0.0),
        (1, 0.2),
    ]  # nothing at all; a weak box
    assert found.n_misses == 2 and not found.doubles


def test_an_item_with_two_boxes_is_a_double(tmp_path):
    found = examine(tmp_path, [(1, A, 1, 0.6), (1, UPPER, 2, 0.8), (1, B, 8, 0.9), (1, B, 9, 0.1)])
    (double,) = found.doubles  # the second box of the trousers is too weak
    assert (double.category_id, double.categories, double.boxes) == (1, (2, 1), (UPPER, A)) and not found.misses
    assert double.scores == pytest.approx((0.8, 0.6))


def test_a_shard_without_boxes_is_passed_over_and_no_truth_gives_nothing(tmp_path):
    images = make_set(tmp_path / "set", [photo(1, "user", garment(1, 1, A))])
    output = open_store(tmp_path / "run")
    assert detection.examine(output, images, queries.read_truth(images), ["fused"]) is None
    write_rows(output, "fused/shard-00000.parquet", tables.FUSED, [])
    (miss,) = detection.examine(output, images, queries.read_truth(images), ["fused"]).misses
    assert miss.bbox == A
    bare = make_set(tmp_path / "bare", [photo(1, "user")])
    assert detection.examine(output, bare, queries.read_truth(bare), ["fused"]) is None


def test_the_mean_under_a_curve_is_ap50(tmp_path):
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    runs.with_figures(output)
    truth = queries.read_truth(images)
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
