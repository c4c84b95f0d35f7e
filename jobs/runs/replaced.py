"""Files under OUTPUT that another program has replaced since they were marked: taken as they are now.

A mark holds, beside the digest of each output, its stamp (`ObjectInfo.stamp`: size and time of change, or a bucket's
ETag), which a listing tells of every file at once. Where the stamp is another one, the bytes are compared by digest.
Whoever replaced a table means it: its work stays done, and what follows from it is done again. The mark then names the
new digest, and under `replaced` the keys.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.runs import tables
from jobs.runs.marks import each, write_mark
from jobs.runs.progress import say
from store.copies import Copies
from store.errors import UserError
from store.objects import ObjectStore

TABLES = {
    "detections/": tables.DETECTIONS,
    "fused/": tables.FUSED,
    "items/": tables.ITEMS,
    "embeddings/": tables.embeddings_schema(1, "float32"),
    "rankings/": tables.RANKINGS,
}
MAY_LACK = ("hypotheses", "query_hypotheses")  # which other programs do not know: then the own category alone counts
MANY = 1000  # files whose digests take long enough to be announced
MOST_NAMED = 3


def take_replaced(
    store: ObjectStore, marks: dict[str, dict], present: Mapping[str, str], copies: Copies | None
) -> None:
    """Bring the marks up to date with the outputs that exist, in `marks` and in the store.

    Args:
        marks: unit path -> mark. present: key -> stamp of the outputs that exist.
        copies: of the marks; None: nothing is written.

    Raises:
        UserError: a table was replaced by something that is no such table.
    """
    suspects = {
        path: keys
        for path, mark in marks.items()
        if (keys := [key for key in mark.get("outputs", ()) if _has_other_stamp(mark, key, present)])
    }
    keys = sorted({key for of_mark in suspects.values() for key in of_mark})
    if len(keys) >= MANY:
        say(f"{store.uri}: comparing {len(keys):,} files with their digests, this once")
    digests = each(store, store.digest, keys)
    replaced = []
    for path, of_mark in suspects.items():
        mark = marks[path]
        other = [key for key in of_mark if digests[key] != mark["outputs"][key]]
        for key in other:
            _check_table(store, key)
        replaced += other
        marks[path] = mark | {
            "outputs": mark["outputs"] | {key: digests[key] for key in other},
            "stamps": mark.get("stamps", {}) | {key: present[key] for key in of_mark},
            "replaced": sorted({*mark.get("replaced", ()), *other}),
        }
    if copies:
        each(store, lambda path: write_mark(store, path, marks[path], copies), sorted(suspects))
    if replaced:
        say(f"{_listed(replaced)}: replaced by another program; taken as they are, and what follows is done again")


def _has_other_stamp(mark: Mapping, key: str, present: Mapping[str, str]) -> bool:
    stamps = mark.get("stamps") or {}  # marks of earlier releases have none
    return key in present and stamps.get(key) != present[key]


def _check_table(store: ObjectStore, key: str) -> None:
    """Refuse a table that lacks columns or has them of another type than a run writes."""
    wanted = next((schema for folder, schema in TABLES.items() if key.startswith(folder)), None)
    if wanted is None:
        return
    advice = "write it as docs/formats.md says, or delete it to have it made again"
    try:
        with store.open(key) as file:
            found = pq.read_schema(file)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{store.uri}/{key}: replaced by what is no Parquet table; {advice}") from error
    for field in wanted:
        if field.name not in found.names:
            if field.name in MAY_LACK:
                continue
            raise UserError(f"{store.uri}/{key}: replaced by a table without {field.name}; {advice}")
        if not _fits(kind := found.field(field.name).type, field):
            raise UserError(f"{store.uri}/{key}: {field.name} is {kind}, want {field.type}; {advice}")


def _fits(kind: pa.DataType, field: pa.Field) -> bool:
    if field.name == "embedding":  # of any width, float16 or float32
        return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    return kind == field.type or field.name.endswith("category_id")  # which `tables.read` casts


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more
