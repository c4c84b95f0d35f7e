"""The page of a search: pictures inside it, nothing fetched, names are text, and it says where a picture is missing."""

import base64
import html.parser
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import stand_ins
from PIL import Image
from small_gallery import ask, publish

from jobs.gallery import infer, page
from jobs.gallery.answers import Answer, FoundGarment, Hit
from jobs.reports.pictures import PHOTO_PX
from jobs.runs.settings import Settings
from retrieval.gallery import Gallery, open_gallery
from store.imageset import ImageSet, Photo
from store.imageset_write import write_imageset
from store.objects import ObjectStore, open_store

HOSTILE = [
    "<script>alert(1)</script>", "</bdi><img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>",
    "' onmouseover='alert(1)", "</style><script>alert(1)</script>", "</title></head><body onload=alert(1)>",
    "<!--", "{{ 7 * 7 }}", "{% include '/etc/passwd' %}", "&lt;script&gt;", "\u202e\u2066gnp.exe",
    "<meta http-equiv=refresh content=0>", "<base href=//evil.example/>", "\ud800<b>",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags with their attributes' names, every address, all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_bytes().decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.addresses += [
            str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "content")
        ]

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))

    def handle_data(self, data: str) -> None:
        self.text += data


def imageset(
    folder: Path,
    names: list[str],
    changed: int | None = None,
    without: int | None = None,
    attributes: Sequence[Mapping[str, str]] = (),
) -> None:
    """A shop photo for each name, which is file name and product of it; one shown anew, one gone."""

    def photos():
        for i, name in enumerate(names):
            one = stand_ins.photo(i, "shop", 1 + i + (50 if i == changed else 0))
            if i != without:
                told = attributes[i] if i < len(attributes) else {}
                yield Photo(i, one.image, one.width, one.height, "shop", 1 + i, name, name, attributes=told)

    write_imageset(photos(), folder, source={"adapter": "x", "arguments": {}}, overwrite=True)


def written(box: Path, names: list[str]) -> Page:
    """The page about two photos whose garments found everything there is, and one that could not be read."""
    gallery = open_gallery(box / "gallery")
    settings = infer.settings_of(gallery.record, stand_ins.CATALOGUE)
    answers = [
        Answer(name, stand_ins.photo(i, "user", 1).image, [found_in(gallery)]) for i, name in enumerate(names[:2])
    ]
    answers.append(Answer(names[2], b"", [], names[3]))
    page.write(box / "found.html", gallery.record, names[4], answers, settings, told_of(gallery, settings))
    assert sorted(path.name for path in box.iterdir() if path.is_file()) == ["found.html"]
    return Page(box / "found.html")


def told_of(gallery: Gallery, settings: Settings) -> page.ShopItems:
    items = gallery.lookup(gallery.items["id"].to_numpy())
    return page.shop_items(gallery.record, items, settings, pictures=True)


def found_in(gallery: Gallery) -> FoundGarment:
    items = gallery.lookup(sorted(gallery.items["id"].to_pylist()))
    return FoundGarment((4, 6, 34, 46), 0.9, 3, [Hit(i + 1, 1 - i / 100, item) for i, item in enumerate(items)])


@pytest.fixture
def box(tmp_path: Path, calls: list) -> Path:
    imageset(tmp_path / "set", [f"name-{i}" for i in range(6)])
    publish(tmp_path / "set", tmp_path / "gallery")
    return tmp_path


def test_everything_is_inside_the_one_file(box):
    found = written(box, [f"asked-{i}" for i in range(5)])
    pictures = [one for one in found.addresses if one.startswith("data:image")]
    assert len(pictures) == 2 + 2 * 6, "two photos, six shop items for each"
    for one in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(one.removeprefix("data:image/jpeg;base64,"))))
        assert picture.format == "JPEG" and max(picture.size) <= PHOTO_PX
    assert {one for one in found.addresses if "//" in one and not one.startswith("data:")} == set()
    assert not any(
        tag[0] in ("script", "iframe", "form") or any(name.startswith("on") for name in tag) for tag in found.tags
    )
    assert "default-src 'none'" in (box / "found.html").read_text()
    assert all(f"name-{i}" in found.text for i in range(6)) and "asked-3" in found.text


def test_names_that_try_to_be_html_are_text(tmp_path, calls):
    def of(names: list[str], folder: Path) -> Page:
        imageset(folder / "set", names)
        publish(folder / "set", folder / "gallery")
        return written(folder, names)

    plain = of([f"name-{i}" for i in range(len(HOSTILE))], tmp_path / "plain")
    hostile = of(HOSTILE, tmp_path / "hostile")
    assert hostile.tags == plain.tags
    shown = [re.sub("[\ud800-\udfff]", "?", name) for name in HOSTILE]
    assert all(name in hostile.text or name.replace("?", "\ufffd") in hostile.text for name in shown)


def test_it_says_which_pictures_are_missing_and_why(box):
    imageset(box / "set", [f"name-{i}" for i in range(6)], changed=1, without=2)
    found = written(box, [f"asked-{i}" for i in range(5)])
    assert found.text.count("the shop has another photo there now") == 2
    assert found.text.count("no longer in the image set") == 2
    assert sum(one.startswith("data:image") for one in found.addresses) == 2 + 2 * 4


def test_it_says_that_the_image_set_is_gone(box):
    (box / "set").rename(box / "elsewhere")
    found = written(box, [f"asked-{i}" for i in range(5)])
    assert "no pictures of shop items: no image set at" in found.text
    assert sum(one.startswith("data:image") for one in found.addresses) == 2, "the photos that were asked about"


def test_a_page_that_cannot_be_written_leaves_the_old_one(box):
    gallery = open_gallery(box / "gallery")
    settings = infer.settings_of(gallery.record, stand_ins.CATALOGUE)
    with pytest.raises(OSError):
        page.write(box / "none" / "found.html", gallery.record, "g", [], settings, page.ShopItems({}, {}))
    assert not (box / "none").exists()


def test_title_price_and_link_come_from_the_attributes(box):
    about = {"Title": "Midi skirt", "price": "49.90", "Currency": "EUR", "url": "https://shop.example/p?a=1&b=2"}
    imageset(box / "set", [f"name-{i}" for i in range(6)], attributes=[about | {"colour": "red"}, {"price": "7 USD"}])
    found = written(box, [f"asked-{i}" for i in range(5)])
    assert found.addresses.count("https://shop.example/p?a=1&b=2") == 2  # of two photos
    words = " ".join(found.text.split())
    assert "Midi skirt 49.90 EUR" in words and "colour red" in words and "name-1 7 USD" in words
    assert "name-0" not in words and "https:" not in words and "49.90 49.90" not in words


def test_the_table_and_json_have_what_the_page_has(box, capsys):
    about = [{"Title": "Midi skirt", "price": "49.90", "Currency": "EUR", "note": "n" * 500}] * 6
    imageset(box / "set", [f"name-{i}" for i in range(6)], attributes=about)
    asked = box / "asked.png"
    asked.write_bytes(stand_ins.photo(3, "shop", 4).image)
    assert ask(box / "gallery", asked, "--html", box / "found.html", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["garments"][0]["items"][0]["attributes"] == about[0]
    assert told.err == f"page: {box / 'found.html'}\n"
    assert ask(box / "gallery", asked, "--html", box / "found.html", "--top", "1") == 0
    told = capsys.readouterr()
    head, first, where = told.out.splitlines()[-3:]
    assert "  title       price      file name" in head and "  Midi skirt  49.90 EUR  name-3" in first
    assert (where, told.err) == (f"page: {box / 'found.html'}", "")

    shutil.rmtree(box / "set")
    assert ask(box / "gallery", asked, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["garments"][0]["items"][0]["attributes"] == {}
    assert "no titles and prices of shop items: no image set at" in told.err and len(told.err.splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "data:text/html,<b>", "//evil.example", "ftp://a/b", "https:// a", "HTTPS://[", ""],
)
def test_only_web_addresses_become_links(address):
    offer = page.offer_of({"product_id": "p", "file_name": "f"}, [("link", address), ("title", "")])
    assert (offer.title, offer.link) == ("p", "") and ("link", address) in offer.others


def test_hostile_attributes_are_text(box):
    about = [{"title": text, "price": text, "url": text, text or "x": text} for text in HOSTILE[:6]]
    plain = [{"title": "t", "price": "p", "url": "u", "x": "x"} for _ in about]
    tags = []
    for attributes in (plain, about):
        imageset(box / "set", [f"name-{i}" for i in range(6)], attributes=attributes)
        tags.append(written(box, [f"asked-{i}" for i in range(5)]).tags)
    assert tags[0] == tags[1]


def test_garments_of_one_category_have_their_own_number_and_colour(box):
    gallery = open_gallery(box / "gallery")
    settings = infer.settings_of(gallery.record, stand_ins.CATALOGUE)
    one, two = found_in(gallery), found_in(gallery)
    two = FoundGarment((4, 6, 20, 30), 0.5, 3, two.hits, ((3, 0.5), (4, 0.375)))
    answers = [Answer("a/b/street.jpg", stand_ins.photo(1, "user", 1).image, [one, two])]
    page.write(box / "found.html", gallery.record, "runs/gallery", answers, settings, told_of(gallery, settings))
    source = (box / "found.html").read_text()
    colours = re.findall(r'class="number" style="background: (#[0-9a-f]{6})">(\d)<', source)
    assert [number for _, number in colours] == ["1", "2"] and colours[0][0] != colours[1][0]
    text = " ".join(Page(box / "found.html").text.split())
    assert "Shop items like street.jpg" in text and "2 garments in street.jpg" in text and "a/b" not in text
    assert "short sleeve outwear or long sleeve outwear short sleeve outwear 50.0, long sleeve outwear 37.5" in text
    assert "4 6 34 46" not in text, "no coordinates"


@pytest.mark.parametrize("more, pictures", [([], 2), (["--all"], 4)])
def test_each_product_once_or_every_picture_of_it(tmp_path, calls, capsys, more, pictures):
    """Three photos of one product and one of another."""
    write_imageset(
        (replace(stand_ins.photo(i, "shop", 1 + i // 3), product_id=f"p{i // 3}") for i in range(4)),
        tmp_path / "set", source={"adapter": "x", "arguments": {}},
    )  # fmt: skip
    publish(tmp_path / "set", tmp_path / "gallery")
    asked = tmp_path / "asked.png"
    asked.write_bytes(stand_ins.photo(9, "user", 1).image)
    assert ask(tmp_path / "gallery", asked, "--html", tmp_path / "found.html", *more) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"(?m)^ +\d+  ", said)) == pictures and said.count(" p0 ") == pictures - 1
    found = Page(tmp_path / "found.html")
    assert sum(one.startswith("data:image") for one in found.addresses) == 1 + pictures
    words = "Every picture of a product is shown." if more else "Of each product the most similar picture is shown."
    assert words in found.text


def test_a_shard_is_read_once_for_the_table_and_the_page(box, capsys, monkeypatch):
    asked = box / "asked.png"
    asked.write_bytes(stand_ins.photo(3, "shop", 4).image)
    shards, read = [], ImageSet.read
    monkeypatch.setattr(
        ImageSet, "read", lambda images, shard, **how: shards.append(shard) or read(images, shard, **how)
    )
    assert ask(box / "gallery", asked, "--html", box / "found.html") == 0
    assert shards == ["shard-00000"] and "name-3" in capsys.readouterr().out
    assert sum(one.startswith("data:image") for one in Page(box / "found.html").addresses) == 1 + 6


def test_photos_are_read_where_the_night_noted_them_unless_the_set_has_changed(box, monkeypatch):
    titles = [{"title": f"title {i}"} for i in range(6)]
    imageset(box / "set", [f"name-{i}" for i in range(6)], attributes=titles)
    publish(box / "set", box / "titled")
    gallery, store = open_gallery(box / "titled"), open_store(box / "titled")
    settings = infer.settings_of(gallery.record, stand_ins.CATALOGUE)
    items = gallery.lookup(gallery.items["id"].to_numpy())
    looked, photos = [], ImageSet.photos
    monkeypatch.setattr(ImageSet, "photos", lambda images, columns: looked.append(columns) or photos(images, columns))

    def found(store: ObjectStore | None) -> set[str]:
        told = page.shop_items(gallery.record, items, settings, store)
        assert told.reason == "" and told.crops == {}
        return {offer.title for offer in told.offers.values()}

    assert found(store) == {f"title {i}" for i in range(6)} and not looked
    assert found(None) == found(store) and looked
    imageset(box / "set", [f"name-{i}" for i in range(6)], without=2, attributes=titles)  # the rest moves up
    looked.clear()
    assert found(store) == {f"title {i}" for i in (0, 1, 3, 4, 5)} | {"name-2"} and looked
