"""The manifest of an image set: which shards it has, which of their rows are removed, and the digests of it all.

    manifest.json   {"schema": 3, "shards": [{"name", "rows", "bytes", "digest"}],
                     "images", "failures", "bytes", "source", "digest",
                     "categories": ["cape", "skirt"], "skipped": {".txt": 2},
                     "removed": {"shard-00000": [0, 7]}, "sources": {"name", "digest"},
                     "counts": {"shard-00000": {"users", "items", "shop_items"}}}

`rows`, `bytes` and `digest` of a shard are those of its file; `removed` names rows of that file, and numbers are left
out where a shard was dissolved. `images` counts the photos that are present. `skipped` counts what was left out without
a look: files by their extension, or entries of a list in words. `counts` has what the rows of a shard's file show, so
that a run over ten thousand shards starts without reading them; shards of earlier releases have none. `sources` stands
only where there is a sources.parquet.

Digests are BLAKE2b-128, hex; the set's is that of its shards' 16-byte digests, followed by its categories as JSON
unless these are DeepFashion2's.

Schemas 1 and 2 are those of sets made before: without categories, which are then DeepFashion2's, and without `skipped`;
1 has no `removed` either.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from store import categories
from store.files import digest
from store.objects import ObjectMissing, ObjectStore

SCHEMA_VERSION = 3
MANIFEST, SOURCES_FILE = "manifest.json", "sources.parquet"


class ImageSetError(ValueError):
    """An image set that cannot be read or may not be written; one line."""

    user_facing = True  # jobs.cli prints it as one line


class Counts(NamedTuple):
    """What the rows of a shard's file show: consumers' photos, true items, and those of them on shops' photos."""

    users: int
    items: int
    shop_items: int


@dataclass(frozen=True)
class Shard:
    """One file of an image set."""

    name: str  # "shard-00000"
    rows: int  # how many are present, without the removed ones
    bytes: int  # of the file
    digest: str  # hex; what work on the shard depends on: the file's bytes and, where there are any, the removed rows
    removed: tuple[int, ...] = ()  # rows of the file, rising
    file_digest: str = ""  # hex, of the file's bytes; empty where nothing is removed and `digest` is it
    counts: Counts | None = None  # of all rows of the file, None where it was written before there were counts

    @property
    def key(self) -> str:
        return f"{self.name}.arrow"

    @property
    def number(self) -> int:
        return int(self.name.removeprefix("shard-"))

    @property
    def rows_written(self) -> int:
        return self.rows + len(self.removed)

    @property
    def written_digest(self) -> str:
        """Hex, of the file's bytes."""
        return self.file_digest or self.digest

    @property
    def present(self) -> np.ndarray:
        """(rows_written,) bool: which rows of the file are not removed."""
        mask = np.ones(self.rows_written, bool)
        mask[list(self.removed)] = False
        return mask

    def without(self, removed: Collection[int]) -> "Shard":
        """The same file with exactly these rows removed.

        >>> shard = Shard("shard-00000", 3, 900, "00" * 16)
        >>> shard.without([2]).rows, shard.without([2]).digest == shard.digest, shard.without([2]).without([]) == shard
        (2, False, True)
        """
        of_file, rows = self.written_digest, tuple(sorted(removed))
        if not rows:
            return Shard(self.name, self.rows_written, self.bytes, of_file, counts=self.counts)
        identity = digest(bytes.fromhex(of_file) + np.array(rows, "<i8").tobytes())
        return Shard(self.name, self.rows_written - len(rows), self.bytes, identity, rows, of_file, self.counts)


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    shards: tuple[Shard, ...]
    images: int  # how many are present
    failures: int
    bytes: int
    source: dict[str, Any]  # {"adapter": …, "arguments": {…}}
    digest: str  # hex, of what is present
    schema: int = SCHEMA_VERSION
    sources: str = ""  # hex, digest of sources.parquet; empty where there is none
    categories: tuple[str, ...] = categories.DEEPFASHION2  # names, id 1 first; empty where nobody stated any
    skipped: dict[str, int] = field(default_factory=dict)  # what was left out without a look -> how many


def manifest_of(
    shards: Sequence[Shard],
    failures: int,
    source: dict[str, Any],
    names: Sequence[str],
    skipped: Mapping[str, int] | None,
) -> Manifest:
    """The manifest of a set that consists of these shards, without a listing; arguments as its attributes."""
    return Manifest(
        shards=tuple(shards),
        images=sum(shard.rows for shard in shards),
        failures=failures,
        bytes=sum(shard.bytes for shard in shards),
        source=source,
        digest=_set_digest(shards, names),
        categories=tuple(names),
        skipped=dict(sorted((skipped or {}).items())),
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """manifest.json."""
    shards = [
        {"name": shard.name, "rows": shard.rows_written, "bytes": shard.bytes, "digest": shard.written_digest}
        for shard in manifest.shards
    ]
    names = ("images", "failures", "bytes", "source", "digest", "categories", "skipped")
    data = {"schema": SCHEMA_VERSION, "shards": shards} | {name: getattr(manifest, name) for name in names}
    if removed := {shard.name: list(shard.removed) for shard in manifest.shards if shard.removed}:
        data["removed"] = removed
    if counts := {shard.name: shard.counts._asdict() for shard in manifest.shards if shard.counts}:
        data["counts"] = counts
    if manifest.sources:
        data["sources"] = {"name": SOURCES_FILE, "digest": manifest.sources}
    return json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def read_manifest(store: ObjectStore) -> Manifest:
    """The manifest of a finished image set.

    Raises ImageSetError for an empty place, an ingestion that did not finish, and a manifest that is not one.
    """
    try:
        data = store.read(MANIFEST)
    except ObjectMissing as error:
        advice = "make one with jobs/ingest.py, or name the place where it is now"
        problem = f"no image set at {store.uri} (no {MANIFEST}); {advice}"
        if store.list("shard-"):
            problem = f"{store.uri} has shards but no {MANIFEST}: its ingestion did not finish; run it again"
        raise ImageSetError(problem) from error
    try:
        return _from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ImageSetError(f"{store.uri}/{MANIFEST} is not an image set's manifest: {repr(error)[:300]}") from error


def _set_digest(shards: Iterable[Shard], names: Sequence[str]) -> str:
    named = b"" if tuple(names) == categories.DEEPFASHION2 else json.dumps(list(names)).encode()
    return digest(b"".join(bytes.fromhex(shard.digest) for shard in shards) + named)


def _from_json(data: dict[str, Any]) -> Manifest:
    """The manifest in a JSON document; the caller turns what this raises (a missing key too) into an ImageSetError."""
    schema = data["schema"]
    if type(schema) is not int or not 1 <= schema <= SCHEMA_VERSION:  # True and 1.0 equal 1
        raise ValueError(f"schema {schema!r}, this program reads 1 to {SCHEMA_VERSION}")
    shards = _shards(data["shards"], data.get("removed", {}), data.get("counts", {}), schema)
    if schema == 1 and data.get("removed"):
        raise ValueError("rows are removed, which schema 1 does not allow; want schema 2 or 3")
    sources = data["sources"]["digest"] if "sources" in data else ""
    if not isinstance(sources, str):
        raise ValueError(f"the digest of {SOURCES_FILE} is {str(sources)[:60]}, want a text")
    names, skipped = data.get("categories", list(categories.DEEPFASHION2)), data.get("skipped", {})
    if not isinstance(names, list) or (reason := categories.problem(names)) is not None:
        raise ValueError(reason if isinstance(names, list) else f"categories {str(names)[:60]}, want a list of names")
    if not isinstance(skipped, dict) or not all(type(count) is int and count >= 0 for count in skipped.values()):
        raise ValueError(f"skipped {str(skipped)[:60]}, want a count for each extension")
    manifest = Manifest(
        shards, data["images"], data.get("failures", 0), data["bytes"], data["source"], data["digest"], schema, sources,
        tuple(names), skipped,
    )  # fmt: skip
    if manifest.digest != (want := _set_digest(shards, names)):
        raise ValueError(f"digest {manifest.digest} is not that of the shards' digests and the categories, {want}")
    if (manifest.images, manifest.bytes) != (sum(s.rows for s in shards), sum(s.bytes for s in shards)):
        raise ValueError("images or bytes do not add up")
    return manifest


def _shards(
    entries: list[dict[str, Any]], removed: dict[str, list[int]], counts: dict[str, dict[str, int]], schema: int
) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    for number, entry in enumerate(entries):
        shard = _shard(number if schema == 1 else None, **entry)
        if shards and shard.number <= shards[-1].number:
            raise ValueError(f"{shard.name} stands after {shards[-1].name}")
        if shard.name in counts:
            shard = replace(shard, counts=_counts(shard, **counts[shard.name]))
        if shard.name in removed:
            _check_removed(shard, removed[shard.name])
            shard = shard.without(removed[shard.name])
        shards.append(shard)
    if unknown := set(removed) - {shard.name for shard in shards}:
        raise ValueError(f"removed names {min(unknown)!r}, which is no shard of it")
    return tuple(shards)


def _shard(number: int | None, name: str, rows: int, bytes: int, digest: str) -> Shard:
    """One entry; `number` is the only one it may have, None for any."""
    if number is None and re.fullmatch(r"shard-(\d{5}|[1-9]\d{5,8})", name, re.ASCII):
        number = int(name.removeprefix("shard-"))
    counts = all(type(value) is int and value > 0 for value in (rows, bytes))
    if number is None or name != f"shard-{number:05d}" or not counts:
        raise ValueError(f"shard {number} is {name!r} with {rows!r} rows and {bytes!r} bytes")
    return Shard(name, rows, bytes, digest)


def _counts(shard: Shard, users: int, items: int, shop_items: int) -> Counts:
    whole = all(type(count) is int for count in (users, items, shop_items))
    if not whole or not (0 <= users <= shard.rows and 0 <= shop_items <= items):
        raise ValueError(f"{shard.name}: {users!r} users among {shard.rows} photos, {shop_items!r} of {items!r} items")
    return Counts(users, items, shop_items)


def _check_removed(shard: Shard, rows: list[int]) -> None:
    """Some rows of a shard, rising, and not all of them: a shard without a photo is left out of the manifest."""
    within = all(type(row) is int and 0 <= row < shard.rows for row in rows)
    if not within or not 0 < len(rows) < shard.rows or any(a >= b for a, b in pairwise(rows)):
        raise ValueError(f"rows {str(rows)[:60]} removed of {shard.name}, which has {shard.rows}")
