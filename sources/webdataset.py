"""Tar files of samples, as img2dataset and webdataset's TarWriter write them; rows of an image set out.

    KEY.jpg      the picture, with any of the endings in `files.PICTURES`; its name in the tar is the photo's
    KEY.txt      a caption: the attribute `caption`
    KEY.json     an object: `product_id`, `pair_id`, and `items` [{"category", "bbox": [x1, y1, x2, y2], "style"}],
                 pixels; every other single value is an attribute

Members with one key, a member's name up to the first dot of its last part, stand together. .tar and compressed ones,
local, file:// or s3://, are read once from start to end, one sample in memory. Other endings and samples without a
picture are counted, as are further pictures of one. Source: webdataset's format as its documentation has it.
"""

import argparse
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sources.files import MAX_PHOTO_BYTES, PICTURES, extension
from sources.folder import Origin, add_origin_arguments
from sources.photo_facts import PhotoFacts, box_of, each_once, facts_of, failure_of, item_of, rows_of
from sources.places import open_file, split_uri
from sources.reading import Reading
from store.categories import CategoryList
from store.imageset import Failure, Photo
from store.objects import ObjectMissing, StorageError

ARGUMENTS = ("files", "source", "prefix")
READS_BUCKETS = True
MAX_SIDE_BYTES = 1 << 24  # of a caption or JSON
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="TAR", help="tar files: local, file:// or s3://")
    add_origin_arguments(parser)


def read(files: Sequence[str | Path], source: str, endpoint_url: str | None = None, prefix: str = "") -> Reading:
    """Rows tar by tar, in the order of the samples.

    What cannot be taken is a failure: a picture or JSON that is none, a second sample of one name, a member that is too
    large or whose name leads out of the tar, and the rest of a tar that is cut short or damaged, under the tar's name.
    One sample is in memory, and some 60 bytes a photo. Raises ValueError for a file that is missing.
    """
    for file in files:
        try:
            open_file(file, endpoint_url).close()
        except ObjectMissing as error:
            raise ValueError(f"no file {file}") from error
    reader = _Reader(Origin(source, prefix), endpoint_url)
    rows = (row for file in files for row in reader.rows(file))
    return Reading(each_once(rows), reader.categories, reader.skipped)


class _Member(tarfile.TarInfo):
    """Without it a tar that is cut or garbled between two members would pass for a whole one."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header of a member: {error}") from error


class _Reader:
    def __init__(self, origin: Origin, endpoint_url: str | None) -> None:
        self.origin, self.endpoint_url = origin, endpoint_url
        self.categories = CategoryList()
        self.skipped: Counter[str] = Counter()

    def rows(self, uri: str | Path) -> Iterator[Photo | Failure]:
        last = ""
        try:
            with open_file(uri, self.endpoint_url) as file:
                for sample in self._samples(file):
                    yield from self._photo(sample)
                    last = next(reversed(sample), last)
        except StorageError:
            raise
        except _DAMAGE as error:
            after = f"after {last}" if last else "from its start"
            reason = f"cut short or damaged {after}, the rest is lost: {' '.join(str(error).split())[:150]}"
            yield Failure(-1, split_uri(uri)[1], reason)

    def _samples(self, file: Any) -> Iterator[dict[str, bytes | str]]:
        """Members of one key: name -> bytes, or why there are none."""
        sample: dict[str, bytes | str] = {}
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                if member.isdir():
                    continue
                if not member.isreg():
                    self.skipped["members of a tar that are no plain files"] += 1
                    continue
                name = member.name.removeprefix("./")
                if sample and (_key(name) != _key(next(iter(sample))) or name in sample):
                    yield sample
                    sample = {}
                if _is_picture(name) and any(map(_is_picture, sample)):
                    self.skipped[f"further pictures of a sample ({extension(name)})"] += 1
                    continue
                sample[name] = self._content(tar, member, name)
        if sample:
            yield sample

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | str:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            return "its name leads out of the tar"
        if not _is_picture(name) and not name.endswith((".txt", ".json")):
            self.skipped[extension(name)] += 1
            return ""
        most = MAX_PHOTO_BYTES if _is_picture(name) else MAX_SIDE_BYTES
        if member.size > most:
            return f"cannot be read: {member.size} bytes are more than {most}"
        content = tar.extractfile(member)
        return content.read() if content else b""

    def _photo(self, sample: dict[str, bytes | str]) -> Iterator[Photo | Failure]:
        name = next(filter(_is_picture, sample), "")
        if not name:
            self.skipped["samples without a picture"] += 1
            return
        if reason := next((value for value in sample.values() if isinstance(value, str) and value), ""):
            yield failure_of(name, self.origin, reason)
            return
        try:
            facts = self._facts({name: bytes(value) for name, value in sample.items() if isinstance(value, bytes)})
        except ValueError as error:
            yield failure_of(name, self.origin, str(error))
            return
        yield from rows_of(name, self.origin, bytes(sample[name]), facts)  # type: ignore[arg-type]

    def _facts(self, sample: dict[str, bytes]) -> PhotoFacts:
        """Raises ValueError for a JSON that is no object, and as `facts_of`."""
        values: dict[str, Any] = {}
        for name, data in sample.items():
            if name.endswith(".txt"):
                values["caption"] = data.decode(errors="replace")
        for name, data in sample.items():
            if name.endswith(".json"):
                values |= _object(name, data)
        items = values.pop("items", None)
        facts = facts_of(values, "product_id", self.skipped)
        if not isinstance(items, list | None):
            raise ValueError(f"items {str(items)[:60]} are no list")
        facts.drawn = items is not None
        for number, item in enumerate(items or (), 1):
            try:
                known = item if isinstance(item, dict) else {}
                box = box_of(known.get("bbox"))
                facts.items.append(item_of(self.categories, known.get("category"), box, known.get("style", 0)))
            except ValueError as error:
                facts.wrong.append(f"item {number} is left out: {error}")
        return facts


def _object(name: str, data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {type(values).__name__}, want an object")
    return values


def _key(name: str) -> str:
    """
    >>> _key("shoes.2026/0001.seg.png")
    'shoes.2026/0001'
    """
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)
