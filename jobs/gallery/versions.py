"""Versions of a gallery and the pointer to the current one: publish, list, roll back, prune.

A version is whole when its version.json is there. CURRENT is created only where there is none, and replaced only if it is still
what was read: of two who publish at once one wins, and the other's version stays where it is until it is pruned. A reader sees
one version or the next, never half of one. CURRENT remembers when each version came and went, so that prune can tell for how
long a version has been out of use.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.cli import UserError
from jobs.gallery.results import FOLDER
from jobs.ledger import as_json
from jobs.lock import KEY, Lock
from retrieval.gallery import CURRENT, RECORD, VERSIONS, GalleryError, current, read_record
from store.objects import HIDDEN, ObjectMissing, ObjectStore

GRACE_S = 24 * 3600.0  # a reader may hold a version for so long after it was superseded
REMEMBERED = 200  # publications
PASSING = f"{HIDDEN}gallery-"  # a version's folder while it is built, on the gallery's disk or, for a bucket, the machine's own
UNHELD_S = 60.0  # a folder is held as soon as it is made; older and held by nobody: its maker was killed


@dataclass(frozen=True)
class Listed:
    """A version as `--list` shows it.

    Attributes:
        state: current, earlier (was current once), ready (whole, never current), refused (by the gate) or broken (its version.json
            is missing or unreadable).
        since: when it last became current, seconds since 1970, 0 for never; until: when it was superseded, 0 while it is current.
    """

    name: str
    state: str
    rows: int = 0
    kind: str = ""
    bytes: int = 0
    since: float = 0.0
    until: float = 0.0


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
        UserError: CURRENT is another now, and stays as it is.
    """
    record = read_record(store, name)
    if gone := [file for file in record["files"] if not store.exists(f"{VERSIONS}/{name}/{file}")]:
        raise UserError(
            f"{store.uri}: {name} lacks {', '.join(gone)}, removed since; half a version is never published"
        )
    history = _history(expected)
    entry = {"version": name, "at": round(time.time(), 3), "why": why}
    content = {"version": name, "published": datetime.now(UTC).isoformat(timespec="seconds"), "token": uuid.uuid4().hex,
               "history": [*history, entry][-REMEMBERED:]}  # fmt: skip
    data = as_json(content)
    done = store.create(CURRENT, data) if expected is None else store.swap(CURRENT, data, expected)
    if not done:
        now = pointer(store)
        raise UserError(
            f"{store.uri}: {now[0] if now else 'nothing'} was published meanwhile; {name} is whole and stays, and the next run starts from what is current"
        )


def _history(data: bytes | None) -> list[dict[str, Any]]:
    try:
        found = json.loads(data or b"{}").get("history", [])
    except (ValueError, AttributeError):
        return []
    return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("at"), int | float)]


def listed(store: ObjectStore) -> list[Listed]:
    """Every version, oldest first."""
    now = pointer_or_none(store)
    came, went = _times(_history(now[1] if now else None))
    sizes: dict[str, int] = {}
    whole = set()
    for info in store.list(f"{VERSIONS}/"):
        name, _, file = info.key.removeprefix(f"{VERSIONS}/").partition("/")
        sizes[name] = sizes.get(name, 0) + info.size
        whole |= {name} if file == RECORD else set()
    found = []
    for name in sorted(sizes):
        if name not in whole:
            found.append(Listed(name, "broken", bytes=sizes[name]))
            continue
        try:
            record = read_record(store, name)
        except GalleryError:
            found.append(
                Listed(name, "broken", bytes=sizes[name], since=came.get(name, 0.0), until=went.get(name, 0.0))
            )
            continue
        good = all(figure.get("good") for figure in record.get("gate", {}).values())
        state = "current" if now and now[0] == name else "earlier" if name in came else "ready" if good else "refused"
        rows, kind = record.get("rows", 0), record.get("index", {}).get("kind", "")
        found.append(Listed(name, state, rows, kind, sizes[name], came.get(name, 0.0), went.get(name, 0.0)))
    return found


def pointer_or_none(store: ObjectStore) -> tuple[str, bytes] | None:
    """`pointer`, and None too where CURRENT cannot be read: a list is wanted most when something is broken."""
    try:
        return pointer(store)
    except GalleryError:
        return None


def _times(history: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """When each version last came, and when it last went."""
    came = {entry["version"]: entry["at"] for entry in history}
    went = {before["version"]: after["at"] for before, after in pairwise(history)}
    return came, {name: at for name, at in went.items() if at > came[name] or name != history[-1]["version"]}


def roll_back(store: ObjectStore, to: str | None = None) -> tuple[str, str]:
    """Point to an earlier version: the one before the current, or one by name.

    Returns:
        the version left and the version that is current now.

    Raises:
        UserError: there is none to go back to.
    """
    now = pointer_or_none(store)
    data = now[1] if now else _unreadable(store)
    known = listed(store)
    left = now[0] if now else "nothing readable"
    if to is None:
        history = _history(data)
        below = _stack(history)
        given_up = {entry["version"] for entry in history} - set(below)
        usable = {one.name for one in known if one.state in ("earlier", "ready")} - given_up - {left}
        never = [one.name for one in reversed(known) if one.name < left]  # whose history is lost
        to = next((name for name in [*below[::-1], *never] if name in usable), None)
    if to in {one.name for one in known if one.state == "refused"}:
        raise UserError(
            f"{store.uri}: the gate refused {to}, see versions/{to}/version.json; lower its limit (gallery.least_…) for a night instead"
        )
    if to is None or to not in {one.name for one in known if one.state != "broken"}:
        raise UserError(
            f"{store.uri}: no earlier whole version to go back to{f' named {to}' if to else ''}; `--list` shows what there is"
        )
    if to == left:
        raise UserError(f"{store.uri}: {to} is current already")
    point_to(store, to, data, why="rolled back")
    return left, to


def _stack(history: list[dict[str, Any]]) -> list[str]:
    """What was published over what, the current version last; a rollback takes away all above the one it went to.

    >>> _stack([{"version": "a", "why": "published"}, {"version": "b", "why": "published"}, {"version": "a", "why": "rolled back"}])
    ['a']
    """
    found: list[str] = []
    for entry in history:
        name = entry["version"]
        if name in found:
            del found[found.index(name) :]
        found.append(name)
    return found


def _unreadable(store: ObjectStore) -> bytes | None:
    try:
        return store.read(CURRENT)
    except ObjectMissing:
        return None


def prune(
    store: ObjectStore, keep: int, *, lock: Lock | None = None, grace_s: float = GRACE_S, now: float | None = None
) -> list[str]:
    """Remove all but the newest `keep` versions, and what a killed run left behind. For who holds the gallery's lock.

    Never the current one, none that was superseded within the grace time, and none that was written within it without ever being current.
    What has no version.json goes at once: whoever was writing it is gone, since the lock is ours. What has an unreadable one stays: a
    newer release may have written it. A version's version.json goes first, so that half of it is never taken for whole. Results of
    models go with the last version that was made of them.

    Args:
        keep: whole versions to keep, the current one counted, those that the gate refused not; at least 1.
        lock: asked before every version whether it is still ours; None: nobody else can be at work.

    Returns:
        names of what was removed.

    Raises:
        GalleryError: CURRENT cannot be read, so nobody knows what serves.
        UserError: another run took the lock over; what is left stays.
    """
    now = time.time() if now is None else now
    serving = (pointer(store) or ("",))[0]
    known = listed(store)
    kept = {one.name for one in [one for one in known if one.state not in ("broken", "refused")][-keep:]}
    removed = []
    for one in known:
        if one.name == serving or one.name in kept:
            continue
        if one.state == "broken":
            if store.exists(f"{VERSIONS}/{one.name}/{RECORD}"):  # unreadable, or the listing came late
                continue
        elif now - (one.until or one.since or written_at(one.name)) < grace_s:
            continue
        if lock is not None:
            still_ours(lock)
        _remove(store, one)
        removed.append(one.name)
    if lock is not None:
        still_ours(lock)
    return removed + sweep(store)


def still_ours(lock: Lock) -> None:
    """Raises:
    UserError: another run took over; the lock's own look is up to ten seconds old.
    """
    lock.check()
    try:
        ours = json.loads(lock.store.read(KEY)).get("token") == lock.token
    except (ObjectMissing, ValueError):
        ours = False
    if not ours:
        raise UserError(f"{lock.store.uri}: another run took over meanwhile; wait for it")


def _remove(store: ObjectStore, one: Listed) -> None:
    results = None if one.state == "broken" else read_record(store, one.name).get("results")
    keys = [info.key for info in store.list(f"{VERSIONS}/{one.name}/")]
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{RECORD}")):
        store.delete(key)
    if results and results not in {read_record(store, other.name).get("results") for other in _whole(store)}:
        for info in store.list(f"{FOLDER}/{results}/")[::-1]:  # a part's photos before its items
            store.delete(info.key)


def _whole(store: ObjectStore) -> list[Listed]:
    return [one for one in listed(store) if one.state != "broken"]


def sweep(store: ObjectStore) -> list[str]:
    """Remove what killed runs were writing when they ended; for who holds the lock.

    A bucket shows nothing half written; what was built for it lies on the disk of the machine that built it.

    Returns:
        names of the folders and files, under the gallery.
    """
    if store.local_path is None:
        _sweep_machine()
        return []
    found = []
    for path in sorted(store.local_path.rglob(f"{HIDDEN}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and not path.name.startswith(f"{HIDDEN}swap-"):  # a lock that others may be waiting at
            path.unlink(missing_ok=True)
        else:
            continue
        found.append(path.relative_to(store.local_path).as_posix())
    for folder in (store.local_path / VERSIONS).glob("*/"):
        if not any(folder.iterdir()):
            folder.rmdir()
    return found


@contextmanager
def passing(store: ObjectStore) -> Iterator[Path]:
    """A folder to build a version in, which `sweep` removes after a kill: on the gallery's own disk, or this machine's for a bucket."""
    with tempfile.TemporaryDirectory(prefix=PASSING, dir=store.local_path) as folder:
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)  # given back when the process ends, however it ends
            yield Path(folder)
        finally:
            os.close(held)


def _sweep_machine() -> None:
    """Other galleries' nights may be at work on this machine: what they build they hold."""
    for path in Path(tempfile.gettempdir()).glob(f"{PASSING}*"):
        try:
            folder = os.open(path, os.O_RDONLY)
        except OSError:  # gone, or another user's
            continue
        try:
            if time.time() - os.fstat(folder).st_mtime > UNHELD_S:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(folder)


def written_at(name: str) -> float:
    """When a version was named, seconds since 1970; 0 where its name does not say."""
    try:
        return datetime.strptime(name.partition("-")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def table(store: ObjectStore) -> list[str]:
    """`--list`, line by line."""
    lines = [f"{'version':26}{'state':>9}{'rows':>11}  {'kind':9}{'MB':>9}  last current (UTC)"]
    for one in listed(store):
        since = datetime.fromtimestamp(one.since, UTC).strftime("%Y-%m-%d %H:%M") if one.since else "-"
        lines.append(f"{one.name:26}{one.state:>9}{one.rows:>11,}  {one.kind:9}{one.bytes / 1e6:>9.1f}  {since}")
    return lines


def age_s(record: Mapping[str, Any], now: float | None = None) -> float:
    """Seconds since a version was written."""
    return (time.time() if now is None else now) - float(record["created"])
