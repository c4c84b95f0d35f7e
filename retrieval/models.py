"""The embedders by name: backbone, CGD branches, size and weights of each. Plain data; `retrieval.embedder` loads them.

Adding one is one constant here; a user's own goes in the run file with the same fields, see `from_fields`. How a box
becomes a crop is one rule for all of them (`retrieval.crops`), so that models of one input size share the crops.
NAME@flip looks at mirrored crops, NAME@margin0.1 at wider ones, NAME@flip@margin0.1 at both: the same weights, rows of
their own.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from networks import specs
from networks.specs import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD, Spec

LARGEST = {"dim": 65_536, "input_size": 4096, "stride": 32}  # more would fill the memory of whoever tries it out
MARGINS = (-0.2, 1.0)  # of the box's sides, in a view
BRANCHES = ("spoc", "mac", "gem")  # as `retrieval.descriptors` has them; written out, for this file imports no torch


@dataclass(frozen=True)
class EmbedderSpec:
    """One embedder: everything needed to build it, feed it and trust its weights."""

    LOADER: ClassVar[str] = "retrieval.embedder:load"

    name: str  # short; goes into file names, run files and the report
    timm_id: str  # backbone, `architecture` or `architecture.weights_tag` as timm spells it
    # global descriptors of the CGD head, arXiv:1903.10663; the first feeds the classifier in training
    branches: tuple[str, ...] = ("spoc", "gem")
    dim: int = 1536  # D, length of one row; a multiple of the number of branches
    input_size: int = 224  # side of the square crops in pixels
    # pixels per cell of the last feature map; 16 where CGD leaves the last down-sampling out, 32 as published
    stride: int = 16
    # how many blocks of each stage are kept, of networks that have `blocks` (EfficientNets); () keeps all. Their last
    # stages hold most of the parameters and were made for classification.
    blocks: tuple[int, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB values 0 to 255, per channel
    std: tuple[float, float, float] = IMAGENET_STD
    weights: str = ""  # our fine-tuned safetensors under the weights folder; "" means the backbone as published
    sha256: str = ""  # of that file, checked before the first batch; "" accepts any (a user's own file)
    licence: str = "Apache-2.0"  # of the weights
    flip: bool = False  # it is shown mirrored crops; set by `viewed` alone, like `margin`
    margin: float = 0.0  # of its crops, as `retrieval.crops.crop` takes it


_TINY: dict[str, Any] = dict(dim=512, input_size=160, mean=LITE_MEAN, std=LITE_STD)

LITE0_SG = EmbedderSpec(
    "lite0-sg",
    "tf_efficientnet_lite0",
    ("spoc", "gem"),
    weights="lite0-sg.safetensors",
    sha256="b68d7b9d64ff15c8f11336cab077e70148e96664f7c42d56e571b9f3785dbde2",
    **_TINY,
)
LITE1_GM = EmbedderSpec(
    "lite1-gm",
    "tf_efficientnet_lite1",
    ("gem", "mac"),
    weights="lite1-gm.safetensors",
    sha256="b6083acd53419ca8c4919fa7c190071ff63288eef1494a2df600f554899b7663",
    **_TINY,
)
LITE2_SM = EmbedderSpec(
    "lite2-sm",
    "tf_efficientnet_lite2",
    ("spoc", "mac"),
    blocks=(1, 3, 3, 4, 4, 3),
    weights="lite2-sm.safetensors",
    sha256="9d0e67a2187b6c53c0fdc65a226008f19b9c5c54a86e19ca22c8e5897fa1e5a1",
    **_TINY,
)

RESNET152_GM = EmbedderSpec("resnet152-gm", "resnet152.tv2_in1k", ("gem", "mac"), weights="resnet152-gm.safetensors")
SERESNEXT101_SGM = EmbedderSpec(
    "seresnext101-sgm", "seresnext101_32x4d.gluon_in1k", ("spoc", "gem", "mac"), weights="seresnext101-sgm.safetensors"
)

# file of jobs/fit_categories.py -> its sha256
CLASSIFIERS = {"categories.safetensors": "71d04d3258885b62c44aee77cb901220b1dff0c792eb8fed2360264451438769"}

PROFILES: dict[str, tuple[EmbedderSpec, ...]] = {
    "tiny": (LITE0_SG, LITE1_GM, LITE2_SM),
    "paper": (RESNET152_GM, SERESNEXT101_SGM),
}
ALL: tuple[EmbedderSpec, ...] = (*PROFILES["tiny"], *PROFILES["paper"])


def named(name: str) -> EmbedderSpec:
    """The shipped embedder of that name, or a view of it: `lite0-sg`, `lite0-sg@flip`, `lite0-sg@flip@margin0.1`.

    Raises ValueError where there is no such name or view; the message lists those there are.
    """
    base, at, view = name.partition("@")
    spec = specs.find(ALL, base, "embedder")
    return viewed(spec, view) if at else spec


def viewed(spec: Spec, view: str) -> Spec:
    """The embedder on mirrored crops (`flip`), on wider or narrower ones (`margin0.1`), or both (`flip@margin-0.1`).

    Raises ValueError for none of these, and a margin outside `MARGINS`, of 0, or not as Python writes it (0.10).

    >>> wide = viewed(LITE0_SG, "flip@margin0.1")
    >>> wide.name, wide.margin, wide.flip, wide.weights == LITE0_SG.weights
    ('lite0-sg@flip@margin0.1', 0.1, True, True)
    """
    parsed = specs.parse_view(view, "margin", MARGINS, unchanged=0.0)
    if parsed is None:
        low, high = MARGINS
        raise ValueError(
            f"embedder {spec.name!r} has no view {view[:80]!r}; want flip, marginSHARE with a share of the box from "
            f"{low:g} to {high:g} that is not 0 (margin0.1), or flip@marginSHARE"
        )
    flip, margin = parsed
    return dataclasses.replace(spec, name=f"{spec.name}@{view}", flip=flip, margin=margin)


def from_fields(fields: Mapping[str, Any]) -> EmbedderSpec:
    """A user's own embedder from the run file.

    The fields are `EmbedderSpec`'s but `flip` and `margin`; `base: NAME` to start from a shipped one; `view: flip` or
    another of `viewed`'s. Raises ValueError for an unknown or missing field, or a value of the wrong kind.
    """
    spec = specs.own(fields, EmbedderSpec, ALL, "embedder", needs="timm_id", hidden=("flip", "margin"))
    _check(spec)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def _check(spec: EmbedderSpec) -> None:
    """Refuse a spec that cannot be built or would see wrong pixels."""
    who = specs.check(spec, "embedder")
    if not isinstance(spec.timm_id, str):
        raise ValueError(f"{who}: timm_id wants text, got {spec.timm_id!r}")
    check_name(who, spec.name)
    for name, most in LARGEST.items():
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{who}: {name} wants a whole number from 1 to {most}, got {value!r:.90}")
    if spec.stride not in (8, 16, 32):
        raise ValueError(f"{who}: stride wants 8, 16 or 32, got {spec.stride}")
    if not isinstance(spec.blocks, tuple) or not all(type(kept) is int and kept >= 1 for kept in spec.blocks):
        raise ValueError(
            f"{who}: blocks wants whole numbers of at least 1, one for each stage kept, got {spec.blocks!r}"
        )
    if not isinstance(spec.branches, tuple) or not spec.branches or not set(spec.branches) <= set(BRANCHES):
        raise ValueError(f"{who}: branches wants some of {', '.join(BRANCHES)}, got {spec.branches!r}")
    if spec.dim % len(spec.branches):
        raise ValueError(f"{who}: dim {spec.dim} does not divide into {len(spec.branches)} branches")


def check_name(who: str, name: str) -> None:
    """Refuse a name that is no folder's: ValueError, beginning with `who`."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"{who}: the name becomes a folder; want letters, digits, '-', '_' and '.' only")
