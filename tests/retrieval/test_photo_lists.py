"""Photos of one product, and the lists of a photo's items joined to one."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.photo_lists import PhotoIdentity, identities, is_right, join_photos, right_pairs
from retrieval.rankings import Rankings
from tests.retrieval.made_lists import rankings_of


def read(lists: Rankings) -> dict[int, list[tuple[int, int, float]]]:
    """Consumer photo -> its list."""
    results = lists.results
    return {
        int(photo): [
            (int(results.gallery_image_id[r, p]), int(lists.gallery_item[r, p]), float(lists.similarity[r, p]))
            for p in range(results.gallery_count[r])
        ]
        for r, photo in enumerate(results.query_image_id)
    }


def test_the_best_box_of_each_shop_photo_stays():
    rows = [
        (5, 0, 0.2, [(100, 0, 0.75), (100, 1, 0.5), (101, 0, 0.25)]),
        (4, 0, 0.9, []),
        (5, 1, 0.6, [(101, 2, 0.75), (102, 0, 0.5)]),
    ]
    joined = join_photos(rankings_of(rows))
    # 100 and 101 are alike and both first in their lists: the lower image_id
    assert read(joined) == {5: [(100, 0, 0.75), (101, 2, 0.75), (102, 0, 0.5)], 4: []}
    assert joined.query_item.tolist() == [1, 0]  # the item with the higher score stands for photo 5
    assert joined.results.query_bbox[0].tolist() == [2] * 4  # its box
    assert joined.results.gallery_bbox[0].tolist() == [[0, 0, 1, 1], [2, 0, 3, 1], [2, 1, 3, 2]]
    assert read(join_photos(joined)) == read(joined)
    assert read(join_photos(rankings_of(rows), length=1)) == {5: [(100, 0, 0.75)], 4: []}
    assert join_photos(rankings_of(rows), length=7).results.gallery_image_id.shape == (2, 7)


def test_no_rows():
    joined = join_photos(rankings_of([]))
    assert len(joined.results) == 0 and joined.similarity.shape == (0, 1)


ties = st.sampled_from([0.25, 0.5, 0.75])
listed = st.lists(st.tuples(st.integers(0, 4), ties), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 2), ties, listed), max_size=7))
def test_joining_agrees_with_a_plain_loop(drawn):
    rows = [
        (photo, row, score, [(s, p, v) for p, (s, v) in enumerate(sorted(pairs, key=lambda pair: -pair[1]))])
        for row, (photo, score, pairs) in enumerate(drawn)
    ]
    want: dict[int, list] = {}
    for photo in dict.fromkeys(row[0] for row in rows):
        entries = [
            (-value, place, shop, r) for r, row in enumerate(rows) if row[0] == photo
            for place, (shop, _, value) in enumerate(row[3])
        ]  # fmt: skip
        best: dict[int, tuple] = {}
        for value, place, shop, r in sorted(entries):
            best.setdefault(shop, (shop, rows[r][3][place][1], -value))
        want[photo] = list(best.values())
    joined = join_photos(rankings_of(rows))
    assert read(joined) == want
    assert list(read(joined)) == list(want)
    stands = {photo: max((row for row in rows if row[0] == photo), key=lambda row: row[2])[1] for photo in want}
    assert joined.query_item.tolist() == list(stands.values())


@pytest.mark.parametrize(
    "ours, theirs, want",
    [
        ((7, ""), (7, ""), True),
        ((7, "a"), (7, "b"), True),  # the pair decides alone
        ((7, "a"), (8, "a"), False),  # also against an equal product
        ((7, "a"), (0, "a"), True),  # one has no pair: the product
        ((0, "a"), (7, "a"), True),
        ((0, "a"), (0, "b"), False),
        ((0, ""), (0, ""), False),  # nothing known
        ((7, ""), (0, ""), False),
    ],
)
def test_the_rule(ours, theirs, want):
    table = pa.table({"image_id": [1, 2], "pair_id": [ours[0], theirs[0]], "product_id": [ours[1], theirs[1]]})
    known = identities(table)
    queries, shops = known.rows(np.array([True, False])), known.rows(np.array([False, True]))
    zero = np.array([0])
    assert is_right(queries, shops, zero, zero).tolist() == [want]
    assert list(zip(*right_pairs(queries, shops), strict=True)) == ([(0, 0)] if want else [])
    assert known.known.tolist() == [bool(pair or product) for pair, product in (ours, theirs)]


side = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), max_size=8)


@given(side, side)
def test_all_pairs_agree_with_the_rule_pair_by_pair(ours, theirs):
    def side_of(drawn: list[tuple[int, int]]) -> PhotoIdentity:
        columns = np.array(drawn, np.int64).reshape(-1, 2)
        return PhotoIdentity(np.arange(len(drawn)), columns[:, 0], columns[:, 1])

    queries, shops = side_of(ours), side_of(theirs)
    right = is_right(queries, shops, np.arange(len(ours))[:, None], np.arange(len(theirs))[None])
    got = right_pairs(queries, shops)
    assert [part.tolist() for part in got] == [part.tolist() for part in np.nonzero(right)]
