"""Versions of a gallery and the pointer to the current one: publish, list, roll back, prune.

A version is whole when its version.json exists. CURRENT is created only where there is none, and replaced only if it is
still what was read: of two runs that publish at once one wins, and the other's version stays until it is pruned. A
reader sees one version or the next, never half of one. CURRENT records when each version came and went, so that prune
knows how long a version has been out of use.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.gallery.results import FOLDER
from jobs.runs.catalogue import weights_folder
from jobs.runs.lock import Lock, check_file
from jobs.runs.marks import as_json
from jobs.runs.settings import Settings, record
from retrieval.gallery_files import CURRENT, PART, RECORD, VERSIONS, GalleryError, current, read_record
from store.errors import UserError
from store.objects import HIDDEN, ObjectStore, open_store

GRACE_S = 24 * 3600.0  # a reader may hold a version this long after it was superseded
WORK, NIGHTS = "work", "nights"  # folders: the run of a night's models while it lasts, and the summaries of nights
HISTORY = 200  # publications that CURRENT records
YEAR_9999 = 253_370_764_800  # seconds since 1970; no date can be shown after it
BUILD_PREFIX = f"{HIDDEN}gallery-"  # of the folder a version is built in: on the gallery's disk, or this machine's
# Settings that version.json keeps: those that decide what the models answer, and where the weights are.
KEPT_SETTINGS = (
    "profile", "detectors", "embedders", "weights_dir", "allow_random_weights", "max_pixels",
    "detect", "fusion", "items", "embed", "engine", "threads_per_actor", "storage",
)  # fmt: skip
UNLOCKED_S = 60.0  # a folder is locked as soon as it is made; an older one that nobody locks is a killed run's


@dataclass(frozen=True)
class VersionRow:
    """A version as `--list` shows it.

    Attributes:
        state: current, earlier (was current once), ready (whole, never current), refused (by the gate) or broken (its
            version.json is missing or unreadable).
        since, until: when it last became current and was superseded, seconds since 1970; 0 where it did not.
    """

    name: str
    state: str
    rows: int = 0
    kind: str = ""
    bytes: int = 0
    since: float = 0.0
    until: float = 0.0


def settings_record(settings: Settings) -> dict[str, Any]:
    """The settings that version.json keeps, with which later photos go through the same models; no credentials."""
    kept = {name: value for name, value in record(settings).items() if name in KEPT_SETTINGS}
    place, file = os.path.split(settings.search.classifier or "")
    # a relative path would be another folder elsewhere
    kept["search"] = {"classifier": f"{open_store(place).uri}/{file}" if place else file or None}
    if settings.weights_dir is not None:
        kept["weights_dir"] = weights_folder(settings).uri
    return kept


def pointer(store: ObjectStore) -> tuple[str, bytes] | None:
    """The current version's name and CURRENT's bytes; None where nothing is published yet."""
    return current(store) if store.exists(CURRENT) else None


def next_name(store: ObjectStore) -> str:
    """A name after all others: a number and the time, 000017-20261126T031500Z."""
    numbers = [int(name.partition("-")[0]) for name in names(store) if name.partition("-")[0].isdigit()]
    return f"{max(numbers, default=0) + 1:06d}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def names(store: ObjectStore) -> list[str]:
    """Every version there is a file of, rising."""
    return sorted({info.key.split("/")[1] for info in store.list(f"{VERSIONS}/")})


def point_to(store: ObjectStore, name: str, expected: bytes | None, *, why: str) -> None:
    """Make a whole version the current one.

    Args:
        expected: CURRENT as it was read before; None: there was none.
        why: published or rolled back, for the history.

    Raises:
        UserError: CURRENT has changed since, and stays as it is; or a file of the version was removed.
    """
    record = read_record(store, name)
    if missing := [file for file in record["files"] if not store.exists(f"{VERSIONS}/{name}/{file}")]:
        files = ", ".join(missing)
        raise UserError(f"{store.uri}: {name} lacks {files}, removed since; half a version is never published")
    entry = {"version": name, "at": round(time.time(), 3), "why": why}
    data = as_json({
        "version": name, "published": datetime.now(UTC).isoformat(timespec="seconds"), "token": uuid.uuid4().hex,
        "history": [*_history(expected), entry][-HISTORY:],
    })  # fmt: skip
    swapped = store.create(CURRENT, data) if expected is None else store.swap(CURRENT, data, expected)
    if not swapped:
        current_name = (pointer(store) or ("nothing",))[0]
        advice = f"{name} is whole and stays, and the next run starts from what is current"
        raise UserError(f"{store.uri}: {current_name} was published meanwhile; {advice}")


def _history(data: bytes | None) -> list[dict[str, Any]]:
    """The publications that CURRENT records, oldest first; what has another shape counts as none."""
    try:
        entries = json.loads(data or b"{}").get("history", [])
    except (ValueError, AttributeError, RecursionError):
        return []
    return [entry for entry in entries if _is_publication(entry)] if isinstance(entries, list) else []


def _is_publication(entry: Any) -> bool:
    """Whether an entry of the history names a version and a time that can be shown."""
    if not isinstance(entry, dict) or not isinstance(entry.get("version"), str):
        return False
    return isinstance(entry.get("at"), int | float) and 0 <= entry["at"] < YEAR_9999


def version_rows(store: ObjectStore) -> list[VersionRow]:
    """Every version, oldest first."""
    now = readable_pointer(store)
    came, went = _times(_history(now[1] if now else None))
    sizes: Counter[str] = Counter()
    for info in store.list(f"{VERSIONS}/"):
        sizes[info.key.split("/")[1]] += info.size
    rows = []
    for name, size in sorted(sizes.items()):
        since, until = came.get(name, 0.0), went.get(name, 0.0)
        try:
            record = read_record(store, name)
        except GalleryError:
            rows.append(VersionRow(name, "broken", bytes=size, since=since, until=until))
            continue
        good = all(figure.get("good") for figure in record.get("gate", {}).values())
        state = "current" if now and now[0] == name else "earlier" if name in came else "ready" if good else "refused"
        rows.append(VersionRow(name, state, record["rows"], record["index"]["kind"], size, since, until))
    return rows


def readable_pointer(store: ObjectStore) -> tuple[str, bytes] | None:
    """`pointer`, and None too where CURRENT cannot be read: a list is needed most when something is broken."""
    try:
        return pointer(store)
    except GalleryError:
        return None


def newest_advice(store: ObjectStore) -> str:
    """The advice of a version newer than the current one, which the gate refused: the current one does not have it."""
    now, every = readable_pointer(store), names(store)
    if not every or (now and every[-1] <= now[0]):
        return ""
    try:
        return str(read_record(store, every[-1]).get("advice") or "")
    except GalleryError:
        return ""


def training_record(store: ObjectStore, record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The record of the version whose training another one continues; that one's own where it is gone."""
    if record is None:
        return None
    try:
        return read_record(store, record.get("trained_in") or record["name"])
    except GalleryError:
        return record


def _times(history: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """When each version last came, and when it last went."""
    came = {entry["version"]: entry["at"] for entry in history}
    went = {before["version"]: after["at"] for before, after in pairwise(history)}
    return came, {name: at for name, at in went.items() if at > came[name] or name != history[-1]["version"]}


def roll_back(store: ObjectStore, to: str | None = None, *, write: bool = True) -> tuple[str, str]:
    """Point to the version before the current, or to one by name; returns the version left and the one current now.

    Without `write` both are only told.

    Raises:
        UserError: there is none to go back to.
    """
    now = readable_pointer(store)
    left, data = now or ("nothing readable", store.read(CURRENT) if store.exists(CURRENT) else None)
    rows = version_rows(store)
    if to is None:
        history = _history(data)
        below = _stack(history)
        given_up = {entry["version"] for entry in history} - set(below)
        usable = {row.name for row in rows if row.state in ("earlier", "ready")} - given_up - {left}
        without_history = [row.name for row in reversed(rows) if row.name < left]
        to = next((name for name in [*below[::-1], *without_history] if name in usable), None)
    states = {row.name: row.state for row in rows}
    if to is None or states.get(to, "broken") == "broken":
        named = f" named {to}" if to else ""
        raise UserError(f"{store.uri}: no earlier whole version to go back to{named}; `--list` shows what there is")
    if states[to] == "refused":
        advice = "lower its limit (gallery.least_…) for a night instead"
        raise UserError(f"{store.uri}: the gate refused {to}, see versions/{to}/version.json; {advice}")
    if to == left:
        raise UserError(f"{store.uri}: {to} is current already")
    if write:
        point_to(store, to, data, why="rolled back")
    return left, to


def _stack(history: list[dict[str, Any]]) -> list[str]:
    """What was published over what, the current version last; a rollback takes away all above the one it went to.

    >>> _stack([{"version": "a"}, {"version": "b"}, {"version": "a"}])
    ['a']
    """
    stack: list[str] = []
    for entry in history:
        name = entry["version"]
        if name in stack:
            del stack[stack.index(name) :]
        stack.append(name)
    return stack


def prune(
    store: ObjectStore,
    keep: int,
    *,
    lock: Lock | None = None,
    grace_s: float = GRACE_S,
    now: float | None = None,
    write: bool = True,
) -> list[str]:
    """Remove all but the newest `keep` versions, and what a killed run left; returns the names of what was removed.

    The current version stays, and so does one that was superseded within the grace time, or written within it without
    ever being current. A version without version.json goes at once: whoever was writing it is dead, since the lock is
    ours. One whose version.json is unreadable stays: a newer release may have written it. Results of models go with
    the last version that was made of them.

    Args:
        keep: whole versions to keep, at least 1; the current one counts, those that the gate refused do not.
        lock: held, and checked before every version is removed; None: nobody else can be at work.
        write: False only names the versions.

    Raises:
        GalleryError: CURRENT or its history cannot be read, so nobody knows what serves, or what did lately.
        UserError: another run took the lock over; what is left stays.
    """
    now = time.time() if now is None else now
    rows = version_rows(store)
    good = [row.name for row in rows if row.state not in ("broken", "refused")]
    serving = pointer(store)
    if serving and json.loads(serving[1]).get("history", []) != _history(serving[1]):
        reason = "its history has entries of another shape, so when a version was superseded is not known"
        raise GalleryError(f"{store.uri}/{CURRENT}: {reason}; `--rollback` or publish anew first")
    kept = {*good[-keep:], *(serving or ())[:1]}
    removed = []
    for row in [row for row in rows if row.name not in kept]:
        if row.state == "broken":
            if store.exists(f"{VERSIONS}/{row.name}/{RECORD}"):  # unreadable
                continue
        elif now - (row.until or row.since or written_at(row.name)) < grace_s:
            continue
        removed.append(row.name)
        if not write:
            continue
        if lock is not None:
            check_file(lock)
        _remove(store, row)
    if not write:
        return removed
    if lock is not None:
        check_file(lock)
    return removed + sweep(store)


def _remove(store: ObjectStore, row: VersionRow) -> None:
    """version.json goes first, so that half a version is never taken for a whole one."""
    results = None if row.state == "broken" else read_record(store, row.name)["results"]
    keys = [info.key for info in store.list(f"{VERSIONS}/{row.name}/")]
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{RECORD}")):
        store.delete(key)
    others = [other.name for other in version_rows(store) if other.state != "broken"]
    if results and results not in {read_record(store, other)["results"] for other in others}:
        for info in store.list(f"{FOLDER}/{results}/")[::-1]:  # a part's photos before its items
            store.delete(info.key)


def sweep(store: ObjectStore) -> list[str]:
    """Remove what killed runs were writing; by the holder of the lock. Returns names, relative to the gallery.

    A bucket shows nothing half written; what was built for it lies on the disk of the machine that built it. Parts are
    as large as a gallery and are stored before they are a version: those without a version.json go too.
    """
    removed = _sweep_parts(store)
    if store.local_path is None:
        sweep_here()
        return removed
    for path in sorted(store.local_path.rglob(f"{HIDDEN}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and not path.name.startswith(f"{HIDDEN}swap-"):  # others may be waiting for that lock
            path.unlink(missing_ok=True)
        else:
            continue
        removed.append(path.relative_to(store.local_path).as_posix())
    for folder in sorted((store.local_path / VERSIONS).glob("**/"), reverse=True)[:-1]:
        if not any(folder.iterdir()):
            folder.rmdir()
    return removed


def _sweep_parts(store: ObjectStore) -> list[str]:
    """Remove the parts of versions that nobody finished."""
    keys = [info.key for info in store.list(f"{VERSIONS}/")]
    whole = {key.split("/")[1] for key in keys if key.endswith(f"/{RECORD}")}
    half = {key.split("/")[1] for key in keys if f"/{PART}" in key} - whole
    for key in keys:
        if key.split("/")[1] in half:
            store.delete(key)
    return [f"{VERSIONS}/{name}" for name in sorted(half)]


@contextmanager
def passing(store: ObjectStore) -> Iterator[Path]:
    """A folder to build a version in, on the gallery's disk or (for a bucket) this machine's; see `sweep`."""
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=store.local_path) as folder:
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
            yield Path(folder)
        finally:
            os.close(held)


def sweep_here() -> None:
    """Remove folders in which killed runs built a version. A run at work, on any gallery, holds a lock on its own."""
    for path in Path(tempfile.gettempdir()).glob(f"{BUILD_PREFIX}*"):
        try:
            opened = os.open(path, os.O_RDONLY)
        except OSError:  # gone, or another user's
            continue
        try:
            if time.time() - os.fstat(opened).st_mtime > UNLOCKED_S:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(opened)


def written_at(name: str) -> float:
    """When a version was named, seconds since 1970; 0 where its name does not say."""
    try:
        return datetime.strptime(name.partition("-")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def table(store: ObjectStore) -> list[str]:
    """`--list`, line by line."""
    lines = [f"{'version':26}{'state':>9}{'rows':>11}  {'kind':9}{'MB':>9}  last current (UTC)"]
    for row in version_rows(store):
        since = datetime.fromtimestamp(row.since, UTC).strftime("%Y-%m-%d %H:%M") if row.since else "-"
        lines.append(f"{row.name:26}{row.state:>9}{row.rows:>11,}  {row.kind:9}{row.bytes / 1e6:>9.1f}  {since}")
    return lines
