"""The answers of a search as one HTML page: photos with their boxes, texts, shop items cut out, all in one file.

In: answers of `jobs/search.py`, version.json. Out: an HTML file without scripts and links; opening it fetches nothing.
The gallery keeps no pictures: shop photos come from the image sets that the version was made of, as far as they still
exist and hold the same bytes. Names are escaped wherever they stand.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.gallery.answers import Answer, box_of
from jobs.reports.pages import environment
from jobs.reports.pictures import Mark, Picture, colour_of, crop_garment, photo_with_marks
from jobs.reports.truth import shown
from jobs.runs.settings import Settings
from store.categories import recorded
from store.decode import DecodeError, decode
from store.files import publish_file
from store.imageset import ImageSetError
from store.joined import open_imagesets

MAX_NOTE = 300  # characters


def write(path: Path, record: Mapping[str, Any], gallery: str, answers: Sequence[Answer], settings: Settings) -> None:
    """Write the page, whole or not at all, into a folder that exists.

    `record` is version.json, `gallery` what the user called it, `settings` are the version's.
    """
    lists = [hits for answer in answers for hits in (answer.hits, *(garment.hits for garment in answer.garments))]
    wanted = {hit.item["id"]: hit.item for hits in lists for hit in hits}
    crops, attributes, note = crops_of(record, list(wanted.values()), settings)
    photos = [(answer, _photo(answer, settings.max_pixels)) for answer in answers]
    env = environment(recorded(record))
    env.filters |= {"box": box_of, "inline": _inline, "colour": colour_of}
    text = env.get_template("search.html.j2").render(
        gallery=gallery, version=record["name"], rows=record.get("rows", 0), photos=photos, crops=crops, note=note,
        attributes=attributes,
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
    marks = [Mark(garment.bbox, garment.category_id, str(i)) for i, garment in enumerate(answer.garments, 1)]
    return photo_with_marks(image, marks)


def crops_of(
    record: Mapping[str, Any], items: Sequence[Mapping[str, Any]], settings: Settings
) -> tuple[dict[int, Picture | str], dict[int, list[tuple[str, str]]], str]:
    """Shop items, as `Gallery.lookup` returns them, cut out of the photos of the `imagesets` of version.json.

    One shard's photos are in memory at a time. Returned are id -> its picture, or why there is none; id -> attributes
    of its photo; and a note for the page where the image set cannot be used, "" where it can.
    """
    attributes: dict[int, list[tuple[str, str]]] = {}
    by_photo: dict[int, list[Mapping[str, Any]]] = {}
    for item in items:
        by_photo.setdefault(item["image_id"], []).append(item)
    ids = pa.array(list(by_photo), pa.int64())
    try:
        sets = record["imagesets"] if "imagesets" in record else [record["imageset"]]  # one, before there were several
        images = open_imagesets([entry["uri"] for entry in sets], endpoint_url=settings.storage.endpoint_url)
        photos = images.photos(("image_id", "digest"))
        photos = photos.filter(pc.is_in(photos.column("image_id"), value_set=ids))
        digests = dict(zip(photos.column("image_id").to_pylist(), photos.column("digest").to_pylist(), strict=True))
        crops: dict[int, Picture | str] = {item["id"]: "no longer in the image set" for item in items}
        for shard in sorted(set(photos.column("shard").to_pylist())):
            table = images.read(shard, columns=["image_id", "image", "attributes"])
            table = table.filter(pc.is_in(table.column("image_id"), value_set=ids))
            for row in table.to_pylist():
                for item in by_photo[row["image_id"]]:
                    same = digests[row["image_id"]] == item["digest"]
                    gone = "the shop has another photo there now"
                    crops[item["id"]] = _crop(row["image"], item, settings) if same else gone
                    attributes[item["id"]] = shown(row["attributes"])
        return crops, attributes, ""
    except (ImageSetError, OSError, ValueError, KeyError) as error:
        note = f"no pictures of shop items: {' '.join(str(error).split())[:MAX_NOTE]}"
        return {item["id"]: "no picture" for item in items}, {}, note


def _crop(data: bytes, item: Mapping[str, Any], settings: Settings) -> Picture | str:
    try:
        return crop_garment(decode(data, max_pixels=settings.max_pixels), tuple(item["bbox"]))
    except DecodeError as error:
        return str(error)


def _inline(picture: Picture) -> str:
    """A picture as a data: URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode('ascii')}"
