"""Products, pairs, boxes and names: what is taken, and in which words the rest is refused."""

from collections import Counter
from typing import Any

import pytest

from sources.folder import Origin
from sources.photo_facts import box_of, each_once, facts_of, failure_of, item_of, rows_of
from store.categories import CategoryList
from store.formats import NO_PICTURE
from store.imageset import Failure, Photo
from tests.sources.four_forms import png


@pytest.mark.parametrize(
    ("values", "product_id", "pair_id"),
    [
        ({}, "", 0),
        ({"sku": " A 1 ", "pair_id": 3}, "A 1", 3),
        ({"sku": 12, "pair_id": "12"}, "12", 12),
        ({"sku": 12.0, "pair_id": 12.0}, "12", 12),  # whole numbers in a column where some are missing
        ({"sku": float("nan"), "pair_id": None}, "", 0),
        ({"pair_id": 2**63 - 1}, "", 2**63 - 1),
    ],
)
def test_product_and_pair(values: dict[str, Any], product_id: str, pair_id: int) -> None:
    facts = facts_of(values | {"price": 3}, "sku", Counter())
    assert (facts.product_id, facts.pair_id, facts.attributes) == (product_id, pair_id, {"price": "3"})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sku": "NaN"}, "sku 'NaN'; leave it empty"),
        ({"sku": ["a"]}, "sku: want a text, a number or a time, got list"),
        ({"pair_id": -1}, "pair_id '-1' is not a whole number below 2\\^63"),
        ({"pair_id": 2**63}, "is not a whole number below 2\\^63"),
        ({"pair_id": 1.5}, "pair_id '1.5' is not"),
        ({"pair_id": "1e3"}, "pair_id '1e3' is not"),
    ],
)
def test_no_product_and_no_pair(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        facts_of(values, "sku", Counter())


@pytest.mark.parametrize(
    ("values", "with_size", "box"),
    [
        ([1, 2, 3, 4.5], False, (1.0, 2.0, 3.0, 4.5)),
        ([1, 2, 3, 4.5], True, (1.0, 2.0, 4.0, 6.5)),
        ([1, 2, 3], True, None),
        ([1, 2, 3, "4"], True, None),
        ([1, 2, 3, True], True, None),
        ([1, 2, 3, 10**400], True, None),
        (None, True, None),
        ("1234", False, None),
    ],
)
def test_boxes(values: Any, with_size: bool, box: tuple[float, ...] | None) -> None:
    if box is not None:
        assert box_of(values, with_size=with_size) == box
        return
    with pytest.raises(ValueError, match="box "):
        box_of(values, with_size=with_size)


def test_items_name_their_category() -> None:
    categories = CategoryList(["scarf"])
    assert item_of(categories, " cape ", (0, 0, 1, 9), 4).category_id == 2 and [*categories] == ["scarf", "cape"]
    with pytest.raises(ValueError, match=r"box 0.1, 0.2, 0.5, 1 ends within the first pixel; want pixels, not shares"):
        item_of(categories, "cape", (0.1, 0.2, 0.5, 1))
    for category, style in ((3, 0), ("", 0), ("cape", 1.0), ("cape", True)):
        with pytest.raises(ValueError):
            item_of(categories, category, (0, 0, 1, 9), style)


def test_rows() -> None:
    facts = facts_of({}, "product_id", Counter())
    facts.whole_photo, facts.wrong = 3, ["item 2 is left out: …"]
    photo, failure = rows_of("a.png", Origin("user"), png(1), facts)
    assert isinstance(photo, Photo) and photo.weak_box and photo.items[0].bbox == (0, 0, 24, 32)
    assert failure == Failure(photo.image_id, "a.png", "item 2 is left out: …")
    assert [*rows_of("a.png", Origin("user"), b"no", facts)] == [failure_of("a.png", Origin("user"), NO_PICTURE)]


def test_a_name_counts_once_for_each_side() -> None:
    facts = facts_of({}, "product_id", Counter())
    sides = [next(rows_of("a.png", Origin(source), png(1), facts)) for source in ("user", "shop", "user")]
    first, other, again = each_once([*sides])
    assert [first, other] == sides[:2]
    assert isinstance(again, Failure) and "another photo of this name" in again.reason
