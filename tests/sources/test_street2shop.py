"""Street2Shop's layout: the photos of a split, whose garment they show, what is skipped and what is a failure."""

import json
from pathlib import Path

import pytest

from sources import street2shop
from store.formats import NO_PICTURE
from store.imageset import Failure, Item, Photo
from store.photo_checks import checked
from tests.sources import miniatures

BBOX = {"left": 1, "top": 2, "width": 10, "height": 20}
BOX = (1.0, 2.0, 11.0, 22.0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return miniatures.street2shop(tmp_path)


def rewrite(tree: Path, name: str, entries: object) -> None:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (tree / "meta" / "json" / f"{name}.json").write_text(text)


def only(tree: Path, **lists: list) -> dict[int, Photo]:
    """Rows by photo number of a tree with these lists and no others."""
    for path in (tree / "meta" / "json").iterdir():
        path.write_text("[]")
    for name, entries in lists.items():
        rewrite(tree, name, entries)
    return {row.image_id: row for row in street2shop.listing(tree).rows()}


def test_train(tree):
    rows = list(street2shop.listing(tree).rows())
    assert [row.image_id for row in rows] == [*range(1, 9), *range(101, 109), *range(201, 209)]
    street, shop = rows[0], rows[8]
    assert street.items == (Item(1, 1, miniatures.BOX),) and shop.items == (Item(1, 1, miniatures.WHOLE),)
    assert (street.source, street.pair_id, street.product_id) == ("user", 101, "101")
    assert (shop.source, shop.pair_id, shop.product_id) == ("shop", 101, "101")
    assert (street.file_name, street.width, street.height) == ("images/000000001.jpeg", 64, 80)
    assert all(row.weak_box and [*checked(row, 13)] == [row] for row in rows)
    assert {row.pair_id: row.items[0].category_id for row in rows[:4]} == {101: 1, 102: 8, 103: 9, 104: 10}
    found = street2shop.listing(tree)
    assert found.skipped == {"entries of bags": 2, "shop photos of products without a street photo": 1}
    assert miniatures.findings(street2shop.listing(tree)) == []


def test_test_searches_the_whole_gallery(tree):
    rows = list(street2shop.listing(tree, "test").rows())
    assert [row.image_id for row in rows] == [51, 52, 53, *range(101, 109), *range(201, 209), 299]
    assert rows[0].file_name == "images/000000051.png"
    assert street2shop.listing(tree, "test").skipped == {"entries of bags": 1}


def test_a_garment_sold_as_several_products(tree):
    """One box, products 12 and 7: one garment, the lower number; all its shop photos match."""
    rows = only(
        tree,
        train_pairs_tops=[{"photo": 1, "product": p, "bbox": BBOX} for p in (12, 7)],
        retrieval_tops=[{"photo": 101, "product": 12}, {"photo": 102, "product": 7}],
    )
    assert {n: (row.pair_id, row.product_id, row.items[0].style) for n, row in rows.items()} == {
        1: (7, "7 12", 1),
        101: (7, "12", 1),
        102: (7, "7", 1),
    }
    assert rows[1].items == (Item(1, 1, BOX),)


def test_a_photo_of_several_garments(tree):
    """Photo 1 has a top 12 and a skirt 30; photo 2 the skirt 30 and trousers 9: one pair_id 9, styles in that order."""
    other = BBOX | {"top": 40}
    rows = only(
        tree,
        train_pairs_tops=[{"photo": 1, "product": 12, "bbox": BBOX}],
        train_pairs_skirts=[{"photo": n, "product": 30, "bbox": other} for n in (1, 2)],
        train_pairs_pants=[{"photo": 2, "product": 9, "bbox": BBOX}],
        retrieval_tops=[{"photo": 101, "product": 12}],
        retrieval_skirts=[{"photo": 102, "product": 30}],
        retrieval_pants=[{"photo": 103, "product": 9}],
    )
    assert {row.pair_id for row in rows.values()} == {9}
    styles = {n: sorted((item.category_id, item.style) for item in row.items) for n, row in rows.items()}
    assert styles == {1: [(1, 2), (9, 3)], 2: [(8, 1), (9, 3)], 101: [(1, 2)], 102: [(9, 3)], 103: [(8, 1)]}
    assert rows[1].product_id == "12 30"


def test_a_photo_named_twice(tree):
    pair = {"photo": 1, "product": 5, "bbox": BBOX}
    rows = only(tree, train_pairs_tops=[pair, pair, pair | {"bbox": BBOX | {"top": 3}}])
    assert [item.bbox for item in rows[1].items] == [BOX, (1.0, 3.0, 11.0, 23.0)]
    assert {item.style for item in rows[1].items} == {1}
    assert miniatures.findings(street2shop.listing(tree)) == ["1 products of train have no shop photo, 5 the first"]
    only(tree, train_pairs_tops=[pair], retrieval_tops=[{"photo": 1, "product": 5}])
    [failure] = street2shop.listing(tree).failures
    reason = "taken as a user photo of product 5, but listed again as a shop photo of product 5"
    assert (failure.image_id, failure.reason) == (1, reason)


def test_pictures_by_any_ending(tree):
    images = tree / "images"
    (images / "000000001.jpeg").rename(images / "000000001")
    (images / "000000002.jpeg").rename(images / "000000002.JPG")
    (images / "000000003.jpeg").rename(images / "000000003.part")
    (images / "000000004.jpeg").write_text("no longer for sale")
    rows = list(street2shop.listing(tree).rows())
    assert [getattr(row, "reason", "taken") for row in rows[:5]] == [
        "taken",
        "taken",
        "listed, but there is no such picture in the folder",
        NO_PICTURE,
        "taken",
    ]
    assert miniatures.findings(street2shop.listing(tree)) == ["1 of 24 pictures are missing: images/000000003.jpg"]


@pytest.mark.parametrize(
    "entry, reason",
    [
        (5, "want an object, got int"),
        ({"product": 1, "bbox": BBOX}, "photo is None, want a whole number above 0"),
        ({"photo": True, "product": 1, "bbox": BBOX}, "photo is True"),
        ({"photo": 1, "product": 0, "bbox": BBOX}, "product is 0"),
        ({"photo": 2**63, "product": 1, "bbox": BBOX}, "photo is 9223372036854775808"),
        ({"photo": 1, "product": 1}, "bbox is None, want numbers left, top, width, height"),
        ({"photo": 1, "product": 1, "bbox": BBOX | {"top": "2"}}, "bbox is {"),
    ],
)
def test_bad_entries_are_failures(tree, entry, reason):
    rewrite(tree, "train_pairs_tops", [{"photo": 4, "product": 104, "bbox": BBOX}, entry])
    rows = list(street2shop.listing(tree).rows())
    assert isinstance(rows[0], Failure) and rows[0].image_id == -1
    assert rows[0].file_name == "meta/json/train_pairs_tops.json" and rows[0].reason.startswith(f"entry 2: {reason}")
    assert rows[1].image_id == 2, "the other categories are taken"


def test_bad_lists_are_failures(tree):
    rewrite(tree, "train_pairs_tops", "{not json")
    rewrite(tree, "retrieval_skirts", {})
    rewrite(tree, "train_pairs_socks", [{"photo": 1}] * 3)
    (tree / "meta" / "json" / "train_pairs_leggings.json").unlink()
    found = street2shop.listing(tree)
    reasons = {failure.file_name: failure.reason for failure in found.failures}
    assert reasons["meta/json/train_pairs_leggings.json"] == "missing"
    assert reasons["meta/json/train_pairs_tops.json"].startswith("cannot be read: Expecting")
    assert reasons["meta/json/retrieval_skirts.json"] == "cannot be read: want a list, got dict"
    assert found.skipped["entries of socks"] == 3
    assert "meta/json/train_pairs_socks.json: socks is no category of Street2Shop" in miniatures.findings(
        street2shop.listing(tree)
    )


def test_a_folder_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no meta/json/ folder"):
        street2shop.listing(tmp_path).rows()
    (tmp_path / "meta" / "json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images/ folder"):
        miniatures.findings(street2shop.listing(tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no train_pairs_CATEGORY\.json"):
        street2shop.listing(tmp_path).rows()
    with pytest.raises(ValueError, match="split 'val': Street2Shop has train and test"):
        street2shop.listing(tmp_path, "val").rows()
