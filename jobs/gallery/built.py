"""A version as it was built: its files in a local folder, opened, before the gate has seen it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.runs.marks import as_json
from retrieval.ann import AnnIndex
from retrieval.gallery import Gallery
from retrieval.gallery_files import LEARNED, PHOTOS_FILE, RECORD, VERSIONS
from store.files import file_digest
from store.objects import ObjectStore, open_store

SEED = 0  # of whatever is drawn while a version is built and judged
FILES = ("vectors.npy", "ids.npy", "index.faiss", "dead.npy", "items.parquet", LEARNED, PHOTOS_FILE)


class Published(Protocol):
    """A published version as the night after it knows it: a `Gallery`, or `PublishedParts`."""

    @property
    def version(self) -> str: ...
    @property
    def record(self) -> Mapping[str, Any]: ...
    @property
    def items(self) -> pa.Table: ...  # image_id of every garment, at least
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Built:
    """A version's files, or those of one of its parts, in a local folder, opened, and how they came to be."""

    folder: Path
    index: AnnIndex
    parameters: Mapping[str, Any]  # that the index is searched by
    items: pa.Table
    added: int  # garments
    removed: int
    rebuilt: str  # why all was built anew, "" where the version before was extended
    error: float  # quantisation error of a sample of tonight's rows; nan where there are none

    def record(self) -> dict[str, Any]:
        """The entries of version.json that building knows."""
        return {
            # readers of earlier releases may look for the forecast of seconds that was here
            "index": asdict(self.index.plan) | {"build_s": 0.0},
            "parameters": dict(self.parameters),
            "rows": self.index.rows,
            "dead_share": self.index.dead_share,
            "quantisation_error": None if np.isnan(self.error) else self.error,
        }

    def files(self) -> dict[str, str]:
        """Name -> digest of every file."""
        return {file: file_digest(self.folder / file) for file in FILES if (self.folder / file).exists()}

    def open(self, record: Mapping[str, Any]) -> Gallery:
        """The version where it was built, by its record to be: the folder is versions/NAME/ of a gallery of its own."""
        store = open_store(self.folder.parents[1])
        store.write(f"{VERSIONS}/{record['name']}/{RECORD}", as_json(record))
        return Gallery(store, record["name"], check=False)

    def write(self, store: ObjectStore, record: Mapping[str, Any]) -> None:
        """Write the files of the version under its name; version.json, which makes it one, last and once."""
        folder = f"{VERSIONS}/{record['name']}"
        for file in record["files"]:
            store.write_file(f"{folder}/{file}", self.folder / file)
        store.write(f"{folder}/{RECORD}", as_json(record))
