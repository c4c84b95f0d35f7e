"""DeepFashion2 as published (arXiv:1901.07973): a split's folder in, rows of an image set out.

    SPLIT_DIR/image/000001.jpg …   SPLIT_DIR/annos/000001.json …

An annotation holds "source" ("user" or "shop"), "pair_id" and "item1", "item2" …, each with "category_id", "style",
"bounding_box" [x1, y1, x2, y2], "segmentation", "scale", "occlusion", "zoom_in", "viewpoint". Landmarks are left out.
An extra key "weak_box" beside "pair_id" marks photos whose boxes are too loose to judge detection by. The image_id is
the file's number. The published test split has no annotations and so nothing that tells consumers from shops: ingest
it as two plain folders.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources.arguments import positive
from sources.files import PICTURES, read_json, read_photo
from sources.reading import Reading
from store.decode import DecodeError, probe_size
from store.imageset import Failure, Item, Photo

ARGUMENTS = ("split_dir", "limit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("split_dir", metavar="SPLIT_DIR", help="the folder with image/ and annos/")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N photos by number (default: all)")


def read(split_dir: str | Path, limit: int | None = None) -> Reading:
    """Rows in the order of their numbers.

    Every picture in image/ and every annotation in annos/ ends as a photo or as a failure with the reason: a missing
    half, JSON that is none, an annotation without the keys above, a file that is no picture. Names are held in
    memory, pictures are not. `limit` takes only the first so many by number. Raises ValueError if `split_dir` is not
    laid out so.
    """
    return Reading(_rows(_opened(split_dir), limit))


def check(split_dir: str | Path, limit: int | None = None) -> list[str]:
    """What `read` would miss and a set refuses, by the names alone, a line each; empty: complete. Raises as `read`."""
    missing = []
    first: dict[int, str] = {}
    files = _files(_opened(split_dir))[:limit]
    for number, name, path in files:
        if not 0 <= number < 2**63:
            missing.append(f"{path.parent.name}/{name}: the file name is not a number below 2^63")
        elif path.suffix == ".json":
            missing.append(f"annos/{name}: an annotation without a picture")
        elif not (path.parents[1] / "annos" / f"{path.stem}.json").is_file():
            missing.append(f"image/{name}: no annos/{path.stem}.json")
        elif first.setdefault(number, name) != name:
            missing.append(f"image/{name}: image/{first[number]} has the image_id {number} too; rename one")
    return missing if files else [f"image/: no file that ends in {', '.join(PICTURES)}"]


def _opened(split_dir: str | Path) -> Path:
    split_dir = Path(split_dir)
    for part in ("image", "annos"):
        if not (split_dir / part).is_dir():
            raise ValueError(f"{split_dir} has no {part}/ folder: want a DeepFashion2 split with image/ and annos/")
    return split_dir


def _rows(split_dir: Path, limit: int | None) -> Iterator[Photo | Failure]:
    for number, name, path in _files(split_dir)[:limit]:
        if number < 0:
            yield Failure(-1, name, "the file name is not a number")
        elif path.suffix == ".json":
            yield Failure(number, name, "an annotation without a picture")
        else:
            yield from _photo(number, path, split_dir / "annos" / f"{path.stem}.json")


def _files(split_dir: Path) -> list[tuple[int, str, Path]]:
    """Number, name and path of every picture, and of every annotation that has none; by number."""
    pictures = [
        path for path in (split_dir / "image").iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."
    ]
    stems = {path.stem for path in pictures}
    orphans = [path for path in (split_dir / "annos").glob("*.json") if path.stem not in stems and path.name[0] != "."]
    return sorted((_number(path), path.name, path) for path in pictures + orphans)


def _photo(number: int, picture: Path, annotation: Path) -> list[Photo | Failure]:
    """The photo, and a failure for each of its items that is none; or why there is no photo."""
    try:
        data = read_photo(picture)
        width, height = probe_size(data)
        notes = read_json(annotation)
        source = str(_get(notes, "source"))
        items, wrong = _items(notes)
        photo = Photo(
            image_id=number,
            image=data,
            width=width,
            height=height,
            source=source,
            pair_id=_int(notes, "pair_id"),
            file_name=picture.name,
            weak_box=_bool(notes, "weak_box"),
            items=items,
        )
        return [photo, *(Failure(number, picture.name, f"annotation: {reason}") for reason in wrong)]
    except DecodeError as error:
        reason = str(error)
    except FileNotFoundError as error:
        reason = f"no {Path(error.filename).parent.name}/{Path(error.filename).name}"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except (ValueError, OverflowError) as error:  # JSONDecodeError and UnicodeDecodeError among them
        reason = f"annotation: {error}"
    return [Failure(number, picture.name, reason)]


def _items(notes: dict[str, Any]) -> tuple[tuple[Item, ...], list[str]]:
    """item1, item2 … in the order of their numbers, and what is wrong with those that are left out."""
    items, wrong = [], []
    for _, key in sorted((int(match[1]), key) for key in notes if (match := re.fullmatch(r"item(\d+)", key))):
        try:
            items.append(_item(notes[key]))
        except (ValueError, OverflowError) as error:
            wrong.append(f"{key} is left out: {error}")
    return tuple(items), wrong


def _item(notes: Any) -> Item:
    box = _floats(_get(notes, "bounding_box"), "bounding_box")
    if len(box) != 4:
        raise ValueError(f"bounding_box has {len(box)} numbers, want x1 y1 x2 y2")
    polygons = notes.get("segmentation")
    if not isinstance(polygons, list | None):
        raise ValueError("segmentation is not a list of polygons")
    return Item(
        category_id=_int(notes, "category_id"),
        style=_int(notes, "style"),
        bbox=(box[0], box[1], box[2], box[3]),
        segmentation=tuple(_floats(polygon, "segmentation") for polygon in polygons or ()),
        **{name: _int(notes, name, 0) for name in ("scale", "occlusion", "zoom_in", "viewpoint")},
    )


def _get(notes: Any, key: str) -> Any:
    if not isinstance(notes, dict):
        raise ValueError(f"want an object, got {type(notes).__name__}")
    if key not in notes:
        raise ValueError(f"no {key!r}")
    return notes[key]


def _int(notes: Any, key: str, default: int | None = None) -> int:
    value = _get(notes, key) if default is None else notes.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, want a whole number")
    return value


def _bool(notes: dict[str, Any], key: str) -> bool:
    value = notes.get(key, False)
    if not isinstance(value, bool):  # the text "false" would count as true
        raise ValueError(f"{key} is {value!r}, want true or false")
    return value


def _floats(values: Any, key: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{key} is not a list of numbers")
    return tuple(map(float, values))


def _number(path: Path) -> int:
    """-1 where the name is not a plain number; those come first."""
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else -1
