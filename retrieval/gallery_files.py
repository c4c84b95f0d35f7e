"""The files of a published gallery: the pointer, a version's record, its files on this machine.

GALLERY/CURRENT              JSON: {"version", "published", "token", "history"}; replaced by conditional write
GALLERY/versions/NAME/       version.json, written last, names every other file with its digest:
    vectors.npy ids.npy index.faiss dead.npy      `retrieval.ann`
    items.parquet                                 a row for each living id
    steps.safetensors                             what the search's steps learned

A gallery of several parts has the first five in folders part-0/, part-1/ … of the version, each of which is a whole
index; `parts` of its version.json has an entry for each, with what stands at the top level where there is one part.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrieval.hypotheses import HYPOTHESES
from store.files import cache_folder, digest, file_digest, publish_file
from store.objects import ObjectMissing, ObjectStore, StorageError

CURRENT, VERSIONS, RECORD, LEARNED = "CURRENT", "versions", "version.json", "steps.safetensors"
# every photo of a version, those without garments too; versions of earlier releases do not tell the shard
PHOTOS_FILE, PHOTO_COLUMNS = "photos.parquet", ("image_id", "product_id", "file_name", "digest", "shard")
PART = "part-"  # a part's folder, before its number
SCHEMA, SCHEMA_OF_PARTS = 1, 2  # of version.json: releases that know no parts refuse the second
ITEMS = pa.schema(
    [
        ("id", pa.int64()), ("image_id", pa.int64()), ("bbox", pa.list_(pa.float32(), 4)), ("category_id", pa.int16()),
        ("score", pa.float32()), ("hypotheses", HYPOTHESES), ("product_id", pa.string()), ("file_name", pa.string()),
        ("digest", pa.binary(16)),
    ]
)  # fmt: skip
# What every version.json holds, as far as it is read before the version is opened; `gate` comes last and may be absent.
PARTS: dict[str, type] = {"name": str, "files": dict, "index": dict, "rows": int, "results": str}
COPY_BYTES = 1 << 24  # read at once while fetching
KEPT = 2  # versions of a bucket's gallery on this machine: the one that serves, and the one a rollback goes to
LOCK = ".lock"  # in the folder of a fetched version
GONE = ".gone-"  # prefix of such a folder's name while it is removed


class GalleryError(ValueError):
    """A gallery that cannot be used: one line with the place and the reason."""

    user_facing = True


def current(store: ObjectStore) -> tuple[str, bytes]:
    """The name of the current version, and CURRENT's bytes, from which a conditional write starts.

    Raises GalleryError where nothing is published, or CURRENT is no such file.
    """
    try:
        data = store.read(CURRENT)
    except ObjectMissing:
        advice = "run jobs/reindex_gallery.py"
        if store.list(f"{VERSIONS}/"):
            advice += "; with --list it shows the versions that the gate refused"
        raise GalleryError(f"{store.uri}: no gallery is published there; {advice}") from None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        name = json.loads(data)["version"]
        if isinstance(name, str) and name and "/" not in name:
            return name, data
    raise GalleryError(f"{store.uri}/{CURRENT}: {len(data)} bytes that name no version; `--rollback` or publish anew")


def read_record(store: ObjectStore, name: str) -> dict[str, Any]:
    """version.json of one version; raises GalleryError where it does not exist or has another shape."""
    try:
        record = json.loads(store.read(f"{VERSIONS}/{name}/{RECORD}"))
    except ObjectMissing:
        raise GalleryError(f"{store.uri}: no version {name}; `--list` names those there are") from None
    except (ValueError, RecursionError) as error:
        raise GalleryError(f"{store.uri}/{VERSIONS}/{name}/{RECORD}: not readable: {error}") from None
    schema = record.get("schema") if isinstance(record, dict) else "?"
    if schema not in (SCHEMA, SCHEMA_OF_PARTS):
        read = f"{SCHEMA} and {SCHEMA_OF_PARTS}"
        raise GalleryError(f"{store.uri}/{VERSIONS}/{name}: schema {schema}; this version reads {read}")
    if wrong := _wrong_part(record):
        advice = "`--rollback` or publish anew"
        raise GalleryError(f"{store.uri}/{VERSIONS}/{name}/{RECORD}: not readable: {wrong}; {advice}")
    return record


def _wrong_part(record: Mapping[str, Any]) -> str:
    """What of a record is not what a version has, with the value; "" where nothing is."""
    for part, kind in PARTS.items():
        if not isinstance(record.get(part), kind):
            return f"{part} is {str(record.get(part))[:40]!r}"
    gate = record.get("gate", {})
    if not isinstance(gate, dict) or not all(isinstance(figure, dict) for figure in gate.values()):
        return f"gate is {str(gate)[:40]!r}"
    if not isinstance(kind := record["index"].get("kind"), str):
        return f"the kind of its index is {str(kind)[:40]!r}"
    parts = record.get("parts", [])
    if not isinstance(parts, list) or not all(map(_is_part, parts)):
        return f"parts is {str(parts)[:40]!r}"
    return ""


def _is_part(entry: Any) -> bool:
    wanted = {"index": dict, "parameters": dict, "rows": int}
    return isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items())


# --- parts ------------------------------------------------------------------------------------------------------------


def part_records(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """For each part of a version its index, parameters and rows: the record itself where there is one part."""
    return record.get("parts") or [record]


def part_folder(record: Mapping[str, Any], part: int) -> str:
    """Where a part's files are in the version's folder: "part-2/", or "" where there is one part."""
    return f"{PART}{part}/" if record.get("parts") else ""


def files_of(record: Mapping[str, Any], parts: Iterable[int]) -> dict[str, str]:
    """Name -> digest of the files that a reader of these parts needs, all where there is one part."""
    if not record.get("parts"):
        return dict(record["files"])
    wanted = tuple(part_folder(record, part) for part in parts)
    return {file: digest for file, digest in record["files"].items() if file == LEARNED or file.startswith(wanted)}


def checked_parts(record: Mapping[str, Any], parts: Iterable[int] | None) -> tuple[int, ...]:
    """The numbers of the parts asked for, rising; None: all. GalleryError: none, or one that the version lacks."""
    there = range(len(part_records(record)))
    wanted = tuple(there) if parts is None else tuple(sorted(set(parts)))
    if not wanted or not set(wanted) <= set(there):
        last = f", 0 to {there[-1]}" if len(there) > 1 else ": 0"
        raise GalleryError(f"{record['name']}: parts {list(wanted)}; want some of its {len(there)}{last}")
    return wanted


# --- the files on this machine ----------------------------------------------------------------------------------------


@contextmanager
def fetched(
    store: ObjectStore,
    name: str,
    record: Mapping[str, Any],
    *,
    check: bool = True,
    files: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """The folder of a version's files: a folder's own, or a bucket's as they were fetched, each checked.

    `files` are those of the record that are wanted, None: all. A bucket's files stay where they are until the context
    ends; what was mapped within it stays readable afterwards. Raises GalleryError for a file
    that is missing or not what was published.
    """
    files = record["files"] if files is None else files
    if store.local_path is not None:
        folder = store.local_path / VERSIONS / name
        for file, published in files.items() if check else ():
            actual = file_digest(folder / file) if (folder / file).is_file() else "missing"
            if actual != published:
                advice = "`--rollback`, then publish anew"
                raise GalleryError(f"{folder / file}: {actual}, published as {published}; {advice}")
        yield folder
        return
    text = json.dumps(record["files"], sort_keys=True)
    folder = cache_folder() / "galleries" / digest(store.uri.encode()) / digest(f"{name} {text}".encode())
    with _locked(folder):
        for file, published in files.items():
            if not ((folder / file).is_file() and file_digest(folder / file) == published):
                _download(store, f"{VERSIONS}/{name}/{file}", folder / file, published)
        _evict(folder.parent)
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in the folder of a fetched version, made if need be; the time of its lock says when it was used last."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):  # exist_ok would look at the folder again, when it may be gone
            folder.mkdir()
        try:
            lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # the folder was removed since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
            if _is_lock_of(lock, folder):
                os.utime(lock)
                yield
                return
        finally:
            os.close(lock)


def _is_lock_of(lock: int, folder: Path) -> bool:
    """Whether an open lock is still the folder's: a process that waited may have got the lock of a removed folder."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False


def _evict(folder: Path) -> None:
    """Remove a gallery's fetched versions but the KEPT used last, and those being fetched or opened at this moment."""
    used = []
    for path in folder.iterdir():
        if path.name.startswith(GONE):  # of a process that was killed, or of another one at this moment
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(FileNotFoundError):  # removed, or just being made
            used.append(((path / LOCK).stat().st_mtime_ns, path))
    for _, path in sorted(used, reverse=True)[KEPT:]:
        try:
            lock = os.open(path / LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_lock_of(lock, path):
                gone = path.with_name(f"{GONE}{secrets.token_hex(8)}")
                path.rename(gone)  # at once, so that nobody opens a half-removed folder
                shutil.rmtree(gone, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _download(store: ObjectStore, key: str, path: Path, published: str) -> None:
    path.parent.mkdir(exist_ok=True)  # of a part
    try:
        with publish_file(path, sole_writer=True) as part:
            with store.open(key) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
            actual = file_digest(part)
            if actual != published:
                advice = "restore it, or `--rollback`"
                raise StorageError(f"{store.uri}/{key}: digest {actual}, published as {published}; {advice}")
    except ObjectMissing as error:
        advice = "`--rollback`, then publish anew"
        raise GalleryError(f"{store.uri}/{key}: not there, though published; {advice}") from error
