"""The folder of a run: what is finished, what is to do and why, what failed. The folder is the only truth about it.

A `Unit` is a piece of work with one mark, done/STAGE/[BOXES/][MODEL/]shard-00000.json, written when its output is safe. A mark
carries what the output was made from (`basis`: code version, the settings that matter, model and weights, digests of the input),
the BLAKE2b of that, the output's digests, the failed images of the shard, and times. A unit is finished while its basis today gives
the same fingerprint and its output is there. Inputs are named by digest, so work whose input came out the same again stands.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs import config, models
from jobs.cli import UserError
from jobs.config import ROOT, Settings
from jobs.lock import Lock
from jobs.models import Catalogue, Model
from jobs.run_log import RunLog
from jobs.selection import Selected, choose, select
from store.objects import ObjectMissing, ObjectStore, open_store

if TYPE_CHECKING:
    from store.imageset import ImageSet

STAGES = ("detect", "fuse", "embed", "rank", "evaluate", "report")
FOLDERS = ("detections/", "fused/", "items/", "embeddings/", "index/", "rankings/", "report/")
FILES = ("submission.json", "metrics.json", "failures.parquet")
WHOLE = "shard-00000"  # the mark's name where a stage takes the whole set at once


@dataclass(frozen=True)
class Unit:
    """One mark's worth of work.

    Attributes:
        path: STAGE/[BOXES/][MODEL/]SHARD, the mark's place under done/.
        outputs: keys under OUTPUT that finished work has left.
        basis: what the output follows from, plain JSON; None while work that comes before is unfinished.
        images: photos in it, for the plan and the rate.
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


@dataclass(frozen=True)
class Outcome:
    """What doing a unit gave; becomes its mark.

    Attributes:
        outputs: key under OUTPUT -> BLAKE2b-128 of the file, hex.
        rows: rows written.
        seconds: where the time went: read, infer, write, all by one worker.
        failures: {image_id, reason} of images without a result here.
        notes: anything worth keeping with the mark: node, device, halved batches.
    """

    outputs: Mapping[str, str]
    rows: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """An open run: settings, models, the photos it takes, and its marks."""

    settings: Settings
    store: ObjectStore
    images: "ImageSet"
    catalogue: Catalogue
    detectors: tuple[Model, ...]
    embedders: tuple[Model, ...]
    selected: Selected
    retry_failed: bool = False
    marks: dict[str, dict] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)  # key under OUTPUT -> bytes
    versions: dict[str, Any] = field(default_factory=dict)  # node -> packages
    retried: set[str] = field(default_factory=set)
    lock: Lock | None = None

    def __post_init__(self) -> None:
        self.log = RunLog(self.store)

    @property
    def box_kinds(self) -> tuple[str, ...]:
        """`detected`, and `true` where there is ground truth."""
        return tuple(kind for kind in self.settings.boxes if kind == "detected" or self.selected.items)

    def why(self, unit: Unit) -> str:
        """Why the unit is to be done; "" when it is finished."""
        mark = self.marks.get(unit.path)
        if unit.basis is None:
            return "after what comes before it"
        if mark is None:
            return "first time"
        if mark.get("fingerprint") != fingerprint(unit.basis):
            return what_changed(mark.get("basis") or {}, unit.basis)
        if gone := [key for key in unit.outputs if key not in self.present]:
            return f"output gone: {gone[0]}"
        if self.retry_failed and mark.get("failures") and unit.path not in self.retried:
            return "failed images, again"
        return ""

    def finished(self, unit: Unit) -> bool:
        return not self.why(unit)

    def digests(self, units: Iterable[Unit], *, only: str = "") -> dict[str, str] | None:
        """Output digests of finished units, keys beginning with `only`; None when one is unfinished."""
        found: dict[str, str] = {}
        for unit in units:
            if not self.finished(unit):
                return None
            found |= {key: digest for key, digest in self.marks[unit.path]["outputs"].items() if key.startswith(only)}
        return found

    def finish(self, unit: Unit, outcome: Outcome) -> None:
        """Write the mark of a unit whose output is safe."""
        if unit.basis is None:
            raise RuntimeError(f"{unit.path}: marked done before its inputs were")
        if self.lock is not None:
            self.lock.check()
        mark = {
            "schema": 1,
            "fingerprint": fingerprint(unit.basis),
            "basis": unit.basis,
            "outputs": dict(outcome.outputs),
            "images": unit.images,
            "rows": outcome.rows,
            "seconds": {name: round(seconds, 3) for name, seconds in outcome.seconds.items()},
            "failures": list(outcome.failures),
            "notes": dict(outcome.notes),
            "finished": now(),
        }
        self.store.write(unit.mark_key, as_json(mark))
        self.marks[unit.path] = mark
        self.retried.add(unit.path)
        self.present.update(dict.fromkeys(outcome.outputs, 0))

    def failures(self, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """The failures rows of these units by image; what fails for one reason in several places is told once, of the first stage."""
        first: dict[tuple[int, str], tuple[int, str]] = {}  # image_id, reason -> place of the stage, shard
        for unit in units:
            for failure in self.marks.get(unit.path, {}).get("failures", ()):
                key, seen = (failure["image_id"], failure["reason"]), (STAGES.index(unit.stage), unit.shard)
                first[key] = min(first.get(key, seen), seen)
        return [
            {"image_id": image_id, "shard": shard, "stage": STAGES[stage], "reason": reason}
            for (image_id, reason), (stage, shard) in sorted(first.items())
        ]

    def record(self) -> None:
        """Write run.json."""
        self.store.write("run.json", as_json(self.description()))

    def description(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "imageset": {
                "uri": self.settings.imageset, "digest": self.images.digest,
                "images": self.selected.images, "shards": len(self.selected.shards), "selected": self.selected.as_json(),
            },
            "settings": config.record(self.settings),
            "detectors": [models.describe(model) for model in self.detectors],
            "embedders": [models.describe(model) for model in self.embedders],
            "boxes": list(self.box_kinds),
            "versions": self.versions,
            "recorded": now(),
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Opening.


class Opened:
    """Context of an open run: lock held, marks read."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        *,
        retry_failed: bool = False,
        rows: Mapping[str, Sequence[int]] | None = None,
        images: "ImageSet | None" = None,
    ) -> None:
        self.settings, self.catalogue, self.retry_failed = settings, catalogue, retry_failed
        self.rows = rows  # shard -> the photos to take of it; None: as `settings.limit` says
        self.images = images  # that `rows` are of: the set may change meanwhile; None: the settings' set as it is now

    def __enter__(self) -> Run:
        from store.imageset import open_imageset

        settings = self.settings
        endpoint = settings.storage.endpoint_url
        images = open_imageset(settings.imageset, endpoint_url=endpoint) if self.images is None else self.images
        store = open_store(settings.output, endpoint_url=endpoint)
        store.probe(write=True)
        self.lock = Lock(store)
        self.lock.take()
        try:
            self.run = self._read(settings, images, store)
        except BaseException:
            self.lock.release()
            raise
        return self.run

    def _read(self, settings: Settings, images: "ImageSet", store: ObjectStore) -> Run:
        before = read_json(store, "run.json") or {}
        known = before.get("imageset", {})
        if known and known.get("digest") != images.digest:
            raise UserError(
                f"{settings.output}: holds a run over another image set ({known.get('uri')}, digest {known.get('digest')}; "
                f"{settings.imageset} has {images.digest}); choose another --output"
            )
        detectors, embedders = models.chosen(settings, self.catalogue)
        settings = models.with_fusion_weights(settings, detectors)
        chosen = self.rows is not None
        selected = choose(images, self.rows) if chosen else select(images, settings.limit, known.get("selected"))  # type: ignore[arg-type]
        run = Run(settings, store, images, self.catalogue, detectors, embedders, selected, self.retry_failed)
        run.lock = self.lock
        run.versions = before.get("versions", {}) | {"driver": versions()}
        wanted = run.description()
        run.marks = read_marks(store, {path for paths in expected(wanted).values() for path in paths} if before else ())
        run.present = read_listing(store)
        run.present |= unlisted(store, run.marks, run.present)
        if {k: v for k, v in before.items() if k != "recorded"} != {k: v for k, v in wanted.items() if k != "recorded"}:
            run.record()
        return run

    def __exit__(self, *_: object) -> None:
        self.run.log.publish()
        self.lock.release()


def expected(run: Mapping) -> dict[str, set[str]]:
    """The marks a finished run has, by stage, from its run.json. Whether a mark still fits the settings only the next start can say."""
    images = run["imageset"]
    rows = images["selected"]["rows"]
    shards = list(rows) if rows is not None else [f"shard-{i:05d}" for i in range(images["shards"])]
    models = [model["name"] for model in run["embedders"]]
    return {
        "detect": {f"detect/{model['name']}/{shard}" for model in run["detectors"] for shard in shards},
        "fuse": {f"fuse/{shard}" for shard in shards},
        "embed": {f"embed/{kind}/{model}/{shard}" for kind in run["boxes"] for model in models for shard in shards},
        "rank": {f"rank/{kind}/{WHOLE}" for kind in run["boxes"]},
        "evaluate": {f"evaluate/{WHOLE}"},
        "report": {f"report/{WHOLE}"},
    }


def read_marks(store: ObjectStore, paths: Iterable[str] = ()) -> dict[str, dict]:
    """Every mark under done/, by unit path; one that cannot be read counts as absent.

    Args:
        paths: of marks to ask for even where they are not listed: a store may list late, and what is done would be done again.
    """
    listed = {info.key for info in store.list("done/") if info.key.endswith(".json")}
    keys = sorted(listed | {f"done/{path}.json" for path in paths})
    marks = _each(store, functools.partial(read_json, store), keys)
    return {key[len("done/") : -len(".json")]: mark for key, mark in marks.items() if mark}


def read_listing(store: ObjectStore) -> dict[str, int]:
    """Keys of the run's outputs with their size in bytes."""
    found = {info.key: info.size for folder in FOLDERS for info in store.list(folder)}
    return found | {key: store.size(key) for key in FILES if store.exists(key)}


def unlisted(store: ObjectStore, marks: Mapping[str, Mapping], listed: Iterable[str]) -> dict[str, int]:
    """What marks name, is not listed and is there all the same."""
    named = {key for mark in marks.values() for key in mark.get("outputs", ())}
    return {key: 0 for key, there in _each(store, store.exists, sorted(named - set(listed))).items() if there}


def _each(store: ObjectStore, ask: Callable[[str], Any], keys: Sequence[str]) -> dict[str, Any]:
    """What `ask` says of each key; of a bucket many at once."""
    with ThreadPoolExecutor(32 if store.local_path is None else 1) as threads:
        return dict(zip(keys, threads.map(ask, keys), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints.


def fingerprint(basis: Mapping[str, Any]) -> str:
    """BLAKE2b-128 of the basis as JSON with sorted keys."""
    return digest(json.dumps(basis, sort_keys=True, separators=(",", ":")).encode())


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of(digests: Mapping[str, str]) -> str:
    """One digest for many files."""
    return fingerprint(digests)


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, the first difference that explains why finished work is done again."""
    parts = [
        ("settings", "settings changed: "),
        ("model", "model changed: "),
        ("inputs", "input changed"),
        ("code", "code changed"),
    ]
    reasons = []
    for key, words in parts:
        keys = list(config.differences(old.get(key), new.get(key)))
        if keys == ["weights"]:
            reasons.append("weights changed")
        elif keys:
            reasons.append(words + (", ".join(keys[:3]) if words.endswith(": ") else ""))
    return "; ".join(reasons) or "changed"


# ---------------------------------------------------------------------------------------------------------------------


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def read_json(store: ObjectStore, key: str) -> dict | None:
    try:
        content = json.loads(store.read(key))
    except (ObjectMissing, ValueError):
        return None
    return content if isinstance(content, dict) else None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, our own code's digest among them, without importing any of it."""
    import platform

    packages = ("torch", "torchvision", "timm", "onedl-mmdetection", "ray", "faiss-cpu", "pyarrow", "numpy")
    of_the_machine = {"python": platform.python_version(), "machine": platform.machine()}
    return of_the_machine | dict(_installed(packages)) | {"source": _source()}


@functools.cache
def _source() -> str:
    """Digest of every Python file of ours that workers run."""
    digest = hashlib.sha256()
    for folder in ("detection", "jobs", "postproc", "pretrained", "retrieval", "store"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def _installed(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    from importlib import metadata

    found = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return tuple(found)
