"""Embedders of timm: any network there that gives features, as published or from a file. Plain data, without torch.

    {name: siglip, timm: vit_base_patch16_siglip_224.webli}
    {name: dino, timm: vit_small_patch14_dinov2.lvd142m, weights: s3://BUCKET/dino.pth, input_size: 224, pool: cls}

What an entry leaves out comes from the model's own configuration. A child process reads it there
(`retrieval.timm_networks`), for it takes torch, which a driver does without. How a crop becomes an input is timm's
evaluation transform: a square crop of `input_size` is enlarged by 1 / `crop` and its middle is taken.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from networks import hub, specs
from retrieval.models import BRANCHES, check_name, viewed
from store.errors import UserError

POOLS = ("model", "cls", "avg", "spoc", "mac", "gem")
ONE_MEAN = {"avg": "spoc"}  # two names for one thing
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
FIELDS = (
    "name", "timm", "weights", "sha256", "input_size", "pool", "branches", "dim", "mean", "std", "interpolation",
    "crop", "licence", "view",
)  # fmt: skip
ANSWER_S = 600  # for the child process: torch and timm take seconds, a configuration from the hub may take longer


@dataclass(frozen=True)
class TimmSpec:
    """One timm model as an embedder; `retrieval.timm_networks` builds it from these fields alone."""

    LOADER: ClassVar[str] = "retrieval.timm_networks:load"

    name: str  # short; goes into file names, run files and the report
    timm_id: str  # as timm spells it: `architecture.weights_tag`, or `hf-hub:ORG/NAME`
    architecture: str  # of timm's registry, with the tag where there is one
    arguments: Mapping[str, Any]  # what else timm builds it from, `img_size` among them
    # "model" (timm's own), "cls" (the class token), or a mean, maximum or generalised mean over the last map's places,
    # or over its tokens but class and register tokens
    pool: str
    branches: tuple[str, ...]  # of a CGD head on the last map, in place of `pool`; () for none
    width: int  # how many numbers the pool gives
    linear: bool  # whether a linear layer without bias follows the pool, from `width` to `dim` numbers
    dim: int  # D, length of one row
    input_size: int  # side of the square crops in pixels
    mean: tuple[float, float, float]  # of RGB values 0 to 255, per channel
    std: tuple[float, float, float]
    interpolation: str
    crop: float  # share of the enlarged crop's side that the network sees; at 1 a crop is seen whole and as it is
    # of the published weights: repository, revision and the file's names, best first; () where there are none
    published: tuple[str, ...] = ()
    weights: str = ""  # a file of one's own; "" means as published
    sha256: str = ""  # of the file, checked before the first batch
    licence: str = field(default="", compare=False)
    flip: bool = False  # it is shown mirrored crops; set by a view alone, like `margin`
    margin: float = 0.0  # of its crops, as `retrieval.crops.crop` takes it

    def fetched(self) -> "TimmSpec":
        """The same with the digest of the published weights, and the very commit they come from.

        They are fetched into this machine's cache where they are not there. UserError: that cannot be done, or they
        have another digest than the entry gives.
        """
        if not self.published:
            raise UserError(f"timm publishes no weights of {self.timm_id} on the hub; name a file with `weights`")
        published, digest = hub.pinned(self.published, self.sha256)
        return replace(self, published=published, sha256=digest)


def from_fields(fields: Mapping[str, Any]) -> TimmSpec:
    """An entry of the run file; `FIELDS` are its keys, `name` and `timm` at least.

    `mean` and `std` are of values 0 to 1, as timm writes them. `dim` with `pool` adds a linear layer. Raises
    ValueError for an unknown field, a value of the wrong kind, or a model that timm cannot build that way.
    """
    who = f"embedder {fields.get('name', '?')!r}"
    if unknown := sorted(str(key) for key in set(fields) - set(FIELDS)):
        raise ValueError(f"{who}: unknown field {unknown[0]!r}; with `timm` an entry has: {', '.join(FIELDS)}")
    if "name" not in fields:
        raise ValueError("embedder: one of timm needs a `name` besides `timm`")
    entry = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    _check(who, entry)
    pool = "map" if _branches_of(entry) else entry.get("pool", "model")
    asked = {"timm_id": entry["timm"], "input_size": entry.get("input_size"), "pool": pool}
    found = json.loads(_described(json.dumps(asked)))
    if "error" in found:
        raise ValueError(f"{who}: {found['error']}")
    plain = ("name", "weights", "sha256", "licence", "interpolation", "crop")
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    given: dict[str, Any] = {key: entry[key] for key in plain if key in entry}
    given |= {key: tuple(255 * value for value in entry[key]) for key in ("mean", "std") if key in entry}
    spec = TimmSpec(**found | _head(entry, found["width"]) | given)
    specs.check(spec, "embedder")
    return viewed(spec, str(entry["view"])) if "view" in entry else spec


def _head(entry: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Fields of the spec for what follows the network."""
    branches = _branches_of(entry)
    dim = entry.get("dim", 1536 if branches else width)
    pool = "" if branches else entry.get("pool", "model")
    return {"pool": pool, "branches": branches, "dim": dim, "linear": "dim" in entry and not branches}


def _branches_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of the CGD head; a pool over places that a linear layer follows is one of a single branch."""
    if "dim" in entry and entry.get("pool", "model") not in ("model", "cls"):
        return (ONE_MEAN.get(entry["pool"], entry["pool"]),)
    return tuple(entry.get("branches", ()))


def _check(who: str, entry: Mapping[str, Any]) -> None:
    """Refuse values of the wrong kind before anything is built."""
    for key in ("name", "timm", "weights", "sha256", "licence"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{who}: {key} wants text, got {entry[key]!r}")
    check_name(who, entry["name"])
    for key in ("input_size", "dim"):
        if key in entry and (type(entry[key]) is not int or not 1 <= entry[key] <= 65_536):
            raise ValueError(f"{who}: {key} wants a whole number of at least 1, got {entry[key]!r}")
    if "pool" in entry and "branches" in entry:
        raise ValueError(f"{who}: `branches` are a CGD head and `pool` has none; give one of them")
    if entry.get("pool", "model") not in POOLS:
        raise ValueError(f"{who}: pool wants one of {', '.join(POOLS)}, got {entry['pool']!r}")
    branches = entry.get("branches", BRANCHES)
    if not isinstance(branches, tuple) or not branches or not set(branches) <= set(BRANCHES):
        raise ValueError(f"{who}: branches wants some of {', '.join(BRANCHES)}, got {branches!r}")
    if "branches" in entry and entry.get("dim", 1536) % len(branches):
        raise ValueError(f"{who}: dim {entry.get('dim', 1536)} does not divide into {len(branches)} branches")
    if entry.get("interpolation", "bicubic") not in INTERPOLATIONS:
        wants = ", ".join(INTERPOLATIONS)
        raise ValueError(f"{who}: interpolation wants one of {wants}, got {entry['interpolation']!r}")
    crop = entry.get("crop", 1.0)
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0.1 <= crop <= 1:
        raise ValueError(f"{who}: crop wants a share of the crop's side from 0.1 to 1 (all of it), got {crop!r}")
    for key in ("mean", "std"):
        value = entry.get(key, (0.5, 0.5, 0.5))
        numbers = isinstance(value, tuple) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        if not numbers or not all(0 <= v <= 1 for v in value) or (key == "std" and min(value) <= 0):
            raise ValueError(f"{who}: {key} wants three numbers for RGB values 0 to 1, as timm has them, got {value!r}")


@functools.cache
def _described(asked: str) -> str:
    """What `retrieval.timm_networks` answers in a process of its own; asked once for each model."""
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "retrieval.timm_networks"]
    try:
        done = subprocess.run(
            command, input=asked, env={**os.environ, "PYTHONPATH": paths}, cwd=root, text=True, capture_output=True,
            timeout=ANSWER_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return json.dumps({"error": f"timm gave no answer in {ANSWER_S} s"})
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return json.dumps({"error": f"timm could not be asked: {last[:300]}"})
    return lines[-1]
