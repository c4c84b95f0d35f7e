"""Plain folders: what is taken, in which order, under which id, and what becomes a failure."""

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from retrieval.datasets import folder
from store.imageset import Failure, Photo
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
    rows = list(folder.read(tmp_path, "shop"))
    assert names(rows) == ["b.jpg", "c.png", "Größe/ドレス.JPG", "a/y.jpeg", "a/deep/er/x.PNG", "a-b/z.WebP"]
    assert {(row.width, row.height, row.source, row.items, row.product_id) for row in rows} == {(6, 5, "shop", (), "")}


def test_ids_are_63_bits_of_the_relative_path(tmp_path):
    put(tmp_path / "one" / "red shoe.jpg")
    put(tmp_path / "two" / "one" / "red shoe.jpg")
    [first] = folder.read(tmp_path / "one", "user")
    [same] = folder.read(tmp_path / "two" / "one", "user")
    [other] = folder.read(tmp_path / "two", "user")
    digest = hashlib.blake2b(b"red shoe.jpg", digest_size=8).digest()
    assert first.image_id == same.image_id == int.from_bytes(digest, "big") % 2**63
    assert other.image_id != first.image_id


def test_links(tmp_path):
    put(tmp_path / "outside" / "secret.jpg")
    put(tmp_path / "photos" / "real.jpg")
    (tmp_path / "photos" / "inside.jpg").symlink_to(tmp_path / "photos" / "real.jpg")
    (tmp_path / "photos" / "leak.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (tmp_path / "photos" / "leaks").symlink_to(tmp_path / "outside")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dangling.jpg").symlink_to(tmp_path / "photos" / "never.jpg")
    rows = {row.file_name: row for row in folder.read(tmp_path / "photos", "user")}
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
    assert rows["text.jpg"] == Failure(folder.image_id("text.jpg"), "text.jpg", "not a JPEG, PNG or WebP picture")
    assert rows["empty.png"].reason == "empty file"
    assert isinstance(rows["good.jpg"], Photo) and len(rows) == 3


def test_the_pixel_limit_is_a_setting(tmp_path):
    put(tmp_path / "a.jpg")
    [row] = folder.read(tmp_path, "user", max_pixels=29)  # it has 6 x 5
    assert row.reason == "6 x 5 is more than 29 pixels"
    [row] = folder.read(tmp_path, "user", max_pixels=30)
    assert isinstance(row, Photo)


def test_metadata(tmp_path):
    put(tmp_path / "photos" / "a" / "1.jpg")
    put(tmp_path / "photos" / "2.jpg")
    table = tmp_path / "products.csv"
    table.write_text(
        '\ufefffile_name,colour,product_id,pair_id\na/1.jpg,red,"SKU 1, left",17\nlost.jpg,blue,SKU 9,\n', "utf-8"
    )
    rows = {row.file_name: row for row in folder.read(tmp_path / "photos", "shop", table)}
    assert (rows["a/1.jpg"].product_id, rows["a/1.jpg"].pair_id) == ("SKU 1, left", 17)
    assert (rows["2.jpg"].product_id, rows["2.jpg"].pair_id) == ("", 0)
    assert isinstance(rows["lost.jpg"], Failure) and "in the metadata" in rows["lost.jpg"].reason


@pytest.mark.parametrize(
    "text, want",
    [
        ("", "no column file_name, product_id"),
        ("file_name,sku\na.jpg,1\n", "no column product_id"),
        ("file_name,product_id,pair_id\na.jpg,1,x\n", "line 2: pair_id 'x' is not a whole number"),
        ("file_name,product_id\n,1\n", "line 2: no file_name"),
        ("file_name,product_id\na.jpg,1\na.jpg,2\n", r"line 3: a\.jpg occurs twice"),
    ],
)
def test_metadata_that_is_none(tmp_path, text, want):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=want):
        folder.read(tmp_path, "shop", tmp_path / "m.csv")


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        folder.read(tmp_path / "nowhere", "user")
    with pytest.raises(ValueError, match="want user or shop"):
        folder.read(tmp_path, "street")
    with pytest.raises(ValueError, match="cannot read"):
        folder.read(tmp_path, "user", tmp_path / "nowhere.csv")


def test_a_listing_tells_versions_apart_without_reading(tmp_path):
    put(tmp_path / "b.png", "PNG")
    put(tmp_path / "a" / "x.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "never.jpg")
    found = folder.open_folder(tmp_path, "shop")
    b, gone, x = found.list()
    info = (tmp_path / "b.png").stat()
    assert b == folder.Listed("b.png", info.st_size, info.st_mtime_ns)
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
    assert rows[0] == Photo(folder.image_id("b.jpg"), data, 6, 5, "shop", file_name="b.jpg")
    assert {row.file_name: row.reason for row in rows if isinstance(row, Failure)} == {
        "broken.jpg": "not a JPEG, PNG or WebP picture",
        "c//d.jpg": "cannot be read: its key is no relative path",
    }
    [listed] = (entry for entry in folder.open_folder(f"{s3_bucket}/in", "shop").list() if entry.name == "b.jpg")
    assert listed.size == len(data) and listed.etag and listed.mtime_ns == 0
    store.delete("b.jpg")
    [(_, row)] = folder.open_folder(f"{s3_bucket}/in", "shop").rows([listed])
    assert row == Failure(folder.image_id("b.jpg"), "b.jpg", "cannot be read: No such file or directory")
