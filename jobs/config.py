"""Settings: profile < run file < `--set`, checked and frozen before any work starts.

In: the command line every stage shares. Out: one `Settings` record, passed whole to the stages. A key nobody knows and a
value that cannot be are refused with the place, the value and what is allowed. Nothing here is secret and nothing secret
may be put here: credentials come from the SDK's own chain (environment, profile, role), so a record of the settings is safe.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.cli import UserError

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "jobs" / "profiles"
BOXES = ("detected", "true")

Check = Callable[[Any, str], Any]  # (value as given, where it was given) -> value as kept; raises UserError


# ---------------------------------------------------------------------------------------------------------------------
# What a value may be.


def refuse(where: str, want: str, got: Any) -> UserError:
    return UserError(f"{where}: want {want}, got {got!r}")


def number(low: float, high: float = float("inf")) -> Check:
    def check(value: Any, where: str) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= min(high, sys.float_info.max)
        ):
            raise refuse(where, f"a number from {low:g}" + (f" to {high:g}" if high < float("inf") else " up"), value)
        return float(value)

    return check


def whole(low: int, high: int = 2**31) -> Check:
    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refuse(where, f"a whole number from {low}" + (f" to {high}" if high < 2**31 else " up"), value)
        return value

    return check


def gpus(value: Any, where: str) -> float:
    """Ray gives out shares of one GPU, or whole ones."""
    n = number(0.01, 64)(value, where)
    if n > 1 and n != int(n):
        raise refuse(where, "a share of one GPU (0.01 to 1) or a whole number of them", value)
    return n


def one_of(*allowed: Any) -> Check:
    def check(value: Any, where: str) -> Any:
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            raise refuse(where, " or ".join(map(str, allowed)), value)
        return value

    return check


def either(*checks: Check) -> Check:
    def check(value: Any, where: str) -> Any:
        reasons = []
        for option in checks:
            try:
                return option(value, where)
            except UserError as error:
                reasons.append(str(error).removeprefix(f"{where}: want ").rpartition(", got ")[0])
        raise refuse(where, " or ".join(reasons), value)

    return check


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise refuse(where, "a text", value)
    return value


def address(value: Any, where: str) -> str:
    """A path or URI without a user name or password in it."""
    if "@" in text(value, where).partition("://")[2].partition("/")[0]:
        raise UserError(f"{where}: credentials do not belong in settings; use the environment, a profile or a role")
    return value


def list_of(item: Check, *, least: int = 0) -> Check:
    def check(value: Any, where: str) -> tuple:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise refuse(where, f"a list of at least {least}" if least else "a list", value)
        return tuple(item(entry, f"{where}[{i}]") for i, entry in enumerate(value))

    return check


def distinct(items: Check) -> Check:
    def check(value: Any, where: str) -> tuple:
        kept = items(value, where)
        if any(entry in kept[:i] for i, entry in enumerate(kept)):
            raise refuse(where, "each one once", value)
        return kept

    return check


def model(value: Any, where: str) -> Any:
    """A shipped model's name, or a mapping with a model's own fields; `jobs.models` looks into it."""
    if isinstance(value, Mapping):
        name = value.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise refuse(f"{where}.name", "letters, digits and _ . + -, as it goes into file names", name)
        return dict(value)
    return text(value, where)


def box_kind(value: Any, where: str) -> str:
    """`detected` or `true`; YAML reads a bare true as the truth value."""
    return one_of(*BOXES)("true" if value is True else value, where)


def step(value: Any, where: str) -> dict:
    """What a step may be `retrieval.steps` knows, and looks at all of them together in `consistent`."""
    if not isinstance(value, Mapping):
        raise refuse(where, "{step: NAME, option: value, …}", value)
    return dict(value)


def optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


NONE = one_of(None)
AUTO = one_of("auto")


def setting(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


# ---------------------------------------------------------------------------------------------------------------------
# The settings.


@dataclass(frozen=True)
class Detect:
    """What a detector is fed and what is kept of its answer."""

    actors: int | str | None = setting(None, either(NONE, AUTO, whole(1)))  # None: as `actors` above
    batch_size: int = setting(8, whole(1, 4096))  # photos in one pass of the network
    score_threshold: float = setting(0.01, number(0, 1))  # boxes below it are not written
    max_per_image: int = setting(100, whole(1, 10_000))


@dataclass(frozen=True)
class Fusion:
    """How the detectors' boxes become one set: each method is a file of `postproc`, with its source."""

    method: str = setting("wbf", one_of("wbf", "nms", "soft_nms_linear", "soft_nms_gaussian", "nmw", "voting"))
    iou_threshold: float = setting(0.55, number(0, 1))
    sigma: float = setting(0.5, number(0.001))  # of soft_nms_gaussian; smaller is harsher
    skip_box_threshold: float = setting(0.01, number(0, 1))  # of a detector's boxes, before fusing
    thresholds: tuple[float, ...] | None = setting(
        None, optional(list_of(number(0, 1), least=1))
    )  # one a detector, in order, instead of skip_box_threshold
    conf_type: str = setting("avg", one_of("avg", "max", "box_and_model_avg", "absent_model_aware_avg"))
    weights: tuple[float, ...] | None = setting(None, optional(list_of(number(0), least=1)))  # one a detector, in order
    score_threshold: float = setting(0.01, number(0, 1))  # of the fused boxes
    min_votes: int = setting(1, whole(1, 127))  # detectors that must agree on a fused box
    masks: bool = setting(True, one_of(True, False))  # fuse the masks of those detectors that have some
    max_per_image: int = setting(100, whole(1, 10_000))


@dataclass(frozen=True)
class Items:
    """Which fused boxes are worth embedding."""

    score_threshold: float = setting(0.1, number(0, 1))
    iou_threshold: float = setting(0.7, number(0, 1))  # suppression between categories: a garment is one item
    max_per_image: int = setting(12, whole(1, 10_000))


@dataclass(frozen=True)
class Embed:
    """How crops become rows."""

    actors: int | str | None = setting(None, either(NONE, AUTO, whole(1)))  # None: as `actors` above
    batch_size: int = setting(32, whole(1, 65_536))  # crops in one pass of the network
    dtype: str = setting("float32", one_of("float16", "float32"))  # of the rows in the file


@dataclass(frozen=True)
class Search:
    """How shop items are ranked."""

    top_k: int = setting(20, whole(1, 1000))
    steps: tuple[dict, ...] = setting(({"step": "concat"},), list_of(step))  # in order: `retrieval.steps`
    pool: int = setting(200, whole(1, 100_000))  # best candidates that steps on lists look at
    weights: tuple[float, ...] | None = setting(
        None, optional(list_of(number(0), least=1))
    )  # one an embedder, in order; views averaged count as one


@dataclass(frozen=True)
class Gallery:
    """The published gallery: its index, and what a version must reach to be published (`jobs.gallery.gate`)."""

    index: str = setting("auto", one_of("auto", "flat", "hnsw", "ivf_flat", "ivf_pq"))
    memory_mb: float = setting(4096.0, number(1))  # while searching, and in each step of building; 10^6 bytes
    recall: float = setting(0.95, number(0.01, 1))  # recall@10 that an approximate index is to keep
    least_recall: float = setting(0.9, number(0, 1))  # at the gate
    copies: int = setting(16, whole(0, 10_000))  # known photos seen again at the gate; 0: none
    least_copies: float = setting(0.8, number(0, 1))
    least_canaries: float = setting(0.95, number(0, 1))
    most_gone: float = setting(0.5, number(0, 1))  # share of the photos of the night before that may be away tonight


@dataclass(frozen=True)
class Storage:
    endpoint_url: str | None = setting(None, optional(address))  # of an S3-compatible store; None: the SDK's own chain


@dataclass(frozen=True)
class Report:
    queries: int = setting(500, whole(0, 10_000))  # with pictures; all are listed
    top: int = setting(10, whole(1, 100))
    compare: str | None = setting(None, optional(address))  # OUTPUT of an earlier run over the same photos


@dataclass(frozen=True)
class Settings:
    """One run, completely: what is computed (`imageset` to `search`) and how (the rest)."""

    imageset: str = setting("", address)
    output: str = setting("", address)
    profile: str = setting("tiny", text)
    detectors: tuple[Any, ...] = setting((), distinct(list_of(model, least=1)))
    embedders: tuple[Any, ...] = setting((), distinct(list_of(model, least=1)))
    boxes: tuple[str, ...] = setting(BOXES, distinct(list_of(box_kind, least=1)))
    limit: int | None = setting(
        None, optional(whole(1))
    )  # photos: half consumers', half shops', each in the set's order
    max_pixels: int = setting(50_000_000, whole(1, 2**40))  # larger photos are refused before decoding
    detect: Detect = field(default_factory=Detect, metadata={"part": Detect})
    fusion: Fusion = field(default_factory=Fusion, metadata={"part": Fusion})
    items: Items = field(default_factory=Items, metadata={"part": Items})
    embed: Embed = field(default_factory=Embed, metadata={"part": Embed})
    search: Search = field(default_factory=Search, metadata={"part": Search})
    gallery: Gallery = field(default_factory=Gallery, metadata={"part": Gallery})
    report: Report = field(default_factory=Report, metadata={"part": Report})
    max_failed_share: float = setting(0.01, number(0, 1))
    weights_dir: str | None = setting(None, optional(address))  # None: weights/PROFILE of this repository
    allow_random_weights: bool = setting(False, one_of(True, False))  # try a pipeline out before anything is trained
    device: str = setting("auto", one_of("auto", "cpu", "cuda"))
    actors: int | str = setting("auto", either(AUTO, whole(1)))  # worker processes of a stage; auto: as many as devices
    gpus_per_actor: float = setting(1.0, gpus)  # a share of one, or whole ones
    threads_per_actor: int = setting(1, whole(1, 1024))
    models_per_actor: str | int = setting("all", one_of("all", 1))
    shard_deadline_s: float = setting(1800.0, number(1))  # an actor silent for longer on one shard is ended
    node_wait_s: float = setting(
        1800.0, number(1)
    )  # how long a stage waits for its first actor: a node may have to start
    storage: Storage = field(default_factory=Storage, metadata={"part": Storage})


RANDOM_WEIGHTS = {  # untrained detectors score everything near 0.01: keep a few boxes whatever their score
    "detect": {"score_threshold": 0.0, "max_per_image": 20},
    "fusion": {"score_threshold": 0.0, "skip_box_threshold": 0.0, "max_per_image": 20},
    "items": {"score_threshold": 0.0, "max_per_image": 20},
}


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to the record.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--imageset", required=True, help="image set to read: folder, file:// or s3://BUCKET/PREFIX")
    parser.add_argument("--output", required=True, help="folder of the run; the same line again continues it")
    parser.add_argument("--profile", choices=("tiny", "paper"), default="tiny", help="models and sizes (default: tiny)")
    parser.add_argument("--config", metavar="RUN.yaml", help="settings on top of the profile's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="one setting on top of both, dotted key, YAML value, e.g. fusion.method=nms; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, metavar="N", help="N photos only: half consumers', half shops' (default: all)"
    )
    parser.add_argument(
        "--check", action="store_true", help="look at versions, devices, storage and weights; start nothing"
    )
    parser.add_argument("--retry-failed", action="store_true", help="do again the shards that hold failed photos")
    parser.add_argument("--compare", metavar="OUTPUT2", help="an earlier run: the report shows what changed since")


def load(args: argparse.Namespace) -> Settings:
    """The settings of a command line.

    Raises:
        UserError: unknown key, impossible value or unreadable file, in one line.
    """
    given: dict[str, Any] = {}
    if args.config:
        merge(given, read_yaml(Path(args.config), "run file"))
    for override in args.overrides:
        merge(given, parse_override(override))
    merge(given, {"imageset": str(args.imageset), "output": str(args.output), "profile": args.profile})
    if args.limit is not None:
        given["limit"] = args.limit
    if args.compare is not None:
        merge(given, {"report": {"compare": str(args.compare)}})
    layers: dict[str, Any] = read_yaml(PROFILES / f"{args.profile}.yaml", "profile")
    if given.get("allow_random_weights") is True:
        merge(layers, RANDOM_WEIGHTS)
    merge(layers, given)
    settings = consistent(build(Settings, layers, ""))
    lasting(settings.imageset, "--imageset")
    lasting(settings.output, "--output")
    if settings.report.compare is not None:
        lasting(settings.report.compare, "--compare")
    return settings


def lasting(place: str, flag: str) -> None:
    """Refuse a relative folder in a submitted job: its working directory is a copy without `runs/`, which goes with the job."""
    submitted = "working_dir" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    if submitted and "://" not in place and not Path(place).is_absolute():
        raise UserError(
            f"{flag} {place}: a submitted job runs in a passing copy of the repository; give an absolute path or a bucket"
        )


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    content = parse_yaml(text, f"{what} {path}")
    if not isinstance(content, Mapping | None):
        raise UserError(f"{what} {path}: want keys and values, got a {type(content).__name__}")
    return dict(content or {})


def parse_yaml(text: str, where: str) -> Any:
    """Texts, finite numbers, truth values, lists and mappings; nothing else, and no more than a person would write.

    Raises:
        UserError: no YAML, a tag or a kind of value of another program, anchors that grow without end.
    """
    import yaml

    if len(text) > MAX_LETTERS:
        raise UserError(f"{where}: {len(text)} letters; want {MAX_LETTERS} at most")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, loader, where, {}) > MAX_VALUES:
            raise UserError(f"{where}: its anchors repeat into more than {MAX_VALUES} values; write out what is meant")
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:  # a value that belies its tag
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


MAX_LETTERS, MAX_VALUES = 200_000, 100_000
TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))


def _size(node: Any, loader: Any, where: str, sizes: dict[int, int]) -> int:
    """How many values a node is once every anchor is written out, each node looked at once."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UserError(f"{where}: an anchor repeats itself within itself")
        return sizes[id(node)]
    sizes[id(node)] = 0  # being counted
    if node.tag not in TAGS:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        line = node.start_mark.line + 1
        raise UserError(f"{where}, line {line}: {kind} is no plain value; put quotes around what is meant as text")
    parts: list[Any] = []
    if isinstance(node.value, list):
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    elif node.tag.endswith(":float") and not math.isfinite(loader.construct_yaml_float(node)):
        raise UserError(f"{where}, line {node.start_mark.line + 1}: want a number, got {node.value}")
    sizes[id(node)] = 1 + sum(_size(part, loader, where, sizes) for part in parts)
    return sizes[id(node)]


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=[1, 2]` -> {"a": {"b": [1, 2]}}."""
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {override}: want KEY=VALUE, e.g. --set fusion.method=nms")
    content = parse_yaml(value, f"--set {key}")
    for name in reversed(key.split(".")):
        content = {name: content}
    return content


def merge(base: dict[str, Any], top: Mapping[str, Any]) -> None:
    """Lay `top` over `base`, in place; mappings of settings mix, anything else is replaced."""
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            base[key] = dict(base[key])
            merge(base[key], value)
        else:
            base[key] = value


def build(kind: type, values: Any, where: str) -> Any:
    """A settings record of `kind` from a mapping, every value checked."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(values, Mapping):
        raise refuse(where, f"a mapping with {', '.join(fields)}", values)
    kept = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"unknown setting {place!r}; {hint}allowed here: {', '.join(fields)}")
        meta = fields[key].metadata
        kept[key] = build(meta["part"], value, place) if "part" in meta else meta["check"](value, place)
    return kind(**kept)


def consistent(settings: Settings) -> Settings:
    """Refuse settings that are each possible but not together."""
    from retrieval import steps

    names = [entry if isinstance(entry, str) else entry["name"] for entry in settings.embedders]
    try:
        asked = steps.parse(settings.search.steps, names)
    except ValueError as error:
        raise UserError(f"search.{error}") from None
    joined = steps.bases(names) if any(one.name == "views" for one in asked) else names
    for weights, models, where, noun in (
        (settings.fusion.weights, settings.detectors, "fusion.weights", "detector"),
        (settings.search.weights, joined, "search.weights", "embedder"),
    ):
        if weights is not None and (len(weights) != len(models) or not sum(weights) > 0):
            raise refuse(where, f"{len(models)} weights, one a {noun} and not all 0", list(weights))
    fusion, n_detectors = settings.fusion, len(settings.detectors)
    if fusion.thresholds is not None and len(fusion.thresholds) != n_detectors:
        raise refuse("fusion.thresholds", f"{n_detectors} thresholds, one a detector", list(fusion.thresholds))
    if fusion.min_votes > max(n_detectors, 1):
        raise refuse("fusion.min_votes", f"at most {n_detectors}, as many as there are detectors", fusion.min_votes)
    return settings


def record(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON, for run.json and fingerprints."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return record(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted keys whose values differ between two records of settings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where
