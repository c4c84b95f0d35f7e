"""The embedders by name: backbone, CGD branches, size and weights of each. Plain data; `retrieval.embedder` loads them.

Adding one is one constant here; a user's own goes in the run file with the same fields, see `from_fields`. How a box
becomes a crop is one rule for all of them (`retrieval.crops`), so that models of one input size share the crops. NAME@flip looks
at mirrored crops, NAME@margin0.1 at wider ones, NAME@flip@margin0.1 at both: the same weights, rows of their own.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE_MEAN, LITE_STD = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
BRANCHES = ("spoc", "mac", "gem")  # as `retrieval.descriptors` has them; written out, for this file imports no torch


@dataclass(frozen=True)
class EmbedderSpec:
    """One embedder: everything needed to build it, feed it and trust its weights.

    Attributes:
        name: short; goes into file names, run files and the report.
        timm_id: backbone, `architecture` or `architecture.weights_tag` as timm spells it.
        branches: global descriptors of the CGD head, arXiv:1903.10663; the first feeds the classifier in training.
        dim: D, length of one row; a multiple of the number of branches.
        input_size: side of the square crops in pixels.
        stride: pixels per cell of the last feature map; 16 where CGD leaves the last down-sampling out, 32 as published.
        blocks: how many blocks of each stage are kept, of networks that have `blocks` (EfficientNets); () keeps all. Their
            last stages hold most of the parameters and were made for classification.
        mean, std: of RGB values 0 to 255, per channel.
        weights: our fine-tuned safetensors under the weights folder; "" means the backbone as published.
        sha256: of that file, checked before the first batch; "" accepts any (a user's own file).
        licence: of the weights.
        flip: it is shown mirrored crops; margin: of its crops, as `retrieval.crops.crop` takes it. Set by `viewed` alone.
    """

    name: str
    timm_id: str
    branches: tuple[str, ...] = ("spoc", "gem")
    dim: int = 1536
    input_size: int = 224
    stride: int = 16
    blocks: tuple[int, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights: str = ""
    sha256: str = ""
    licence: str = "Apache-2.0"
    flip: bool = False
    margin: float = 0.0


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

PROFILES: dict[str, tuple[EmbedderSpec, ...]] = {
    "tiny": (LITE0_SG, LITE1_GM, LITE2_SM),
    "paper": (RESNET152_GM, SERESNEXT101_SGM),
}
ALL: tuple[EmbedderSpec, ...] = (*PROFILES["tiny"], *PROFILES["paper"])


def named(name: str) -> EmbedderSpec:
    """The shipped embedder of that name, or a view of it: `lite0-sg`, `lite0-sg@flip`, `lite0-sg@margin0.1`, `lite0-sg@flip@margin0.1`.

    Raises:
        ValueError: no such name, or no such view; the message lists those there are.
    """
    base, at, view = name.partition("@")
    return viewed(_shipped(base), view) if at else _shipped(base)


def viewed(spec: EmbedderSpec, view: str) -> EmbedderSpec:
    """The embedder as it sees mirrored crops (`flip`), wider or narrower ones (`margin0.1`, `margin-0.1`), or both (`flip@margin0.1`).

    Raises:
        ValueError: none of these; a margin outside -0.2 to 1, of 0, or written in another way than Python would (0.10).

    >>> wide = viewed(LITE0_SG, "flip@margin0.1")
    >>> wide.name, wide.margin, wide.flip, wide.weights == LITE0_SG.weights
    ('lite0-sg@flip@margin0.1', 0.1, True, True)
    """
    flip, margins = view.partition("@")[0] == "flip", view.split("@")
    margins = margins[flip:]
    if not (flip and not margins) and not (len(margins) == 1 and margins[0] in _written(margins[0], *MARGINS)):
        low, high = MARGINS
        raise ValueError(
            f"embedder {spec.name!r} has no view {view[:80]!r}; want flip, marginSHARE with a share of the box from {low:g} to "
            f"{high:g} that is not 0 (margin0.1), or flip@marginSHARE"
        )
    margin = float(margins[0].removeprefix("margin")) if margins else spec.margin
    return dataclasses.replace(spec, name=f"{spec.name}@{view}", flip=flip, margin=margin)


MARGINS = (-0.2, 1.0)


def _written(text: str, low: float, high: float) -> list[str]:
    """The one way to write the margin in `text`; none where it is no margin, out of range, or changes nothing."""
    try:
        value = float(text.removeprefix("margin"))
    except ValueError:
        return []
    return [f"margin{value:g}"] if low <= value <= high and value != 0 else []


def _shipped(name: str) -> EmbedderSpec:
    for spec in ALL:
        if spec.name == name:
            return spec
    raise ValueError(f"no embedder named {name!r}; there are: {', '.join(spec.name for spec in ALL)}")


def from_fields(fields: Mapping[str, Any]) -> EmbedderSpec:
    """A user's own embedder from the run file: `EmbedderSpec`'s fields but `flip` and `margin`, with `base: NAME` to start from a
    shipped one and `view: flip` or another of `viewed`'s.

    Raises:
        ValueError: unknown or missing field, or a value of the wrong kind.
    """
    allowed = [*(f.name for f in dataclasses.fields(EmbedderSpec) if f.name not in ("flip", "margin")), "view"]
    unknown = sorted(str(key) for key in set(fields) - {*allowed, "base"})
    if unknown:
        raise ValueError(
            f"embedder {fields.get('name', '?')!r}: unknown field {unknown[0]!r}; allowed: base, {', '.join(allowed)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
        if key not in ("base", "view")
    }
    if "base" not in fields and not {"name", "timm_id"} <= set(values):
        raise ValueError("an embedder of your own needs at least `name` and `timm_id`, or `name` and `base`")
    if "base" in fields:
        base = _shipped(fields["base"])
        if "weights" in values and "sha256" not in values:
            values["sha256"] = ""  # the base's digest is of the base's file
        spec = dataclasses.replace(base, **values)
    else:
        spec = EmbedderSpec(**values)
    _check(spec)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def _check(spec: EmbedderSpec) -> None:
    """Refuse what could not be built or would be fed wrongly."""
    who = f"embedder {spec.name!r}"
    for name in ("name", "timm_id", "weights", "sha256", "licence"):
        if not isinstance(getattr(spec, name), str):
            raise ValueError(f"{who}: {name} wants text, got {getattr(spec, name)!r}")
    if (
        not spec.name
        or not set(spec.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        or spec.name[0] == "."
    ):
        raise ValueError(f"{who}: the name becomes a folder; want letters, digits, '-', '_' and '.' only")
    for name in ("dim", "input_size", "stride"):
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{who}: {name} wants a whole number of at least 1, got {value!r}")
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
    for name in ("mean", "std"):
        value = getattr(spec, name)
        numbers = isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)
        if not numbers or (name == "std" and min(value) <= 0):
            raise ValueError(f"{who}: {name} wants three numbers for RGB values 0 to 255, got {value!r}")
