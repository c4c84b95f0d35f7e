"""`--limit N`: which photos a small run takes, so that its figures mean something.

Half are consumers' and half are shops' (consumers' one more when N is odd; where one side runs out, the other fills
up). Consumers' photos with a right answer in the image set come first, and their right shop photos: one for each query
before any gets a second. Whatever room is left is filled up. All are taken in the set's order.

What is right is decided as in the figures. Where a consumer's photo has a true item with a style, a query is such an
item, and its answers are shop photos with an item of the same pair_id and style. In other sets a query is a consumer's
photo: where both photos have a pair_id, it decides, else an equal product_id does. A query whose answers are all left
out of the run would count as wrong through no fault of the models, so it is not judged.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.items import field_of, with_field

if TYPE_CHECKING:
    from store.imageset import ImageSet

COLUMNS = ["source", "pair_id", "product_id", "items"]
READERS = 16  # shards read at once: in a bucket a shard is some reads, each a round trip


@dataclass(frozen=True)
class SetFacts:
    """What decides which photos are taken, in the set's order; some 60 bytes a photo.

    Attributes:
        shard: (N,) int64, place of the shard among those read. row: (N,) int64, row number in it.
        user: (N,) bool, whether it is a consumer's. pair_id: (N,) int64, 0 unknown.
        product: (N,) int64, number of the product_id, 0 where it is unknown.
        n_items: (N,) int64, number of true items. style: (sum of n_items,) int64, of the items, photo by photo.
    """

    shard: np.ndarray
    row: np.ndarray
    user: np.ndarray
    pair_id: np.ndarray
    product: np.ndarray
    n_items: np.ndarray
    style: np.ndarray


@dataclass(frozen=True)
class Choice:
    """The photos that a limited run takes, by their place in `SetFacts`.

    Attributes:
        photos: (K,) int64, rising.
        unjudged: (place, style) of every query whose answers were all left out; style 0: the photo is the query.
    """

    photos: np.ndarray
    unjudged: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Queries:
    """Every query of a set, and what it matches: each query wants some keys, each shop photo offers some.

    Attributes:
        photo: (Q,) int64, the consumer's. style: (Q,) int64, 0: the photo is the query.
        want, want_key: (W,) int64, number of a query and a key that it wants, by query.
        offer, offer_key: (S,) int64, place of a shop photo and a key that it offers, by key, then by place.
    """

    photo: np.ndarray
    style: np.ndarray
    want: np.ndarray
    want_key: np.ndarray
    offer: np.ndarray
    offer_key: np.ndarray

    def answered(self) -> np.ndarray:
        """(A,) int64, rising: the queries with a right shop photo in the set."""
        return np.unique(self.want[np.isin(self.want_key, self.offer_key)])

    def answers(self, query: int) -> np.ndarray:
        """(R,) int64, rising: the right shop photos of a query."""
        keys = self.want_key[slice(*np.searchsorted(self.want, [query, query + 1]))]
        spans = [slice(*np.searchsorted(self.offer_key, [key, key + 1])) for key in keys.tolist()]
        return np.unique(np.concatenate([self.offer[span] for span in spans]))


def read_facts(images: "ImageSet", shards: Sequence[str] | None = None) -> SetFacts:
    """The facts of every photo of these shards, None: of all; of a few at a time the columns are held, without
    pictures."""
    names = [shard.name for shard in images.shards] if shards is None else shards

    def facts_of(name: str) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        table = images.read(name, columns=COLUMNS)
        n_items = pc.list_value_length(table["items"]).to_numpy()
        return table.drop_columns(["items"]), n_items, field_of(table["items"], "style")

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(facts_of, names))
    none, lengths = np.zeros(0, np.int64), [len(table) for table, _, _ in parts]
    schema = pa.schema([("source", pa.string()), ("pair_id", pa.int64()), ("product_id", pa.string())])
    photos = pa.concat_tables([schema.empty_table(), *(table for table, _, _ in parts)])
    products = photos["product_id"].combine_chunks().dictionary_encode()
    unknown = products.dictionary.index("").as_py()
    product = products.indices.to_numpy().astype(np.int64)
    return SetFacts(
        shard=np.repeat(np.arange(len(lengths)), lengths),
        row=np.concatenate([none, *map(np.arange, lengths)]),
        user=pc.equal(photos["source"], "user").to_numpy(),
        pair_id=photos["pair_id"].to_numpy(),
        product=np.where(product == unknown, 0, product + 1),
        n_items=np.concatenate([none, *(n_items for _, n_items, _ in parts)]).astype(np.int64),
        style=np.concatenate([none, *(style for _, _, style in parts)]).astype(np.int64),
    )


def count(photos: SetFacts, chosen: np.ndarray | slice = slice(None)) -> dict[str, int]:
    """Consumers' photos, shops' photos, true items and those of shops, of all photos or of those at these places."""
    user, n_items = photos.user[chosen], photos.n_items[chosen]
    counts = {"users": user.sum(), "shops": (~user).sum(), "items": n_items.sum(), "shop_items": n_items[~user].sum()}
    return {name: int(value) for name, value in counts.items()}


def choose(photos: SetFacts, limit: int) -> Choice:
    """Choose at most `limit` photos, as the head of this file says."""
    users, shops = np.flatnonzero(photos.user), np.flatnonzero(~photos.user)
    n_users = min(len(users), max((limit + 1) // 2, limit - len(shops)))
    queries = _queries(photos)
    answered = queries.answered()
    first = np.isin(users, queries.photo[answered])
    users = np.sort(np.concatenate([users[first], users[~first]])[:n_users])
    asked = answered[np.isin(queries.photo[answered], users)].tolist()
    answers = [queries.answers(query).tolist() for query in asked]
    taken = _in_turn(answers, limit - n_users)
    others = shops[~np.isin(shops, list(taken))][: limit - n_users - len(taken)]
    left_out = [query for query, right in zip(asked, answers, strict=True) if taken.isdisjoint(right)]
    return Choice(
        np.sort(np.concatenate([users, np.array(sorted(taken), np.int64), others])),
        tuple((int(queries.photo[query]), int(queries.style[query])) for query in left_out),
    )


def without_unjudged(photos: pa.Table, rows: Sequence[int], unjudged: Iterable[tuple[int, int]]) -> pa.Table:
    """Photos of a shard without the truth of some queries: their items get style 0.

    A photo without another query loses its pair_id and product_id too, so that it is no query of its own.

    Args:
        photos: some of the columns of an image set.
        rows: (N,) the row number of each photo in its shard.
        unjudged: queries as (row number, style); style 0: the photo is the query.
    """
    place = {row: i for i, row in enumerate(rows)}
    queries = {(place[row], style) for row, style in unjudged}
    if not queries:
        return photos
    no_query = {i for i, _ in queries}
    if "items" in photos.column_names:
        styles = field_of(photos["items"], "style")
        owner = np.repeat(np.arange(len(photos)), pc.list_value_length(photos["items"]).to_numpy())
        styles = np.where([query in queries for query in zip(owner.tolist(), styles.tolist(), strict=True)], 0, styles)
        no_query -= set(owner[styles > 0].tolist())
        photos = _replaced(photos, "items", with_field(photos["items"], "style", styles))
    gone = pa.array(np.isin(np.arange(len(photos)), list(no_query)))
    for name, unknown in (("pair_id", 0), ("product_id", "")):
        if name in photos.column_names:
            photos = _replaced(photos, name, pc.if_else(gone, unknown, photos[name]))
    return photos


def _replaced(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)


def _in_turn(answers: Sequence[Sequence[int]], n: int) -> set[int]:
    """At most n shop photos: the first answer of each query that has none yet, then the others, turn by turn."""
    taken: set[int] = set()
    for right in answers:
        if len(taken) < n and taken.isdisjoint(right):
            taken.add(right[0])
    for turn in range(max(map(len, answers), default=0)):
        for right in answers:
            if len(taken) == n:
                return taken
            if turn < len(right):
                taken.add(right[turn])
    return taken


def _queries(photos: SetFacts) -> _Queries:
    item_photo = np.repeat(np.arange(len(photos.user)), photos.n_items)
    items = np.flatnonzero(photos.style > 0)
    of_users = photos.user[item_photo[items]]
    if of_users.any():
        return _item_queries(photos, item_photo, items[of_users], items[~of_users])
    return _photo_queries(photos)


def _item_queries(photos: SetFacts, item_photo: np.ndarray, asked: np.ndarray, offered: np.ndarray) -> _Queries:
    """Keys are (pair_id, style); `asked` and `offered` are the items of either side with a style."""
    _, pair = np.unique(photos.pair_id, return_inverse=True)
    key = pair[item_photo] * (int(photos.style.max()) + 1) + photos.style
    order = np.argsort(key[offered], kind="stable")
    offer, offer_key = item_photo[offered][order], key[offered][order]
    return _Queries(item_photo[asked], photos.style[asked], np.arange(len(asked)), key[asked], offer, offer_key)


def _photo_queries(photos: SetFacts) -> _Queries:
    """Keys are a pair_id, a product, and a product among the shop photos without a pair_id."""
    _, pair = np.unique(photos.pair_id, return_inverse=True)
    paired, known = photos.pair_id > 0, photos.product > 0
    by_pair, by_product, by_unpaired = 3 * pair, 3 * photos.product + 1, 3 * photos.product + 2

    def keys(side: np.ndarray, kinds: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.flatnonzero(side & chosen) for chosen, _ in kinds]
        return np.concatenate(rows), np.concatenate([key[row] for row, (_, key) in zip(rows, kinds, strict=True)])

    users = np.flatnonzero(photos.user)
    asker, want_key = keys(
        photos.user, [(paired, by_pair), (paired & known, by_unpaired), (~paired & known, by_product)]
    )
    offer, offer_key = keys(~photos.user, [(paired, by_pair), (known, by_product), (~paired & known, by_unpaired)])
    asked, offered = np.argsort(asker, kind="stable"), np.lexsort((offer, offer_key))
    want = np.searchsorted(users, asker[asked])
    return _Queries(users, np.zeros(len(users), np.int64), want, want_key[asked], offer[offered], offer_key[offered])
