"""Bring an image set of a plain folder up to date: `jobs/ingest.py folder … --update`.

In: a folder or bucket of photos, and the set made of it earlier, or none yet. Out: the set as a fresh ingestion would
have it, in another order: unchanged photos stay in their shards, the rest goes to new ones
(`imageset_write.update_imageset`).

A photo is unchanged if its name, size and time of the last change (in a bucket: ETag) are those in sources.parquet and
its row of the metadata says the same; only others are read, and compared by digest. A photo that could not be taken is
read again each time. Where the list does not apply (an older set, another folder, another --max-pixels) every photo is
read. Some 300 bytes are held for each photo of folder and set, and 64 MB of photos read.
"""

import argparse
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from jobs.ingestion.adapters import arguments_of, in_words
from jobs.ingestion.losses import tell_losses
from jobs.ingestion.progress import described, with_progress
from jobs.runs.lock import Lock, check_file
from sources.folder import IDS, NO_METADATA, ListedPhoto, PhotoFolder, open_folder
from sources.metadata import Facts, Garment
from store.errors import UserError
from store.files import hasher
from store.imageset import SOURCES_SCHEMA, Failure, ImageSet, Photo, open_imageset
from store.imageset_write import Removal, failures_table, removal_of, update_imageset, utf8, write_imageset
from store.manifest import MANIFEST, ImageSetError
from store.objects import open_store
from store.photo_checks import checked

HELD_BYTES = 64_000_000  # of photos that were compared and are to be written; the others are read a second time
# A file that changed so shortly before it was listed may change again within the same tick of the disk's clock.
COARSE_NS = 2_000_000_000


class KnownPhoto(NamedTuple):
    """What the set knows of a photo; size -1, which no file has, where its listing does not apply."""

    size: int
    mtime_ns: int
    etag: str
    digest: bytes
    product_id: str
    pair_id: int
    facts: bytes  # `Facts.digest`


@dataclass
class PhotoChanges:
    """What an update is to do."""

    # photos to add or to replace others, and all failures, in the folder's order; a listed photo is to be read again
    rows: list[Photo | Failure | ListedPhoto] = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)  # image_ids whose row leaves its shard, the replaced ones among them
    # by image_id, how the folder looked and the photo's digest; for sources.parquet
    listed: dict[int, tuple[ListedPhoto, bytes]] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)  # image_ids of unchanged photos that were not read
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    touched: int = 0  # unchanged photos of another size, time or ETag than the set's listing has
    held: int = 0  # bytes of the photos in `rows`

    def __str__(self) -> str:
        counts = ((name, getattr(self, name)) for name in ("added", "changed", "removed", "unchanged"))
        return ", ".join(f"{name} {n:,}" for name, n in counts)

    def failures(self) -> Iterator[Failure]:
        return (row for row in self.rows if isinstance(row, Failure))


def update(args: argparse.Namespace) -> int:
    """Update the set, or say what would be done (--dry-run). Returns the exit status.

    Raises:
        UserError: a wrong argument, another kind of set, no photo, none of their items, or another update at work.
        ImageSetError, StorageError: a set or a storage that cannot be used; the set stays as it was.
    """
    started = time.monotonic()
    arguments = arguments_of(args)
    images = _existing_set(args)
    earlier = images.manifest if images else None
    source = {"adapter": "folder", "arguments": arguments}
    if earlier is None or earlier.source.get("ids"):
        source["ids"] = IDS
    if images is not None:
        _refuse_another_kind(images, source)
    try:
        folder = open_folder(**arguments, endpoint_url=args.endpoint_url, earlier=earlier)
    except ValueError as error:
        raise UserError(str(error)) from error
    changes, removal = _compare(folder, images, source)
    n = len(removal.dissolve) if removal else 0
    compaction = f"; shards rewritten, more than half of whose rows are removed: {n:,}" if n else ""
    print(f"{changes}{compaction}", flush=True)
    _refuse_no_photo(changes, args)
    reason = _reason_to_write(changes, images, source)
    if args.dry_run or not reason:
        print(f"{args.imageset}: {'' if reason else 'up to date, '}nothing is written")
        return 0

    lock = Lock(open_store(args.imageset, endpoint_url=args.endpoint_url))
    lock.take()
    try:
        now = _existing_set(args)
        if (now and now.manifest) != (images and images.manifest):
            raise UserError(f"{args.imageset}: another update finished meanwhile; start the same line again")
        rows = with_progress(_read_rest(folder, changes))
        options: dict[str, Any] = {"max_images": args.shard_images, "max_bytes": args.shard_bytes, "source": source}
        options |= {"categories": folder.categories, "skipped": folder.skipped}
        options["sources"] = lambda: _sources(changes, folder)
        if images is None or removal is None:
            manifest = write_imageset(rows, args.imageset, endpoint_url=args.endpoint_url, **options)
        else:
            options["check_lock"] = lambda: check_file(lock, "update")
            manifest = update_imageset(images, rows, removal, **options)
    finally:
        lock.release()
    seconds = time.monotonic() - started
    print(f"{args.imageset}: {reason}; {described(manifest)}, {seconds:.1f} s, digest {manifest.digest}")
    for line in folder.remarks:
        print(line)
    if manifest.skipped:
        print(f"skipped: {in_words(manifest.skipped)}")
    tell_losses(args.imageset, args.endpoint_url)
    return 0


def _existing_set(args: argparse.Namespace) -> ImageSet | None:
    exists = open_store(args.imageset, endpoint_url=args.endpoint_url).exists(MANIFEST)
    return open_imageset(args.imageset, endpoint_url=args.endpoint_url) if exists else None


def _refuse_another_kind(images: ImageSet, source: dict[str, Any]) -> None:
    earlier = images.manifest.source
    if earlier.get("adapter") != "folder":
        raise UserError(
            f"{images.uri} was made with `{earlier.get('adapter')}`; only sets of `folder` are brought up to date"
        )
    then, now = earlier.get("arguments", {}), source["arguments"]
    for name in ("source", "prefix"):  # both are in the ids
        made, wanted = then.get(name) or "", now[name]
        if made != wanted:
            flag, given = f"--{name} {made}" if made else f"no --{name}", wanted or "none"
            raise UserError(f"{images.uri} was made with {flag}, this line says {given}; say the same, or another set")
    if (csv := then.get("metadata") or NO_METADATA) != NO_METADATA and now["metadata"] is None:
        advice = f"give it again, or --metadata {NO_METADATA} to drop what it said"
        raise UserError(f"{images.uri} was made with --metadata {csv}; {advice}")


def _refuse_no_photo(changes: PhotoChanges, args: argparse.Namespace) -> None:
    """An empty folder is more likely one that is not mounted than a shop without goods."""
    if changes.added + changes.changed + changes.unchanged:
        return
    failed = next(changes.failures(), None)
    example = f"{failed.file_name}: {failed.reason}" if failed else "no picture"
    raise UserError(f"not one photo in {args.directory} can be taken ({example}); {args.imageset} is left as it is")


def _reason_to_write(changes: PhotoChanges, images: ImageSet | None, source: dict[str, Any]) -> str:
    """What is written, in words; "" where everything is as it was."""
    if images is None:
        return "new"
    if changes.added or changes.leaving:
        return "brought up to date"
    failures = None
    with contextlib.suppress(ImageSetError):  # lost or damaged: it is written again
        failures = images.failures()
    if failures is None or _in_order(failures) != _in_order(failures_table(changes.failures())):
        return "the same photos, other failures"
    if changes.touched or not images.manifest.sources or images.manifest.source != source:
        return "the same photos, another list of files"
    return ""


def _in_order(failures: pa.Table) -> pa.Table:
    """The order of failures says nothing: an update tells those of photos that it does not read last."""
    return failures.sort_by([(name, "ascending") for name in failures.column_names])


# ------------------------------------------------------------------------------------------------ comparing


def _compare(
    folder: PhotoFolder, images: ImageSet | None, source: dict[str, Any]
) -> tuple[PhotoChanges, Removal | None]:
    """Compare the folder with the set; nothing is written."""
    now_ns = time.time_ns()
    before = {} if images is None else _known_photos(images, source)
    changes = PhotoChanges()
    to_read = _skip_unchanged(folder, before, changes)
    for listed, row in with_progress(folder.rows(to_read), of=lambda pair: pair[1], judge_profiles=True):
        parts = checked(row, len(folder.categories))
        facts = folder.facts.get(listed.name, Facts())
        _add_change(_trustworthy(listed, now_ns), facts, parts, before.get(row.image_id), changes)
    changes.rows += folder.missing()
    changes.rows += _standing_failures(images, changes.unread)
    changes.leaving |= before.keys() - changes.listed.keys()
    changes.removed = len(before) - changes.unchanged - changes.changed
    return changes, None if images is None else removal_of(images, changes.leaving)


def _known_photos(images: ImageSet, source: dict[str, Any]) -> dict[int, KnownPhoto]:
    """The photos of the set by image_id."""
    listing = images.sources()
    then, now = images.manifest.source.get("arguments", {}), source["arguments"]
    columns = ["image_id", "digest", "product_id", "pair_id"]
    applies = listing is not None and all(then.get(name) == now[name] for name in ("directory", "max_pixels"))
    table = images.photos([*columns, "items", "attributes"]) if listing is None else listing
    ids, *facts = (table[name].to_pylist() for name in columns)
    digests = _facts_digests(images, table) if listing is None else table["facts"].to_pylist()
    stats: Iterable[Any] = ([-1] * len(ids), [0] * len(ids), [""] * len(ids))
    if applies:
        stats = (table[name].to_pylist() for name in ("size", "mtime_ns", "etag"))
    return dict(zip(ids, map(KnownPhoto, *stats, *facts, digests), strict=True))


def _facts_digests(images: ImageSet, table: pa.Table) -> list[bytes]:
    """`Facts.digest` of photos as the set holds them, where nothing else tells what the metadata said."""
    digests = []
    for items, attributes in zip(table["items"].to_pylist(), table["attributes"].to_pylist(), strict=True):
        garments = tuple(Garment(images.categories[item["category_id"] - 1], tuple(item["bbox"])) for item in items)
        digests.append(Facts(attributes=tuple(attributes), garments=garments).digest)
    return digests


def _standing_failures(images: ImageSet | None, image_ids: set[int]) -> list[Failure]:
    """What was told of the items of these photos, which are as they were."""
    if images is None or not image_ids:
        return []
    with contextlib.suppress(ImageSetError):  # lost or damaged
        return [Failure(**row) for row in images.failures().to_pylist() if row["image_id"] in image_ids]
    return []


def _skip_unchanged(folder: PhotoFolder, before: dict[int, KnownPhoto], changes: PhotoChanges) -> list[ListedPhoto]:
    """The photos that must be read; unchanged ones are counted only."""
    names: dict[int, str] = {}
    to_read = []
    for listed in folder.list():
        number = folder.image_id(listed.name)
        if number in names:
            raise ImageSetError(
                f"image_id {number} stands for {names[number]} and {listed.name}: ids must be unique in a set"
            )
        names[number] = listed.name
        known = before.get(number)
        stats = listed.size, listed.mtime_ns, listed.etag
        facts = folder.facts.get(listed.name, Facts())
        if known is not None and listed.size >= 0 and stats == known[:3] and _told(facts) == known[4:]:
            changes.listed[number] = listed, known.digest
            changes.unread.add(number)
            changes.unchanged += 1
        else:
            to_read.append(listed)
    return to_read


def _told(facts: Facts) -> tuple[str, int, bytes]:
    """What is compared of a photo's metadata, as KnownPhoto ends."""
    return facts.product_id, facts.pair_id, facts.digest


def _add_change(
    listed: ListedPhoto,
    facts: Facts,
    parts: Iterator[Photo | Failure],
    known: KnownPhoto | None,
    changes: PhotoChanges,
) -> None:
    """Count a photo that was read, and keep it where it is to be written and there is room.

    `parts` are those of `store.photo_checks.checked`: the photo, and failures of its items.
    """
    row = next(parts)
    if isinstance(row, Failure):
        changes.rows.append(row)
        return
    digest = hasher(row.image).digest()
    changes.listed[row.image_id] = listed, digest
    if known is not None and known[3:] == (digest, *_told(facts)):
        changes.unchanged += 1
        changes.touched += known.mtime_ns >= 0
        changes.rows += parts
        return
    if known is None:
        changes.added += 1
    else:
        changes.changed += 1
        changes.leaving.add(row.image_id)
    fits = changes.held + len(row.image) <= HELD_BYTES
    changes.held += len(row.image) if fits else 0
    changes.rows += [row, *parts] if fits else [listed]


def _trustworthy(listed: ListedPhoto, now_ns: int) -> ListedPhoto:
    """The entry for the next night; a time too new to be relied on becomes -1, which no file has."""
    young = not listed.etag and listed.mtime_ns > now_ns - COARSE_NS
    return ListedPhoto(listed.name, listed.size, -1) if young else listed


# ------------------------------------------------------------------------------------------------ writing


def _read_rest(folder: PhotoFolder, changes: PhotoChanges) -> Iterator[Photo | Failure]:
    """The rows, those that were not held read again; a file that changed meanwhile is taken as it is now."""
    again = folder.rows(row for row in changes.rows if isinstance(row, ListedPhoto))
    for row in changes.rows:
        if isinstance(row, ListedPhoto):
            listed, latest = next(again)
            first, *failures = checked(latest, len(folder.categories))
            if isinstance(first, Failure):
                changes.listed.pop(first.image_id)
            else:
                changes.listed[first.image_id] = listed, hasher(first.image).digest()
            yield from (first, *failures)
        else:
            yield row


def _sources(changes: PhotoChanges, folder: PhotoFolder) -> pa.Table:
    """How the folder looked, by rising image_id."""
    rows = []
    for image_id, (listed, digest) in sorted(changes.listed.items()):
        told = _told(folder.facts.get(listed.name, Facts()))
        rows.append((image_id, utf8(listed.name), listed.size, listed.mtime_ns, listed.etag, digest, *told))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(SOURCES_SCHEMA.names)}
    return pa.table(columns, schema=SOURCES_SCHEMA)
