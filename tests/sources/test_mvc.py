"""MVC's lists: which item a picture shows, which departments are skipped, and what becomes of bad entries."""

import json
from pathlib import Path
from typing import Any

import pytest

from sources import folder, mvc
from store.imageset import Item
from store.photo_checks import checked
from tests.sources import miniatures


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return miniatures.mvc(tmp_path)


def change(tree: Path, name: str, number: int, **changes: Any) -> None:
    entries = json.loads((tree / name).read_text())
    entries[number] |= changes
    (tree / name).write_text(json.dumps(entries))


def test_four_views_of_an_item(tree):
    rows = list(mvc.listing(tree).rows())
    assert len(rows) == 4 * miniatures.N_GARMENTS and all(row.weak_box and [*checked(row, 13)] == [row] for row in rows)
    assert [row.pair_id for row in rows[:5]] == [1, 1, 1, 1, 2]
    assert {row.source for row in rows} == {"shop"} and rows[0].product_id == "1001"
    assert (rows[0].image_id, rows[0].file_name) == (folder.image_id("00001_0.jpg"), "images/00001_0.jpg")
    assert rows[0].items == (Item(10, 1, miniatures.WHOLE),)
    assert [row.items[0].category_id for row in rows[::4]] == [10, 8, 4, 1, 10, 8, 4, 1]
    assert mvc.listing(tree).skipped == {"photos of Socks": 1}
    assert miniatures.findings(mvc.listing(tree)) == []


def test_pictures_under_the_name_of_their_address(tree):
    (tree / "images" / "00001_0.jpg").rename(tree / "images" / "1001-0-4x.jpg")
    (tree / "images" / "00001_1.jpg").unlink()
    rows = list(mvc.listing(tree).rows())
    assert rows[0].file_name == "images/1001-0-4x.jpg" and rows[0].image_id == folder.image_id("00001_0.jpg")
    assert rows[1].reason == "listed, but there is no such picture in the folder"
    assert miniatures.findings(mvc.listing(tree)) == ["1 of 32 pictures are missing: images/00001_1.jpg"]


def test_numbers_as_the_lists_have_them(tree):
    change(tree, "attribute_labels.json", 0, itemN=1.0)
    change(tree, "attribute_labels.json", 1, itemN="1", filename="00001_1.jpg")
    change(tree, "attribute_labels.json", 2, itemN="1a")
    rows = list(mvc.listing(tree).rows())
    assert [row.pair_id for row in rows[:3]] == [1, 1, folder.image_id("1a")]
    assert rows[1].file_name == "images/00001_1.jpg"


def test_bad_entries_are_failures(tree):
    change(tree, "attribute_labels.json", 0, itemN=None)
    change(tree, "mvc_info.json", 1, category="")
    change(tree, "mvc_info.json", 2, productId=5)
    rows = list(mvc.listing(tree).rows())
    assert [(row.file_name, row.reason) for row in rows[:2]] == [("entry 1", "no itemN"), ("entry 2", "no category")]
    assert len(rows) == 32
    assert miniatures.findings(mvc.listing(tree))[0] == "1 of 8 items have photos of more than one productId"


def test_lists_of_different_lengths_are_refused(tree):
    labels = json.loads((tree / "attribute_labels.json").read_text())
    (tree / "attribute_labels.json").write_text(json.dumps(labels[1:]))
    with pytest.raises(ValueError, match=r"mvc_info\.json has 33 entries, attribute_labels\.json 32"):
        mvc.listing(tree).rows()


def test_a_folder_with_another_layout_is_refused(tree):
    with pytest.raises(ValueError, match="split 'test': no split of MVC is published, want all"):
        mvc.listing(tree, "test").rows()
    (tree / "mvc_info.json").write_text("[{")
    with pytest.raises(ValueError, match=r"mvc_info\.json is no JSON"):
        mvc.listing(tree).rows()
    (tree / "mvc_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mvc_info\.json is not a list of photos"):
        mvc.listing(tree).rows()
    (tree / "mvc_info.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*mvc_info\.json: No such file"):
        miniatures.findings(mvc.listing(tree))
