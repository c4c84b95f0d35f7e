"""Plain folders of photos: any nesting in, rows of an image set out. No ground truth.

JPEG, PNG and WebP by their endings (any case). The image_id is 63 bits of BLAKE2b of the path relative to the folder,
with '/' between its parts, so a photo keeps its id when others come and go; the set refuses two photos with one id.
An optional CSV adds the seller's product id, and the pair_id where known: columns file_name (the same relative path),
product_id, pair_id.
"""

import csv
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from retrieval.datasets.files import read_photo
from store.decode import MAX_PIXELS, DecodeError, probe_size
from store.imageset import Failure, ImageSetError, Photo

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def image_id(relative: str) -> int:
    """63 bits of BLAKE2b of a relative path with '/': the first 8 bytes, big-endian, less the top bit.

    >>> image_id("shoes/red.jpg") == image_id("shoes/red.jpg") < 2**63
    True
    """
    digest = blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


def read(
    directory: str | Path, source: str, metadata: str | Path | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Photo | Failure]:
    """Rows in the order of their paths, folder by folder.

    Hidden files and folders are left out, and so is every link that leads out of the directory and every linked
    folder. A photo that cannot be read, or that the CSV names but the directory lacks, is a failure with the reason.

    Args:
        directory: searched at every depth.
        source: "user" or "shop", for all photos.
        metadata: a CSV (UTF-8, with a header): file_name, product_id, optionally pair_id; other columns are not read.
        max_pixels: larger pictures are failures.

    Raises:
        ValueError: no such directory, or a CSV that is not laid out so, with the line.
        ImageSetError: a folder below it cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no folder {directory}")
    if source not in ("user", "shop"):
        raise ValueError(f"source {source!r}: want user or shop")
    known = {} if metadata is None else _metadata(Path(metadata))
    return _rows(directory, source, known, max_pixels)


def _rows(
    directory: Path, source: str, known: dict[str, tuple[str, int]], max_pixels: int
) -> Iterator[Photo | Failure]:
    root = directory.resolve()
    unseen = set(known)
    for path in _pictures(root):
        relative = path.relative_to(root).as_posix()
        unseen.discard(relative)
        product_id, pair_id = known.get(relative, ("", 0))
        try:
            data = read_photo(path)
            width, height = probe_size(data, max_pixels=max_pixels)
        except DecodeError as error:
            yield Failure(image_id(relative), relative, str(error))
        except OSError as error:
            yield Failure(image_id(relative), relative, f"cannot be read: {error.strerror}")
        else:
            yield Photo(image_id(relative), data, width, height, source, pair_id, product_id, relative)
    for relative in sorted(unseen):
        yield Failure(image_id(relative), relative, "in the metadata, but there is no such picture in the folder")


def _pictures(root: Path) -> Iterator[Path]:
    """Pictures under `root`, sorted by name within each folder; the names of one folder at a time are in memory."""
    waiting = [root]
    while waiting:
        here = _entries(waiting.pop())
        folders = []
        for entry in here:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.name.lower().endswith(_PICTURES) and (not entry.is_symlink() or _leads_to_a_photo(entry, root)):
                yield Path(entry.path)
        waiting.extend(reversed(folders))


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageSetError(f"cannot read folder {folder}: {error.strerror}") from error


def _leads_to_a_photo(link: os.DirEntry, root: Path) -> bool:
    """Inside the directory and to no folder. A link that leads nowhere is a photo that cannot be read."""
    target = Path(os.path.realpath(link.path))  # of links in a circle: itself
    return target.is_relative_to(root) and not os.path.isdir(target)


def _metadata(path: Path) -> dict[str, tuple[str, int]]:
    """file_name -> (product_id, pair_id)."""
    known: dict[str, tuple[str, int]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = {"file_name", "product_id"} - set(table.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: no column {', '.join(sorted(missing))} in its first line")
            for row in table:
                name, pair = (row["file_name"] or "").strip(), (row.get("pair_id") or "0").strip()
                line = f"{path}, line {table.line_num}"
                if not name:
                    raise ValueError(f"{line}: no file_name")
                if not pair.isascii() or not pair.isdigit() or len(pair) > 19:
                    raise ValueError(f"{line}: pair_id {pair[:40]!r} is not a whole number below 2^63")
                if name in known:
                    raise ValueError(f"{line}: {name} occurs twice")
                known[name] = ((row["product_id"] or "").strip(), int(pair))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a UTF-8 CSV: {error}") from error
    return known
