"""Truth by item and by photo: which is taken, and its figures beside plain rules and ranx on the exported lists."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranx import Qrels, Run
from ranx import evaluate as ranx_evaluate

from retrieval import metrics
from retrieval.rankings import Rankings
from retrieval.results import Results
from retrieval.trec import trec_files
from retrieval.truth import ItemTruth, PhotoTruth, truth_of
from store.imageset import ITEM
from tests.retrieval.made_lists import rankings_of

NAMES = ("map", "mrr", "ndcg@5", "ndcg@10", "ndcg@20")
PHOTO = ("image_id", "source", "pair_id", "product_id", "items")


def photos(rows: list[tuple]) -> pa.Table:
    """From (image_id, source, pair_id, product_id, [(style, category_id, bbox), …])."""
    columns = dict(zip(PHOTO, zip(*rows, strict=True), strict=True)) if rows else {name: [] for name in PHOTO}
    levels = dict.fromkeys(("scale", "occlusion", "zoom_in", "viewpoint"), 0)
    items = [
        [{"style": s, "category_id": c, "bbox": box, "segmentation": []} | levels for s, c, box in listed]
        for listed in columns["items"]
    ]
    types = {"image_id": pa.int64(), "source": pa.string(), "pair_id": pa.int64(), "product_id": pa.string()}
    arrays = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    return pa.table(arrays | {"items": pa.array(items, pa.list_(ITEM))})


def from_ranx(rankings: Rankings, truth: Any, folder: Any) -> dict[str, float]:
    """ranx's figures on the files as they are written."""
    files = trec_files(rankings, truth)
    for name, lines in (("run", files.run_lines()), ("qrels", files.qrels_lines())):
        (folder / f"{name}.trec").write_text("".join(f"{line}\n" for line in lines))
    qrels = Qrels.from_file(str(folder / "qrels.trec"), kind="trec")
    run = Run.from_file(str(folder / "run.trec"), kind="trec") if files.run else Run()
    return ranx_evaluate(qrels, run, list(NAMES), make_comparable=True)


def ours(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures["ndcg"][name[5:]] if "@" in name else figures[name] for name in NAMES}


# --- by item ----------------------------------------------------------------------------------------------------------
HERE, LOWER, ELSEWHERE = [0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60]  # IoU of the first two: 80 / 120


def query(image: int = 1, style: int = 1, pair: int = 7) -> dict[str, Any]:
    return {"query_image_id": image, "style": style, "cls": 9, "pair_id": pair, "bbox": HERE}


def shop(image: int = 100, bbox: Any = HERE, style: int = 1, pair: int = 7) -> dict[str, Any]:
    return {"gallery_image_id": image, "style": style, "pair_id": pair, "bbox": bbox}


def item_lists(rows: list[tuple[int, list[tuple[int, list]]]], cls: int = 9) -> Rankings:
    """From (consumer photo, [(shop photo, box), …]); every query has the box HERE, rubbish after each list's end."""
    width = max([1, *(len(listed) for _, listed in rows)])
    ids, boxes = np.full((len(rows), width), 100), np.tile(np.array(HERE, float), (len(rows), width, 1))
    for r, (_, listed) in enumerate(rows):
        for p, (photo, box) in enumerate(listed):
            ids[r, p], boxes[r, p] = photo, box
    n = len(rows)
    own = np.tile(np.array(HERE, float), (n, 1))
    count = np.array([len(listed) for _, listed in rows], np.int64)
    photo = np.array([photo for photo, _ in rows], np.int64)
    results = Results(photo, own, np.full(n, cls), np.linspace(0.9, 0.1, n), ids, boxes, count)
    item = np.tile(np.arange(width, dtype=np.int32), (n, 1))  # each box of a list has a number of its own
    return Rankings(results, np.zeros(n, np.int32), item, np.zeros(ids.shape, np.float32))


@pytest.mark.parametrize(
    "listed, gallery, want_found, want_relevant",
    [
        ([(100, HERE)], [shop()], [0], 1),
        ([(100, HERE), (100, LOWER)], [shop()], [0, -1], 1),  # a second box on the same item finds nothing
        ([(100, LOWER), (100, HERE)], [shop()], [0, -1], 1),  # the first place counts, not the better box
        ([(100, HERE), (100, LOWER)], [shop(), shop(bbox=LOWER)], [0, 1], 2),
        ([(100, LOWER), (100, LOWER)], [shop(), shop(bbox=LOWER)], [1, 0], 2),  # the best first, then what is left
        ([(100, HERE), (100, HERE)], [shop(), shop()], [0, 1], 2),  # equal overlaps: the earlier item
        ([(101, HERE), (100, HERE)], [shop(), shop(102)], [-1, 0], 2),  # one of two is not in the list
        ([(100, HERE)], [shop(style=2)], [-1], 0),
        ([(100, HERE)], [], [-1], 0),
        ([], [shop()], [-1], 1),
    ],
)
def test_each_true_shop_item_is_found_once(listed, gallery, want_found, want_relevant):
    lists = item_lists([(1, listed)])
    answers = metrics.answers(lists.results, [query()], gallery, k=lists.results.gallery_image_id.shape[1])
    assert answers.found[0].tolist() == want_found
    assert answers.relevant.tolist() == [want_relevant]
    records = [
        {"query_image_id": 1, "query_bbox": HERE, "query_cls": 9, "query_score": 0.9,
         "gallery_image_id": [photo for photo, _ in listed], "gallery_bbox": [box for _, box in listed]}
    ]  # fmt: skip
    assert metrics.answers(records, [query()], gallery, k=len(want_found)).found[0].tolist() == want_found


def plain_found(listed: list, matching: list[tuple[int, dict]]) -> list[int]:
    """The greedy rule as loops."""

    def overlap(a: list, b: list) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = w * h if w > 0 and h > 0 else 0.0
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    found, left = [], list(matching)
    for photo, box in listed:
        there = [(row, g) for row, g in left if g["gallery_image_id"] == photo and overlap(box, g["bbox"]) >= 0.5]
        best = max(there, key=lambda pair: overlap(box, pair[1]["bbox"]), default=None)  # the earlier of equals
        found.append(best[0] if best else -1)
        left = [pair for pair in left if not best or pair[0] != best[0]]
    return found


boxes = st.sampled_from([HERE, LOWER, ELSEWHERE, [0, 0, 10, 5], [0, 4, 10, 14]])
places = st.lists(st.tuples(st.integers(100, 102), boxes), max_size=25)
shops = st.lists(st.builds(shop, st.integers(100, 102), boxes, st.integers(0, 2), st.integers(7, 8)), max_size=8)


@given(
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(7, 8)), max_size=4),
    lists=st.lists(places, max_size=4),
    gallery=shops,
)
@settings(max_examples=60)
@example(asked=[(1, 7), (1, 8)], lists=[[]], gallery=[shop()])  # an empty list, and a missed item without any answer
@example(asked=[(0, 7)], lists=[], gallery=[])  # no query
def test_by_item_as_plain_rules_and_ranx_have_it(asked, lists, gallery, tmp_path_factory):
    truth = ItemTruth([query(image, style, pair) for image, (style, pair) in enumerate(asked)], gallery)
    rankings = item_lists(list(enumerate(lists)))
    figures = truth.figures(rankings, ["top"])
    judged = truth.judge(rankings)
    for i, entry_row in enumerate(truth.queries.tolist()):
        entry = truth.query_gt[entry_row]
        matching = [
            (row, g)
            for row, g in enumerate(gallery)
            if g["style"] == entry["style"] and g["pair_id"] == entry["pair_id"]
        ]
        assert judged.relevant[i] == len(matching)
        listed = lists[entry_row] if entry_row < len(lists) else []
        want = [row >= 0 for row in plain_found(listed, matching)]
        assert judged.found[i].tolist() == want + [False] * (judged.found.shape[1] - len(want))
        assert judged.row[i] == (entry_row if entry_row < len(lists) else -1)
    k = rankings.results.gallery_image_id.shape[1]
    assert judged.first.tolist() == metrics.first_hit_ranks(rankings.results, truth.query_gt, gallery, k=k).tolist()
    assert {key: figures[key] for key in ("top", "missed", "queries")} == {
        key: metrics.evaluate(rankings.results, truth.query_gt, gallery)[key] for key in ("top", "missed", "queries")
    }
    if not len(truth.queries):
        assert figures["truth"] is None and set(ours(figures).values()) == {None}
        return
    assert figures["truth"] == "item"
    assert ours(figures) == pytest.approx(from_ranx(rankings, truth, tmp_path_factory.mktemp("item")), abs=1e-12)


def test_the_files_by_item():
    asked = [query(1), query(1, style=0) | {"bbox": ELSEWHERE}, query(2, pair=8), query(3)]
    truth = ItemTruth(asked, [shop(), shop(101), shop(101, LOWER), shop(102, style=2)])
    lists = item_lists([(1, [(101, ELSEWHERE), (101, LOWER), (100, HERE), (101, LOWER)]), (3, [])])
    files = trec_files(lists, truth)
    right = ["100/true0", "101/true0", "101/true1"]
    assert files.run == {"1/0": ["101/0", "101/true1", "100/true0", "101/true0"]}  # the second LOWER is right for HERE
    assert files.qrels == {"1/0": right, "2/0": [], "3/0": right}
    assert list(files.run_lines("ours"))[:2] == ["1/0 Q0 101/0 1 4 ours", "1/0 Q0 101/true1 2 3 ours"]
    assert list(files.qrels_lines())[2:5] == ["1/0 0 101/true1 1", "2/0 0 none 0", "3/0 0 100/true0 1"]


# --- by photo ---------------------------------------------------------------------------------------------------------
ITEM_ROW = (1, 9, HERE)


@pytest.mark.parametrize(
    "rows, want, queries",
    [
        ([(1, "user", 7, "a", [ITEM_ROW]), (2, "user", 8, "b", [])], "item", 1),  # one true item decides for all
        ([(1, "user", 7, "", [(0, 9, HERE)]), (2, "shop", 7, "", [ITEM_ROW])], "photo", 1),  # style 0 asks nothing
        ([(1, "user", 0, "a", []), (2, "user", 0, "", []), (3, "user", 5, "", [])], "photo", 2),
        ([(1, "user", 0, "", []), (2, "shop", 7, "a", [])], None, 0),  # nothing known of a consumer's photo
        ([], None, 0),
    ],
)
def test_which_truth_a_run_has(rows, want, queries):
    truth = truth_of(photos(rows))
    assert truth.kind == want
    assert len(truth.photo) == queries


def shows_the_same(ours: tuple[int, str], theirs: tuple[int, str]) -> bool:
    """The rule, word for word."""
    if ours[0] > 0 and theirs[0] > 0:
        return ours[0] == theirs[0]
    return ours[1] != "" and ours[1] == theirs[1]


known = st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "b"]))
ties = st.sampled_from([0.25, 0.5, 0.75])
photo_lists = st.lists(st.tuples(st.integers(10, 16), ties), max_size=25)


@given(
    consumers=st.lists(known, min_size=1, max_size=5),
    gallery=st.lists(known, min_size=7, max_size=7),
    rows=st.lists(st.tuples(st.integers(0, 6), ties, photo_lists), max_size=8),
)
@settings(max_examples=60)
@example(consumers=[(3, "")], gallery=[(0, "")] * 7, rows=[])  # missed, and without any answer
@example(consumers=[(0, "a")], gallery=[(0, "a")] * 7, rows=[(0, 0.5, [(10, 0.5), (10, 0.5), (11, 0.5)])])  # ties
def test_by_photo_as_plain_rules_and_ranx_have_it(consumers, gallery, rows, tmp_path_factory):
    table = [(i, "user", pair, product, []) for i, (pair, product) in enumerate(consumers)]
    table += [(10 + i, "shop", pair, product, []) for i, (pair, product) in enumerate(gallery)]
    truth = truth_of(photos(table))
    asked = [i for i, (pair, product) in enumerate(consumers) if pair or product]
    if not asked:
        assert truth.kind is None
        return
    lists = [
        (photo, r, score, [(s, p, v) for p, (s, v) in enumerate(sorted(pairs, key=lambda pair: -pair[1]))])
        for r, (photo, score, pairs) in enumerate(rows)
    ]
    rankings = rankings_of(lists)
    figures, judged = truth.figures(rankings), truth.judge(rankings)
    firsts = []
    for i, photo in enumerate(asked):
        pair, product = consumers[photo]
        right = {10 + j for j, other in enumerate(gallery) if shows_the_same((pair, product), other)}
        assert judged.relevant[i] == len(right)
        assert (judged.row[i] < 0) == all(row[0] != photo for row in lists)
        entries = sorted((-v, p, s) for row in lists if row[0] == photo for p, (s, _, v) in enumerate(row[3]))
        order = list(dict.fromkeys(s for *_, s in entries))
        firsts.append(next((place for place, s in enumerate(order, 1) if s in right), 0))
        assert judged.found[i, : len(order)].tolist() == [s in right for s in order]
        assert not judged.found[i, len(order) :].any()
    assert judged.first.tolist() == firsts
    assert figures["top"] == {str(k): sum(0 < first <= k for first in firsts) / len(asked) for k in metrics.KS}
    assert (figures["queries"], figures["missed"]) == (len(asked), int((judged.row < 0).sum()))
    assert (figures["truth"], figures["per_category"], figures["per_attribute"]) == ("photo", {}, {})
    assert ours(figures) == pytest.approx(from_ranx(rankings, truth, tmp_path_factory.mktemp("photo")), abs=1e-12)


def test_the_files_by_photo():
    truth = truth_of(photos([
        (3, "user", 7, "", []), (1, "user", 0, "a", []), (2, "user", 9, "", []), (5, "user", 0, "", []),
        (10, "shop", 7, "a", []), (11, "shop", 0, "a", []), (12, "shop", 7, "", []),
    ]))  # fmt: skip
    assert isinstance(truth, PhotoTruth)
    lists = rankings_of(
        [(3, 0, 0.5, [(11, 0, 0.9), (12, 0, 0.8)]), (3, 1, 0.5, [(12, 1, 0.95)]), (5, 0, 0.5, [(10, 0, 1)])]
    )
    files = trec_files(lists, truth)
    assert files.run == {"3": ["12", "11"]}  # photo 5 asks nothing
    assert files.qrels == {"3": ["10", "12"], "1": ["10", "11"], "2": []}
    assert list(files.run_lines()) == ["3 Q0 12 1 2 run", "3 Q0 11 2 1 run"]
    assert list(files.qrels_lines())[-1] == "2 0 none 0"
