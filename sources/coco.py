"""Pictures with COCO's instance annotations: a folder and its JSON file in, rows of an image set out.

    DIR/any/depth/1.jpg …      the pictures, found as `folder` finds them, on disk or in a bucket
    ANNOTATIONS.json           {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id", "bbox"}],
                                "categories": [{"id", "name"}]}, a local file

This is what CVAT, Label Studio, FiftyOne and labelme2coco export and pycocotools reads. The categories keep the file's
order; equal names are one category. `bbox` is x y width height, `segmentation` as in `sources.outlines`; annotations
with `iscrowd` are counted and left out. An annotation's `style`, or `style` among its `attributes`, tells garments of
one pair apart; without one it is 0, so that truth is by photo. A picture is found by its entry's file_name as a CSV's
rows are (`metadata.match`), and keeps its name below DIR; pictures that the file does not list are counted.

In an image's entry, `product_id` (--product-key) and `pair_id` are what their names say; other single values are
attributes, but for COCO's own: width, height, license, flickr_url, coco_url, date_captured.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from sources.files import read_json
from sources.folder import ListedPhoto, PhotoFolder, add_origin_arguments, open_folder
from sources.metadata import MOST_MISSING, match, shares_problem
from sources.outlines import polygons_of
from sources.photo_facts import Box, PhotoFacts, box_of, facts_of, item_of
from sources.reading import Reading
from store.categories import CategoryList
from store.imageset import Failure, Item, Photo

ARGUMENTS = ("directory", "annotations", "source", "prefix", "product_key", "allow_missing")
READS_BUCKETS = True
PRODUCT = "product_id"
_LISTS = ("images", "annotations", "categories")
_OWN_KEYS = ("id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured")

Entry = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="folder of the pictures, or s3://BUCKET/PREFIX")
    add("annotations", metavar="ANNOTATIONS.json", help="COCO instances of these pictures")
    add_origin_arguments(parser)
    add("--product-key", default=PRODUCT, metavar="KEY", help=f"of an image: its product (default {PRODUCT})")
    add("--allow-missing", action="store_true", help="take a file more than 1 %% of whose images are not in DIR")


def read(
    directory: str | Path,
    annotations: str | Path,
    source: str,
    product_key: str = PRODUCT,
    allow_missing: bool = False,
    endpoint_url: str | None = None,
    prefix: str = "",
) -> Reading:
    """Rows in the order of the pictures' paths, as `folder.read`.

    The JSON is held in memory, pictures are not. An annotation that cannot be taken, an image without a picture and a
    second image of one file_name are failures with the reason. Raises ValueError for a file that is no such JSON or
    names one id twice or whose boxes are no pixels, and where too many images have no picture.
    """
    path = Path(annotations)
    file = _File(path, _content(path))
    file.check_product_key(product_key)
    folder = open_folder(directory, source, endpoint_url=endpoint_url, prefix=prefix)
    return Reading(file.rows(folder, product_key, allow_missing), file.categories, file.skipped)


class _File:
    """The annotations by image, and what is wrong with those that are none."""

    def __init__(self, path: Path, content: dict[str, list[Any]]) -> None:
        self.name = path.name
        self.categories = CategoryList()
        self.skipped: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self._category_names = self._categories(content["categories"])
        self._entries = self._images(content["images"])
        self._annotations = self._by_image(content["annotations"])

    def check_product_key(self, key: str) -> None:
        if key != PRODUCT and not any(key in entry for entry in self._entries.values()):
            keys = sorted({name for entry in self._entries.values() for name in entry})
            raise ValueError(f"{self.name}: no image has the key {key!r}; they have {', '.join(keys)[:200]}")

    def rows(self, folder: PhotoFolder, product_key: str, allow_missing: bool) -> Iterator[Photo | Failure]:
        """Checks the names at once, reads pictures as they are asked for."""
        listed = [*folder.list()]
        self.skipped.update(folder.skipped)
        row_of = match(self._entries, (photo.name for photo in listed))
        absent = sorted(self._entries.keys() - row_of.values())
        if len(absent) > (1.0 if allow_missing else MOST_MISSING) * len(self._entries):
            there = f"the folder has {listed[0].name!r}" if listed else "the folder has no picture"
            counts = f"{len(absent):,} of {len(self._entries):,} images of {self.name} are not there"
            raise ValueError(f"{counts}: {absent[0]!r}, while {there}; give another DIR, or add --allow-missing")
        if unlisted := len(listed) - len(row_of):
            self.skipped["pictures that the annotations do not list"] += unlisted
        return self._rows(folder, [photo for photo in listed if photo.name in row_of], row_of, absent, product_key)

    def _rows(
        self,
        folder: PhotoFolder,
        listed: list[ListedPhoto],
        row_of: dict[str, str],
        absent: list[str],
        product_key: str,
    ) -> Iterator[Photo | Failure]:
        yield from self.failures
        for photo, row in folder.rows(listed):
            if isinstance(row, Failure):
                yield row
                continue
            try:
                facts = self._facts(self._entries[row_of[photo.name]], row, product_key)
            except ValueError as error:
                yield Failure(row.image_id, row.file_name, f"{self.name}: {error}")
                continue
            known = {name: getattr(facts, name) for name in ("product_id", "pair_id", "attributes")}
            # A file of annotations says of an image without any that it shows nothing; one of images alone does not.
            yield replace(row, items=tuple(facts.items), weak_box=not self._annotations, **known)
            yield from (Failure(row.image_id, row.file_name, reason) for reason in facts.wrong)
        for name in absent:
            reason = f"in {self.name}, but there is no such picture in the folder"
            yield Failure(folder.image_id(name), name, reason)

    def _facts(self, entry: Entry, photo: Photo, product_key: str) -> PhotoFacts:
        values = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
        facts = facts_of(values, product_key, self.skipped)
        annotations = self._annotations.get(entry["id"], [])
        annotated = entry.get("width") or photo.width, entry.get("height") or photo.height
        if annotations and annotated != (photo.width, photo.height):
            sizes = f"{annotated[0]} x {annotated[1]}, the upright picture has {photo.width} x {photo.height}"
            facts.wrong.append(f"its {len(annotations)} items are left out: they were drawn on {str(sizes)[:100]}")
            return facts
        for number, annotation in annotations:
            try:
                facts.items.append(self._item(annotation, photo))
            except ValueError as error:
                facts.wrong.append(f"annotation {number} is left out: {error}")
        return facts

    def _item(self, annotation: Entry, photo: Photo) -> Item:
        category: Any = annotation.get("category_id")
        if not _is_id(category) or category not in self._category_names:
            raise ValueError(f"category_id {str(category)[:40]} is none of the file's")
        crowd = annotation.get("iscrowd")
        if crowd is not None and crowd not in (0, 1):  # the text "0" would count as true
            raise ValueError(f"iscrowd is {str(crowd)[:40]!r}, want 0 or 1")
        more = annotation.get("attributes")
        style = annotation.get("style", more.get("style", 0) if isinstance(more, dict) else 0)
        box = box_of(annotation.get("bbox"), with_size=True)
        item = item_of(self.categories, self._category_names[category], box, style)
        return replace(item, segmentation=polygons_of(annotation.get("segmentation"), photo.width, photo.height))

    def _categories(self, entries: list[Any]) -> dict[int | str, str]:
        names: dict[int | str, str] = {}
        for entry in entries:
            number, name = _values(entry, "id", "name")
            if not _is_id(number) or not isinstance(name, str):
                raise ValueError(f"{self.name}: category {str(entry)[:60]} has no id or no name")
            if number in names:
                raise ValueError(f"{self.name}: categories {names[number]!r} and {name!r} both have id {number}")
            names[number] = name
            self.categories.id_of(name.strip())
        return names

    def _images(self, entries: list[Any]) -> dict[str, Entry]:
        """By file_name."""
        images: dict[str, Entry] = {}
        name_of: dict[int | str, str] = {}
        for place, entry in enumerate(entries, 1):
            number, name = _values(entry, "id", "file_name")
            if not _is_id(number) or not isinstance(name, str) or not name:
                self.failures.append(Failure(-1, self.name, f"image {place} has no id or no file_name"))
                continue
            if number in name_of:
                raise ValueError(f"{self.name}: images {name_of[number]!r} and {name!r} both have id {number}")
            name_of[number] = name
            if name in images:
                self.failures.append(Failure(-1, name, f"listed again as image {number}; the first entry is taken"))
            else:
                images[name] = entry
        if not images:
            raise ValueError(f"{self.name} lists no image with an id and a file_name")
        return images

    def _by_image(self, annotations: list[Any]) -> dict[int | str, list[tuple[int, Entry]]]:
        """image id -> number of each of its annotations in the file, counted from 1, and the annotation."""
        known = {entry["id"] for entry in self._entries.values()}
        found = defaultdict[int | str, list[tuple[int, Entry]]](list)
        for number, annotation in enumerate(annotations, 1):
            (image,) = _values(annotation, "image_id")
            if not _is_id(image) or image not in known:
                reason = f"annotation {number} is of image {str(image)[:40]}, which is not taken from the list"
                self.failures.append(Failure(-1, self.name, reason))
            elif annotation.get("iscrowd") == 1:  # or true
                self.skipped["annotations of crowds"] += 1
            else:
                found[image].append((number, annotation))
        if shares := shares_problem([*self._boxes(found.values())]):
            raise ValueError(f"{self.name}: {shares}")
        return found

    @staticmethod
    def _boxes(groups: Iterable[list[tuple[int, Entry]]]) -> Iterator[Box]:
        """The boxes that can be read."""
        for _, annotation in chain.from_iterable(groups):
            with suppress(ValueError):
                yield box_of(annotation.get("bbox"), with_size=True)


def _content(path: Path) -> dict[str, list[Any]]:
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    lists = {key: content.get(key, []) if isinstance(content, dict) else None for key in _LISTS}
    if not isinstance(content, dict) or "images" not in content or not all(isinstance(x, list) for x in lists.values()):
        kind = "a list, as results of a detector are" if isinstance(content, list) else "something else"
        raise ValueError(f"{path} holds {kind}; want an object with the lists {', '.join(_LISTS)}")
    return lists  # type: ignore[return-value]


def _values(entry: Any, *keys: str) -> tuple[Any, ...]:
    """None where the entry has no such key, or is no object."""
    return tuple(entry.get(key) if isinstance(entry, dict) else None for key in keys)


def _is_id(value: Any) -> bool:
    """Whole numbers by the format; some tools write texts."""
    return type(value) in (int, str)
