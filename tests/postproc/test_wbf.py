"""Fusion against arithmetic, against ensemble-boxes 1.0.9 as the oracle, and against itself image by image."""

import warnings

import numpy as np
import pytest
from ensemble_boxes import ensemble_boxes_wbf as package
from hypothesis import given
from hypothesis import strategies as st

import postproc.wbf
from postproc.wbf import CONF_TYPES, fuse_batch, fuse_batch_members, weighted_boxes_fusion

UNIT = (0, 0, 1, 1)


def rows(per_model):
    """[[(x1, y1, x2, y2, score, label), …] per model] -> boxes, scores, labels lists."""
    return (
        [[row[:4] for row in model] for model in per_model],
        [[row[4] for row in model] for model in per_model],
        [[row[5] for row in model] for model in per_model],
    )


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_model", "weights", "want_scores"),
    [
        ([], None, []),  # no models
        ([[], []], [1, 1], []),  # nothing seen
        ([[(*UNIT, 0.8, 1)]], None, [0.8]),  # one model, one box
        ([[(*UNIT, 0.8, 1)], []], [1, 1], [0.8 * 1 / 2]),  # one of two
        ([[(*UNIT, 0.8, 1)], [(*UNIT, 0.6, 1)]], [1, 1], [(0.8 + 0.6) / 2]),  # both
        ([[(*UNIT, 0.8, 1)], [(*UNIT, 0.6, 1)]], [3, 1], [(3 * 0.8 + 0.6) / 4]),  # both, weighted
        ([[(*UNIT, 0.8, 1)], [(*UNIT, 0.6, 2)]], [1, 1], [0.8 / 2, 0.6 / 2]),  # classes never mix
        ([[(*UNIT, 0.8, 1), (*UNIT, 0.6, 1)]], None, [(0.8 + 0.6) / 2]),  # one model twice: min(T, n) = 1 of its mean
    ],
)
def test_scores_count_the_detectors_that_agree(per_model, weights, want_scores):
    _, scores, _ = weighted_boxes_fusion(*rows(per_model), weights=weights)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("conf_type", "allows_overflow", "want"),
    [
        (
            "avg",
            False,
            (1.6 + 1.2 + 0.4) / 3 * 2 / 3,
        ),  # s = 2 * .8, 2 * .6, 1 * .4; three boxes, two models, weights 2 + 1
        ("avg", True, (1.6 + 1.2 + 0.4) / 3),
        ("max", False, 1.6 / 2),
        ("box_and_model_avg", False, (1.6 + 1.2 + 0.4) / (2 + 2 + 1) * (2 + 1) / 3),
        ("absent_model_aware_avg", False, (1.6 + 1.2 + 0.4) / (2 + 2 + 1 + 0)),
    ],
)
def test_each_confidence(conf_type, allows_overflow, want):
    seen = rows([[(*UNIT, 0.8, 1), (*UNIT, 0.6, 1)], [(*UNIT, 0.4, 1)]])
    _, scores, _ = weighted_boxes_fusion(*seen, weights=[2, 1], conf_type=conf_type, allows_overflow=allows_overflow)
    np.testing.assert_allclose(scores, [want], rtol=1e-6)


def test_absent_models_count_by_weight():
    seen = rows([[(*UNIT, 0.8, 1)], [], []])
    for conf_type, want in (("absent_model_aware_avg", 2 * 0.8 / (2 + 1 + 1)), ("box_and_model_avg", 0.8 * 2 / 4)):
        _, scores, _ = weighted_boxes_fusion(*seen, weights=[2, 1, 1], conf_type=conf_type)
        np.testing.assert_allclose(scores, [want], rtol=1e-6)


@pytest.mark.parametrize("unit", [1.0, 640.0, 1 / 1024])
def test_edges_are_the_score_weighted_mean_in_any_unit(unit):
    seen = rows([[(-1, 0, 10, 10, 0.8, 3)], [(-1, 0, 10, 12, 0.4, 3)]])
    boxes, scores, labels = weighted_boxes_fusion([np.array(one) * unit for one in seen[0]], *seen[1:])
    np.testing.assert_allclose(boxes, [[-1 * unit, 0, 10 * unit, (0.8 * 10 + 0.4 * 12) / 1.2 * unit]], rtol=1e-6)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float64, np.float64, np.int64)


@pytest.mark.parametrize(("iou_thr", "want"), [(0.49, 1), (0.5, 2), (0.51, 2)])
def test_equal_overlap_does_not_fuse(iou_thr, want):
    seen = rows([[(0, 0, 2, 2, 0.9, 1)], [(0, 0, 2, 1, 0.8, 1)]])  # 2 / 4
    assert len(weighted_boxes_fusion(*seen, iou_thr=iou_thr)[0]) == want


def test_equal_scores_keep_input_order():
    apart = [(0, 0, 1, 1), (5, 0, 6, 1), (0, 5, 1, 6), (5, 5, 6, 6)]
    seen = rows([[(*apart[2], 0.5, 2), (*apart[0], 0.5, 1)], [(*apart[3], 0.5, 1), (*apart[1], 0.9, 1)]])
    boxes, _, _ = weighted_boxes_fusion(*seen)
    assert boxes.tolist() == [list(apart[k]) for k in (1, 2, 0, 3)]
    one, two = (
        (0, 0, 4, 4),
        (1, 0, 5, 4),
    )  # both overlap the third box by 3.5 / 4.5; of equals the first in input gets it
    boxes, _, _ = weighted_boxes_fusion(
        *rows([[(*two, 0.5, 1), (*one, 0.5, 1), (0.5, 0, 4.5, 4, 0.5, 1)]]), iou_thr=0.7
    )
    np.testing.assert_allclose(boxes, [[0.75, 0, 4.75, 4], [0, 0, 4, 4]])


@pytest.mark.parametrize(
    ("score", "threshold", "want"),
    [(0.5, 0.5, 1), (0.49, 0.5, 0), (0.0, 0.0, 1), (-1.0, 0.0, 0), (np.float32(0.7), 0.7, 1)],
)
def test_scores_below_the_threshold_are_left_out(score, threshold, want):
    assert len(weighted_boxes_fusion([[UNIT]], [np.array([score])], [[1]], skip_box_thr=threshold)[1]) == want


def test_scores_of_nothing_leave_the_first_box_where_it_is():
    first, second = (0, 0, 10, 10), (0, 0, 10, 11)
    no_scores, no_weight = [[(*first, 0, 1), (*second, 0, 1)]], [[(*first, 0.5, 1), (*second, 0.4, 1)], []]
    for per_model, weights in ((no_scores, [1]), (no_weight, [0, 1])):
        for conf_type in CONF_TYPES:
            boxes, scores, _ = weighted_boxes_fusion(*rows(per_model), weights=weights, conf_type=conf_type)
            assert boxes.tolist() == [list(first)]
            assert scores.tolist() == [0]


def test_boxes_without_area_are_left_out():
    assert len(weighted_boxes_fusion(*rows([[(1, 1, 1, 5, 0.9, 1), (*UNIT, 0.8, 1)]]))[0]) == 1


# --- the oracle -------------------------------------------------------------------------------------------------------


def in_input_order(boxes, scores, labels, weights, threshold):
    """The package's own first step on valid boxes, except that equal scores keep input order (there: any order)."""
    found = {}
    for model, per_model in enumerate(zip(boxes, scores, labels, strict=True)):
        for box, score, label in zip(*per_model, strict=True):
            if score >= threshold and (box[2] - box[0]) * (box[3] - box[1]) > 0:
                row = [label, float(score) * weights[model], weights[model], model, *map(float, box)]
                found.setdefault(label, []).append(row)
    return {label: np.array(sorted(some, key=lambda row: -row[1])) for label, some in found.items()}


def random_image(rng, *, grid=0):
    """One image: a few objects seen by several models, with misses, repeats and noise; on a grid, full of ties."""
    n_models, n_objects, n_labels = rng.integers(1, 7), rng.integers(1, 5), rng.integers(1, 4)
    centre, size = rng.uniform(0.2, 0.8, (n_objects, 2)), rng.uniform(0.05, 0.4, (n_objects, 2))
    boxes, scores, labels = [], [], []
    for _ in range(n_models):
        some = rng.integers(0, n_objects, rng.integers(0, 9))
        around = centre[some] + rng.normal(0, 0.03, (len(some), 2))
        half = size[some] / 2 * rng.uniform(0.8, 1.25, (len(some), 2))
        corners = np.concatenate([around - half, around + half], axis=1).clip(0, 1)
        score = rng.uniform(0.01, 1, len(some))
        if grid:
            corners, score = (corners * grid).round() / grid, (score * 4).round() / 4 + 0.25
        boxes.append(corners)
        scores.append(score)
        labels.append(rng.integers(0, n_labels, len(some)))
    weights = [None, rng.uniform(0.1, 4, n_models).tolist(), rng.integers(1, 4, n_models).tolist()][rng.integers(3)]
    settings = {
        "weights": weights,
        "iou_thr": float(rng.choice([0, 0.25, 1 / 3, 0.5, 0.55, 0.7, 0.9])),
        "skip_box_thr": float(rng.choice([0, 0.3])),
        "allows_overflow": bool(rng.integers(2)),
    }
    return (boxes, scores, labels), settings


def same(got, want, tied):
    if tied:  # the package's last sort leaves equal scores anyhow
        got, want = ([one[np.lexsort((*x[0].T, x[2], -x[1].round(6)))] for one in x] for x in (got, want))
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0)


def compare(n_images, conf_type, grid, seed, monkeypatch):
    if grid:
        monkeypatch.setattr(package, "prefilter_boxes", in_input_order)
    rng = np.random.default_rng([seed, len(conf_type), grid])
    for _ in range(n_images):
        image, settings = random_image(rng, grid=grid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # boxes without area
            want = package.weighted_boxes_fusion(*image, conf_type=conf_type, **settings)
        same(weighted_boxes_fusion(*image, conf_type=conf_type, **settings), want, tied=grid > 0)


@pytest.mark.parametrize("conf_type", CONF_TYPES)
@pytest.mark.parametrize("grid", [0, 8, 12])  # 0: none
def test_numbers_of_ensemble_boxes(conf_type, grid, monkeypatch):
    compare(30, conf_type, grid, 1, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("conf_type", CONF_TYPES)
@pytest.mark.parametrize("grid", [0, 8, 12])
def test_numbers_of_ensemble_boxes_on_thousands(conf_type, grid, monkeypatch):
    compare(300, conf_type, grid, 2, monkeypatch)


@pytest.mark.slow
def test_numbers_of_ensemble_boxes_on_full_images():
    rng = np.random.default_rng(8)
    for n_labels in (1, 4, 13):
        for _ in range(60):
            corner = rng.uniform(0, 0.6, (5, 20, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (5, 20, 2))], axis=2)
            image = boxes, rng.random((5, 20)), rng.integers(0, n_labels, (5, 20))
            same(weighted_boxes_fusion(*image), package.weighted_boxes_fusion(*image), tied=False)


# --- many images ------------------------------------------------------------------------------------------------------


def as_rows(images, ids):
    """Images as `fuse_batch` wants them: one row per box."""
    flat = [
        (box, score, label, image, model)
        for image, (boxes, scores, labels) in zip(ids, images, strict=True)
        for model, per_model in enumerate(zip(boxes, scores, labels, strict=True))
        for box, score, label in zip(*per_model, strict=True)
    ]
    boxes, scores, labels, image, model = zip(*flat, strict=True)
    return np.array(boxes), np.array(scores), np.array(labels), np.array(image), np.array(model)


@pytest.mark.parametrize("rows_at_once", [1, 50, 65_536])
@pytest.mark.parametrize("conf_type", CONF_TYPES)
def test_an_image_does_not_depend_on_its_neighbours(rows_at_once, conf_type, monkeypatch):
    rng = np.random.default_rng(3)
    images = [random_image(rng, grid=[0, 8][k % 2])[0] for k in range(60)]
    images = [
        tuple((list(part) + [[]] * 6)[:6] for part in image)
        for image in images  # the other models found nothing
    ]
    ids = rng.permutation(2**62 + np.arange(60))
    weights = rng.uniform(0.1, 2, 6)
    monkeypatch.setattr(postproc.wbf, "ROWS_AT_ONCE", rows_at_once)
    batch = as_rows(images, ids)
    got = fuse_batch(*batch, n_models=6, weights=weights, conf_type=conf_type)
    assert [column.dtype for column in got] == [np.float64, np.float64, np.int64, np.int64, np.int8]
    assert list(dict.fromkeys(got[3].tolist())) == [
        i for i in dict.fromkeys(batch[3].tolist()) if i in set(got[3].tolist())
    ]
    for one, image in zip(images, ids, strict=True):
        alone = weighted_boxes_fusion(*one, weights=weights, conf_type=conf_type)
        for mine, want in zip(got, alone, strict=False):
            np.testing.assert_array_equal(mine[got[3] == image], want)  # to the last bit


def test_rows_need_not_be_side_by_side():
    rng = np.random.default_rng(4)
    images = [random_image(rng)[0] for _ in range(8)]
    batch = as_rows(images, [5, 3, 9, 1, 2, 8, 7, 4])
    by_model = np.argsort(batch[4], kind="stable")  # as five detectors' tables one below the other
    got = fuse_batch(*(column[by_model] for column in batch), n_models=6)
    want = fuse_batch(*batch, n_models=6)
    for image in want[3]:
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine[got[3] == image], theirs[want[3] == image])


def test_votes_are_distinct_models():
    seen = rows([[(*UNIT, 0.9, 1), (*UNIT, 0.8, 1), (3, 3, 4, 4, 0.1, 1)], [(*UNIT, 0.7, 1)], []])
    boxes, _, _, image, votes = fuse_batch(*as_rows([seen], [77]), n_models=3)
    np.testing.assert_allclose(boxes, [[0, 0, 1, 1], [3, 3, 4, 4]], rtol=1e-6)
    assert image.tolist() == [77, 77]
    assert votes.tolist() == [2, 1]


@pytest.mark.parametrize("rows_at_once", [1, 50, 65_536])
def test_members_tell_where_each_box_went(rows_at_once, monkeypatch):
    rng = np.random.default_rng(5)
    batch = as_rows([random_image(rng, grid=[0, 8][k % 2])[0] for k in range(20)], rng.permutation(20))
    boxes, scores, labels, image, model = (column[rng.permutation(len(batch[0]))] for column in batch)
    monkeypatch.setattr(postproc.wbf, "ROWS_AT_ONCE", rows_at_once)
    *fused, members = fuse_batch_members(boxes, scores, labels, image, model, 6, skip_box_thr=0.4)
    for mine, want in zip(fused, fuse_batch(boxes, scores, labels, image, model, 6, skip_box_thr=0.4), strict=True):
        np.testing.assert_array_equal(mine, want)
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_array_equal(members >= 0, (scores >= 0.4) & (sides > 0).all(axis=1))
    for place in range(len(fused[0])):
        inside = members == place
        np.testing.assert_allclose(fused[0][place], scores[inside] @ boxes[inside] / scores[inside].sum(), rtol=1e-6)
        assert fused[4][place] == len(set(model[inside]))
        assert {(fused[2][place], fused[3][place])} == set(zip(labels[inside], image[inside], strict=True))


def test_an_empty_batch_and_an_image_of_which_nothing_is_left():
    none = fuse_batch(np.zeros((0, 4)), [], [], np.array([], np.int32), [], n_models=5)
    assert [column.shape for column in none] == [(0, 4), (0,), (0,), (0,), (0,)]
    assert [column.dtype for column in none] == [np.float64, np.float64, np.int64, np.int32, np.int8]
    kept = fuse_batch([UNIT, UNIT], [0.1, 0.9], [1, 1], [4, 5], [0, 0], n_models=1, skip_box_thr=0.5)
    assert kept[3].tolist() == [5]


box_rows = st.tuples(
    *[st.floats(0, 100)] * 2, *[st.floats(0.5, 50)] * 2, st.floats(0.01, 1), st.integers(0, 1), st.integers(0, 3)
)


@given(st.lists(box_rows, max_size=25), st.sampled_from(CONF_TYPES))
def test_invariants(drawn, conf_type):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, *_ in drawn]).reshape(-1, 4)
    scores, labels, model = (np.array([row[k] for row in drawn]) for k in (4, 5, 6))
    image = np.zeros(len(drawn), int)
    fused, confidence, fused_labels, _, votes = fuse_batch(boxes, scores, labels, image, model, 4, conf_type=conf_type)
    assert ((votes >= 1) & (votes <= 4)).all()
    assert (np.diff(confidence) <= 0).all()
    assert ((confidence > 0) & (confidence <= 1 + 1e-6)).all()
    assert set(fused_labels) == set(labels.astype(int))
    for label in set(fused_labels):
        hull = boxes[labels == label]
        inside = fused[fused_labels == label]
        assert (inside >= hull.min(axis=0) - 1e-4).all() and (inside <= hull.max(axis=0) + 1e-4).all()
    if len(set(scores)) == len(scores):  # no ties: which model is called the first does not matter
        again = fuse_batch(boxes, scores, labels, image, 3 - model, 4, conf_type=conf_type)
        for mine, theirs in zip((fused, confidence, votes), (again[0], again[1], again[4]), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-9)


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1]}, "one weight per model"),
        ({"weights": [1, 2, 3]}, "one weight per model"),
        ({"weights": [1, -1]}, "not all 0"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1, np.nan]}, "not all 0"),
        ({"conf_type": "mean"}, "'mean'; want one of avg, max"),
        ({"iou_thr": 1.1}, "1.1"),
        ({"iou_thr": -0.1}, "-0.1"),
        ({"skip_box_thr": np.nan}, "nan"),
        ({"boxes_list": [[(0, 0, 1, 1)], [(0, np.nan, 1, 1)]]}, "model 1: .* row 0"),
        ({"boxes_list": [[(0, 0, 1, 1)], [(2, 0, 1, 1)]]}, "model 1: .* row 0 .* ends before"),
        ({"boxes_list": [[(0, 0, 1)], [(0, 0, 1, 1)]]}, r"model 0: .*\(N, 4\)"),
        ({"boxes_list": [[(0, 0, 1, 1)]]}, "same number"),
        ({"scores_list": [[0.5], [0.5, 0.6]]}, "model 1 has 1 boxes, 2 scores"),
        ({"scores_list": [[0.5], [np.nan]]}, "row 1"),
        ({"scores_list": [[0.5], [-0.5]], "skip_box_thr": -1}, "row 1"),
        ({"labels_list": [[1], [1.5]]}, "label in row 1 is 1.5"),
        ({"labels_list": [[1], [np.nan]]}, "label in row 1 is nan"),
    ],
)
def test_wrong_input_is_refused(change, message):
    good = {"boxes_list": [[UNIT], [UNIT]], "scores_list": [[0.5], [0.6]], "labels_list": [[1], [1.0]]}
    assert len(weighted_boxes_fusion(**good)[0]) == 1
    with pytest.raises(ValueError, match=message):
        weighted_boxes_fusion(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": [0, 2]}, "row 1 is of model 2; want 0 to 1"),
        ({"model": [-1, 0]}, "row 0 is of model -1"),
        ({"n_models": 0}, "n_models is 0"),
        ({"n_models": 128}, "n_models is 128"),
        ({"image": [1]}, "2 boxes"),
        ({"boxes": [UNIT, (0, 0, 0, -1)]}, "row 1"),
    ],
)
def test_a_wrong_batch_is_refused(change, message):
    good = {
        "boxes": [UNIT, UNIT],
        "scores": [0.5, 0.6],
        "labels": [1, 1],
        "image": [1, 1],
        "model": [0, 1],
        "n_models": 2,
    }
    with pytest.raises(ValueError, match=message):
        fuse_batch(**{**good, **change})
