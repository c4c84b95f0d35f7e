"""DeepFashion2 as published (arXiv:1901.07973): a split's folder in, rows of an image set out.

    SPLIT_DIR/image/000001.jpg …   SPLIT_DIR/annos/000001.json …

An annotation holds "source" ("user" or "shop"), "pair_id" and "item1", "item2" …, each with "category_id", "style",
"bounding_box" [x1, y1, x2, y2], "segmentation", "scale", "occlusion", "zoom_in", "viewpoint". Landmarks are left out.
An extra key "weak_box" beside "pair_id" marks photos whose boxes are too loose to judge detection by. The image_id is
the file's number. The published test split has no annotations and so nothing that tells consumers from shops: ingest
it as two plain folders.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.datasets.files import read_json, read_photo
from store.decode import DecodeError, probe_size
from store.imageset import Failure, Item, Photo

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_ITEM_KEY = re.compile(r"item(\d+)")


def read(split_dir: str | Path, limit: int | None = None) -> Iterator[Photo | Failure]:
    """Rows in the order of their numbers.

    Every picture in image/ and every annotation in annos/ ends as a photo or as a failure with the reason: a missing
    half, JSON that is none, an annotation without the keys above, a file that is no picture. Names are held in
    memory, pictures are not.

    Args:
        split_dir: the folder that has image/ and annos/.
        limit: only the first so many by number; None: all.

    Raises:
        ValueError: the folder is not laid out so.
    """
    return _rows(_opened(split_dir), limit)


def check(split_dir: str | Path, limit: int | None = None) -> list[str]:
    """What `read` would miss, by the names alone, a line each; empty: complete. Raises as `read`."""
    missing = []
    for number, name, path in _files(_opened(split_dir))[:limit]:
        if number < 0:
            missing.append(f"{path.parent.name}/{name}: the file name is not a number")
        elif path.suffix == ".json":
            missing.append(f"annos/{name}: an annotation without a picture")
        elif not (path.parents[1] / "annos" / f"{path.stem}.json").is_file():
            missing.append(f"image/{name}: no annos/{path.stem}.json")
    return missing


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
            yield _row(number, path, split_dir / "annos" / f"{path.stem}.json")


def _files(split_dir: Path) -> list[tuple[int, str, Path]]:
    """Number, name and path of every picture, and of every annotation that has none; by number."""
    pictures = [
        path for path in (split_dir / "image").iterdir() if path.suffix.lower() in _PICTURES and path.name[0] != "."
    ]
    known = {path.stem for path in pictures}
    orphans = [path for path in (split_dir / "annos").glob("*.json") if path.stem not in known and path.name[0] != "."]
    return sorted((_number(path), path.name, path) for path in pictures + orphans)


def _row(number: int, picture: Path, annotation: Path) -> Photo | Failure:
    try:
        data = read_photo(picture)
        width, height = probe_size(data)
        notes = read_json(annotation)
        return Photo(
            image_id=number,
            image=data,
            width=width,
            height=height,
            source=str(_get(notes, "source")),
            pair_id=_int(notes, "pair_id"),
            file_name=picture.name,
            weak_box=bool(notes.get("weak_box", False)),
            items=_items(notes),
        )
    except DecodeError as error:
        return Failure(number, picture.name, str(error))
    except FileNotFoundError as error:
        return Failure(number, picture.name, f"no {Path(error.filename).parent.name}/{Path(error.filename).name}")
    except OSError as error:
        return Failure(number, picture.name, f"cannot be read: {error.strerror}")
    except (ValueError, OverflowError) as error:  # JSONDecodeError and UnicodeDecodeError among them
        return Failure(number, picture.name, f"annotation: {error}")


def _items(notes: dict[str, Any]) -> tuple[Item, ...]:
    """item1, item2 … in the order of their numbers."""
    keys = sorted((int(found[1]), key) for key in notes if (found := _ITEM_KEY.fullmatch(key)))
    items = []
    for _, key in keys:
        try:
            items.append(_item(notes[key]))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return tuple(items)


def _item(notes: Any) -> Item:
    box = _floats(_get(notes, "bounding_box"), "bounding_box")
    if len(box) != 4:
        raise ValueError(f"bounding_box has {len(box)} numbers, want x1 y1 x2 y2")
    polygons = notes.get("segmentation") or []
    if not isinstance(polygons, list):
        raise ValueError("segmentation is not a list of polygons")
    return Item(
        category_id=_int(notes, "category_id"),
        style=_int(notes, "style"),
        bbox=(box[0], box[1], box[2], box[3]),
        segmentation=tuple(_floats(polygon, "segmentation") for polygon in polygons),
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


def _floats(values: Any, key: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{key} is not a list of numbers")
    return tuple(map(float, values))


def _number(path: Path) -> int:
    """-1 where the name is not a plain number; those come first."""
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else -1
