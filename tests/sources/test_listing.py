"""What lists share: every photo once, stable ids, collisions refused, missing pictures named without opening any."""

import hashlib

import pytest

from sources import folder, listing
from sources.listing import Entry, ListedGarment, Listing
from store.formats import NO_PICTURE
from store.imageset import Failure, Photo
from tests.sources import miniatures


def entry(image_id: int, name: str, product: str = "7") -> Entry:
    return Entry(image_id, name, "shop", listing.pair_id(product), product, (ListedGarment(9),))


@pytest.mark.parametrize(
    "product, want",
    [
        ("47270", 47270),
        (str(2**63 - 1), 2**63 - 1),  # the largest int64
        (str(2**63), folder.image_id(str(2**63))),
        ("0", folder.image_id("0")),  # 0 means unknown
        ("07", folder.image_id("07")),  # not 7, which is another product
        ("٧", folder.image_id("٧")),  # a digit, but no ASCII one
        ("", folder.image_id("")),
        ("A-T11", int.from_bytes(hashlib.blake2b(b"A-T11", digest_size=8).digest(), "big") % 2**63),
    ],
)
def test_pair_ids(product, want):
    assert listing.pair_id(product) == want > 0


def test_collisions_are_refused(tmp_path, monkeypatch):
    found = Listing(tmp_path)
    monkeypatch.setattr(folder, "image_id", lambda text: 42)
    assert found.pair_id("A") == found.pair_id("A") == 42
    with pytest.raises(ValueError, match="products 'A' and '42' both get pair_id 42"):
        found.pair_id("42")
    found.add(entry(1, "a.jpg"))
    with pytest.raises(ValueError, match=r"a\.jpg and b\.jpg both get image_id 1"):
        found.add(entry(1, "b.jpg"))


def test_a_photo_counts_once(tmp_path):
    found = Listing(tmp_path)
    for one in (entry(1, "a.jpg"), entry(1, "a.jpg"), entry(1, "a.jpg", "8")):
        found.add(one)
    assert len(found) == 1
    reason = "taken as a shop photo of product 7, but listed again as a shop photo of product 8"
    assert found.failures == [Failure(1, "a.jpg", reason)]


def test_rows_and_what_is_missing(tmp_path):
    miniatures.picture(tmp_path / "good.jpg", 1)
    (tmp_path / "text.jpg").write_text("moved")
    found = Listing(tmp_path)
    found.fail("list.txt, line 4", "2 fields")
    for number, name in enumerate(("good.jpg", "text.jpg", "gone.jpg", "../outside.jpg", "/etc/passwd"), 1):
        found.add(entry(number, name))
    rows = list(found.rows())
    assert [(row.file_name, getattr(row, "reason", "taken")) for row in rows] == [
        ("list.txt, line 4", "2 fields"),
        ("../outside.jpg", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("good.jpg", "taken"),
        ("text.jpg", NO_PICTURE),
        ("gone.jpg", "listed, but there is no such picture in the folder"),
    ]
    assert isinstance(rows[3], Photo) and rows[3].items[0].bbox == miniatures.WHOLE and rows[3].weak_box
    lines, gone = found.missing()
    assert lines.startswith("3 lines or files cannot be taken: list.txt, line 4: 2 fields, ")
    assert gone == "1 of 3 pictures are missing: gone.jpg"


def test_lists_that_name_nothing_are_incomplete(tmp_path):
    assert Listing(tmp_path).missing() == ["the lists name no photo that can be taken"]


def test_many_missing_pictures_are_one_line(tmp_path):
    found = Listing(tmp_path)
    for number in range(5):
        found.add(entry(number, f"{number}.jpg"))
    assert found.missing() == ["5 of 5 pictures are missing: 0.jpg, 1.jpg, 2.jpg, …"]
