"""run.json read back: which image sets a run is over, what it takes of them, its settings and models.

    {"schema": 2, "imagesets": [{"uri", "digest", "images", "shards"}], "selected": {…}, "settings": {…}, "detectors",
     "embedders", "boxes", "versions", "recorded"}

`images` and `shards` of a set are what the run takes of it, with `names` of the shards where numbers are left out;
`selected` is `jobs.runs.selection.Selected.as_json`.
Schema 1 had one set, "imageset": {"uri", "digest", "images", "shards", "selected"}, and is read as the same record.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.runs.marks import has_parts, read_json
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectStore

SCHEMA = 2
RECORD = {
    "imagesets": list, "selected": dict, "settings": dict, "detectors": list, "embedders": list, "boxes": list,
    "versions": dict, "recorded": str,
}  # fmt: skip
IMAGESET = {"uri": str, "digest": str, "images": int, "shards": int}


def read_record(store: ObjectStore) -> dict[str, Any]:
    """run.json of the run in a folder; {} where there is none. A UserError says that it is no record of a run."""
    record = read_json(store, "run.json") or {}
    if "imageset" in record:
        older = record.pop("imageset")
        selected = older.pop("selected", None) if isinstance(older, dict) else None
        record |= {"schema": SCHEMA, "imagesets": [older], "selected": selected}
    if record and not _is_record(record):
        raise UserError(f"{store.uri}/run.json is no record of a run; choose another --output")
    return record


def _is_record(content: Mapping[str, Any]) -> bool:
    """Whether every part that is read of a record has the shape that a run gives it."""
    return (
        has_parts(content, RECORD)
        and all(has_parts(entry, IMAGESET) for entry in content["imagesets"])
        and all(has_parts(model, {"name": str}) for model in [*content["detectors"], *content["embedders"]])
        and all(isinstance(kind, str) for kind in content["boxes"])
        and isinstance(content["selected"].get("rows"), dict | None)
    )


def is_over(record: Mapping[str, Any], images: ImageSet) -> bool:
    """Whether the run is over exactly these image sets."""
    return digests(record) == [part.digest for part in images.sets]


def check_sets(record: Mapping[str, Any], images: ImageSet, uris: Sequence[str], output: str) -> None:
    """Refuse other image sets than those the run is over, and those it is over in another order.

    A run may gain sets after those that it has. The ids of sets that are new to it are looked at. `uris` are those of
    `images.sets`, as the settings name them.

    Raises:
        UserError: the run in `output` is over other sets.
        ImageSetError: an image_id occurs in two sets.
    """
    known, now = digests(record), [part.digest for part in images.sets]
    if now[: len(known)] != known:
        if tuple(uris[: len(known)]) == tuple(entry.get("uri") for entry in record["imagesets"]):
            changed = next(uri for uri, was, digest in zip(uris, known, now, strict=False) if was != digest)
            raise UserError(f"{output}: holds a run over {changed} as it was before an update; choose another --output")
        had = ", ".join(f"{entry.get('uri')}, digest {entry.get('digest')}" for entry in record["imagesets"])
        given = ", ".join(f"{part.uri} has {part.digest}" for part in images.sets)
        raise UserError(
            f"{output}: holds a run over {'another image set' if len(known) == 1 else 'other image sets'} ({had}; "
            f"{given}); give {'it' if len(known) == 1 else 'them'} first, new sets after, or choose another --output"
        )
    if len(known) < len(now):
        images.check_ids()


def digests(record: Mapping[str, Any]) -> list[Any]:
    """Of the image sets that the run is over, in order."""
    return [entry.get("digest") for entry in record.get("imagesets", ())]
