"""A version in several parts as night and gate see it: published before, or built tonight; no row of it is read here.

Which garment is in which part follows from its photo alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.gallery.part_servers import InProcess, OnRay, Servers
from jobs.gallery.served import ServedGallery
from jobs.runs import cluster, tables
from jobs.runs.marks import as_json
from retrieval.gallery import Gallery
from retrieval.gallery_files import PART, RECORD, SCHEMA_OF_PARTS, VERSIONS, part_folder, read_record
from store.objects import ObjectStore

GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 over the golden ratio (Knuth, TAOCP 3, 6.4): it spreads any numbers


def part_of(image_ids: np.ndarray, parts: int) -> np.ndarray:
    """(N,) int64: the part, from 0, of photos (N,) int64; the same every night, and about as many in each.

    >>> part_of(np.arange(8), 4).tolist()
    [0, 2, 0, 3, 1, 0, 2, 1]
    """
    mixed = np.asarray(image_ids, np.int64).view(np.uint64) * GOLDEN
    return (mixed >> np.uint64(32)).astype(np.int64) * parts >> 32


@dataclass(frozen=True)
class PublishedParts:
    """A published version in parts as the driver of a night knows it: no row of it is read, no file fetched."""

    store: ObjectStore
    record: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.record["rows"])

    @property
    def version(self) -> str:
        return str(self.record["name"])

    @cached_property
    def items(self) -> pa.Table:
        """The image_id of every garment."""
        folder = f"{VERSIONS}/{self.version}"
        keys = [f"{folder}/{part_folder(self.record, part)}items.parquet" for part in range(len(self.record["parts"]))]
        return pa.concat_tables(tables.read(self.store, key, ["image_id"]) for key in keys)


def published(store: ObjectStore, name: str, *, check: bool = True) -> Gallery | PublishedParts:
    """A version for the night after it: opened where it has one part, `check` as of `Gallery`."""
    record = read_record(store, name)
    return PublishedParts(store, record) if record.get("parts") else Gallery(store, name, check=check)


@dataclass(frozen=True)
class PartFiles:
    """A part as it is stored: its entry in version.json, and name -> digest of its files."""

    record: Mapping[str, Any]
    files: Mapping[str, str]
    added: int = 0  # garments
    removed: int = 0


@dataclass
class BuiltParts:
    """A version whose parts are stored and whose version.json is not: what night and gate see of it."""

    store: ObjectStore
    name: str
    parts: list[PartFiles]
    shared: Mapping[str, str]  # name -> digest of the files that no part has alone
    rebuilt: str  # why all was built anew, "" where the version before was extended
    served: list[ServedGallery] = field(default_factory=list)

    @property
    def added(self) -> int:
        return sum(part.added for part in self.parts)

    @property
    def removed(self) -> int:
        return sum(part.removed for part in self.parts)

    def files(self) -> dict[str, str]:
        of_parts = ((f"{PART}{i}/{file}", d) for i, part in enumerate(self.parts) for file, d in part.files.items())
        return dict(of_parts) | dict(self.shared)

    def record(self) -> dict[str, Any]:
        """The entries of version.json that building knows; those at the top sum up the parts."""
        parts = [dict(part.record) for part in self.parts]
        kinds = sorted({part["index"]["kind"] for part in parts})
        rows, stored = sum(part["rows"] for part in parts), sum(p["rows"] / (1 - p["dead_share"]) for p in parts)
        errors = [
            (part["rows"], part["quantisation_error"]) for part in parts if part["quantisation_error"] is not None
        ]
        weight = sum(n for n, _ in errors)
        return {
            "schema": SCHEMA_OF_PARTS,
            "index": {"kind": " + ".join(kinds), "rows": rows, "dim": parts[0]["index"]["dim"]},
            "parameters": {},
            "rows": rows,
            "dead_share": 1 - rows / stored if stored else 0.0,
            "quantisation_error": sum(n * error for n, error in errors) / weight if weight else None,
            "parts": parts,
        }

    def open(self, record: Mapping[str, Any]) -> ServedGallery:
        """The version to ask before it is whole, by its record to be; open until `close`."""
        if not self.served:
            servers = servers_of(self.store, dict(record))
            self.served.append(ServedGallery(self.store, self.name, servers, record=dict(record)))
        return self.served[0]

    def write(self, store: ObjectStore, record: Mapping[str, Any]) -> None:
        """Write version.json, which makes the files of the parts a version."""
        store.write(f"{VERSIONS}/{self.name}/{RECORD}", as_json(record))

    def close(self) -> None:
        while self.served:
            self.served.pop().close()


def servers_of(store: ObjectStore, record: dict[str, Any] | None = None) -> Servers:
    """Servers of a gallery's parts for the gate: on the cluster where there is one."""
    return OnRay(store, record=record) if cluster.would_join() else InProcess(store, record=record)
