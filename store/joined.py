"""Several image sets as one: whatever reads an `ImageSet` reads a `JoinedSet` in the same way.

    shard-00000 …         the first set's shards, as it names them
    set1-shard-00000 …    those of the second set, and so on: a set that is added changes nothing of those before it

Categories are joined by name, in order of first appearance. The category ids of later sets are translated while they
are read, so that one id means one name.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from store.files import digest
from store.imageset import ImageSet, open_imageset
from store.items import field_of, with_field
from store.manifest import ImageSetError, Shard, manifest_of


def open_imagesets(uris: Sequence[str | Path], *, endpoint_url: str | None = None) -> ImageSet:
    """The image set at one address, or those at several joined in this order; only manifests are read.

    Raises ImageSetError where an address occurs twice, and as `store.manifest.read_manifest` does. Whether an image_id
    occurs in two sets is not looked at here; `check_ids` does.
    """
    if not uris:
        raise ImageSetError("no image set: want one address or more")
    sets = [open_imageset(uri, endpoint_url=endpoint_url) for uri in uris]
    addresses = [images.uri for images in sets]
    if twice := [uri for number, uri in enumerate(addresses) if uri in addresses[:number]]:
        raise ImageSetError(f"{twice[0]} is given twice; name each image set once")
    return sets[0] if len(sets) == 1 else JoinedSet(sets)


def joined_name(number: int, shard: str) -> str:
    """What a shard of set `number`, counted from 0, is called among the joined.

    >>> joined_name(0, "shard-00007"), joined_name(2, "shard-00007")
    ('shard-00007', 'set2-shard-00007')
    """
    return f"set{number}-{shard}" if number else shard


class JoinedSet(ImageSet):
    """Two image sets or more that are read as one; picklable, and it holds no rows.

    `manifest` is that of a set with all their shards; there is no such file.
    """

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._sets = tuple(sets)
        names = tuple(dict.fromkeys(name for images in sets for name in images.categories))
        self._places: dict[str, tuple[int, str]] = {}  # shard -> number of its set, its name there
        self._translations = [_translation(images.categories, names) for images in sets]
        shards, skipped = list[Shard](), Counter[str]()
        for number, images in enumerate(sets):
            skipped.update(images.manifest.skipped)
            for shard in images.shards:
                name = joined_name(number, shard.name)
                self._places[name] = (number, shard.name)
                shards.append(replace(shard, name=name, digest=_digest(shard, self._translations[number])))
        failures = sum(images.manifest.failures for images in sets)
        self.manifest = manifest_of(shards, failures, {"adapter": "joined", "arguments": {}}, names, skipped)

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        return self._sets

    @property
    def uri(self) -> str:
        return ", ".join(images.uri for images in self.sets)

    @property
    def is_remote(self) -> bool:
        return any(images.is_remote for images in self.sets)

    def read(self, shard_name: str, columns: list[str] | None = None) -> pa.Table:
        if shard_name not in self._places:
            names = f"shard-00000 and up, and {joined_name(1, 'shard-00000')} and up"
            raise ImageSetError(f"{self.uri}: no shard {shard_name!r}; there are {len(self._places)}, {names}")
        number, own_name = self._places[shard_name]
        table, translation = self.sets[number].read(own_name, columns), self._translations[number]
        if translation is None or "items" not in table.column_names:
            return table
        place = table.column_names.index("items")
        ids = translation[field_of(table["items"], "category_id")]
        return table.set_column(place, table.schema.field(place), with_field(table["items"], "category_id", ids))

    def failures(self) -> pa.Table:
        return pa.concat_tables([images.failures() for images in self.sets])

    def sources(self) -> None:
        """None: sets are updated one by one."""

    def check_ids(self) -> None:
        """Read the image_id of every photo, and refuse one that occurs in two sets.

        Raises ImageSetError with both photos and both sets.
        """
        photos = self.photos(["image_id"])
        image_ids = photos["image_id"].to_numpy()
        order = np.argsort(image_ids, kind="stable")
        repeated = np.flatnonzero(image_ids[order][1:] == image_ids[order][:-1])
        if not len(repeated):
            return
        first, second = (self._described(photos, int(order[repeated[0] + step])) for step in (0, 1))
        count = f" ({len(repeated)} such ids)" if len(repeated) > 1 else ""
        raise ImageSetError(
            f"image_id {image_ids[order[repeated[0]]]} is in two image sets{count}: {first} and {second}; each photo "
            "may be in one set only; where they are different photos, ingest one set anew with --prefix TEXT"
        )

    def _described(self, photos: pa.Table, place: int) -> str:
        """The photo in that row of `photos`, for a message: its file name and its set."""
        row = photos.slice(place, 1).to_pylist()[0]
        number, own_name = self._places[row["shard"]]
        name = self.sets[number].read(own_name, ["file_name"])["file_name"][row["row"]].as_py()
        return f"{name!r} of {self.sets[number].uri}"


def _translation(own: Sequence[str], joined: Sequence[str]) -> np.ndarray | None:
    """(len(own) + 1,) int64: a set's category id -> the joined one; None where they are equal."""
    if tuple(joined[: len(own)]) == tuple(own):
        return None
    return np.array([0, *(1 + joined.index(name) for name in own)], np.int64)


def _digest(shard: Shard, translation: np.ndarray | None) -> str:
    """Hex, what work on the shard depends on: with other category ids, true items differ."""
    if translation is None:
        return shard.digest
    return digest(bytes.fromhex(shard.digest) + translation.astype("<i8").tobytes())
