"""The detectors by name: architecture, photo size, weights, licence. Plain data; `detection.detector` loads them.

Adding one is one constant here (its architecture a function of `detection.architectures` or any mmdetection model
configuration); a user's own goes in the run file with the same fields, see `from_fields`. NAME@flip is one more
detector of the same weights, for mirrored photos; NAME@0.8 is one for smaller photos, NAME@flip@0.8 for both.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from detection import architectures as arch
from networks import specs
from networks.specs import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD
from store.categories import DEEPFASHION2, problem

FACTORS = (0.25, 4.0)  # of the size of photos, in a view
Spec = TypeVar("Spec", bound=Any)  # of any kind of detector that has `scale_px` and `flip`


@dataclass(frozen=True)
class DetectorSpec:
    """One detector: everything needed to build it, feed it and trust its weights."""

    LOADER: ClassVar[str] = "detection.detector:load"

    name: str  # short; goes into file names, run files and the report
    model: Mapping[str, Any] = field(repr=False)  # mmdetection's model configuration, without a data preprocessor
    scale_px: tuple[int, int] = (1333, 800)  # (long, short) sides a photo is fitted into, keeping its proportions
    pad_multiple_px: int = 32  # photos are padded on the right and at the bottom to multiples of this
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB values 0 to 255, as is std
    std: tuple[float, float, float] = IMAGENET_STD
    categories: tuple[str, ...] = DEEPFASHION2  # its own names of what it finds, in the order of the model's outputs
    weights: str = ""  # file of safetensors under the weights folder
    sha256: str = ""  # of that file; "" accepts any (a user's own file, with a line in the log)
    licence: str = "Apache-2.0"  # of the weights
    fusion_weight: float = 1.0  # of its scores in fusion, compared with 1; the run's `fusion.weights` overrides it
    flip: bool = False  # it sees mirrored photos; its boxes are those of the photo as given. Only `viewed` sets it
    # of `categories`: the run's name of each, None to leave its boxes out; one that is not here keeps its name
    classes: Mapping[str, str | None] = field(default_factory=dict)


_LITE0 = dict(type="EfficientNetLite", name="tf_efficientnet_lite0")
_LITE = (40, 112, 192)  # channels of lite0 and lite1 at strides 8, 16, 32
_TINY: dict[str, Any] = dict(scale_px=(320, 320), mean=LITE_MEAN, std=LITE_STD)
_RESNET = (256, 512, 1024, 2048)


def _shipped(name: str, model: Mapping[str, Any], **fields: Any) -> DetectorSpec:
    """A detector whose file of weights has its name."""
    return DetectorSpec(name, model, weights=f"{name}.safetensors", **fields)


ATSS_TINY = _shipped(
    "atss-tiny", arch.atss(_LITE0, _LITE, width=64, convs=2, n_levels=4),
    sha256="91b61462d22d6fe277e2ba8ba1685a64014ddad869fab031d06831b787c0fd74", **_TINY,
)  # fmt: skip
CASCADE_MASK_RCNN_TINY = _shipped(
    "cascade-mask-rcnn-tiny",
    arch.cascade_mask_rcnn(
        _LITE0 | dict(last_stage_blocks=2), _LITE, width=64, fc_width=72, mask_convs=2,
        finest_stride=8, n_proposals=100, n_samples=64, n_levels=4,
    ),
    sha256="d3cb025770291d5657157b84eff29a17cbc2b57f842db583fe2216492e16b857", fusion_weight=4.0, **_TINY,
)  # fmt: skip
CENTERNET_TINY = _shipped(
    "centernet-tiny", arch.centernet(_LITE0, arch.finest_level_neck(_LITE, 64), width=64, head_width=64),
    sha256="0152348e70ec3719d7a6cfbbeded3f3fdd6bc1741c3637bc1a69baa7fc607f23", fusion_weight=0.25, **_TINY,
)  # fmt: skip
RETINANET_LITE0_TINY = _shipped(
    "retinanet-lite0-tiny", arch.retinanet(_LITE0, _LITE, width=64, convs=2, n_levels=4, norm=True),
    sha256="07684093db7528317166284d02bc45337638e66595598265119e14e4f62148b7", **_TINY,
)  # fmt: skip
RETINANET_LITE1_TINY = _shipped(
    "retinanet-lite1-tiny",
    arch.retinanet(_LITE0 | dict(name="tf_efficientnet_lite1"), _LITE, width=64, convs=2, n_levels=4, norm=True),
    sha256="e9835b63a3d53fc665388ac03c546c43ac015cfebd1be6dca8410517a5ae4f05", **_TINY,
)  # fmt: skip

ATSS_R101 = _shipped("atss_r101_fpn", arch.atss(arch.resnet(101), _RESNET))
CASCADE_MASK_RCNN_R101 = _shipped("cascade-mask-rcnn_r101_fpn", arch.cascade_mask_rcnn(arch.resnet(101), _RESNET))
CENTERNET_R18 = _shipped(
    "centernet_r18-dcnv2",
    arch.centernet(arch.resnet(18) | dict(frozen_stages=-1, norm_eval=False), arch.deconvolution_neck(512)),
)
CENTERNET_HOURGLASS = _shipped("centernet_hourglass104", arch.centernet_hourglass(), pad_multiple_px=128)
RETINANET_R101 = _shipped("retinanet_r101_fpn", arch.retinanet(arch.resnet(101), _RESNET))
RETINANET_X101 = _shipped("retinanet_x101-64x4d_fpn", arch.retinanet(arch.resnext101_64x4d(), _RESNET))

PROFILES: dict[str, tuple[DetectorSpec, ...]] = {
    "tiny": (ATSS_TINY, CASCADE_MASK_RCNN_TINY, CENTERNET_TINY, RETINANET_LITE0_TINY, RETINANET_LITE1_TINY),
    "paper": (ATSS_R101, CASCADE_MASK_RCNN_R101, CENTERNET_R18, RETINANET_R101, RETINANET_X101),
}
ALL: tuple[DetectorSpec, ...] = (*PROFILES["tiny"], *PROFILES["paper"], CENTERNET_HOURGLASS)


def named(name: str) -> DetectorSpec:
    """The shipped detector of that name, or a view of it: `atss-tiny`, `atss-tiny@flip`, `atss-tiny@flip@1.25`.

    Raises ValueError for no such name or view; the message lists those there are.
    """
    base, at, view = name.partition("@")
    spec = specs.find(ALL, base, "detector")
    return viewed(spec, view) if at else spec


def viewed(spec: Spec, view: str) -> Spec:
    """The detector for mirrored photos (`flip`), another photo size (a factor of `scale_px`), or both (`flip@1.25`).

    Raises ValueError for none of these, and for a factor outside `FACTORS`, of 1, or not as Python writes it (0.80).

    >>> half = viewed(ATSS_TINY, "flip@0.5")
    >>> half.name, half.scale_px, half.flip, half.weights == ATSS_TINY.weights
    ('atss-tiny@flip@0.5', (160, 160), True, True)
    """
    parsed = specs.parse_view(view, "", FACTORS, unchanged=1.0)
    if parsed is None:
        factors = "from {:g} to {:g} that is not 1 (0.8)".format(*FACTORS)
        wish = f"want flip, a factor of its size {factors}, or flip@FACTOR"
        raise ValueError(f"detector {spec.name!r:.90} has no view {view[:80]!r}; {wish}")
    flip, factor = parsed
    long, short = (max(1, round(side * factor)) for side in spec.scale_px)
    return dataclasses.replace(spec, name=f"{spec.name}@{view}", scale_px=(long, short), flip=flip)


def from_fields(fields: Mapping[str, Any]) -> DetectorSpec:
    """A user's own detector from the run file.

    The fields are `DetectorSpec`'s but `flip`; `base: NAME` to start from a shipped one, whose heads are then made for
    the `categories`; `view: flip` or another view. Raises ValueError for an unknown or missing field, a name that can
    be no category's, or a value of the wrong kind.
    """
    spec = specs.own(fields, DetectorSpec, ALL, "detector", needs="model", hidden=("flip",))
    if "base" in fields and "categories" in fields and "model" not in fields and isinstance(spec.categories, tuple):
        spec = with_categories(spec, spec.categories)
    _check(spec)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def with_categories(spec: DetectorSpec, names: Sequence[str]) -> DetectorSpec:
    """The detector made to find these categories: as many outputs in its heads, in this order.

    >>> spec = with_categories(ATSS_TINY, ["cape", "dress"])
    >>> spec.categories, spec.model["bbox_head"]["num_classes"]
    (('cape', 'dress'), 2)
    """
    return dataclasses.replace(spec, categories=tuple(names), model=_with_outputs(spec.model, len(names)))


def _with_outputs(config: Any, n: int) -> Any:
    """A configuration with `n` in place of every `num_classes`."""
    if isinstance(config, Mapping):
        return {key: n if key == "num_classes" else _with_outputs(value, n) for key, value in config.items()}
    return type(config)(_with_outputs(part, n) for part in config) if isinstance(config, list | tuple) else config


def _check(spec: DetectorSpec) -> None:
    """Refuse a spec that cannot be built or would see wrong pixels."""
    who = specs.check(spec, "detector")
    if not isinstance(spec.model, Mapping) or not isinstance(spec.model.get("type"), str):
        raise ValueError(f"{who}: model wants mmdetection's mapping with its type, got {spec.model!r}")
    sides = spec.scale_px
    pair = isinstance(sides, tuple) and len(sides) == 2
    if not pair or not all(type(side) is int and 0 < side <= 2**13 for side in sides):
        raise ValueError(f"{who}: scale_px wants 2 sides in pixels, above 0, got {sides!r}")
    if type(spec.pad_multiple_px) is not int or spec.pad_multiple_px < 1:
        raise ValueError(f"{who}: pad_multiple_px wants a whole number of at least 1, got {spec.pad_multiple_px!r}")
    if type(spec.fusion_weight) not in (int, float) or not 0 <= spec.fusion_weight < math.inf:
        raise ValueError(f"{who}: fusion_weight wants a number from 0 up, got {spec.fusion_weight!r}")
    if not isinstance(spec.categories, tuple):
        raise ValueError(f"{who}: categories want a list of names, got {spec.categories!r}")
    if reason := problem(spec.categories) if spec.categories else "categories want at least one name":
        raise ValueError(f"{who}: {reason}")
    if _with_outputs(spec.model, n := len(spec.categories)) != spec.model:
        reason = f"its model does not tell as many categories apart as categories names, {n}; want a name for each"
        raise ValueError(f"{who}: {reason}")
    check_classes(who, spec.classes)


def check_classes(who: str, classes: Any) -> None:
    """Refuse `classes` that are no mapping of names to names or None; `who` begins the ValueError's message."""
    if not isinstance(classes, Mapping) or not all(
        isinstance(own, str) and isinstance(ours, str | None) for own, ours in classes.items()
    ):
        raise ValueError(f"{who}: classes want a mapping of its names to the run's, or to null, got {classes!r:.200}")
