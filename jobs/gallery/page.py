"""The answers of a search as one HTML page: photos with their boxes, texts, shop items cut out, all in one file.

In: answers of `jobs/search.py`, version.json. Out: an HTML file without scripts; opening it fetches nothing. The
gallery keeps no pictures: shop photos come from the image sets that the version was made of, as far as they still exist
and hold the same bytes. Their attributes give an item's title, price and link. All that users wrote is escaped, and
only http and https addresses become links.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.gallery.answers import Answer, Offer, likely_names
from jobs.reports.pages import environment, title_of
from jobs.reports.pictures import Mark, Picture, crop_garment, photo_with_marks
from jobs.reports.truth import TITLES, attribute, plain_name, shown
from jobs.runs.settings import Settings
from retrieval.gallery_files import PHOTOS_FILE, VERSIONS
from store.categories import recorded
from store.decode import DecodeError, decode
from store.files import publish_file
from store.imageset import ImageSetError
from store.joined import open_imagesets
from store.objects import ObjectStore

MAX_REASON = 300  # characters
UNREADABLE = (ImageSetError, OSError, ValueError, KeyError)  # of an image set that has moved or changed since
# Attributes that a shop's export calls by one of these names, whatever their case
PRICES, CURRENCIES = ("price",), ("currency", "price_currency")
LINKS = ("url", "link", "product_url", "product_link")
# Of the garments of a photo in turn, the first ones far apart; white digits are readable on them
GARMENT_COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#854d0e", "#be123c", "#4338ca")


@dataclass(frozen=True)
class ShopItems:
    """What is said and shown of shop items, by their ids in the gallery."""

    offers: Mapping[int, Offer]
    crops: Mapping[int, Picture | str]  # cut out of their photos, or why there is no picture; {} where none were wanted
    reason: str = ""  # why the image sets cannot be used, "" where they can


def write(
    path: Path,
    record: Mapping[str, Any],
    gallery: str,
    answers: Sequence[Answer],
    settings: Settings,
    items: ShopItems,
    *,
    every: bool = False,
) -> None:
    """Write the page, whole or not at all, into a folder that exists.

    `record` is version.json, `gallery` what the user called it, `settings` are the version's. `items` are those of all
    answers, with pictures. `every`: the answers have every picture of a product.
    """
    photos = [(answer, _photo(answer, settings.max_pixels)) for answer in answers]
    note = f"no pictures of shop items: {items.reason}" if items.reason else ""
    categories = recorded(record)
    env = environment(categories)
    env.globals["likely"] = partial(likely_names, categories)
    env.filters |= {"inline": _inline, "colour": _colour, "file": lambda name: Path(name).name or name}
    text = env.get_template("search.html.j2").render(
        gallery=title_of(gallery), version=record["name"], rows=record.get("rows", 0), photos=photos, crops=items.crops,
        note=note, offers=items.offers, title=title_for(answers), every=every,
        written=datetime.fromtimestamp(float(record["created"]), UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )  # fmt: skip
    with publish_file(path, sole_writer=True) as part:
        part.write_bytes(text.encode("utf-8", "replace"))


def _photo(answer: Answer, max_pixels: int) -> Picture | None:
    """The photo with its garments marked; None where the question is a text, or the photo cannot be decoded."""
    try:
        image = decode(answer.data, max_pixels=max_pixels)
    except DecodeError:
        return None
    marks = [
        Mark(garment.bbox, garment.category_id, str(i), own_colour=_colour(i))
        for i, garment in enumerate(answer.garments, 1)
    ]
    return photo_with_marks(image, marks)


def _colour(number: int) -> str:
    """Of a photo's garment of this number, from 1."""
    return GARMENT_COLOURS[(number - 1) % len(GARMENT_COLOURS)]


def title_for(answers: Sequence[Answer]) -> str:
    """The page's title: what shop items were looked for."""
    if len(answers) > 1:
        return f"Shop items like {len(answers)} photos" if answers[0].name else f"Shop items for {len(answers)} texts"
    if not answers:
        return "Shop items"
    (answer,) = answers
    words = f"“{answer.text}”" if answer.text else ""
    if not answer.name:
        return f"Shop items for {words}"
    return f"Shop items like {Path(answer.name).name}" + (f" and {words}" if words else "")


def offer_of(item: Mapping[str, Any], attributes: Sequence[tuple[str, str]]) -> Offer:
    """What to say of a shop item, a row of the gallery, from its photo's attributes."""
    title, price, currency, link = (attribute(attributes, names) for names in (TITLES, PRICES, CURRENCIES, LINKS))
    used = {*TITLES, *PRICES, *CURRENCIES} | (set(LINKS) if is_web(link) else set())
    others = [(name, text) for name, text in shown(attributes) if plain_name(name) not in used]
    name = title or item["product_id"] or item["file_name"]
    cost = f"{price} {currency}".strip() if price else ""
    return Offer(name, cost, link if is_web(link) else "", others, dict(attributes))


def is_web(address: str) -> bool:
    """Whether an address may become a link: http or https, with a host, of printable characters without spaces.

    >>> [is_web(text) for text in ("https://shop.example/a?b=1", "javascript:alert(1)", "//shop.example", "http://")]
    [True, False, False, False]
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    plain = address.isprintable() and not any(sign.isspace() for sign in address)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def shop_items(
    record: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    settings: Settings,
    store: ObjectStore | None = None,
    *,
    pictures: bool = False,
) -> ShopItems:
    """What the `imagesets` of version.json tell of shop items, which are as `Gallery.lookup` returns them.

    `store` is the gallery's; without it every shard is searched for the photos. `pictures`: cut the items out, too.
    """
    crops: dict[int, Picture | str] = {item["id"]: "no longer in the image set" for item in items}
    offers, reason = {item["id"]: offer_of(item, ()) for item in items}, ""
    try:
        columns = ["attributes", *["image"] * pictures]
        for item, photo in _photos_of(record, items, settings, store, columns) if items else ():
            offers[item["id"]] = offer_of(item, photo["attributes"])
            if pictures:
                same = photo["digest"] == item["digest"]
                gone = "the shop has another photo there now"
                crops[item["id"]] = _crop(photo["image"], item, settings) if same else gone
    except UNREADABLE as error:
        crops = {item["id"]: "no picture" for item in items}
        reason = " ".join(str(error).split())[:MAX_REASON]
    return ShopItems(offers, crops if pictures else {}, reason)


def _photos_of(
    record: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    settings: Settings,
    store: ObjectStore | None,
    columns: Sequence[str],
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Each item whose photo is still in the image sets, and these columns, image_id and digest of the photo.

    One shard's photos are in memory at a time.
    """
    by_photo: dict[int, list[Mapping[str, Any]]] = {}
    for item in items:
        by_photo.setdefault(item["image_id"], []).append(item)
    ids = pa.array(list(by_photo), pa.int64())
    sets = record["imagesets"] if "imagesets" in record else [record["imageset"]]  # one, before there were several
    images = open_imagesets([entry["uri"] for entry in sets], endpoint_url=settings.storage.endpoint_url)
    as_published = [part.digest for part in images.sets] == [entry.get("digest") for entry in sets]
    photos = _photos_published(store, record) if store is not None and as_published else None
    if photos is None:  # look into every shard
        photos = images.photos(("image_id",))
    for shard in sorted(set(_those(photos, ids).column("shard").to_pylist())):
        for row in _those(images.read(shard, columns=["image_id", "digest", *columns]), ids).to_pylist():
            for item in by_photo[row["image_id"]]:
                yield item, row


def _photos_published(store: ObjectStore, record: Mapping[str, Any]) -> pa.Table | None:
    """image_id and shard of a version's photos; None of a version of an earlier release, which does not tell shards."""
    with store.open(f"{VERSIONS}/{record['name']}/{PHOTOS_FILE}") as source:
        file = pq.ParquetFile(source, pre_buffer=False)
        if "shard" not in file.schema_arrow.names:
            return None
        return file.read(columns=["image_id", "shard"], use_threads=False)


def _those(photos: pa.Table, ids: pa.Array) -> pa.Table:
    return photos.filter(pc.is_in(photos.column("image_id"), value_set=ids))


def _crop(data: bytes, item: Mapping[str, Any], settings: Settings) -> Picture | str:
    try:
        return crop_garment(decode(data, max_pixels=settings.max_pixels), tuple(item["bbox"]))
    except DecodeError as error:
        return str(error)


def _inline(picture: Picture) -> str:
    """A picture as a data: URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode('ascii')}"
