"""Versions of a gallery and the pointer to the current one: publish, list, roll back, prune.

A version is whole when its version.json is there. CURRENT is created only where there is none, and replaced only if it is still
what was read: of two who publish at once one wins, and the other's version stays where it is until it is pruned. A reader sees
one version or the next, never half of one. CURRENT remembers when each version came and went, so that prune can tell for how
long a version has been out of use.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from jobs.cli import UserError
from jobs.ledger import as_json
from retrieval.gallery import CURRENT, RECORD, VERSIONS, GalleryError, current, read_record
from store.objects import ObjectMissing, ObjectStore

GRACE_S = 24 * 3600.0  # a reader may hold a version for so long after it was superseded
REMEMBERED = 200  # publications


@dataclass(frozen=True)
class Listed:
    """A version as `--list` shows it.

    Attributes:
        state: current, earlier (was current once), ready (whole, never current) or broken (its version.json is missing).
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
    read_record(store, name)  # half a version is never pointed to
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
        record = read_record(store, name)
        state = "current" if now and now[0] == name else "earlier" if name in came else "ready"
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
        earlier = [entry["version"] for entry in _history(data)][::-1]
        usable = {one.name for one in known if one.state in ("earlier", "ready")}
        fallback = [one.name for one in reversed(known) if one.name in usable and one.name < left]
        to = next((name for name in [*_before(earlier, left), *fallback] if name in usable and name != left), None)
    if to is None or to not in {one.name for one in known if one.state != "broken"}:
        raise UserError(
            f"{store.uri}: no earlier whole version to go back to{f' named {to}' if to else ''}; `--list` shows what there is"
        )
    if to == left:
        raise UserError(f"{store.uri}: {to} is current already")
    point_to(store, to, data, why="rolled back")
    return left, to


def _before(newest_first: list[str], left: str) -> list[str]:
    """What was current before `left` last came, newest first."""
    return newest_first[newest_first.index(left) + 1 :] if left in newest_first else newest_first


def _unreadable(store: ObjectStore) -> bytes | None:
    try:
        return store.read(CURRENT)
    except ObjectMissing:
        return None


def prune(store: ObjectStore, keep: int, *, grace_s: float = GRACE_S, now: float | None = None) -> list[str]:
    """Remove all but the newest `keep` versions, and what a killed run left behind.

    Never the current one, none that was superseded within the grace time, and none that was written within it without ever being current.
    A version's version.json goes first, so that half of it is never taken for whole.

    Args:
        keep: whole versions to keep, the current one counted, at least 1.

    Returns:
        names of what was removed.
    """
    now = time.time() if now is None else now
    known = listed(store)
    kept = {one.name for one in [one for one in known if one.state != "broken"][-keep:]}
    removed = []
    for one in known:
        if one.state == "current" or (one.name in kept and one.state != "broken"):
            continue
        last = one.until or one.since or written_at(one.name)
        if one.state != "broken" and now - last < grace_s:
            continue
        keys = sorted(
            (info.key for info in store.list(f"{VERSIONS}/{one.name}/")), key=lambda key: not key.endswith(f"/{RECORD}")
        )
        for key in keys:
            store.delete(key)
        removed.append(one.name)
    return removed


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
