"""DARN's list: whose garment a picture shows and from which side, and what becomes of bad lines."""

from pathlib import Path

import pytest

from sources import darn, folder
from store.imageset import Failure, Item
from store.photo_checks import checked
from tests.sources import miniatures


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return miniatures.darn(tmp_path)


def test_customers_and_the_shop(tree):
    rows = list(darn.listing(tree).rows())
    assert [(row.source, row.pair_id, row.product_id) for row in rows[:4]] == [
        ("user", 1, "1"),
        ("user", 1, "1"),
        ("shop", 1, "1"),
        ("user", 2, "2"),
    ]
    assert len(rows) == 3 * miniatures.N_GARMENTS and all(row.weak_box and [*checked(row, 13)] == [row] for row in rows)
    assert (rows[0].image_id, rows[0].file_name) == (folder.image_id("1_0.jpg"), "pic/1_0.jpg")
    assert rows[0].items == (Item(1, 1, miniatures.WHOLE),)
    assert miniatures.findings(darn.listing(tree)) == []


def test_products_need_not_be_numbers(tree):
    text = (tree / "image.txt").read_text().replace("1_0.jpg 1 ", "1_0.jpg red-coat ")
    (tree / "image.txt").write_text(text)
    rows = list(darn.listing(tree).rows())
    assert (rows[0].pair_id, rows[0].product_id) == (folder.image_id("red-coat"), "red-coat")
    assert miniatures.findings(darn.listing(tree)) == ["1 of 9 products have photos of one side only"]


def test_pictures_beside_the_list(tree):
    (tree / "pic" / "1_0.jpg").rename(tree / "1_0.jpg")
    (tree / "pic" / "1_1.jpg").unlink()
    rows = list(darn.listing(tree).rows())
    assert rows[0].file_name == "1_0.jpg" and rows[0].image_id == folder.image_id("1_0.jpg")
    assert rows[1] == Failure(
        folder.image_id("1_1.jpg"), "pic/1_1.jpg", "listed, but there is no such picture in the folder"
    )
    assert miniatures.findings(darn.listing(tree)) == ["1 of 24 pictures are missing: pic/1_1.jpg"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("9_0.jpg 9 0", "3 fields, want PICTURE PRODUCT 0|1 CATEGORY"),
        ("9 0.jpg 9 0 1", "5 fields"),
        ("9_0.jpg 9 2 1", "side '2', want 0 or 1"),
        ("9_0.jpg 9 0 20", "category '20', want 0 to 19"),
        ("9_0.jpg 9 0 coat", "category 'coat'"),
    ],
)
def test_bad_lines_are_failures(tree, line, reason):
    (tree / "image.txt").write_text(f"{line}\n\n" + (tree / "image.txt").read_text())
    rows = list(darn.listing(tree).rows())
    assert rows[0].file_name == "image.txt, line 1" and rows[0].reason.startswith(reason)
    assert len(rows) == 1 + 24


def test_collisions_are_refused(tree, monkeypatch):
    monkeypatch.setattr(folder, "image_id", lambda text: 42)
    with pytest.raises(ValueError, match=r"pic/1_0\.jpg and pic/1_1\.jpg both get image_id 42"):
        darn.listing(tree).rows()


def test_a_folder_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image\.txt"):
        darn.listing(tmp_path).rows()
    (tmp_path / "image.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="not one line"):
        miniatures.findings(darn.listing(tmp_path))
    with pytest.raises(ValueError, match="split 'train': no split of DARN is published, want all"):
        darn.listing(tmp_path, "train").rows()
