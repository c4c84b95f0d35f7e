"""Embeddings that another program computed: `{name: stored, from: s3://BUCKET/rows/*.parquet}` in a run file.

Parquet tables with image_id, of the image set; item, the number of the garment within its photo as in the run's items
tables, and without that column one row a photo for whatever garments it has; embedding, a list of D numbers; and
optionally `boxes`, detected or true, the kind of boxes that a row is of.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from networks import stored
from store.errors import UserError

WHOLE_PHOTO = -1  # in place of an item's number
ROUNDING = 1e-6  # a row whose length is as near to 1 stays as it is, to the bit


@dataclass(frozen=True)
class StoredEmbedderSpec:
    """An embedder whose rows are read."""

    LOADER: ClassVar[str] = "networks.stored:refuse"
    stored: ClassVar[bool] = True

    name: str
    source: tuple[str, ...]
    dim: int = 0  # D, as the files have it
    weights: str = ""
    sha256: str = ""

    def found(self, endpoint_url: str | None) -> tuple["StoredEmbedderSpec", str]:
        """The spec with the files' number of dimensions, and their digest. UserError: no such file, or no rows."""
        files = stored.find(self.source, endpoint_url)
        for file in files:
            column = stored.read_table(file, ("image_id", "embedding"), most=1)["embedding"].drop_null()
            if len(column) and pa.types.is_nested(column.type) and (dim := len(column[0].as_py())):
                return dataclasses.replace(self, dim=dim), stored.digest_of(files)
        raise UserError(f"{self.name}: no embeddings in {', '.join(self.source)}; want a column of lists of numbers")


def from_fields(entry: Mapping[str, Any]) -> StoredEmbedderSpec:
    """The embedder of a run file's entry. Raises ValueError for a field of the wrong kind."""
    return StoredEmbedderSpec(entry["name"], stored.sources_of(entry, (), "embedder"))


@dataclass(frozen=True)
class StoredRows:
    """All rows of the files; those that are wrong have zeros and a reason."""

    image_id: np.ndarray  # (N,) int64
    item: np.ndarray  # (N,) int64, WHOLE_PHOTO for all items of the photo
    boxes: list[str]  # kind of boxes, "" for any
    embeddings: np.ndarray  # (N, D) float32 of unit length
    wrong: Mapping[int, str]  # row -> reason


def read(spec: StoredEmbedderSpec, endpoint_url: str | None) -> StoredRows:
    """Every row of the files. UserError: a file without the columns, or with ids that are no whole numbers."""
    ids, items = [], []
    kinds: list[str] = []
    rows: list[np.ndarray] = []
    wrong: dict[int, str] = {}
    for file in stored.find(spec.source, endpoint_url):
        table = stored.read_table(file, ("image_id", "embedding"), ("item", "boxes"))
        n = len(table)
        with_items = "item" in table.column_names
        ids.append(_whole(table["image_id"], file, "image_id"))
        items.append(_whole(table["item"], file, "item") if with_items else np.full(n, WHOLE_PHOTO))
        kinds += map(str, table["boxes"].to_pylist()) if "boxes" in table.column_names else [""] * n
        before = sum(len(part) for part in rows)
        matrix, bad = _matrix(table["embedding"], spec.dim, file)
        rows.append(matrix)
        wrong |= {before + row: reason for row, reason in bad.items()}
    return StoredRows(np.concatenate(ids), np.concatenate(items), kinds, np.concatenate(rows), wrong)


def _matrix(column: pa.ChunkedArray, dim: int, file: stored.StoredFile) -> tuple[np.ndarray, dict[int, str]]:
    """(N, dim) float32 of unit length, zeros where a row is none; row -> what is wrong with it."""
    kind = column.type
    if not (pa.types.is_nested(kind) and hasattr(kind, "value_type") and not pa.types.is_nested(kind.value_type)):
        raise UserError(f"{file[0].uri}/{file[1]}: embedding is {kind}, want lists of numbers")
    matrix, start = np.zeros((len(column), dim), np.float32), 0
    wrong: dict[int, str] = {}
    for chunk in column.chunks:
        lengths = (
            chunk.value_lengths() if not pa.types.is_fixed_size_list(kind) else pa.array([kind.list_size] * len(chunk))
        )
        fits = np.array([n == dim for n in lengths.to_pylist()], bool) & chunk.is_valid().to_numpy(zero_copy_only=False)
        try:
            flat = chunk.filter(pa.array(fits)).flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise UserError(f"{file[0].uri}/{file[1]}: embedding: {str(error)[:100]}; want numbers") from error
        matrix[start : start + len(chunk)][fits] = flat.reshape(-1, dim)
        wrong |= {start + row: f"its embedding has another length than {dim}" for row in np.flatnonzero(~fits).tolist()}
        start += len(chunk)
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist():
        wrong.setdefault(row, f"its embedding is {'all zeros' if norms[row] == 0 else 'not finite'}")
    sound = np.ones(len(matrix), bool)
    sound[list(wrong)] = False
    matrix[~sound] = 0
    longer = sound & (np.abs(norms - 1) > ROUNDING)
    matrix[longer] /= norms[longer, None]
    return matrix, wrong


def _whole(column: pa.ChunkedArray, file: stored.StoredFile, name: str) -> np.ndarray:
    try:
        if pa.types.is_integer(column.type) and not column.null_count:
            return column.cast(pa.int64()).to_numpy()
    except pa.ArrowException:  # beyond int64
        pass
    raise UserError(f"{file[0].uri}/{file[1]}: {name} is {column.type} with {column.null_count} nulls; want int64")
