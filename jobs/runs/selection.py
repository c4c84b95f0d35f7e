"""Which photos of an image set a run takes, shard by shard: all, or `--limit N` (`retrieval.limit`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval import limit as limits
from store.errors import UserError

if TYPE_CHECKING:
    from store.imageset import ImageSet


COUNTS = ("users", "shops", "items", "shop_items")  # of `Selected`


@dataclass(frozen=True)
class ShardTaken:
    """A shard and what is taken of it."""

    name: str  # as in the set, shard-00000
    digest: str  # of the shard's bytes
    images: int  # photos taken
    rows: tuple[int, ...] | None  # row numbers taken, rising; None for all
    bytes: int  # size of the shard
    unjudged: tuple[tuple[int, int], ...] = ()  # queries, see `limit.Choice`: (row number in the shard, style)

    @property
    def row_numbers(self) -> tuple[int, ...]:
        """Row numbers taken, spelt out."""
        return tuple(range(self.images)) if self.rows is None else self.rows

    def basis(self) -> dict[str, Any]:
        """What the results of work on the shard follow from."""
        return {"shard": self.digest} | ({} if self.rows is None else {"rows": list(self.rows)})


@dataclass(frozen=True)
class Selected:
    """The photos of a run: how many of consumers and shops, how many true items they show."""

    shards: tuple[ShardTaken, ...]
    limit: int | None
    users: int
    shops: int
    items: int
    shop_items: int  # of them those on shops' photos

    @property
    def n_unjudged(self) -> int:
        """Number of queries whose right answers are all in the image set and not in the run."""
        return sum(len(shard.unjudged) for shard in self.shards)

    def by_set(self, images: "ImageSet") -> list[list[ShardTaken]]:
        """The shards taken of each of the sets that `images` consists of."""
        taken = {shard.name: shard for shard in self.shards}
        of_set = [number for number, part in enumerate(images.sets) for _ in part.shards]
        shards: list[list[ShardTaken]] = [[] for _ in images.sets]
        for number, shard in zip(of_set, images.shards, strict=True):
            if shard.name in taken:
                shards[number].append(taken[shard.name])
        return shards

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(shard.name for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def box_kinds(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Of the kinds of boxes wanted those that these photos have.

        True boxes can be searched with where both sides have some, or where there is one side only. A UserError says
        that there is none of the kinds.
        """
        sides = [(self.users, self.items - self.shop_items), (self.shops, self.shop_items)]
        both = all(items or not photos for photos, items in sides) and self.items > 0
        if kinds := tuple(kind for kind in wanted if kind == "detected" or both):
            return kinds
        lack = "no photo that the run takes has" if not self.items else "not both consumers' and shops' photos have"
        raise UserError(f"boxes: {', '.join(wanted)}, and {lack} true boxes; use detected")

    def as_json(self) -> dict[str, Any]:
        """For run.json, from which the next start takes it instead of reading every shard."""
        chosen = self.limit is not None or any(shard.rows is not None for shard in self.shards)
        rows = {shard.name: list(shard.rows or ()) for shard in self.shards} if chosen else None
        unjudged = {shard.name: [list(query) for query in shard.unjudged] for shard in self.shards if shard.unjudged}
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"limit": self.limit, "rows": rows, "unjudged": unjudged, **counts}


def select(images: "ImageSet", limit: int | None, known: Mapping[str, Any] | None = None) -> Selected:
    """Choose the photos; `known` is an earlier `as_json` over the same sets, used when its limit is the same."""
    if known and known.keys() >= {"limit", "rows", *COUNTS} and known["limit"] == limit:
        return Selected(shards_taken(images, known), limit, **{name: known[name] for name in COUNTS})
    if limit is None:
        taken = shards_taken(images, {})
        return Selected(taken, None, **_counts(images, taken))
    photos = limits.read_facts(images)
    choice = limits.choose(photos, limit)
    names, shard = [shard.name for shard in images.shards], photos.shard[choice.photos]
    rows = {names[i]: photos.row[choice.photos[shard == i]].tolist() for i in np.unique(shard).tolist()}
    unjudged: dict[str, list[tuple[int, int]]] = {}
    for photo, style in choice.unjudged:
        unjudged.setdefault(names[photos.shard[photo]], []).append((int(photos.row[photo]), style))
    taken = shards_taken(images, {"rows": rows, "unjudged": unjudged})
    return Selected(taken, limit, **limits.count(photos, choice.photos))


def shards_taken(images: "ImageSet", known: Mapping[str, Any]) -> tuple[ShardTaken, ...]:
    """The shards that a run takes, from `Selected.as_json`: all of all shards where it names no rows."""
    rows, unjudged = known.get("rows"), known.get("unjudged") or {}
    shards = []
    for shard in images.shards:
        if rows is None:
            shards.append(ShardTaken(shard.name, shard.digest, shard.rows, None, shard.bytes))
        elif taken := tuple(rows.get(shard.name, ())):
            queries = tuple((row, style) for row, style in unjudged.get(shard.name, ()))
            shards.append(ShardTaken(shard.name, shard.digest, len(taken), taken, shard.bytes, queries))
    return tuple(shards)


def remark_on_pixels(images: "ImageSet", max_pixels: int) -> str:
    """A line where the image set took photos that a run with this limit refuses; else ""."""
    told = [part.manifest.source.get("arguments", {}).get("max_pixels") for part in images.sets]
    taken = max([limit for limit in told if isinstance(limit, int)], default=0)
    if taken <= max_pixels:
        return ""
    counts = f"the image set took photos of up to {taken:,} pixels, this run refuses photos of more than {max_pixels:,}"
    return f"{counts}; --set max_pixels={taken} takes them all"


def choose(images: "ImageSet", rows: Mapping[str, Sequence[int]]) -> Selected:
    """Take exactly these rows: shard name -> row numbers, rising; shards without any are left out."""
    shards = [
        ShardTaken(shard.name, shard.digest, len(rows[shard.name]), tuple(rows[shard.name]), shard.bytes)
        for shard in images.shards
        if rows.get(shard.name)
    ]
    return Selected(tuple(shards), None, **_counts(images, shards))


def _counts(images: "ImageSet", taken: Sequence[ShardTaken]) -> dict[str, int]:
    """COUNTS of the photos taken. A shard is read only where the manifest does not count just these photos of it."""
    shards = {shard.name: shard for shard in images.shards}
    counts, read = Counter(dict.fromkeys(COUNTS, 0)), list[ShardTaken]()
    for part in taken:
        shard = shards[part.name]
        if shard.counts is None or shard.removed or part.images < shard.rows:
            read.append(part)
        else:
            counts.update(shard.counts._asdict() | {"shops": shard.rows - shard.counts.users})
    photos = limits.read_facts(images, [part.name for part in read])
    first = np.searchsorted(photos.shard, np.arange(len(read)))
    places = [start + np.array(part.row_numbers, np.int64) for start, part in zip(first, read, strict=True)]
    counts.update(limits.count(photos, np.concatenate([np.zeros(0, np.int64), *places])))
    return dict(counts)
