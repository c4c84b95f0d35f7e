"""Detection AP against hand-made cases, a brute-force AP, and pycocotools reading ccp_df2's own COCO file."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.average_precision import AP10_IDS
from detection.metrics import evaluate_boxes, evaluate_masks, judged_ids, polygon_area, truth_arrays
from store.categories import DEEPFASHION2

TOP, OUTWEAR, SKIRT = 1, 3, 9  # short sleeve outwear (3) is not among the ten
BOX = (0, 0, 100, 100)
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def columns(rows: list[tuple], scored: bool) -> dict[str, np.ndarray]:
    """Rows (image, category, x1, y1, x2, y2[, score]) as the arrays of truth or detections."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7 if scored else 6)
    box = table[:, 2:6]
    more = {"score": table[:, 6]} if scored else {"area": (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])}
    return {"image_id": table[:, 0].astype(int), "category_id": table[:, 1].astype(int), "bbox": box} | more


def judged(true_rows: list[tuple], found_rows: list[tuple], images: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return evaluate_boxes(columns(true_rows, False), columns(found_rows, True), np.array(images))


@pytest.mark.parametrize(
    "true_rows, found_rows, want_ap, want_ap50",
    [
        ([], [], None, None),  # nothing to measure
        ([], [(1, SKIRT, *BOX, 0.9)], None, None),
        ([(1, SKIRT, *BOX)], [], 0, 0),  # nothing found
        ([(1, SKIRT, *BOX)], [(1, SKIRT, *BOX, 0.9)], 1, 1),
        ([(1, SKIRT, *BOX)], [(1, SKIRT, 0, 0, 100, 62, 0.9)], 3 / 10, 1),  # IoU 0.62: right at 0.50, 0.55, 0.60
        ([(1, SKIRT, *BOX)], [(1, TOP, *BOX, 0.9)], 0, 0),  # another category
        ([(1, SKIRT, *BOX)], [(2, SKIRT, *BOX, 0.9)], 0, 0),  # in a photo that is not judged
        # half of the items: precision 1 at recalls 0.00 to 0.50, 51 of the 101
        ([(1, SKIRT, *BOX), (1, SKIRT, 200, 0, 300, 100)], [(1, SKIRT, *BOX, 0.9)], 51 / 101, 51 / 101),
        # a better score on nothing: precision 1/2 all along
        ([(1, SKIRT, *BOX)], [(1, SKIRT, 200, 0, 300, 100, 0.9), (1, SKIRT, *BOX, 0.8)], 1 / 2, 1 / 2),
        ([(1, SKIRT, *BOX)], [(1, SKIRT, *BOX, 0.9), (1, SKIRT, *BOX, 0.8)], 1, 1),  # found twice: too late to harm
        ([(1, SKIRT, *BOX), (1, OUTWEAR, *BOX)], [(1, SKIRT, *BOX, 0.9)], 1 / 2, 1 / 2),  # mean over categories
    ],
)
def test_ap_of_small_cases(true_rows, found_rows, want_ap, want_ap50):
    got = judged(true_rows, found_rows)
    assert got["AP"] == pytest.approx(want_ap) and got["AP50"] == pytest.approx(want_ap50)
    assert got["images"] == 1


def test_ap10_is_the_mean_over_those_of_the_ten_that_have_items():
    true_rows = [(1, SKIRT, *BOX), (1, TOP, 200, 0, 300, 100), (1, OUTWEAR, *BOX)]
    got = judged(true_rows, [(1, SKIRT, 0, 0, 100, 62, 0.9), (1, OUTWEAR, *BOX, 0.9)])
    assert (got["AP10"], got["AP10_50"]) == (pytest.approx(0.3 / 2), pytest.approx(1 / 2))  # skirt and top
    assert got["AP"] == pytest.approx((0.3 + 0 + 1) / 3)
    assert list(got["per_category"]) == list(DEEPFASHION2)
    assert got["per_category"]["skirt"] == {"AP": pytest.approx(0.3), "AP50": pytest.approx(1), "items": 1}
    assert got["per_category"]["vest"] == {"AP": None, "AP50": None, "items": 0}
    only_outwear = judged([(1, OUTWEAR, *BOX)], [])
    assert (only_outwear["AP"], only_outwear["AP10"], only_outwear["AP10_50"]) == (0, None, None)


def test_areas_decide_small_medium_large():
    true_rows = [(1, SKIRT, 0, 0, 20, 20), (1, SKIRT, 100, 0, 150, 50), (1, SKIRT, 200, 0, 400, 200)]
    got = judged(true_rows, [(1, SKIRT, 0, 0, 20, 20, 0.9), (1, SKIRT, 200, 0, 400, 200, 0.8)])
    assert (got["APs"], got["APm"], got["APl"]) == (pytest.approx(1), 0, pytest.approx(1))
    assert judged(true_rows[2:], [])["APs"] is None


def test_photos_without_items_count_and_no_photos_give_nothing():
    found = [(2, SKIRT, *BOX, 0.9), (1, SKIRT, *BOX, 0.8)]
    assert judged([(1, SKIRT, *BOX)], found, images=(1, 2))["AP"] == pytest.approx(1 / 2)
    nothing = judged([(1, SKIRT, *BOX)], found, images=())
    assert [nothing[name] for name in (*FIGURES, "AP10", "AP10_50")] == [None] * 8
    assert nothing["images"] == 0


def test_it_is_silent(capsys):
    judged([(1, SKIRT, *BOX)], [(1, SKIRT, *BOX, 0.9)])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": np.array([14])}, "detections: row 0 has category id 14, want 1 to 13"),
        ({"score": np.array([np.nan])}, r"detections: row 0 has score \[nan\], want finite numbers"),
        ({"score": np.array([np.inf])}, r"detections: row 0 has score \[inf\], want finite numbers"),
        ({"bbox": np.full((1, 4), np.nan)}, r"detections: row 0 has bbox \[nan, nan, nan, nan\], want finite"),
        ({"bbox": np.array([[0, 0, np.inf, 1]])}, r"detections: row 0 has bbox \[0.0, 0.0, inf, 1.0\], want finite"),
        ({"score": np.array([])}, "detections: score has 0 rows, image_id has 1"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    found = columns([(1, SKIRT, *BOX, 0.9)], True)
    with pytest.raises(ValueError, match=message):
        evaluate_boxes(columns([(1, SKIRT, *BOX)], False), found | change, np.array([1]))


@pytest.mark.parametrize("name", ["bbox", "area"])
def test_truth_that_is_not_finite_is_named(name: str) -> None:
    true, found = columns([(1, SKIRT, *BOX)], False), columns([(1, SKIRT, *BOX, 0.9)], True)
    with pytest.raises(ValueError, match=f"truth: row 0 has {name}"):
        evaluate_boxes(true | {name: np.full_like(true[name], np.nan, dtype=float)}, found, np.array([1]))


def brute_force_ap(truth: dict, found: dict, category: int, threshold: float, images: list[int]) -> float | None:
    """101-point AP of one category at one IoU, from the definition."""
    flags, n_true = [], 0
    for image in images:
        true = truth["bbox"][(truth["image_id"] == image) & (truth["category_id"] == category)]
        rows = np.flatnonzero((found["image_id"] == image) & (found["category_id"] == category))
        free = [True] * len(true)
        n_true += len(true)
        for row in sorted(rows, key=lambda r: -found["score"][r])[:100]:
            best, hit = threshold, -1
            for i, box in enumerate(true):
                overlap = iou(found["bbox"][row], box)
                if free[i] and overlap >= best:  # of equal overlaps the later item, as the COCO code has it
                    best, hit = overlap, i
            if hit >= 0:
                free[hit] = False
            flags.append((-found["score"][row], hit >= 0))
    if not n_true:
        return None
    right = np.cumsum([hit for _, hit in sorted(flags, key=lambda flag: flag[0])])
    recall, precision = right / n_true, right / np.arange(1, len(right) + 1)
    return float(np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)]))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)

    def rows(n: int, *last: int) -> list[tuple]:
        table = []
        for _ in range(n):
            corner, size = rng.integers(0, 3, 2) * 40, rng.integers(4, 9, 2) * 10
            score = [rng.integers(1, 6) / 6] * len(last)  # few values, so that scores tie
            table.append((rng.integers(1, 6), rng.choice([1, 2, 3]), *corner, *(corner + size), *score))
        return table

    truth, found = columns(rows(rng.integers(1, 15)), False), columns(rows(rng.integers(0, 40), 1), True)
    images = [1, 2, 3, 4]  # of the five, one is not judged
    got = evaluate_boxes(truth, found, np.array(images))
    at50, at_all = [], []
    for category, name in enumerate(DEEPFASHION2, start=1):
        want = [brute_force_ap(truth, found, category, t, images) for t in np.linspace(0.5, 0.95, 10)]
        if want[0] is None:
            assert got["per_category"][name]["AP"] is None
            continue
        at50.append(want[0])
        at_all.append(np.mean(want))
        assert got["per_category"][name]["AP50"] == pytest.approx(want[0])
        assert got["per_category"][name]["AP"] == pytest.approx(np.mean(want))
    assert got["AP"] == (pytest.approx(np.mean(at_all)) if at_all else None)
    assert got["AP50"] == (pytest.approx(np.mean(at50)) if at50 else None)


@pytest.mark.parametrize(
    "polygons, want",
    [
        ([], 0),
        ([[0, 0, 4, 0, 4, 3, 0, 3]], 4 * 3),
        ([[0, 3, 4, 3, 4, 0, 0, 0]], 4 * 3),  # the other way round
        ([[0, 0, 4, 0, 4, 3, 0, 3], [10, 10, 12, 10, 12, 12, 10, 12]], 4 * 3 + 2 * 2),
        ([[0, 0, 4, 0, 4, 3, 0, 3], [2, 0, 6, 0, 6, 3, 2, 3]], 6 * 3),  # what lies under both counts once
        ([[5, 5, 6, 6]], 0),  # a line
        ([[5, 5, 6, 6], [0, 0, 4, 0, 4, 3, 0, 3]], 4 * 3),
    ],
)
def test_polygon_area(polygons, want):
    assert polygon_area(polygons) == want


ITEM = pa.struct(
    {
        "category_id": pa.int8(),
        "bbox": pa.list_(pa.float32(), 4),
        "segmentation": pa.list_(pa.list_(pa.float32())),
    }
)


def truth_table(rows: list[tuple]) -> pa.Table:
    """Rows (image_id, source, weak_box, [(category_id, bbox, polygons)]) as an image set's truth, in two chunks."""
    names = ("category_id", "bbox", "segmentation")
    items = [[dict(zip(names, item, strict=True)) for item in row[3]] for row in rows]
    ids, source, weak = (
        pa.array([row[i] for row in rows], kind) for i, kind in enumerate((pa.int64(), pa.string(), pa.bool_()))
    )
    table = pa.table({"image_id": ids, "source": source, "weak_box": weak, "items": pa.array(items, pa.list_(ITEM))})
    return pa.concat_tables([table.slice(0, len(rows) // 2), table.slice(len(rows) // 2)])


def test_truth_arrays_leaves_weak_boxes_out():
    table = truth_table(
        [
            (4, "shop", True, [(SKIRT, BOX, [])]),
            (7, "user", False, [(SKIRT, (0, 0, 4, 3), [[0, 0, 4, 0, 4, 2, 0, 2]]), (TOP, (1, 1, 3, 6), [])]),
            (8, "user", False, []),
            (5, "shop", False, [(OUTWEAR, BOX, [[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 6, 5, 6, 6, 5, 6]])]),
        ]
    )
    got = truth_arrays(table)
    assert got["judged"].tolist() == [7, 8, 5]
    assert got["image_id"].tolist() == [7, 7, 5]
    assert got["category_id"].tolist() == [SKIRT, TOP, OUTWEAR]
    assert got["bbox"].tolist() == [[0, 0, 4, 3], [1, 1, 3, 6], list(BOX)]
    assert got["area"].tolist() == [4 * 2, 2 * 5, 2 * 2 + 1]  # polygon, box, two polygons
    assert truth_arrays(table, areas=False)["area"].tolist() == [4 * 3, 2 * 5, (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])]
    assert judged_ids(table).tolist() == [7, 8, 5] and judged_ids(table, "user").tolist() == [7, 8]
    assert truth_arrays(table, only="shop")["judged"].tolist() == [5]
    assert truth_arrays(table, only="user")["image_id"].tolist() == [7, 7]
    assert [len(column) for column in truth_arrays(table.slice(0, 0)).values()] == [0] * 5


def square(x: int, y: int, side: int, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    pixels = np.zeros(size, np.uint8, order="F")
    pixels[y : y + side, x : x + side] = 1
    return rle.encode(pixels)


def test_masks_are_judged_by_their_pixels():
    truth = columns([(1, SKIRT, 10, 10, 50, 50), (1, TOP, 0, 0, 10, 10)], False)
    truth["segmentation"] = [[[10, 10, 50, 10, 50, 50, 10, 50]], []]  # the second has only its box
    found = {"image_id": np.array([1, 1]), "category_id": np.array([SKIRT, TOP]), "score": np.array([0.9, 0.8])}
    exact = evaluate_masks(
        truth, found | {"mask": [square(10, 10, 40), square(0, 0, 10)]}, np.array([1]), {1: (64, 64)}
    )
    assert [exact[name] for name in ("AP", "AP10", "APs", "APm")] == pytest.approx([1, 1, 1, 1])
    smaller = evaluate_masks(
        truth, found | {"mask": [square(10, 10, 32), square(9, 9, 1)]}, np.array([1]), {1: (64, 64)}
    )
    assert smaller["per_category"]["skirt"]["AP"] == pytest.approx(3 / 10)  # 32²/40² = 0.64


def coco_rows(coco: COCO, images: list[int]) -> dict[str, np.ndarray]:
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=images))
    box = np.array([a["bbox"] for a in annotations], dtype=np.float64)
    box[:, 2:] += box[:, :2]
    return {"bbox": box} | {key: np.array([a[key] for a in annotations]) for key in ("image_id", "category_id", "area")}


def test_equals_pycocotools_on_ccp_df2(ccp_df2):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(ccp_df2 / "instances_val.json")
    images = [i for i, image in coco.imgs.items() if not image["weak_box"]]
    truth = coco_rows(coco, images)
    found = jittered(truth, images, np.random.default_rng(0))
    got = evaluate_boxes(truth, found, np.array(images))

    xywh = np.concatenate([found["bbox"][:, :2], found["bbox"][:, 2:] - found["bbox"][:, :2]], axis=1)
    with contextlib.redirect_stdout(io.StringIO()):
        rows = [found["image_id"][:, None], xywh, found["score"][:, None], found["category_id"][:, None]]
        official = COCOeval(coco, coco.loadRes(np.concatenate(rows, axis=1)), "bbox")
        official.params.imgIds = images
        official.evaluate()
        official.accumulate()
        official.summarize()
    want = [None if figure == -1 else pytest.approx(figure, abs=1e-12) for figure in official.stats[:6]]
    assert [got[name] for name in FIGURES] == want
    assert 0.2 < got["AP"] < 0.9 and got["images"] == 204 + 492  # neither trivial nor the distractors

    per_category = official.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))
    assert got["AP10"] == pytest.approx(np.mean([per_category[i - 1] for i in AP10_IDS]), abs=1e-12)
    assert sum(part["items"] for part in got["per_category"].values()) == len(truth["area"])


def jittered(truth: dict, images: list[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nine tenths of the true boxes, shaken, some with another category; and as many boxes of nothing."""
    kept = rng.random(len(truth["area"])) < 0.9
    box, n = truth["bbox"][kept], int(kept.sum())
    size = np.tile(box[:, 2:] - box[:, :2], 2)
    near = np.sort((box + rng.normal(0, 0.05, (n, 4)) * size).reshape(n, 2, 2), axis=1).reshape(n, 4)
    far = np.concatenate([(corner := rng.uniform(0, 200, (n, 2))), corner + rng.uniform(20, 200, (n, 2))], axis=1)
    category = np.where(rng.random(n) < 0.8, truth["category_id"][kept], rng.integers(1, 14, n))
    return {
        "image_id": np.concatenate([truth["image_id"][kept], rng.choice(images, n)]),
        "bbox": np.concatenate([near, far]),
        "score": np.concatenate([rng.uniform(0.3, 1, n), rng.uniform(0, 0.7, n)]).round(2),
        "category_id": np.concatenate([category, rng.integers(1, 14, n)]),
    }


def test_truth_arrays_give_the_boxes_and_areas_of_ccp_df2(ccp_df2):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(ccp_df2 / "instances_val.json")
    images = sorted(i for i, image in coco.imgs.items() if not image["weak_box"])
    got = truth_arrays(truth_table([annotated(path) for path in sorted((ccp_df2 / "val" / "annos").glob("*.json"))]))
    want = coco_rows(coco, images)
    assert got["judged"].tolist() == images
    for key in ("image_id", "category_id", "bbox", "area"):
        assert got[key].tolist() == want[key].tolist()


def annotated(path: Path) -> tuple:
    anno = json.loads(path.read_text())
    names = sorted((key for key in anno if key.startswith("item")), key=lambda key: int(key[4:]))
    items = [(anno[n]["category_id"], anno[n]["bounding_box"], anno[n]["segmentation"]) for n in names]
    return int(path.stem), anno["source"], anno.get("weak_box", False), items


@pytest.mark.parametrize("n_categories", [3, 300])
def test_other_categories_equal_pycocotools_and_have_no_ap10(n_categories: int) -> None:
    rng, names = np.random.default_rng(n_categories), [f"c{i}" for i in range(n_categories)]
    n, images = 400, np.arange(1, 21)
    corner = rng.uniform(0, 100, (n, 2))
    box = np.concatenate([corner, corner + rng.uniform(20, 90, (n, 2))], axis=1)
    truth = {
        "image_id": rng.choice(images, n), "bbox": box, "category_id": rng.integers(1, n_categories + 1, n),
        "area": (box[:, 2:] - box[:, :2]).prod(axis=1),
    }  # fmt: skip
    shaken = np.concatenate([box[:, :2] + rng.normal(0, 3, (n, 2)), box[:, 2:] + rng.normal(0, 3, (n, 2))], axis=1)
    found = {
        "image_id": truth["image_id"], "bbox": shaken, "score": rng.permutation(n) / n,
        "category_id": np.where(rng.random(n) < 0.8, truth["category_id"], rng.integers(1, n_categories + 1, n)),
    }  # fmt: skip
    got = evaluate_boxes(truth, found, images, names)

    def coco(columns: dict[str, np.ndarray]) -> COCO:
        xywh = np.concatenate([columns["bbox"][:, :2], columns["bbox"][:, 2:] - columns["bbox"][:, :2]], axis=1)
        one = COCO()
        one.dataset = {
            "images": [{"id": int(i)} for i in images],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "id": row + 1, "image_id": int(columns["image_id"][row]), "bbox": xywh[row].tolist(), "iscrowd": 0,
                    "category_id": int(columns["category_id"][row]), "area": float(xywh[row, 2:].prod()),
                    "score": float(columns["score"][row]) if "score" in columns else 1.0,
                }
                for row in range(n)
            ],
        }  # fmt: skip
        one.createIndex()
        return one

    with contextlib.redirect_stdout(io.StringIO()):
        official = COCOeval(coco(truth), coco(found), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    want = [None if figure == -1 else pytest.approx(figure, abs=1e-12) for figure in official.stats[:6]]
    assert [got[name] for name in FIGURES] == want and 0.1 < got["AP"] < 0.9
    assert (got["AP10"], got["AP10_50"]) == (None, None) and list(got["per_category"]) == names


def test_thirteen_other_categories_have_no_ap10() -> None:
    true = columns([(1, SKIRT, *BOX)], False)
    found = columns([(1, SKIRT, *BOX, 0.9)], True)
    renamed = [*DEEPFASHION2[:-1], "cape"]
    assert evaluate_boxes(true, found, np.array([1]), renamed)["AP10"] is None
    assert evaluate_boxes(true, found, np.array([1]), list(DEEPFASHION2))["AP10"] == pytest.approx(1)
