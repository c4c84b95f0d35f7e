"""`--limit N`: which photos are chosen, which queries are judged; a plain search over all photos is the oracle."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.limit import SetFacts, choose, count, without_unjudged
from retrieval.metrics import ground_truth
from retrieval.truth import PhotoTruth, truth_of
from store.imageset import ITEM


@dataclass(frozen=True)
class One:
    """A photo: u or s, its pair, its product (0 unknown), the styles of its items."""

    side: str
    pair: int = 0
    product: int = 0
    styles: tuple[int, ...] = ()


def facts(photos: list[One]) -> SetFacts:
    numbers = np.arange(len(photos))
    columns = (np.array([getattr(one, name) for one in photos], np.int64) for name in ("pair", "product"))
    n_items = np.array([len(one.styles) for one in photos], np.int64)
    style = np.array([style for one in photos for style in one.styles], np.int64)
    user = np.array([one.side == "u" for one in photos], bool)
    return SetFacts(numbers * 0, numbers, user, *columns, n_items, style)


def queries_of(photos: list[One]) -> list[tuple[int, int]]:
    """Every query of a set, (place, style)."""
    users = [(place, one) for place, one in enumerate(photos) if one.side == "u"]
    of_items = [(place, style) for place, one in users for style in one.styles if style > 0]
    return of_items or [(place, 0) for place, _ in users]


def is_right(query: One, style: int, shop: One) -> bool:
    if shop.side != "s":
        return False
    if style:
        return shop.pair == query.pair and style in shop.styles
    if query.pair and shop.pair:
        return query.pair == shop.pair
    return bool(query.product) and query.product == shop.product


U, S = "u", "s"


@pytest.mark.parametrize("photos, limit, want, unjudged", [
    # by pair: the answers stand last in the set, the first half would hold none of them
    ([One(U, 1), One(U, 2), One(S), One(S), One(S, 2), One(S, 1)], 4, [0, 1, 4, 5], []),
    # a consumer's photo with an answer comes before one without; the rest is filled up in the set's order
    ([One(U), One(U, 7), One(S), One(S), One(S, 7)], 4, [0, 1, 2, 4], []),
    ([One(U), One(U, 7), One(S), One(S), One(S, 7)], 2, [1, 4], []),
    # one answer for each query before a second for the first; a third of the first if there is room
    ([One(U, 1), One(U, 2), One(S, 1), One(S, 1), One(S, 1), One(S, 2)], 4, [0, 1, 2, 5], []),
    ([One(U, 1), One(U, 2), One(S, 1), One(S, 1), One(S, 1), One(S, 2)], 5, [0, 1, 2, 3, 5], []),
    # one shop photo is the answer of both
    ([One(U, 1), One(U, 1), One(S, 5), One(S, 1)], 3, [0, 1, 3], []),
    # N is odd: one consumer more, whose answer has no room
    ([One(U, 1), One(U, 2), One(S, 1), One(S, 2)], 3, [0, 1, 2], [(1, 0)]),
    # equal products, where not both have a pair; two pairs that differ decide against the product
    ([One(U, 0, 3), One(S), One(S, 4, 3)], 2, [0, 2], []),
    ([One(U, 1, 3), One(S, 4, 3), One(S, 0, 3)], 2, [0, 2], []),
    ([One(U, 1, 3), One(S), One(S, 4, 3)], 2, [0, 1], []),
    # unknown products are not equal
    ([One(U), One(S), One(S)], 2, [0, 1], []),
    # items: pair and style; one of two queries of the photo has its answer in the run
    ([One(U, 1, 0, (1,)), One(S, 1, 0, (2,)), One(S, 2, 0, (1,)), One(S, 1, 0, (1,))], 2, [0, 3], []),
    ([One(U, 1, 0, (1, 2)), One(S, 1, 0, (1,)), One(S, 1, 0, (2,))], 2, [0, 1], [(0, 2)]),
    ([One(U, 1, 0, (1, 2)), One(S, 1, 0, (1,)), One(S, 1, 0, (1, 2))], 2, [0, 1], [(0, 2)]),
    # a query without any answer in the set is judged
    ([One(U, 1, 0, (1, 3)), One(S, 1, 0, (1,))], 2, [0, 1], []),
    # style 0 asks for nothing
    ([One(U, 1, 0, (0, 1)), One(S, 1, 0, (0,)), One(S, 1, 0, (1,))], 2, [0, 2], []),
    # one side alone, and more than there is
    ([One(U, 1), One(U, 2)], 1, [0], []),
    ([One(S, 1), One(S, 2)], 1, [0], []),
    ([One(U, 1), One(S, 1)], 9, [0, 1], []),
])  # fmt: skip
def test_answers_come_first(photos: list[One], limit: int, want: list[int], unjudged: list[tuple[int, int]]) -> None:
    choice = choose(facts(photos), limit)
    assert choice.photos.tolist() == want and list(choice.unjudged) == unjudged


ONE = st.builds(One, st.sampled_from("us"), st.integers(0, 3), st.integers(0, 3))
STYLED = st.builds(
    One, st.sampled_from("us"), st.integers(0, 2), st.integers(0, 2), st.lists(st.integers(0, 2), max_size=3).map(tuple)
)


@given(st.lists(ONE, max_size=14) | st.lists(STYLED, max_size=14), st.integers(1, 16))
def test_a_search_over_all_photos_agrees(photos: list[One], limit: int) -> None:
    choice = choose(facts(photos), limit)
    taken = choice.photos.tolist()
    users, shops = ([place for place, one in enumerate(photos) if one.side == side] for side in "us")
    assert taken == sorted(set(taken)) and len(taken) == min(limit, len(photos))
    n_users, n_shops, n_items, n_shop_items = count(facts(photos), choice.photos).values()
    assert n_users == min(len(users), max((limit + 1) // 2, limit - len(shops))) and n_shops == len(taken) - n_users
    assert n_items == sum(len(photos[place].styles) for place in taken)
    assert n_shop_items == sum(len(photos[place].styles) for place in taken if photos[place].side == "s")

    answers = {
        query: [place for place, shop in enumerate(photos) if is_right(photos[query[0]], query[1], shop)]
        for query in queries_of(photos)
    }
    left_out = [q for q in queries_of(photos) if q[0] in taken and answers[q] and not set(answers[q]) & set(taken)]
    assert sorted(choice.unjudged) == sorted(left_out)
    answered = {place for (place, _), right in answers.items() if right}
    asked = answered & set(taken)
    assert asked == answered or not set(users) & set(taken) - answered  # one without an answer never displaces one
    right = {place for (asker, _), right in answers.items() if asker in asked for place in right}
    if left_out or not right <= set(taken):  # room for answers was short: nothing else was taken
        assert set(taken) & set(shops) <= right


@given(st.lists(ONE, max_size=10) | st.lists(STYLED, max_size=10))
def test_right_is_what_the_figures_take_for_right(photos: list[One]) -> None:
    truth = truth_of(table(photos))
    if isinstance(truth, PhotoTruth):
        query, shop = truth.consumers.image_id[truth.pairs[0]], truth.shops.image_id[truth.pairs[1]]
        want = set(zip(query.tolist(), shop.tolist(), strict=True))
    else:
        queries = [entry for entry in truth.query_gt if entry["style"] > 0]
        want = {
            (entry["query_image_id"], shop["gallery_image_id"])
            for entry in queries for shop in truth.gallery_gt
            if (entry["pair_id"], entry["style"]) == (shop["pair_id"], shop["style"])
        }  # fmt: skip
    assert want == {
        (place, other)
        for place, style in queries_of(photos)
        for other, shop in enumerate(photos)
        if is_right(photos[place], style, shop)
    }


def table(photos: list[One]) -> pa.Table:
    plain = {"category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": []}
    graded = dict.fromkeys(("scale", "occlusion", "zoom_in", "viewpoint"), 1)
    items = [[plain | graded | {"style": style} for style in one.styles] for one in photos]
    return pa.table({
        "image_id": pa.array(range(len(photos)), pa.int64()),
        "source": pa.array(["user" if one.side == U else "shop" for one in photos], pa.string()),
        "pair_id": pa.array([one.pair for one in photos], pa.int64()),
        "product_id": pa.array([f"sku-{one.product}" if one.product else "" for one in photos], pa.string()),
        "items": pa.array(items, pa.list_(ITEM)),
    })  # fmt: skip


def test_a_query_that_is_not_judged_shows_no_truth() -> None:
    photos = table([One(U, 4, 1, (1, 2)), One(U, 5, 2), One(S, 4, 3, (1,))])
    rows = [3, 8, 9]  # their numbers in the shard
    masked = without_unjudged(photos, rows, [(3, 2), (8, 0)])
    assert masked.schema == photos.schema
    assert masked["pair_id"].to_pylist() == [4, 0, 4] and masked["product_id"].to_pylist() == ["sku-1", "", "sku-3"]
    none = without_unjudged(photos, rows, [(3, 1), (3, 2), (8, 0)])
    assert truth_of(none).kind is None, "not judged by photo instead"
    queries, gallery = ground_truth(masked)
    assert [entry["style"] for entry in queries] == [1, 0] and [entry["style"] for entry in gallery] == [1]
    assert without_unjudged(photos, rows, []) is photos
    alone = photos.select(["image_id"])
    assert without_unjudged(alone, rows, [(3, 2)]) == alone
