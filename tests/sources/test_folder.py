"""Plain folders: what is taken, in which order, under which id, and what becomes a failure."""

import hashlib
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sources import folder
from sources.files import PICTURES
from store.errors import UserError
from store.formats import NO_PICTURE
from store.imageset import Failure, Item, Photo
from store.objects import open_store


def put(path: Path, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", (6, 5)).save(file, kind)
    path.write_bytes(file.getvalue())


def names(rows) -> list[str]:
    return [row.file_name for row in rows]


def test_any_nesting_any_case_and_the_order(tmp_path):
    for name in ("b.jpg", "a/deep/er/x.PNG", "a/y.jpeg", "a-b/z.WebP", "Größe/ドレス.JPG", "c.png"):
        put(tmp_path / name, {"png": "PNG", "webp": "WEBP"}.get(name.lower().rpartition(".")[2], "JPEG"))
    for name in ("notes.txt", "a/film.mp4", ".hidden.jpg", ".cache/x.jpg", "jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    reading = folder.read(tmp_path, "shop")
    rows = list(reading)
    assert reading.skipped == {".txt": 1, ".mp4": 1, "hidden": 2, "no extension": 1} and not reading.categories
    assert names(rows) == ["b.jpg", "c.png", "Größe/ドレス.JPG", "a/y.jpeg", "a/deep/er/x.PNG", "a-b/z.WebP"]
    assert {(row.width, row.height, row.source, row.items, row.product_id) for row in rows} == {(6, 5, "shop", (), "")}


def test_ids_are_63_bits_of_the_relative_path(tmp_path):
    put(tmp_path / "one" / "red shoe.jpg")
    put(tmp_path / "two" / "one" / "red shoe.jpg")
    [first] = folder.read(tmp_path / "one", "user")
    [same] = folder.read(tmp_path / "two" / "one", "user")
    [other] = folder.read(tmp_path / "two", "user")
    [sold] = folder.read(tmp_path / "one", "shop")
    digest = hashlib.blake2b(b"user/red shoe.jpg", digest_size=8).digest()
    assert first.image_id == same.image_id == int.from_bytes(digest, "big") % 2**63
    assert len({first.image_id, other.image_id, sold.image_id}) == 3


def test_links(tmp_path):
    put(tmp_path / "outside" / "secret.jpg")
    put(tmp_path / "photos" / "real.jpg")
    (tmp_path / "photos" / "inside.jpg").symlink_to(tmp_path / "photos" / "real.jpg")
    (tmp_path / "photos" / "leak.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (tmp_path / "photos" / "leaks").symlink_to(tmp_path / "outside")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dangling.jpg").symlink_to(tmp_path / "photos" / "never.jpg")
    reading = folder.read(tmp_path / "photos", "user")
    rows = {row.file_name: row for row in reading}
    assert reading.skipped == {"links out of the folder, or to folders": 1, "no extension": 2}
    assert sorted(rows) == ["dangling.jpg", "inside.jpg", "real.jpg"]
    assert isinstance(rows["dangling.jpg"], Failure)
    (tmp_path / "way-in").symlink_to(tmp_path / "photos")
    assert sorted(names(folder.read(tmp_path / "way-in", "user"))) == sorted(rows), "the folder itself may be a link"


def test_unreadable_pictures_are_failures(tmp_path):
    (tmp_path / "text.jpg").write_text("no")
    (tmp_path / "empty.png").write_bytes(b"")
    put(tmp_path / "good.jpg")
    (tmp_path / "folder.jpg").mkdir()
    rows = {row.file_name: row for row in folder.read(tmp_path, "user")}
    assert rows["text.jpg"] == Failure(folder.image_id("user/text.jpg"), "text.jpg", NO_PICTURE)
    assert rows["empty.png"].reason == "empty file"
    assert isinstance(rows["good.jpg"], Photo) and len(rows) == 3


def test_the_pixel_limit_is_a_setting(tmp_path):
    put(tmp_path / "a.jpg")
    [row] = folder.read(tmp_path, "user", max_pixels=29)  # it has 6 x 5
    assert row.reason == "6 x 5 is more than 29 pixels"
    [row] = folder.read(tmp_path, "user", max_pixels=30)
    assert isinstance(row, Photo)


def test_a_prefix_keeps_ids_of_equal_names_apart(tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "1.png")
    plain, north, south = (next(iter(folder.read(tmp_path, "shop", prefix=text))) for text in ("", "north", "south"))
    assert plain.image_id == folder.image_id("shop/1.png") and north.image_id == folder.image_id("shop/north/1.png")
    assert len({plain.image_id, north.image_id, south.image_id}) == 3
    assert {row.file_name for row in (plain, north, south)} == {"1.png"}


def test_metadata(tmp_path):
    put(tmp_path / "photos" / "a" / "1.jpg")
    put(tmp_path / "photos" / "2.jpg")
    table = tmp_path / "products.csv"
    table.write_text(
        '\ufefffile_name,colour,product_id,pair_id\na/1.jpg,red,"SKU 1, left",17\nlost.jpg,blue,SKU 9,\n', "utf-8"
    )
    with pytest.raises(
        UserError, match=r"1 of 2 rows of the CSV name no picture: 'lost.jpg', while the folder has '2.j"
    ):
        folder.read(tmp_path / "photos", "shop", table)
    rows = {row.file_name: row for row in folder.read(tmp_path / "photos", "shop", table, allow_missing=True)}
    assert (rows["a/1.jpg"].product_id, rows["a/1.jpg"].pair_id) == ("SKU 1, left", 17)
    assert (rows["2.jpg"].product_id, rows["2.jpg"].pair_id) == ("", 0)
    assert isinstance(rows["lost.jpg"], Failure) and "in the metadata" in rows["lost.jpg"].reason


def test_garments_and_attributes(tmp_path):
    """Pictures are 6 x 5; a category of the shop's own, a garment without a box, an attribute that some lack."""
    for number in range(3):
        put(tmp_path / "photos" / f"{number}.jpg")
    table = tmp_path / "products.csv"
    table.write_text(
        "file_name,product_id,category,x1,y1,x2,y2,price\n"
        "0.jpg,P0,abaya,1,1,4,4,19.90\n0.jpg,P0,hat,0,0,2,1.5,19.90\n1.jpg,P1,hat,,,,,\n2.jpg,P2,,,,,,5\n"
    )
    reading = folder.read(tmp_path / "photos", "shop", table)
    zero, one, two = reading
    assert tuple(reading.categories) == ("abaya", "hat") and reading.remarks == ["columns kept as attributes: price"]
    assert zero.items == (Item(1, 0, (1, 1, 4, 4)), Item(2, 0, (0, 0, 2, 1.5))) and not zero.weak_box
    assert one.items == (Item(2, 0, (0, 0, 6, 5)),) and one.weak_box
    assert [dict(row.attributes) for row in (zero, one, two)] == [{"price": "19.90"}, {}, {"price": "5"}]
    assert (two.items, two.product_id) == ((), "P2")


@pytest.mark.parametrize("missing, rows, refused", [(0, 1, False), (1, 99, True), (1, 100, False), (2, 100, True)])
def test_one_row_in_a_hundred_may_name_no_picture(tmp_path: Path, missing: int, rows: int, refused: bool) -> None:
    names = [f"{n}.jpg" for n in range(rows)]
    for name in names[missing:]:
        put(tmp_path / "photos" / name)
    (tmp_path / "m.csv").write_text("file_name,product_id\n" + "".join(f"{name},P\n" for name in names))
    if refused:
        with pytest.raises(UserError, match=f"{missing} of {rows} rows of the CSV name no picture: '0.jpg'"):
            folder.read(tmp_path / "photos", "shop", tmp_path / "m.csv")
    else:
        found = [*folder.read(tmp_path / "photos", "shop", tmp_path / "m.csv")]
        assert sum(isinstance(row, Failure) for row in found) == missing


def test_names_written_otherwise_find_their_pictures(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "Shoes" / "1.JPG")
    (tmp_path / "m.csv").write_text("file_name,product_id\n/home/bob/photos/shoes/1.jpg,P\n")
    (row,) = folder.read(tmp_path / "photos", "shop", tmp_path / "m.csv")
    assert (row.file_name, row.product_id) == ("Shoes/1.JPG", "P")  # type: ignore[union-attr]


def test_a_folder_that_vanishes_while_it_is_listed_is_a_failure(tmp_path: Path) -> None:
    put(tmp_path / "1.jpg")
    put(tmp_path / "sub" / "2.jpg")
    put(tmp_path / "zoo" / "3.jpg")
    rows = iter(folder.read(tmp_path, "shop"))
    found = [next(rows)]
    shutil.rmtree(tmp_path / "sub")
    found += rows
    assert [row.file_name for row in found] == ["1.jpg", "sub", "zoo/3.jpg"]
    assert isinstance(found[1], Failure) and found[1].reason == "cannot be read: No such file or directory"


@pytest.mark.parametrize("ending", [ending.removeprefix(".") for ending in PICTURES] + ["JPE", "TIFF"])
def test_endings_of_pictures(tmp_path: Path, ending: str) -> None:
    put(tmp_path / f"1.{ending}")
    assert [row.file_name for row in folder.read(tmp_path, "user")] == [f"1.{ending}"]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        folder.read(tmp_path / "nowhere", "user")
    with pytest.raises(ValueError, match="want user or shop"):
        folder.read(tmp_path, "street")
    with pytest.raises(ValueError, match="cannot read"):
        folder.read(tmp_path, "user", tmp_path / "nowhere.csv")


def test_a_listing_distinguishes_versions_without_reading(tmp_path):
    put(tmp_path / "b.png", "PNG")
    put(tmp_path / "a" / "x.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "never.jpg")
    found = folder.open_folder(tmp_path, "shop")
    b, gone, x = found.list()
    info = (tmp_path / "b.png").stat()
    assert b == folder.ListedPhoto("b.png", info.st_size, info.st_mtime_ns)
    assert (gone.name, gone.size) == ("gone.jpg", -1) and x.name == "a/x.jpg"
    assert [row.file_name for _, row in found.rows([x, b])] == ["a/x.jpg", "b.png"]


def test_a_bucket(tmp_path, s3_bucket, s3_client):
    store = open_store(f"{s3_bucket}/in")
    put(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    for key in ("b.jpg", "a/deep/er/x.JPG", "a/y.jpg", "a-b/z.jpg", "notes.txt", ".cache/x.jpg", "a/.x.jpg"):
        store.write(key, data)
    store.write("broken.jpg", b"no")
    s3_client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="in/c//d.jpg", Body=data)
    rows = list(folder.read(f"{s3_bucket}/in", "shop"))
    assert names(rows) == ["b.jpg", "broken.jpg", "a/y.jpg", "a/deep/er/x.JPG", "a-b/z.jpg", "c//d.jpg"]
    assert rows[0] == Photo(folder.image_id("shop/b.jpg"), data, 6, 5, "shop", file_name="b.jpg", weak_box=True)
    assert {row.file_name: row.reason for row in rows if isinstance(row, Failure)} == {
        "broken.jpg": NO_PICTURE,
        "c//d.jpg": "cannot be read: its key is no relative path",
    }
    [listed] = (entry for entry in folder.open_folder(f"{s3_bucket}/in", "shop").list() if entry.name == "b.jpg")
    assert listed.size == len(data) and listed.etag and listed.mtime_ns == 0
    store.delete("b.jpg")
    [(_, row)] = folder.open_folder(f"{s3_bucket}/in", "shop").rows([listed])
    assert row == Failure(folder.image_id("shop/b.jpg"), "b.jpg", "cannot be read: No such file or directory")
