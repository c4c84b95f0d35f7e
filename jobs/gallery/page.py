"""What a search found, as one page to look at: photos with their boxes, shop items cut out, everything inside the one file.

In: answers of `jobs/search.py`, version.json. Out: an HTML file without scripts and without links; nothing is fetched when it is opened.
The gallery keeps no pictures: shop photos come from the image set that the version was made of, as far as it is still there and holds
the same bytes. Names are text wherever they stand, whatever they hold.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from jobs import overlay
from jobs.config import Settings
from jobs.gallery.answers import Answer, box_of, category_of
from jobs.overlay import Mark, Picture
from store.decode import DecodeError, decode
from store.imageset import ImageSet, ImageSetError, open_imageset

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
MAX_NOTE = 300  # letters


def write(path: Path, record: Mapping[str, Any], gallery: str, answers: Sequence[Answer], settings: Settings) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the file; its folder must be there.
        record: version.json. gallery: as it was named. answers: photos in the order to show. settings: of the version.
    """
    wanted = {hit.item["id"]: hit.item for answer in answers for garment in answer.garments for hit in garment.hits}
    crops, note = crops_of(record, list(wanted.values()), settings)
    photos = [(answer, _photo(answer, settings.max_pixels)) for answer in answers]
    text = _template().render(
        gallery=gallery, version=record["name"], rows=record.get("rows", 0), photos=photos, crops=crops, note=note,
        written=datetime.fromtimestamp(float(record["created"]), UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )  # fmt: skip
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(text.encode("utf-8", "replace"))
    part.replace(path)


def _photo(answer: Answer, max_pixels: int) -> Picture | None:
    """The photo with a numbered box for each garment."""
    try:
        image = decode(answer.data, max_pixels=max_pixels)
    except DecodeError:
        return None
    marks = [Mark(garment.bbox, garment.category_id, str(i)) for i, garment in enumerate(answer.garments, 1)]
    return overlay.photo_with_marks(image, marks)


def crops_of(
    record: Mapping[str, Any], items: Sequence[Mapping[str, Any]], settings: Settings
) -> tuple[dict[int, Picture | str], str]:
    """Shop items cut out of their photos, one shard's photos in memory at a time.

    Args:
        record: version.json, whose `imageset.uri` is asked for the photos. items: as `Gallery.lookup` tells them.

    Returns:
        id -> its picture, or why there is none; and a note for the page where the image set cannot be used, "" where it can.
    """
    try:
        images = open_imageset(record["imageset"]["uri"], endpoint_url=settings.storage.endpoint_url)
        of_photo = _by_photo(items)
        listed = _listed(images, list(of_photo))
        crops: dict[int, Picture | str] = {item["id"]: "no longer in the image set" for item in items}
        for shard in sorted({shard for shard, _ in listed.values()}):
            here = {image_id: digest for image_id, (place, digest) in listed.items() if place == shard}
            for image_id, data in _bytes(images, shard, list(here)):
                for item in of_photo[image_id]:
                    same = here[image_id] == item["digest"]
                    crops[item["id"]] = _crop(data, item, settings) if same else "the shop has another photo there now"
        return crops, ""
    except (ImageSetError, OSError, ValueError, KeyError) as error:
        note = f"no pictures of shop items: {' '.join(str(error).split())[:MAX_NOTE]}"
        return {item["id"]: "no picture" for item in items}, note


def _by_photo(items: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    of_photo: dict[int, list[Mapping[str, Any]]] = {}
    for item in items:
        of_photo.setdefault(item["image_id"], []).append(item)
    return of_photo


def _listed(images: ImageSet, ids: list[int]) -> dict[int, tuple[str, bytes]]:
    """image_id -> shard, digest of those photos that the set still has."""
    photos = images.photos(("image_id", "digest"))
    mine = photos.filter(pc.is_in(photos.column("image_id"), value_set=pa.array(ids, pa.int64())))
    columns = (mine.column(name).to_pylist() for name in ("image_id", "shard", "digest"))
    return {image_id: (shard, digest) for image_id, shard, digest in zip(*columns, strict=True)}


def _bytes(images: ImageSet, shard: str, ids: list[int]) -> list[tuple[int, bytes]]:
    table = images.read(shard, columns=["image_id", "image"])
    mine = table.filter(pc.is_in(table.column("image_id"), value_set=pa.array(ids, pa.int64())))
    return list(zip(mine.column("image_id").to_pylist(), mine.column("image").to_pylist(), strict=True))


def _crop(data: bytes, item: Mapping[str, Any], settings: Settings) -> Picture | str:
    try:
        return overlay.crop(decode(data, max_pixels=settings.max_pixels), tuple(item["bbox"]))
    except DecodeError as error:
        return str(error)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"category": category_of, "box": box_of, "inline": _inline, "colour": overlay.colour_of}
    return environment.get_template("search.html.j2")


def _inline(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode('ascii')}"
