"""The retrieval metric against hand-made cases, a plain evaluator of the same rules, and ccp_df2's own ground truth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rules import KS, plain, shares
from pycocotools import mask

from postproc.hypotheses import Hypotheses
from retrieval.metrics import TOPS, consumer_to_shop_accuracy, evaluate, first_hit_ranks, ground_truth, hits
from retrieval.results import Results

HERE, ELSEWHERE = [0, 0, 10, 10], [50, 50, 60, 60]
SKIRT, DRESS = 9, 10


def query(image: int = 1, style: int = 1, cls: int = SKIRT, pair: int = 7, bbox: Any = HERE, **more: int) -> dict:
    return {"query_image_id": image, "style": style, "cls": cls, "pair_id": pair, "bbox": bbox, **more}


def shop(image: int = 100, style: int = 1, pair: int = 7, bbox: Any = HERE) -> dict:
    return {"gallery_image_id": image, "style": style, "pair_id": pair, "bbox": bbox}


def result(listed: list, image: int = 1, cls: int = SKIRT, score: float = 0.5, bbox: Any = HERE) -> dict:
    """A detection whose list holds (shop photo, box) pairs."""
    ids, boxes = [photo for photo, _ in listed], [box for _, box in listed]
    asked = {"query_image_id": image, "query_bbox": bbox, "query_cls": cls, "query_score": score}
    return asked | {"gallery_image_id": ids, "gallery_bbox": boxes}


def in_columns(results: list[dict]) -> Results:
    """The same submission as `Results`, with rubbish after the end of each list."""
    count = np.array([len(r["gallery_image_id"]) for r in results], dtype=np.int64)
    width = max(count, default=0)
    ids, boxes = np.full((len(results), width), 100), np.zeros((len(results), width, 4))
    boxes[:] = HERE
    for row, r in enumerate(results):
        ids[row, : count[row]] = r["gallery_image_id"]
        boxes[row, : count[row]] = np.array(r["gallery_bbox"]).reshape(-1, 4)
    asked = [np.array([r[key] for r in results]) for key in ("query_image_id", "query_cls", "query_score")]
    box = np.array([r["query_bbox"] for r in results], dtype=np.float64).reshape(-1, 4)
    return Results(asked[0], box, asked[1], asked[2], ids, boxes, count)


RIGHT, WRONG = (100, HERE), (101, HERE)


@pytest.mark.parametrize(
    "results, query_gt, gallery_gt, want_top, want_missed",
    [
        ([], [query()], [shop()], [0, 0, 0, 0, 0], 1),  # a photo without results
        ([result([])], [query()], [shop()], [0, 0, 0, 0, 0], 0),  # an empty list: found, not right
        ([result([RIGHT])], [query()], [], [0, 0, 0, 0, 0], 0),  # no gallery: wrong, not missed
        ([result([RIGHT])], [query()], [shop()], [1, 1, 1, 1, 1], 0),
        ([result([WRONG] * 5 + [RIGHT])], [query()], [shop()], [0, 0, 1, 1, 1], 0),  # place 6
        ([result([WRONG] * 20 + [RIGHT])], [query()], [shop()], [0, 0, 0, 0, 0], 0),  # place 21 is too late
        ([result([WRONG] * 4 + [RIGHT, RIGHT])], [query()], [shop()], [0, 1, 1, 1, 1], 0),  # the first counts
        ([result([(100, [0, 0, 10, 20])])], [query()], [shop()], [1, 1, 1, 1, 1], 0),  # IoU 100/200, equal counts
        ([result([(100, [0, 0, 10, 21])])], [query()], [shop()], [0, 0, 0, 0, 0], 0),  # 100/210, just below
        ([result([RIGHT])], [query()], [shop(), shop(bbox=ELSEWHERE)], [1, 1, 1, 1, 1], 0),  # two true, one photo
        ([result([RIGHT])], [query()], [shop(style=2)], [0, 0, 0, 0, 0], 0),
        ([result([RIGHT])], [query()], [shop(pair=8)], [0, 0, 0, 0, 0], 0),
        ([result([RIGHT], cls=DRESS)], [query()], [shop()], [0, 0, 0, 0, 0], 1),  # wrong category
        ([result([RIGHT], bbox=ELSEWHERE)], [query()], [shop()], [1, 1, 1, 1, 1], 0),  # IoU 0 is enough
        ([result([RIGHT], image=2)], [query()], [shop()], [0, 0, 0, 0, 0], 1),  # results of an unknown photo
        ([result([WRONG], score=0.6), result([RIGHT])], [query()], [shop()], [0, 0, 0, 0, 0], 0),  # best score stands
        ([result([WRONG]), result([RIGHT])], [query()], [shop()], [0, 0, 0, 0, 0], 0),  # equal scores: the first
        ([result([RIGHT]), result([WRONG])], [query()], [shop()], [1, 1, 1, 1, 1], 0),
        ([result([WRONG], score=0.9, cls=DRESS), result([RIGHT])], [query()], [shop()], [1, 1, 1, 1, 1], 0),
        # it overlaps the item of style 0 most, so nothing stands for the query
        ([result([RIGHT])], [query(bbox=[0, 0, 10, 9]), query(style=0)], [shop()], [0, 0, 0, 0, 0], 1),
        # equal overlap: the earlier item of the list
        ([result([RIGHT])], [query(), query(style=2)], [shop(), shop(style=2)], [0.5, 0.5, 0.5, 0.5, 0.5], 1),
        ([result([RIGHT])], [query(style=2), query()], [shop()], [0, 0, 0, 0, 0], 1),
        ([result([RIGHT])], [query(style=0)], [shop(style=0)], [None] * 5, 0),  # style 0 asks nothing
        ([], [], [], [None] * 5, 0),
    ],
)
@pytest.mark.parametrize("shape", [list, in_columns])
def test_rules(shape, results, query_gt, gallery_gt, want_top, want_missed):
    got = consumer_to_shop_accuracy(shape(results), query_gt, gallery_gt)
    assert got["top"] == dict(zip(KS, want_top, strict=True))
    assert got["missed"] == want_missed
    assert got["queries"] == sum(q["style"] > 0 for q in query_gt)


def random_case(rng: np.random.Generator, scale: float = 1.0) -> tuple[list, list, list]:
    """Small numbers throughout, so that ties, equal ids and overlaps of exactly the threshold are common."""

    def box() -> list:
        x, y, w, h = rng.integers(0, 4, 4)
        return (np.array([x, y, x + w, y + h]) * scale).tolist()

    def number(high: int) -> int:
        return int(rng.integers(high))

    pairs = [number(3) for _ in range(4)]  # a photo has one pair_id
    query_gt = []
    for _ in range(number(7)):
        photo = number(4)
        query_gt.append(query(photo, number(3), number(2) + 1, pairs[photo], box()))
    gallery_gt = [shop(number(3), number(3), number(3), box()) for _ in range(number(10))]
    results = []
    for _ in range(number(9)):
        listed = [(number(3), box()) for _ in range(number(24))]
        results.append(result(listed, number(5), number(2) + 1, number(3) / 2, box()))
    return results, query_gt, gallery_gt


@pytest.mark.parametrize("block", range(10))
def test_agrees_with_the_plain_rules(block):
    for seed in range(block * 250, block * 250 + 250):
        rng = np.random.default_rng(seed)
        case = random_case(rng, scale=(1, 0.1, 1 / 3)[seed % 3])
        threshold = (0.5, 0.25, 1 / 3, 0.0)[seed % 4]
        answers = plain(*case, threshold)
        shown = in_columns(case[0]) if seed % 2 else case[0]
        got = consumer_to_shop_accuracy(shown, *case[1:], iou_threshold=threshold)
        n = len(answers)
        want = {k: sum(0 < rank <= k for _, rank in answers) / n if n else None for k in KS}
        assert got == {"top": want, "missed": sum(not stands for stands, _ in answers), "queries": n}, seed
        ranks = first_hit_ranks(shown, *case[1:], iou_threshold=threshold, k=24)
        assert ranks.tolist() == [rank for _, rank in answers], seed


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), block=st.integers(1, 40))
def test_blocks_attributes_and_marks_agree_with_the_whole(seed, block):
    results, query_gt, gallery_gt = random_case(np.random.default_rng(seed))
    query_gt = [q | {"scale": i % 4, "viewpoint": 2} for i, q in enumerate(query_gt)]
    whole = evaluate(results, query_gt, gallery_gt, category_names=["top", "skirt", "dress"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.metrics.BLOCK_CELLS", block)
        assert evaluate(results, query_gt, gallery_gt, category_names=["top", "skirt", "dress"]) == whole

    asked = [q for q in query_gt if q["style"] > 0]
    assert list(whole["per_category"]) == ["top", "skirt", "dress"]
    nothing = dict.fromkeys(TOPS, dict.fromkeys(map(str, KS)))
    assert whole["per_category"]["dress"] == nothing | {"missed": 0, "queries": 0}
    for part in (whole["per_category"], whole["per_attribute"]["viewpoint"]):
        for figure in ("missed", "queries"):
            assert sum(p[figure] for p in part.values()) == whole[figure]
        right = sum((p["top"]["10"] or 0) * p["queries"] for p in part.values())
        assert right == pytest.approx((whole["top"]["10"] or 0) * whole["queries"])
    assert set(whole["per_attribute"]["scale"]) == {str(q["scale"]) for q in asked if q["scale"]}  # 0: not known
    assert whole["per_attribute"]["occlusion"] == {}

    marks = hits(results, query_gt, gallery_gt, k=20)
    assert marks.stands.sum() == whole["queries"] - whole["missed"]
    assert not marks.right[marks.item < 0].any()
    ranks = {
        int(i): int(row.argmax()) + 1 if row.any() else 0
        for i, row in zip(marks.item[marks.stands], marks.right[marks.stands], strict=True)
    }
    want = [ranks.get(i, 0) for i, q in enumerate(query_gt) if q["style"] > 0]
    assert first_hit_ranks(results, query_gt, gallery_gt).tolist() == want


def test_hits_mark_results_that_do_not_stand_too():
    results = [result([WRONG, RIGHT], score=0.9), result([RIGHT], score=0.1), result([RIGHT], cls=DRESS)]
    marks = hits(results, [query()], [shop()], k=2)
    assert marks.item.tolist() == [0, 0, -1]
    assert marks.stands.tolist() == [True, False, False]
    assert marks.right.tolist() == [[False, True], [True, False], [False, False]]


def random_hypotheses(rng: np.random.Generator, results: list[dict]) -> tuple[list[dict], Results]:
    """The results with up to four categories each, as the entries of a submission and in columns."""
    n = rng.integers(1, 5, len(results))
    category_id, score = np.zeros((len(results), 4), np.int64), np.zeros((len(results), 4), np.float32)
    for row, r in enumerate(results):
        others = [int(cls) for cls in rng.permutation(np.arange(1, 6)) if cls != r["query_cls"]]
        category_id[row, : n[row]] = [r["query_cls"], *others][: n[row]]
        score[row, : n[row]] = rng.integers(0, 3, n[row]) / 2
        score[row, 0] = r["query_score"]
    entries = [
        r | {"query_cls": int(category_id[row, place]), "query_score": float(score[row, place])}
        for row, r in enumerate(results)
        for place in range(n[row])
    ]
    return entries, replace(in_columns(results), hypotheses=Hypotheses(category_id, score))


def plain_any(results: list[dict], query_gt: list[dict], gallery_gt: list[dict]) -> list[tuple[bool, int]]:
    """The rules as loops where the best box of IoU 0.5 stands for the item it belongs to, whatever its category."""
    kept, cls_of = [], {i: i + 1 for i in range(len(query_gt))}  # a category of its own for every true item
    for r in results:
        rows = [i for i, q in enumerate(query_gt) if q["query_image_id"] == r["query_image_id"]]
        overlaps = [iou(r["query_bbox"], query_gt[i]["bbox"]) for i in rows]
        if rows and max(overlaps) >= 0.5:
            kept.append(r | {"query_cls": cls_of[rows[int(np.argmax(overlaps))]]})
    return plain(kept, [q | {"cls": cls_of[i]} for i, q in enumerate(query_gt)], gallery_gt, 0.5)


def iou(a: list, b: list) -> float:
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (a, b)]
    return float(mask.iou(boxes[:1], boxes[1:], [0])[0, 0])


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1, 0.1, 1 / 3]))
def test_entries_of_one_box_agree_with_the_plain_rules_on_every_entry(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    results, query_gt, gallery_gt = random_case(rng, scale)
    entries, columns = random_hypotheses(rng, results)
    answers = plain(entries, query_gt, gallery_gt, 0.5)
    got = evaluate(columns, query_gt, gallery_gt)
    assert got["top"] == shares(answers) and got["missed"] == sum(not stands for stands, _ in answers)
    assert evaluate(entries, query_gt, gallery_gt)["top"] == got["top"]
    assert first_hit_ranks(columns, query_gt, gallery_gt, k=24).tolist() == [rank for _, rank in answers]
    assert got["top_one_category"] == shares(plain(results, query_gt, gallery_gt, 0.5))
    assert got["top_any_category"] == shares(plain_any(results, query_gt, gallery_gt))

    marks, own = (hits(shown, query_gt, gallery_gt) for shown in (columns, entries))
    first, n = np.r_[0, np.cumsum(columns.hypotheses.real.sum(axis=1))][:-1], len(results)
    assert marks.item.tolist() == (np.maximum.reduceat(own.item, first).tolist() if n else [])
    assert (marks.right == (np.logical_or.reduceat(own.right, first) if n else own.right)).all()
    assert marks.stands.tolist() == (np.logical_or.reduceat(own.stands, first).tolist() if n else [])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_with_true_boxes_no_category_is_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    results, query_gt, gallery_gt = random_case(rng)
    query_gt = [q | {"bbox": [40 * i, 0, 40 * i + 10, 10]} for i, q in enumerate(query_gt)]
    lists = [r for r in results if r["gallery_image_id"]] or [result([WRONG])]
    true = [
        lists[i % len(lists)]
        | {"query_image_id": q["query_image_id"], "query_bbox": q["bbox"], "query_cls": q["cls"], "query_score": 1.0}
        for i, q in enumerate(query_gt)
    ]
    alone = Hypotheses.own(np.array([q["cls"] for q in query_gt], np.int64), np.ones(len(query_gt)))
    got = evaluate(replace(in_columns(true), hypotheses=alone), query_gt, gallery_gt)
    assert got["top"] == got["top_one_category"] == got["top_any_category"] and got["missed"] == 0


def test_a_lower_hypothesis_stands_only_where_no_box_has_the_category_for_sure() -> None:
    surer = result([WRONG], cls=SKIRT, score=0.5, bbox=[0, 0, 10, 9])
    first = result([RIGHT], cls=DRESS, score=0.9)
    hypotheses = Hypotheses(np.array([[DRESS, SKIRT], [SKIRT, 0]]), np.array([[0.9, 0.4], [0.5, 0]], np.float32))
    got = evaluate(replace(in_columns([first, surer]), hypotheses=hypotheses), [query()], [shop()])
    assert [got[name]["1"] for name in TOPS] == [0, 0, 1]  # 0.5 beats 0.4; 0.9 is the best of any category
    got = evaluate(replace(in_columns([first]), hypotheses=hypotheses[:1]), [query()], [shop()])
    assert [got[name]["1"] for name in TOPS] == [1, 0, 1] and got["missed"] == 0
    with pytest.raises(ValueError, match="2 rows of hypotheses, others want 1"):
        replace(in_columns([first]), hypotheses=hypotheses)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.pop("query_cls"), "results: entry 0 has no 'query_cls'"),
        (lambda r: r.update(query_score=float("nan")), r"entry 0 has query_score \[nan\], want finite numbers"),
        (lambda r: r.update(query_score=float("inf")), r"entry 0 has query_score \[inf\]"),
        (lambda r: r.update(query_bbox=[float("nan")] * 4), r"entry 0 has query_bbox \[nan, nan, nan, nan\]"),
        (lambda r: r.update(query_bbox=[0, 0, 10, float("inf")]), r"entry 0 has query_bbox \[0.0, 0.0, 10.0, inf\]"),
        (lambda r: r.update(query_bbox=[1, 2, 3]), r"query_bbox \[1, 2, 3\]"),
        (lambda r: r.update(gallery_bbox=[]), "entry 0 has 1 gallery_image_id and 0 gallery_bbox"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    submission = [result([RIGHT])]
    change(submission[0])
    with pytest.raises(ValueError, match=message):
        consumer_to_shop_accuracy(submission, [query()], [shop()])


@pytest.mark.parametrize("wrong", [{"score": float("inf")}, {"bbox": [float("nan")] * 4}])
def test_numbers_that_are_not_finite_are_named_in_columns_too(wrong):
    columns = in_columns([result([RIGHT]), result([RIGHT], **wrong)])
    with pytest.raises(ValueError, match=r"entry 1 has query_\w+ .*want finite numbers"):
        consumer_to_shop_accuracy(columns, [query()], [shop()])


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        consumer_to_shop_accuracy([], [query()], [shop()], ks=(0, 1))


ITEM = pa.struct(
    {"category_id": pa.int8(), "style": pa.int32(), "bbox": pa.list_(pa.float32(), 4)}
    | {name: pa.int8() for name in ("scale", "occlusion", "zoom_in", "viewpoint")}
)


def truth_table(split: Path) -> pa.Table:
    """What an image set says of these annotations, read here directly."""
    rows = []
    for path in sorted((split / "annos").glob("*.json")):
        anno = json.loads(path.read_text())
        names = sorted((key for key in anno if key.startswith("item")), key=lambda key: int(key[4:]))
        items = [{**{f.name: anno[n].get(f.name) for f in ITEM}, "bbox": anno[n]["bounding_box"]} for n in names]
        rows.append((int(path.stem), anno["source"], anno["pair_id"], items))
    image_id, source, pair_id, items_of = zip(*rows, strict=True)
    columns = {"image_id": image_id, "source": source, "pair_id": pair_id, "items": pa.array(items_of, pa.list_(ITEM))}
    table = pa.table(columns)
    return pa.concat_tables([table.slice(0, 100), table.slice(100)])  # several chunks, as several shards give


def test_ground_truth_of_no_photos():
    empty = pa.table(
        {
            "image_id": pa.array([], pa.int64()),
            "source": pa.array([], pa.string()),
            "pair_id": pa.array([], pa.int64()),
            "items": pa.array([], pa.list_(ITEM)),
        }
    )
    assert ground_truth(empty) == ([], [])
    assert ground_truth(empty.schema.empty_table()) == ([], [])


def test_ground_truth_is_that_of_ccp_df2(ccp_df2):
    query_gt, gallery_gt = ground_truth(truth_table(ccp_df2 / "val"))
    official = json.loads((ccp_df2 / "val_query.json").read_text())
    keys = official[0].keys()
    assert [{key: entry[key] for key in keys} for entry in query_gt] == official
    assert gallery_gt == json.loads((ccp_df2 / "val_gallery.json").read_text())
    assert {entry["viewpoint"] for entry in query_gt} == {2}  # of all its consumer photos


def test_a_perfect_and_a_random_submission_on_ccp_df2(ccp_df2):
    query_gt = json.loads((ccp_df2 / "val_query.json").read_text())
    gallery_gt = json.loads((ccp_df2 / "val_gallery.json").read_text())
    rng = np.random.default_rng(0)

    def submit(listed_for: Any) -> list[dict]:
        lists = [[(g["gallery_image_id"], g["bbox"]) for g in listed_for(q)] for q in query_gt]
        return [
            result(listed, q["query_image_id"], q["cls"], 1.0, q["bbox"])
            for listed, q in zip(lists, query_gt, strict=True)
        ]

    def matching(q: dict) -> list[dict]:
        return [g for g in gallery_gt if (g["pair_id"], g["style"]) == (q["pair_id"], q["style"])]

    perfect = consumer_to_shop_accuracy(submit(matching), query_gt, gallery_gt)
    assert perfect == {"top": dict.fromkeys(KS, 1.0), "missed": 0, "queries": 435}
    chance = submit(lambda q: [gallery_gt[i] for i in rng.permutation(len(gallery_gt))[:20]])
    got = consumer_to_shop_accuracy(chance, query_gt, gallery_gt)
    assert 0 < got["top"][20] < 0.04  # 20 draws of 1,766, about 1.3 of them right: 0.015 expected
    answers = plain(chance, query_gt, gallery_gt, 0.5)
    assert got["top"][20] == sum(rank > 0 for _, rank in answers) / 435
