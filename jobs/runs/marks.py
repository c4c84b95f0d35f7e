"""Marks: what says that a piece of work is finished, and from what its output was made.

A `Unit` is a piece of work with one mark, done/STAGE/[BOXES/][MODEL/]shard-00000.json, written when its output is safe.
A mark holds what the output follows from (`basis`: code version, the settings that matter, model and weights, digests
of the input), the BLAKE2b of that basis, the digests of the output, the shard's failed images, and times. Inputs are
named by digest, so work whose input came out the same again stays valid.
"""

import contextlib
import functools
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from store.copies import Copies, read_copies
from store.files import digest
from store.joined import joined_name
from store.objects import ObjectInfo, ObjectMissing, ObjectStore

# Stages in order, and the version of what each computes: raise it when the same settings and input give another output.
CODES = {"detect": 2, "fuse": 3, "embed": 1, "rank": 3, "evaluate": 4, "report": 5}
STAGES = tuple(CODES)
FOLDERS = ("detections/", "fused/", "items/", "embeddings/", "index/", "rankings/", "report/")
FILES = ("submission.json", "metrics.json", "failures.parquet")
COPIES = "done/copies-"  # how the files begin that hold copies of marks (`store.copies`)
WHOLE = "shard-00000"  # the last part of the mark's name where a stage takes the whole set at once
MARK = {"fingerprint": str, "basis": dict, "outputs": dict, "seconds": dict, "failures": list, "finished": str}
LATER_PARTS = {"stamps": dict, "replaced": list, "notes": dict}  # marks of earlier releases may have none
# in the notes of a mark of fuse: key of the items -> digest of that table without hypotheses, which embedding ignores
EMBEDDED = "embedded"
_ALIKE = ("settings", "model")  # parts of a basis
FAILURE = {"image_id": int, "reason": str}
CHANGES = {  # parts of a basis, and how a change of each is told
    "settings": "settings changed: ",
    "model": "model changed: ",
    "inputs": "input changed",
    "code": "code changed",
    "decoder": "decoder of photos changed",
}


@dataclass(frozen=True)
class Unit:
    """One mark's worth of work.

    Attributes:
        path: STAGE/[BOXES/][MODEL/]SHARD, the mark's place under done/.
        outputs: keys under OUTPUT that exist once the work is finished.
        basis: what the output follows from, plain JSON; None while work before it is unfinished.
        images: number of photos in it, for the plan and the rate.
    """

    path: str
    outputs: tuple[str, ...]
    basis: Mapping[str, Any] | None
    images: int = 0

    @property
    def stage(self) -> str:
        return self.path.partition("/")[0]

    @property
    def shard(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def mark_key(self) -> str:
        return f"done/{self.path}.json"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the basis, "" without one."""
        return "" if self.basis is None else fingerprint(self.basis)


@dataclass(frozen=True)
class Outcome:
    """The result of doing a unit; becomes its mark.

    Attributes:
        outputs: key under OUTPUT -> BLAKE2b-128 of the file, hex.
        rows: rows written.
        seconds: time spent in read, infer and write, all by one worker.
        failures: {image_id, reason} of images without a result here.
        notes: what else to keep with the mark: device, halved batches.
    """

    outputs: Mapping[str, str]
    rows: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


def mark_of(unit: Unit, outcome: Outcome, stamps: Mapping[str, str]) -> dict[str, Any]:
    """The content of a unit's mark; `stamps` of its outputs, by which `jobs.runs.replaced` knows them again."""
    return {
        "schema": 1,
        "fingerprint": unit.fingerprint,
        "basis": unit.basis,
        "outputs": dict(outcome.outputs),
        "stamps": dict(stamps),
        "images": unit.images,
        "rows": outcome.rows,
        "seconds": {name: round(seconds, 3) for name, seconds in outcome.seconds.items()},
        "failures": list(outcome.failures),
        "notes": dict(outcome.notes),
        "finished": now(),
    }


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, which differences between two bases make finished work be done again."""
    reasons = []
    for part, words in CHANGES.items():
        keys = list(differences(old.get(part), new.get(part)))
        if keys == ["weights"]:
            reasons.append("weights changed")
        elif keys:
            reasons.append(words + (", ".join(keys[:3]) if words.endswith(": ") else ""))
    return "; ".join(reasons) or "changed"


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted keys whose values differ between two records of settings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where


def expected(run: Mapping) -> dict[str, set[str]]:
    """The marks that a finished run has, by stage, from its run.json; whether they fit the settings is not known."""
    rows = run["selected"]["rows"]
    if rows is not None:
        shards = list(rows)
    else:
        sets = enumerate(run["imagesets"])
        shards = [name for i, entry in sets for name in entry.get("names") or numbered(i, entry["shards"])]
    models = [model["name"] for model in run["embedders"]]
    return {
        "detect": {f"detect/{model['name']}/{shard}" for model in run["detectors"] for shard in shards},
        "fuse": {f"fuse/{shard}" for shard in shards},
        "embed": {f"embed/{kind}/{model}/{shard}" for kind in run["boxes"] for model in models for shard in shards},
        "rank": {f"rank/{kind}/{WHOLE}" for kind in run["boxes"]},
        "evaluate": {f"evaluate/{WHOLE}"},
        "report": {f"report/{WHOLE}"},
    }


def numbered(image_set: int, count: int) -> list[str]:
    """The shards of a run's image set whose names nobody recorded: an ingested set numbers them from 0."""
    return [joined_name(image_set, f"shard-{i:05d}") for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading.


def read_marks(store: ObjectStore, paths: Iterable[str] = (), copies: Copies | None = None) -> dict[str, dict]:
    """Every mark under done/, by unit path; an unreadable one counts as absent.

    Args:
        paths: units whose marks are read even if they are not listed: a store may list late, and finished work would be
            done again.
        copies: where marks that have no copy get one; None: nothing is written.
    """
    listed = {info.key: info.stamp for info in store.list("done/")}
    shared: dict[str, Any] = {}

    def taken(marks: Mapping[str, Any]) -> dict[str, dict]:
        return {key: _sharing(mark, shared) for key, mark in marks.items() if _is_mark(mark)}

    def copied(file: str) -> dict[str, dict]:
        return taken(read_copies(store, file, listed))

    def read(key: str) -> dict | None:
        with contextlib.suppress(ObjectMissing, ValueError, RecursionError):
            data, stamp = store.read_stamped(key)
            if mark := taken({key: json.loads(data)}).get(key):
                if copies:
                    copies.add(key, stamp, mark)
                return mark
        return None

    collecting = gc.isenabled()
    gc.disable()  # there may be a hundred thousand marks, without cycles: looking for some took a quarter of a start
    try:
        files = each(store, copied, [key for key in listed if key.startswith(COPIES)])
        marks: dict[str, Any] = {key: mark for found in files.values() for key, mark in found.items()}
        keys = {key for key in listed if key.endswith(".json")} | {f"done/{path}.json" for path in paths}
        marks |= each(store, read, sorted(keys - marks.keys()))
    finally:
        if collecting:
            gc.freeze()
            gc.enable()
    if copies:
        each(store, store.delete, [file for file, found in files.items() if not found])  # of marks replaced since
    return {key[len("done/") : -len(".json")]: mark for key, mark in sorted(marks.items()) if mark}


def _sharing(mark: dict, shared: dict[str, Any]) -> dict:
    """The mark, its names and the parts that most marks have alike taken from `shared`.

    Each mark is parsed apart, and would hold copies of its own of the settings, the model and every name: 4 kB instead
    of 1.2 (benchmarks/bookkeeping.py).
    """
    basis = mark["basis"]
    same = {part: shared.setdefault(json.dumps(basis[part]), basis[part]) for part in _ALIKE if part in basis}
    parts = {"basis": basis | same, "seconds": mark["seconds"]}
    mark |= {name: {sys.intern(key): value for key, value in part.items()} for name, part in parts.items()}
    return {sys.intern(name): value for name, value in mark.items()}


def _is_mark(content: Mapping[str, Any]) -> bool:
    """Whether the parts that are read of a mark are what a mark has; another program's JSON counts as no mark."""
    return (
        has_parts(content, MARK)
        and all(isinstance(content.get(name, kind()), kind) for name, kind in LATER_PARTS.items())
        and all(isinstance(seconds, int | float) for seconds in content["seconds"].values())
        and all(has_parts(failure, FAILURE) for failure in content["failures"])
    )


def read_listing(store: ObjectStore, marks: Mapping[str, Mapping], *, late: bool = True) -> dict[str, str]:
    """Key -> stamp of the outputs that exist.

    Args:
        late: whether the store may list late; then outputs that marks name and that are not listed are asked for.
    """
    folders = each(store, store.list, FOLDERS)
    listed = {info.key: info.stamp for infos in folders.values() for info in infos}
    named = {key for mark in marks.values() for key in mark.get("outputs", ())} if late else set()
    infos = each(store, functools.partial(_info, store), sorted({*named, *FILES} - listed.keys()))
    return listed | {key: info.stamp for key, info in infos.items() if info is not None}


def _info(store: ObjectStore, key: str) -> ObjectInfo | None:
    try:
        return store.info(key)
    except ObjectMissing:
        return None


def each(store: ObjectStore, function: Callable[[str], Any], keys: Sequence[str]) -> dict[str, Any]:
    """Key -> what `function` returns for it; many requests at once where the store is a bucket."""
    if store.local_path is not None:
        return {key: function(key) for key in keys}
    with ThreadPoolExecutor(32) as threads:
        return dict(zip(keys, threads.map(function, keys), strict=True))


def read_json(store: ObjectStore, key: str) -> dict | None:
    """A JSON object; None where there is none or it cannot be read."""
    try:
        content = json.loads(store.read(key))
    except (ObjectMissing, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def has_parts(content: Any, parts: Mapping[str, type]) -> bool:
    """Whether something read from JSON is an object that has each of these parts, of its type."""
    return isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in parts.items())


# ---------------------------------------------------------------------------------------------------------------------
# Writing.


def write_mark(store: ObjectStore, path: str, mark: dict[str, Any], copies: Copies) -> None:
    """Write the mark of the unit at `path`, and see to its copy."""
    key = f"done/{path}.json"
    copies.add(key, store.write_stamped(key, as_json(mark)), mark)


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def fingerprint(basis: Mapping[str, Any]) -> str:
    """BLAKE2b-128 of the basis as JSON with sorted keys, hex."""
    return digest(json.dumps(basis, sort_keys=True, separators=(",", ":")).encode())


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
