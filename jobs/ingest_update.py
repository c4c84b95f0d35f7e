"""Bring an image set of a plain folder up to date: `jobs/ingest.py folder … --update`.

In: a folder or bucket of photos, the set made of it earlier, or none yet. Out: the set as a fresh ingestion would have it, in
another order: what did not change stays in its shards, the rest goes to new ones (`store.imageset.update_imageset`).

A photo is the one of the night before while its name, size and time of the last change (in a bucket: ETag) are those in
sources.parquet and its row of the metadata says the same; only others are read, and compared by digest. A photo that could not
be taken is looked at again each time. Where the list cannot be relied on (an older set, another folder, another --max-pixels)
every photo is read. 300 bytes or so are held for each photo of folder and set, and 64 MB of photos read.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import cli, ingest
from jobs.lock import KEY, Lock
from store.objects import ObjectMissing

if TYPE_CHECKING:
    import pyarrow as pa

    from retrieval.datasets.folder import Folder, Listed
    from store.imageset import Failure, ImageSet, Manifest, Photo, Removal

HELD_BYTES = 64_000_000  # of photos that were compared and are to be written; the others are read a second time
COARSE_NS = (
    2_000_000_000  # a file changed so shortly before it was listed may change again within the same tick of its clock
)


class Known(NamedTuple):
    """What is known of a photo of the set; size -1 where the listing cannot be relied on: no file has it."""

    size: int
    mtime_ns: int
    etag: str
    digest: bytes
    product_id: str
    pair_id: int


@dataclass
class Changes:
    """What an update is to do.

    Attributes:
        rows: photos to add or put in another's place, and all failures, in the folder's order; an entry of the listing
            stands for a photo to be read again.
        leaving: image_ids whose row leaves its shard, the replaced ones among them.
        listed: how the folder looked, by image_id, and the photo's digest; for sources.parquet.
        touched: unchanged photos of another size, time or ETag than the set's listing has.
        held: bytes of the photos in `rows`.
    """

    rows: "list[Photo | Failure | Listed]" = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)
    listed: "dict[int, tuple[Listed, bytes]]" = field(default_factory=dict)
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    touched: int = 0
    held: int = 0

    def __str__(self) -> str:
        counts = ((name, getattr(self, name)) for name in ("added", "changed", "removed", "unchanged"))
        return ", ".join(f"{name} {n:,}" for name, n in counts)


def update(args: argparse.Namespace) -> int:
    """Carry out the command.

    Raises:
        UserError: an argument that is wrong, another kind of set, no photo, or another update at work.
        ImageSetError, StorageError: a set or a storage that cannot be used; the set stays as it was.
    """
    from retrieval.datasets.folder import open_folder
    from store.objects import open_store

    started = time.monotonic()
    arguments = {name: getattr(args, name) for name in ("directory", "source", "metadata", "max_pixels")}
    source = {"adapter": "folder", "arguments": arguments}
    try:
        folder = open_folder(**arguments, endpoint_url=args.endpoint_url)
    except ValueError as error:
        raise cli.UserError(str(error)) from error
    images = _set_there_is(args)
    if images is not None:
        _refuse_another_kind(images, source)
    changes, removal = _compare(folder, images, source, time.time_ns())
    print(f"{changes}{_compaction(removal)}", flush=True)
    _refuse_none(changes, args)
    why = _why_write(changes, images, source)
    if args.dry_run or not why:
        print(f"{args.imageset}: {'' if why else 'up to date, '}nothing is written")
        return 0

    lock = Lock(open_store(args.imageset, endpoint_url=args.endpoint_url))
    lock.take()
    try:
        _refuse_another_update(images, args)
        manifest = _write(args, folder, changes, images, removal, source, lambda: _still_mine(lock))
    finally:
        lock.release()
    seconds = time.monotonic() - started
    print(f"{args.imageset}: {why}; {ingest.described(manifest)}, {seconds:.1f} s, digest {manifest.digest}")
    return 0


def _set_there_is(args: argparse.Namespace) -> "ImageSet | None":
    from store.imageset import MANIFEST, open_imageset
    from store.objects import open_store

    there = open_store(args.imageset, endpoint_url=args.endpoint_url).exists(MANIFEST)
    return open_imageset(args.imageset, endpoint_url=args.endpoint_url) if there else None


def _refuse_another_kind(images: "ImageSet", source: dict[str, Any]) -> None:
    made = images.manifest.source
    if made.get("adapter") != "folder":
        raise cli.UserError(
            f"{images.uri} was made with `{made.get('adapter')}`; only sets of `folder` are brought up to date"
        )
    side, wanted = made.get("arguments", {}).get("source"), source["arguments"]["source"]
    if side != wanted:
        raise cli.UserError(
            f"{images.uri} was made with --source {side}, this line says {wanted}; want {side}, or another set"
        )


def _compaction(removal: "Removal | None") -> str:
    n = len(removal.dissolve) if removal else 0
    return f"; shards rewritten, more than half of whose rows are removed: {n:,}" if n else ""


def _refuse_none(changes: Changes, args: argparse.Namespace) -> None:
    """An empty folder is rather one that is not mounted than a shop without goods."""
    from store.imageset import Failure

    if changes.added + changes.changed + changes.unchanged:
        return
    failed = next((row for row in changes.rows if isinstance(row, Failure)), None)
    said = f"{failed.file_name}: {failed.reason}" if failed else "no JPEG, PNG or WebP file"
    raise cli.UserError(f"not one photo in {args.directory} can be taken ({said}); {args.imageset} is left as it is")


def _why_write(changes: Changes, images: "ImageSet | None", source: dict[str, Any]) -> str:
    """What is written, in words; "" where everything is as it was."""
    from store.imageset import Failure, ImageSetError, failures_table

    if images is None:
        return "new"
    if changes.added or changes.leaving:
        return "brought up to date"
    try:
        failures = images.failures()
    except ImageSetError:  # lost or damaged: it is written again
        failures = None
    if failures != failures_table(row for row in changes.rows if isinstance(row, Failure)):
        return "the same photos, other failures"
    if changes.touched or not images.manifest.sources or images.manifest.source != source:
        return "the same photos, another list of files"
    return ""


def _refuse_another_update(images: "ImageSet | None", args: argparse.Namespace) -> None:
    now = _set_there_is(args)
    if (now and now.manifest) != (images and images.manifest):
        raise cli.UserError(f"{args.imageset}: another update finished meanwhile; start the same line again")


def _still_mine(lock: Lock) -> None:
    """The lock's own look is up to ten seconds old."""
    lock.check()
    try:
        mine = json.loads(lock.store.read(KEY)).get("token") == lock.token
    except (ObjectMissing, ValueError):
        mine = False
    if not mine:
        raise cli.UserError(f"{lock.store.uri}: another update took over meanwhile; wait for it")


# ------------------------------------------------------------------------------------------------ comparing


def _compare(
    folder: "Folder", images: "ImageSet | None", source: dict[str, Any], now_ns: int
) -> "tuple[Changes, Removal | None]":
    """Look through the folder; nothing is written."""
    from store.imageset import removal

    before = {} if images is None else _before(images, source)
    changes = Changes()
    to_read, names = _sort_out(folder, before, changes)
    for listed, row in ingest.with_progress(folder.rows(to_read), of=lambda pair: pair[1]):
        _sort_in(_lasting(listed, now_ns), _judged(row), before.get(row.image_id), changes)
    changes.rows += folder.missing(names)
    changes.leaving |= before.keys() - changes.listed.keys()
    changes.removed = len(before) - changes.unchanged - changes.changed
    return changes, None if images is None else removal(images, changes.leaving)


def _before(images: "ImageSet", source: dict[str, Any]) -> dict[int, Known]:
    """The photos of the set by image_id."""
    listing = images.sources()
    then, now = images.manifest.source.get("arguments", {}), source["arguments"]
    same = listing is not None and all(then.get(name) == now[name] for name in ("directory", "max_pixels"))
    table = images.photos(("image_id", "digest", "product_id", "pair_id")) if listing is None else listing
    ids, *facts = (table[name].to_pylist() for name in ("image_id", "digest", "product_id", "pair_id"))
    stats: Iterable[Any] = ([-1] * len(ids), [0] * len(ids), [""] * len(ids))
    if same:
        stats = (table[name].to_pylist() for name in ("size", "mtime_ns", "etag"))
    return dict(zip(ids, map(Known, *stats, *facts), strict=True))


def _sort_out(folder: "Folder", before: dict[int, Known], changes: Changes) -> "tuple[list[Listed], set[str]]":
    """What must be read, and which names of the metadata were met; a photo that is as it was needs no look at its bytes."""
    from retrieval.datasets.folder import image_id
    from store.imageset import ImageSetError

    seen: dict[int, str] = {}
    to_read = []
    for listed in folder.list():
        number = image_id(listed.name)
        if number in seen:
            raise ImageSetError(
                f"image_id {number} stands for {seen[number]} and {listed.name}: ids must be unique in a set"
            )
        seen[number] = listed.name
        known = before.get(number)
        about = (listed.size, listed.mtime_ns, listed.etag), folder.known.get(listed.name, ("", 0))
        if known is not None and about == (known[:3], (known.product_id, known.pair_id)) and listed.size >= 0:
            changes.listed[number] = listed, known.digest
            changes.unchanged += 1
        else:
            to_read.append(listed)
    return to_read, folder.known.keys() & set(seen.values())


def _sort_in(listed: "Listed", row: "Photo | Failure", known: Known | None, changes: Changes) -> None:
    """Count a photo that was read, and keep it where it is to be written and there is room."""
    from store.imageset import Failure

    if isinstance(row, Failure):
        changes.rows.append(row)
        return
    digest = _digest(row)
    changes.listed[row.image_id] = listed, digest
    if known is not None and known[3:] == (digest, row.product_id, row.pair_id):
        changes.unchanged += 1
        changes.touched += known.mtime_ns >= 0
        return
    if known is None:
        changes.added += 1
    else:
        changes.changed += 1
        changes.leaving.add(row.image_id)
    room = changes.held + len(row.image) <= HELD_BYTES
    changes.held += len(row.image) if room else 0
    changes.rows.append(row if room else listed)


def _judged(row: "Photo | Failure") -> "Photo | Failure":
    """As `store.imageset` will judge it."""
    from store.imageset import Failure, Photo, problem

    reason = problem(row) if isinstance(row, Photo) else None
    return row if reason is None else Failure(row.image_id, row.file_name, reason)


def _lasting(listed: "Listed", now_ns: int) -> "Listed":
    """The entry for the next night: a time too new to be relied on is no time."""
    from retrieval.datasets.folder import Listed

    young = not listed.etag and listed.mtime_ns > now_ns - COARSE_NS
    return Listed(listed.name, listed.size, -1) if young else listed


def _digest(photo: "Photo") -> bytes:
    return blake2b(photo.image, digest_size=16).digest()


# ------------------------------------------------------------------------------------------------ writing


def _write(
    args: argparse.Namespace,
    folder: "Folder",
    changes: Changes,
    images: "ImageSet | None",
    removal: "Removal | None",
    source: dict[str, Any],
    still_mine: Callable[[], None],
) -> "Manifest":
    from store import imageset

    rows = ingest.with_progress(_whole(folder, changes))
    how: dict[str, Any] = {
        "source": source,
        "sources": lambda: _sources(changes, folder),
        "max_images": args.shard_images,
        "max_bytes": args.shard_bytes,
    }
    if images is None or removal is None:
        return imageset.write_imageset(rows, args.imageset, endpoint_url=args.endpoint_url, **how)
    return imageset.update_imageset(images, rows, removal, still_mine=still_mine, **how)


def _whole(folder: "Folder", changes: Changes) -> "Iterator[Photo | Failure]":
    """The rows, those that were not held read again; a file that changed meanwhile is taken as it is now."""
    from retrieval.datasets.folder import Listed
    from store.imageset import Failure

    again = folder.rows(row for row in changes.rows if isinstance(row, Listed))
    for row in changes.rows:
        if isinstance(row, Listed):
            listed, found = next(again)
            row = _judged(found)
            if isinstance(row, Failure):
                changes.listed.pop(row.image_id)
            else:
                changes.listed[row.image_id] = listed, _digest(row)
        yield row


def _sources(changes: Changes, folder: "Folder") -> "pa.Table":
    """How the folder looked, by rising image_id."""
    import pyarrow as pa

    from store.imageset import SOURCES_SCHEMA, utf8

    rows = sorted(changes.listed.items(), key=lambda entry: entry[0])
    entries = [listed for _, (listed, _) in rows]
    known = [folder.known.get(listed.name, ("", 0)) for listed in entries]
    columns: dict[str, list[Any]] = {
        "image_id": [number for number, _ in rows],
        "name": [utf8(listed.name) for listed in entries],
        "size": [listed.size for listed in entries],
        "mtime_ns": [listed.mtime_ns for listed in entries],
        "etag": [listed.etag for listed in entries],
        "digest": [digest for _, (_, digest) in rows],
        "product_id": [product_id for product_id, _ in known],
        "pair_id": [pair_id for _, pair_id in known],
    }
    return pa.table(columns, schema=SOURCES_SCHEMA)
