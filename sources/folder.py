"""Plain folders of photos, on disk or in a bucket: any nesting in, rows of an image set out.

Pictures are found by their endings (`PICTURES`, any case). The image_id is 63 bits of BLAKE2b of `SOURCE/PATH`, a path
relative to the folder with '/' between its parts: a photo keeps its id when others come and go, and consumers' and
shops' photos of one name have two. With --prefix it is that of `SOURCE/PREFIX/PATH`, so that two folders of one side
may have equal names. The set refuses two photos with one id. Sets made before this rule hash the path alone, and keep
doing so when they are brought up to date.

An optional CSV (`sources.metadata`) tells products, pairs, garments and attributes.
"""

import argparse
import errno
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from sources.arguments import whole
from sources.files import MAX_PHOTO_BYTES, PICTURES, extension, read_photo
from sources.metadata import MOST_MISSING, Facts, match, read_metadata
from sources.reading import Reading
from store.categories import CategoryList
from store.decode import MAX_PIXELS, DecodeError, probe_size
from store.errors import UserError
from store.imageset import SOURCES, Failure, Item, Photo
from store.manifest import ImageSetError, Manifest
from store.objects import ObjectMissing, ObjectStore, StorageError, open_store

ARGUMENTS = ("directory", "source", "prefix", "metadata", "max_pixels", "allow_missing")
IDS = "SOURCE/PATH"  # what an image_id is the hash of; the manifest's source says so
NO_METADATA = "none"  # for --metadata: drop what an earlier CSV said
READS_BUCKETS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of pictures, or s3://BUCKET/PREFIX")
    add_origin_arguments(parser)
    parser.add_argument(
        "--metadata", metavar="CSV",
        help="columns file_name; product_id, pair_id; category, x1, y1, x2, y2, a row an item; others are attributes; "
        f"{NO_METADATA}: without",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=whole(1, 2**40), default=MAX_PIXELS, metavar="N", help="per photo (default 50 million)"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="take a CSV more than 1 %% of whose rows name no picture"
    )
    parser.add_argument("--update", action="store_true", help="bring IMAGESET up to date; what did not change stays")
    parser.add_argument("--dry-run", action="store_true", help="with --update: tell what it would do and write nothing")


def add_origin_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of `Origin`, for every source whose photos have names."""
    parser.add_argument("--source", required=True, choices=SOURCES, help="consumers' photos, or a shop's")
    parser.add_argument(
        "--prefix", default="", metavar="TEXT",
        help="keeps the ids of two sets of one --source apart whose files have equal names",
    )  # fmt: skip


class Origin(NamedTuple):
    """What tells the ids of photos of one name apart."""

    source: str  # user or shop
    prefix: str = ""  # any text

    @property
    def stem(self) -> str:
        """What stands before the name in what an image_id is the hash of.

        >>> Origin("shop").stem, Origin("shop", "north").stem
        ('shop/', 'shop/north/')
        """
        return f"{self.source}/{self.prefix}/" if self.prefix else f"{self.source}/"

    def image_id(self, name: str) -> int:
        return image_id(self.stem + name)


def image_id(relative: str) -> int:
    """63 bits of BLAKE2b of a name: the first 8 bytes, big-endian, less the top bit.

    >>> image_id("shoes/red.jpg") == image_id("shoes/red.jpg") < 2**63
    True
    """
    digest = blake2b(relative.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


@dataclass(frozen=True, slots=True)
class ListedPhoto:
    """A picture file before it is read: what distinguishes one version of it from the next."""

    name: str  # relative path with '/'
    size: int  # bytes; -1 unknown
    mtime_ns: int = 0  # last change, nanoseconds since 1970; 0 in a bucket
    etag: str = ""  # the bucket's name for this version; "" in a folder


def read(*place: Any, **how: Any) -> Reading:
    """Rows of `open_folder` in the order of their paths, folder by folder; arguments and errors are its own.

    Hidden files and folders are left out, and so is every link that leads out of the directory and every linked
    folder. A photo that cannot be read, or that the CSV names but the directory lacks, is a failure with the reason.
    """
    folder = open_folder(*place, **how)
    return Reading(_rows(folder, folder.list()), folder.categories, folder.skipped, folder.remarks)


def open_folder(
    directory: str | Path,
    source: str,
    metadata: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    allow_missing: bool = False,
    endpoint_url: str | None = None,
    earlier: Manifest | None = None,
    prefix: str = "",
) -> "PhotoFolder":
    """The photos under a directory, to be listed first and read as needed.

    Args:
        directory: searched at every depth; a folder, file:// or s3://BUCKET/PREFIX.
        source: "user" or "shop", for all photos.
        metadata: a CSV as `sources.metadata` reads it; None and NO_METADATA: none.
        max_pixels: larger pictures are failures.
        allow_missing: take a CSV even if more than MOST_MISSING of its rows name no picture.
        endpoint_url: of an S3-compatible server.
        earlier: of the set that is brought up to date: its categories keep their ids, and its photos theirs.
        prefix: as in `Origin`.

    Raises:
        ValueError: no such directory, or a CSV that is not laid out so, with the line.
        UserError: too many rows of the CSV name no picture, once the photos are listed.
        ImageSetError: a folder below it cannot be read.
        StorageError: the bucket cannot be used.
    """
    if source not in SOURCES:
        raise ValueError(f"source {source!r}: want user or shop")
    store = open_store(directory, endpoint_url=endpoint_url)
    place = _Bucket(store) if store.local_path is None else _Disk(store.local_path)
    facts = {} if metadata is None or metadata == NO_METADATA else read_metadata(Path(metadata))
    folder = PhotoFolder(place, Origin(source, prefix), max_pixels, facts, 1.0 if allow_missing else MOST_MISSING)
    if earlier is not None:
        folder.categories = CategoryList([*earlier.categories, *folder.categories])
        if earlier.source.get("ids") != IDS:
            folder.stem = ""
    return folder


class PhotoFolder:
    """Photos of one directory, and what a CSV says of them.

    Attributes:
        categories: names of the garments' categories. stem: as `Origin.stem`, or empty.
        facts: once the photos are listed, what the CSV says of each, by the picture's name.
        unmatched: likewise, the names in the CSV that mean no picture.
        skipped: likewise, how many files were left out, by extension or in words.
    """

    def __init__(
        self, place: "_Disk | _Bucket", origin: Origin, max_pixels: int, metadata: dict[str, Facts], most_missing: float
    ) -> None:
        self.place, self.source, self.max_pixels = place, origin.source, max_pixels
        self.metadata, self.most_missing = metadata, most_missing
        self.facts: dict[str, Facts] = {}
        self.unmatched: tuple[str, ...] = ()
        self.unnamed = 0  # pictures that no row of the CSV means
        self.skipped: Counter[str] = Counter()
        self.stem = origin.stem
        garments = (garment.category for facts in metadata.values() for garment in facts.garments)
        self.categories = CategoryList(garments)

    @property
    def remarks(self) -> Sequence[str]:
        names = sorted({name for facts in self.metadata.values() for name, _ in facts.attributes})
        kept = [f"columns kept as attributes: {', '.join(names)}"] if names else []
        return kept + ([f"{self.unnamed:,} photos have no row in the CSV"] if self.unnamed else [])

    def image_id(self, name: str) -> int:
        return image_id(self.stem + name)

    def list(self) -> Iterable[ListedPhoto]:
        """Every picture, in the order of `read`, without its bytes; the rows of a CSV find their pictures here."""
        self.skipped.clear()
        if not self.metadata:
            return self.place.list(self.skipped)
        listed = [*self.place.list(self.skipped)]
        row_of = match(self.metadata, (photo.name for photo in listed))
        self.facts = {name: self.metadata[row] for name, row in row_of.items()}
        self.unmatched = tuple(sorted(self.metadata.keys() - row_of.values()))
        self.unnamed = len(listed) - len(row_of)
        if len(self.unmatched) > self.most_missing * len(self.metadata):
            counts = f"{len(self.unmatched):,} of {len(self.metadata):,} rows of the CSV name no picture"
            there = f"the folder has {listed[0].name!r}" if listed else "the folder has none"
            advice = "write names relative to the folder; for pictures that are gone, take their rows away"
            raise UserError(f"{counts}: {self.unmatched[0]!r}, while {there}; {advice}, or add --allow-missing")
        return listed

    def rows(self, listed: Iterable[ListedPhoto]) -> Iterator[tuple[ListedPhoto, Photo | Failure]]:
        """Read these, in their order; from a bucket several at a time."""
        if self.place.readers == 1:
            yield from ((entry, self._row(entry)) for entry in listed)
            return
        waiting: deque[tuple[ListedPhoto, Future[Photo | Failure]]] = deque()
        with ThreadPoolExecutor(self.place.readers) as threads:
            for entry in listed:
                waiting.append((entry, threads.submit(self._row, entry)))
                if len(waiting) > self.place.readers:
                    first, row = waiting.popleft()
                    yield first, row.result()
            yield from ((first, row.result()) for first, row in waiting)

    def missing(self) -> Iterator[Failure]:
        """The photos that the CSV names and the folder lacks."""
        for name in self.unmatched:
            yield Failure(self.image_id(name), name, "in the metadata, but there is no such picture in the folder")

    def _row(self, listed: ListedPhoto) -> Photo | Failure:
        name, number = listed.name, self.image_id(listed.name)
        facts = self.facts.get(name, Facts())
        try:
            data = self.place.read(listed)
            width, height = probe_size(data, max_pixels=self.max_pixels)
        except DecodeError as error:
            return Failure(number, name, str(error))
        except StorageError:
            raise
        except OSError as error:
            return Failure(number, name, f"cannot be read: {error.strerror}")
        whole = (0.0, 0.0, float(width), float(height))
        items = tuple(Item(self.categories.id_of(one.category), 0, one.box or whole) for one in facts.garments)
        # Where nobody drew a box, a garment that is found must not count as wrong.
        weak = not facts.garments or any(one.box is None for one in facts.garments)
        attributes, about = dict(facts.attributes), (facts.pair_id, facts.product_id)
        return Photo(number, data, width, height, self.source, *about, name, weak, items, attributes)


def _rows(folder: PhotoFolder, listed: Iterable[ListedPhoto]) -> Iterator[Photo | Failure]:
    for _, row in folder.rows(listed):
        yield row
    yield from folder.missing()


class _Bucket:
    """Photos under s3://BUCKET/PREFIX."""

    readers = 16  # threads: each photo is a round trip

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def list(self, skipped: Counter[str]) -> Iterator[ListedPhoto]:
        for info in sorted(self.store.list(), key=lambda info: _as_walked(info.key)):
            hidden = any(part.startswith(".") for part in info.key.split("/"))
            if info.key.lower().endswith(PICTURES) and not hidden:
                yield ListedPhoto(info.key, info.size, etag=info.etag)
            else:
                skipped["hidden" if hidden else extension(info.key)] += 1

    def read(self, listed: ListedPhoto) -> bytes:
        if listed.size > MAX_PHOTO_BYTES:
            raise OSError(errno.EFBIG, f"{listed.size} bytes are more than {MAX_PHOTO_BYTES}")
        try:
            return self.store.read(listed.name)
        except ObjectMissing as error:  # deleted since the listing
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        except ValueError as error:  # a key with an empty part or a '..'
            raise OSError(errno.EINVAL, "its key is no relative path") from error


def _as_walked(key: str) -> list[tuple[bool, str]]:
    """Sorts keys as a walk through folders meets them: the files of a folder before the folders in it."""
    *folders, name = key.split("/")
    return [*((True, part) for part in folders), (False, name)]


class _Disk:
    """Photos under a local folder."""

    readers = 1

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"no folder {root}")
        self.root = root.resolve()

    def list(self, skipped: Counter[str]) -> Iterator[ListedPhoto]:
        for path, entry in _pictures(self.root, skipped):
            name = path.relative_to(self.root).as_posix()
            try:
                info = entry.stat() if entry else None
            except OSError:  # a link that leads nowhere
                info = None
            yield ListedPhoto(name, info.st_size, info.st_mtime_ns) if info else ListedPhoto(name, -1)

    def read(self, listed: ListedPhoto) -> bytes:
        return read_photo(self.root / listed.name)


def _pictures(root: Path, skipped: Counter[str]) -> "Iterator[tuple[Path, os.DirEntry[str] | None]]":
    """Pictures under `root`, sorted by name within each folder; the names of one folder at a time are in memory.

    A folder that vanishes before its turn stands for the photos that were in it, with None.
    """
    waiting = [root]
    while waiting:
        folder, folders = waiting.pop(), []
        try:
            with os.scandir(folder) as entries:
                here = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            yield folder, None
            continue
        except OSError as error:
            raise ImageSetError(f"cannot read folder {folder}: {error.strerror}") from error
        for entry in here:
            if entry.name.startswith("."):
                skipped["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.name.lower().endswith(PICTURES):
                skipped[extension(entry.name)] += 1
            elif entry.is_symlink() and not _leads_to_a_photo(entry, root):
                skipped["links out of the folder, or to folders"] += 1
            else:
                yield Path(entry.path), entry
        waiting.extend(reversed(folders))


def _leads_to_a_photo(link: os.DirEntry, root: Path) -> bool:
    """Inside the directory and to no folder. A link that leads nowhere is a photo that cannot be read."""
    target = Path(os.path.realpath(link.path))  # of links in a circle: itself
    return target.is_relative_to(root) and not os.path.isdir(target)
