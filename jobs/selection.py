"""Which photos of an image set a run takes, shard by shard: all, or `--limit N`.

A limited run takes half its photos from consumers and half from shops (consumers first when N is odd; where one side runs out, the
other fills up), each in the set's order: N street photos alone would have no gallery to search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.imageset import ImageSet


@dataclass(frozen=True)
class ShardTaken:
    """A shard and what is taken of it.

    Attributes:
        name: as in the set, shard-00000.
        digest: of the shard's bytes.
        images: photos taken.
        rows: row numbers taken, rising; None for all.
        bytes: size of the shard.
    """

    name: str
    digest: str
    images: int
    rows: tuple[int, ...] | None
    bytes: int

    def basis(self) -> dict[str, Any]:
        """What work on the shard depends on."""
        return {"shard": self.digest} | ({} if self.rows is None else {"rows": list(self.rows)})


@dataclass(frozen=True)
class Selected:
    """The photos of a run: how many of consumers and shops, how many true items they show."""

    shards: tuple[ShardTaken, ...]
    limit: int | None
    users: int
    shops: int
    items: int

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def as_json(self) -> dict[str, Any]:
        """For run.json, from which the next start takes it instead of reading every shard."""
        chosen = self.limit is not None or any(shard.rows is not None for shard in self.shards)
        rows = {shard.name: list(shard.rows or ()) for shard in self.shards} if chosen else None
        return {"limit": self.limit, "rows": rows, "users": self.users, "shops": self.shops, "items": self.items}


def select(images: "ImageSet", limit: int | None, known: Mapping[str, Any] | None = None) -> Selected:
    """Choose the photos; `known` is an earlier `as_json` over the same set, used when its limit is the same."""
    if known and known.get("limit") == limit:
        rows, counts = known["rows"], (known["users"], known["shops"], known["items"])
    else:
        rows, counts = _look(images, limit)
    shards = []
    for shard in images.shards:
        if rows is None:
            shards.append(ShardTaken(shard.name, shard.digest, shard.rows, None, shard.bytes))
        elif taken := tuple(rows.get(shard.name, ())):
            shards.append(ShardTaken(shard.name, shard.digest, len(taken), taken, shard.bytes))
    return Selected(tuple(shards), limit, *counts)


def choose(images: "ImageSet", rows: Mapping[str, Sequence[int]]) -> Selected:
    """Take exactly these rows: shard name -> row numbers, rising; shards without any are left out."""
    shards = [
        ShardTaken(shard.name, shard.digest, len(rows[shard.name]), tuple(rows[shard.name]), shard.bytes)
        for shard in images.shards
        if rows.get(shard.name)
    ]
    users = shops = items = 0
    for shard in shards:
        table = images.read(shard.name, columns=["source", "items"]).take(list(shard.rows or ()))
        sources = table.column("source").to_pylist()
        users, shops = users + sources.count("user"), shops + sources.count("shop")
        items += sum(len(one or ()) for one in table.column("items").to_pylist())
    return Selected(tuple(shards), None, users, shops, items)


def _look(images: "ImageSet", limit: int | None) -> tuple[dict[str, list[int]] | None, tuple[int, int, int]]:
    """Rows to take by shard, and the counts (users, shops, items) in them."""
    photos: dict[str, list[tuple[str, int, int]]] = {"user": [], "shop": []}  # (shard, row, items) of each source
    half = None if limit is None else (limit + 1) // 2
    for shard in images.shards:
        table = images.read(shard.name, columns=["source", "items"])
        counts = table.column("items").to_pylist()
        for row, (source, items) in enumerate(zip(table.column("source").to_pylist(), counts, strict=True)):
            photos[source].append((shard.name, row, len(items or ())))
        if half is not None and min(map(len, photos.values())) >= half:
            break
    users, shops = photos["user"], photos["shop"]
    if limit is None:
        return None, (len(users), len(shops), sum(photo[2] for photo in users + shops))
    n_users = min(len(users), max((limit + 1) // 2, limit - len(shops)))
    users, shops = users[:n_users], shops[: limit - n_users]
    rows: dict[str, list[int]] = {}
    for name, row, _ in sorted(users + shops):
        rows.setdefault(name, []).append(row)
    return rows, (len(users), len(shops), sum(photo[2] for photo in users + shops))
