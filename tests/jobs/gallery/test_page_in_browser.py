"""The page of a search in a real browser: a desktop, a phone, both colour schemes, the keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_ins

from jobs.gallery import page
from jobs.gallery.answers import Answer, FoundGarment, Hit
from jobs.runs.settings import Settings
from store.categories import DEEPFASHION2
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset

SHOPS = 8
LONG = "NameWithoutAPlaceToBreak" * 4
EVERY_IMAGE = """async () => {
    await Promise.all([...document.images].map((image) => image.decode()));
    return document.images.length;
}"""
# Text that is hard to read: WCAG 2.2, 1.4.3, wants a contrast of 4.5
FAINT = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = (colour) => {
        const [red, green, blue] = colour.slice(0, 3).map((value) => linear(value / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const behind = (one) => {
        const colour = numbers(getComputedStyle(one).backgroundColor);
        return colour.length === 3 || colour[3] > 0 || !one.parentElement ? colour : behind(one.parentElement);
    };
    const contrast = (one) => {
        const both = [numbers(getComputedStyle(one).color), behind(one)].map(luminance).sort((a, b) => b - a);
        return (both[0] + 0.05) / (both[1] + 0.05);
    };
    const isText = (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim();
    const texts = [...document.body.querySelectorAll("*")].filter((one) => [...one.childNodes].some(isText));
    return [texts.length, texts.filter((one) => contrast(one) < 4.5).map((one) => one.textContent)];
}"""
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with found.html: a photo's two garments with eight shop items each, every second with a link; a text; a
    photo that could not be read. And one.html about the first photo alone."""
    folder = tmp_path_factory.mktemp("found")

    def shops() -> Iterator[Photo]:
        for i in range(SHOPS):
            told = {"title": f"Midi skirt {i}", "price": "49.90", "currency": "EUR", "colour": "red"}
            told |= {"url": f"https://shop.example/{i}"} if i % 2 else {"material": LONG}
            one = stand_ins.photo(i, "shop", 1 + i)
            yield Photo(i, one.image, one.width, one.height, "shop", 1 + i, f"p{i}", f"{i}.png", attributes=told)

    write_imageset(shops(), folder / "set", source={"adapter": "stand-in", "arguments": {}})
    images = open_imageset(folder / "set")
    digests = images.photos(("digest",)).column("digest").to_pylist()
    hits = [
        Hit(i + 1, 0.9 - i / 100, {
            "id": i, "image_id": i, "bbox": [4.0, 6.0, 34.0, 46.0], "category_id": 9, "product_id": f"p{i}",
            "file_name": f"{i}.png", "digest": digest,
        })
        for i, digest in enumerate(digests)
    ]  # fmt: skip
    hits[0].item["digest"] = b"0" * 16  # the shop has another photo now
    garments = [
        FoundGarment((4, 6, 34, 26), 0.9, 9, hits, ((9, 0.9), (12, 0.4))),
        FoundGarment((4, 26, 34, 46), 0.6, 9, hits, ((9, 0.6),)),
    ]
    answers = [
        Answer(f"{LONG}.jpg", stand_ins.photo(1, "user", 1).image, garments),
        Answer("", b"", [], text="red midi skirt", hits=hits[:3]),
        Answer("cut-off.jpg", b"", [], "truncated JPEG"),
    ]
    record = {
        "name": "000001-x", "created": 1_790_000_000, "rows": SHOPS, "categories": list(DEEPFASHION2),
        "imagesets": [{"uri": str(folder / "set"), "digest": images.digest}],
    }  # fmt: skip
    told = page.shop_items(record, [hit.item for hit in hits], Settings(), pictures=True)
    page.write(folder / "found.html", record, "s3://bucket/" + LONG, answers, Settings(), told)
    page.write(folder / "one.html", record, "s3://bucket/" + LONG, answers[:1], Settings(), told)
    return folder


def test_it_loads_whole_with_the_photo_beside_what_was_found(found, tab):
    opened = tab(found, viewport={"width": 1280, "height": 800}).open("found.html")
    assert opened.evaluate(EVERY_IMAGE) == 1 + 2 * (SHOPS - 1) + 2
    assert opened.locator("h2").count() == 3 and opened.get_by_text("the shop has another photo there now").count() == 3
    photo, first = opened.locator(".photo > img").bounding_box(), opened.locator(".garment").first.bounding_box()
    assert photo["x"] + photo["width"] < first["x"] and abs(photo["y"] - first["y"]) < 2
    assert opened.evaluate(FITS)


def test_it_fits_a_phone(found, tab):
    one = tab(found, viewport={"width": 390, "height": 844}, has_touch=True)
    for name in ("one.html", "found.html"):
        opened = one.open(name)
        assert opened.evaluate(FITS) and opened.evaluate("innerWidth") == 390
    photo, first = opened.locator(".photo > img").bounding_box(), opened.locator(".garment").first.bounding_box()
    assert photo["y"] + photo["height"] <= first["y"], "the photo stands above"
    items = [item.bounding_box() for item in opened.locator(".garment li").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in items)
    assert items[0]["y"] == items[1]["y"] and items[0]["x"] < items[1]["x"], "two beside each other"


@pytest.mark.parametrize("scheme, behind", [("light", "rgb(247, 247, 245)"), ("dark", "rgb(20, 23, 26)")])
def test_all_text_is_readable_in_both_schemes(found, tab, scheme, behind):
    opened = tab(found, color_scheme=scheme).open("found.html")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == behind
    n_texts, faint = opened.evaluate(FAINT)
    assert n_texts > 100 and faint == []


def test_the_keyboard_reaches_every_link_and_shows_where_it_is(found, tab):
    opened = tab(found).open("found.html")
    links = opened.locator("a").evaluate_all("links => links.map((link) => link.href)")
    assert len(links) == 2 * SHOPS / 2 + 1
    for link in links:
        opened.keyboard.press("Tab")
        focus = opened.evaluate(
            """() => {
            const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
            const isThere = box.top >= 0 && box.bottom <= innerHeight;
            return [one.href, style.outlineStyle, style.outlineWidth, style.outlineColor === style.color, isThere];
        }"""
        )
        assert focus == [link, "solid", "2px", True, True]
