"""Plain folders of photos, on disk or in a bucket: any nesting in, rows of an image set out. No ground truth.

JPEG, PNG and WebP by their endings (any case). The image_id is 63 bits of BLAKE2b of the path relative to the folder,
with '/' between its parts, so a photo keeps its id when others come and go; the set refuses two photos with one id.
An optional CSV adds the seller's product id, and the pair_id where known: columns file_name (the same relative path),
product_id, pair_id.
"""

import csv
import errno
import os
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from retrieval.datasets.files import MAX_PHOTO_BYTES, read_photo
from store.decode import MAX_PIXELS, DecodeError, probe_size
from store.imageset import Failure, ImageSetError, Photo
from store.objects import ObjectMissing, ObjectStore, StorageError, open_store

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def image_id(relative: str) -> int:
    """63 bits of BLAKE2b of a relative path with '/': the first 8 bytes, big-endian, less the top bit.

    >>> image_id("shoes/red.jpg") == image_id("shoes/red.jpg") < 2**63
    True
    """
    digest = blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


@dataclass(frozen=True, slots=True)
class Listed:
    """A picture file before it is read: what tells one version of it from the next."""

    name: str  # relative path with '/'
    size: int  # bytes; -1 unknown
    mtime_ns: int = 0  # last change, nanoseconds since 1970; 0 in a bucket
    etag: str = ""  # as the bucket tells it; "" in a folder


def read(
    directory: str | Path,
    source: str,
    metadata: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    endpoint_url: str | None = None,
) -> Iterator[Photo | Failure]:
    """Rows in the order of their paths, folder by folder.

    Hidden files and folders are left out, and so is every link that leads out of the directory and every linked
    folder. A photo that cannot be read, or that the CSV names but the directory lacks, is a failure with the reason.

    Args:
        directory: searched at every depth; a folder, file:// or s3://BUCKET/PREFIX.
        source: "user" or "shop", for all photos.
        metadata: a CSV (UTF-8, with a header): file_name, product_id, optionally pair_id; other columns are not read.
        max_pixels: larger pictures are failures.
        endpoint_url: of an S3-compatible server.

    Raises:
        ValueError: no such directory, or a CSV that is not laid out so, with the line.
        ImageSetError: a folder below it cannot be read.
        StorageError: the bucket cannot be used.
    """
    return _all(open_folder(directory, source, metadata, max_pixels, endpoint_url))


def open_folder(
    directory: str | Path,
    source: str,
    metadata: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    endpoint_url: str | None = None,
) -> "Folder":
    """The photos under a directory, to be listed first and read as needed; arguments and errors as `read`."""
    if source not in ("user", "shop"):
        raise ValueError(f"source {source!r}: want user or shop")
    place: _Disk | _Bucket
    if "://" in str(directory) and not isinstance(directory, Path):
        store = open_store(directory, endpoint_url=endpoint_url)
        place = _Bucket(store) if store.local_path is None else _disk(store.local_path)
    else:
        place = _disk(Path(directory))
    return Folder(place, source, {} if metadata is None else _metadata(Path(metadata)), max_pixels)


class Folder:
    """Photos of one directory. `known`: file name -> product_id, pair_id, as the CSV has them."""

    def __init__(
        self, place: "_Disk | _Bucket", source: str, known: dict[str, tuple[str, int]], max_pixels: int
    ) -> None:
        self.place, self.source, self.known, self.max_pixels = place, source, known, max_pixels

    def list(self) -> Iterator[Listed]:
        """Every picture, in the order of `read`, without its bytes."""
        return self.place.list()

    def rows(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, Photo | Failure]]:
        """Read these, in their order; from a bucket several at a time."""
        if self.place.readers == 1:
            yield from ((entry, self._row(entry)) for entry in listed)
            return
        waiting: deque[tuple[Listed, Future[Photo | Failure]]] = deque()
        with ThreadPoolExecutor(self.place.readers) as threads:
            for entry in listed:
                waiting.append((entry, threads.submit(self._row, entry)))
                if len(waiting) > self.place.readers:
                    first, row = waiting.popleft()
                    yield first, row.result()
            yield from ((first, row.result()) for first, row in waiting)

    def missing(self, seen: Container[str]) -> Iterator[Failure]:
        """What the CSV names and the listing did not."""
        for name in sorted(name for name in self.known if name not in seen):
            yield Failure(image_id(name), name, "in the metadata, but there is no such picture in the folder")

    def _row(self, listed: Listed) -> Photo | Failure:
        name = listed.name
        product_id, pair_id = self.known.get(name, ("", 0))
        try:
            data = self.place.read(listed)
            width, height = probe_size(data, max_pixels=self.max_pixels)
        except DecodeError as error:
            return Failure(image_id(name), name, str(error))
        except StorageError:
            raise
        except OSError as error:
            return Failure(image_id(name), name, f"cannot be read: {error.strerror}")
        return Photo(image_id(name), data, width, height, self.source, pair_id, product_id, name)


def _all(folder: Folder) -> Iterator[Photo | Failure]:
    seen = set()
    for listed, row in folder.rows(folder.list()):
        if listed.name in folder.known:
            seen.add(listed.name)
        yield row
    yield from folder.missing(seen)


# ------------------------------------------------------------------------------------------------ where photos lie


class _Bucket:
    """Photos under s3://BUCKET/PREFIX."""

    readers = 16  # threads: each photo is a round trip

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def list(self) -> Iterator[Listed]:
        objects = [info for info in self.store.list() if _is_picture(info.key)]
        for info in sorted(objects, key=lambda info: _as_walked(info.key)):
            yield Listed(info.key, info.size, etag=info.etag)

    def read(self, listed: Listed) -> bytes:
        if listed.size > MAX_PHOTO_BYTES:
            raise OSError(errno.EFBIG, f"{listed.size} bytes are more than {MAX_PHOTO_BYTES}")
        try:
            return self.store.read(listed.name)
        except ObjectMissing as error:  # deleted since the listing
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        except ValueError as error:  # a key with an empty part or a '..'
            raise OSError(errno.EINVAL, "its key is no relative path") from error


def _is_picture(key: str) -> bool:
    return key.lower().endswith(_PICTURES) and not any(part.startswith(".") for part in key.split("/"))


def _as_walked(key: str) -> list[tuple[bool, str]]:
    """Sorts keys as a walk through folders meets them: the files of a folder before the folders in it."""
    *folders, name = key.split("/")
    return [*((True, part) for part in folders), (False, name)]


class _Disk:
    """Photos under a local folder."""

    readers = 1

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> Iterator[Listed]:
        for entry in _pictures(self.root):
            name = Path(entry.path).relative_to(self.root).as_posix()
            try:
                info = entry.stat()
            except OSError:  # a link that leads nowhere: a photo that cannot be read
                yield Listed(name, -1)
            else:
                yield Listed(name, info.st_size, info.st_mtime_ns)

    def read(self, listed: Listed) -> bytes:
        return read_photo(self.root / listed.name)


def _disk(directory: Path) -> _Disk:
    if not directory.is_dir():
        raise ValueError(f"no folder {directory}")
    return _Disk(directory.resolve())


def _pictures(root: Path) -> "Iterator[os.DirEntry[str]]":
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
                yield entry
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
