"""MPV's list: persons and clothes of one article, splits by the fourth column, and what becomes of bad lines."""

from pathlib import Path

import pytest

from sources import folder, mpv
from store.imageset import Item
from store.photo_checks import checked
from tests.sources import miniatures

LIST = "all_poseA_poseB_clothes.txt"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return miniatures.mpv(tmp_path)


def test_persons_and_clothes(tree):
    rows = list(mpv.listing(tree).rows())
    name = "A01/A01-T11@8=person_half_front.jpg"
    assert [row.source for row in rows[:3]] == ["user", "user", "shop"]
    assert {(row.pair_id, row.product_id) for row in rows[:3]} == {(folder.image_id("A01-T11"), "A01-T11")}
    assert (rows[0].image_id, rows[0].file_name) == (folder.image_id(name), f"MPV_192_256/{name}")
    assert rows[0].items == (Item(1, 1, miniatures.WHOLE),)
    assert len(rows) == 3 * miniatures.N_GARMENTS and all(row.weak_box and [*checked(row, 13)] == [row] for row in rows)
    assert miniatures.findings(mpv.listing(tree)) == []


def test_splits(tree):
    train, test = ({row.product_id for row in mpv.listing(tree, split).rows()} for split in ("train", "test"))
    assert train == {f"A{n:02}-T11" for n in range(1, 9)} and test == {"A09-T11", "A10-T11", "A11-T11"}


def test_the_later_release(tree):
    (tree / LIST).rename(tree / "all_poseA_poseB_clothes_0607.txt")
    before = {row.image_id for row in mpv.listing(tree).rows()}
    (tree / "MPV_192_256").rename(tree / "all")
    rows = list(mpv.listing(tree).rows())
    assert {row.image_id for row in rows} == before
    assert rows[0].file_name == "all/A01/A01-T11@8=person_half_front.jpg"


def test_a_person_beside_other_clothes_keeps_her_own(tree):
    a, b = (f"A{n:02}/A{n:02}-T11@{view}.jpg" for n, view in ((1, "8=person_half_front"), (2, "10=cloth_front")))
    with open(tree / LIST, "a") as file:
        file.write(f"{a}\t{a}\t{b}\ttrain\n")
    assert len(list(mpv.listing(tree).rows())) == 3 * miniatures.N_GARMENTS
    assert miniatures.findings(mpv.listing(tree)) == ["1 lines put a person beside other clothes"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("a@1.jpg\tb@1.jpg\ttrain", "3 fields, want PERSON PERSON CLOTHES train|test"),
        ("a@1.jpg\tb@1.jpg\tc@1.jpg\tval", "split 'val', want train or test"),
        ("a@1.jpg\tb@1.jpg\tc.jpg\ttrain", "c.jpg has no article before an @"),
    ],
)
def test_bad_lines_are_failures(tree, line, reason):
    (tree / LIST).write_text(f"{line}\n\n" + (tree / LIST).read_text())
    rows = list(mpv.listing(tree).rows())
    assert (rows[0].file_name, rows[0].reason) == (f"{LIST}, line 1", reason)
    assert len(rows) == 1 + 3 * miniatures.N_GARMENTS


def test_missing_pictures(tree):
    (tree / "MPV_192_256" / "A01" / "A01-T11@10=cloth_front.jpg").unlink()
    rows = {row.file_name: row for row in mpv.listing(tree).rows()}
    name = "MPV_192_256/A01/A01-T11@10=cloth_front.jpg"
    assert rows[name].reason == "listed, but there is no such picture in the folder"
    assert miniatures.findings(mpv.listing(tree)) == [f"1 of 24 pictures are missing: {name}"]
    assert miniatures.findings(mpv.listing(tree, "test")) == []


def test_a_folder_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"want MPV's all_poseA_poseB_clothes\.txt and its pictures in MPV_192_256/"):
        mpv.listing(tmp_path).rows()
    (tmp_path / LIST).write_text("")
    (tmp_path / "all").mkdir()
    with pytest.raises(ValueError, match="not one line PERSON PERSON CLOTHES train"):
        miniatures.findings(mpv.listing(tmp_path))
    with pytest.raises(ValueError, match="split 'val': MPV has train and test"):
        mpv.listing(tmp_path, "val").rows()
