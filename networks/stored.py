"""Files that another program computed, named in a run file with `from`: one, several, or a pattern of each.

from: boxes.json      from: s3://BUCKET/rows/*.parquet      from: [rows-1.parquet, rows-2.parquet]
"""

import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import UserError
from store.files import digest
from store.objects import ObjectMissing, ObjectStore, StorageError, open_store

StoredFile = tuple[ObjectStore, str]  # and its key


def sources_of(entry: Mapping[str, Any], optional: Sequence[str], noun: str) -> tuple[str, ...]:
    """The `from` of an entry as a tuple. Raises ValueError for a wrong one, and for a field that is none."""
    who, given = f"{noun} {entry.get('name', '?')!r}", entry["from"]
    allowed = ("name", "from", *optional)
    if unknown := sorted(str(key) for key in entry if key not in allowed):
        raise ValueError(f"{who}: unknown field {unknown[0]!r}; allowed with `from`: {', '.join(allowed)}")
    sources = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise ValueError(f"{who}: from wants a file, a pattern (rows/*.parquet) or a list of them, got {given!r}")
    return sources


def find(sources: Sequence[str], endpoint_url: str | None) -> list[StoredFile]:
    """The files, in the order of the sources, those of a pattern by name. UserError: a source that names no file."""
    found: list[StoredFile] = []
    for source in sources:
        plain = re.split(r"[*?\[]", source, maxsplit=1)[0]
        cut = (plain if plain != source else source).rfind("/") + 1
        store, rest = open_store(source[:cut] or os.curdir, endpoint_url=endpoint_url), source[cut:]
        if plain == source:
            names = [rest] if rest and store.exists(rest) else []
        else:
            names = [info.key for info in store.list() if fnmatch.fnmatchcase(info.key, rest)]
        if not names:
            raise UserError(f"from: no file {source}")
        found += [(store, name) for name in names]
    return found


def digest_of(files: Sequence[StoredFile]) -> str:
    """Of the contents of all files, in order, wherever they lie: hex."""
    return digest("".join(store.digest(key) for store, key in files).encode())


def read_table(
    file: StoredFile, columns: Sequence[str], optional: Sequence[str] = (), most: int | None = None
) -> pa.Table:
    """These columns of a Parquet file. UserError: it is none, or lacks one that is not optional.

    `most`: about so many rows from the top are enough.
    """
    store, key = file
    where = f"{store.uri}/{key}"
    try:
        with store.open(key) as opened:
            table = pq.ParquetFile(opened, pre_buffer=False)
            names = table.schema_arrow.names
            for column in columns:
                if column not in names:
                    has = ", ".join(names[:10])
                    raise UserError(f"{where}: no column {column}; it has {has}")
            chosen = [name for name in (*columns, *optional) if name in names]
            if most is None:
                read = table.read(chosen, use_threads=False)
            else:
                read = pa.Table.from_batches([*itertools.islice(table.iter_batches(most, columns=chosen), 1)])
            read.validate(full=True)  # text and offsets, for another program wrote them
            return read
    except ObjectMissing as error:
        raise UserError(f"{where}: vanished since the run was planned") from error
    except StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{where}: no Parquet table: {' '.join(str(error).split())[:100]}") from error


def refuse(spec: Any, device: str, **_: Any) -> Any:
    """In place of loading: what is stored answers for its own photos alone."""
    raise ValueError(f"{spec.name}: its results were computed elsewhere (from: …), so it cannot look at another photo")
