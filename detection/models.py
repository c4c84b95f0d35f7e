"""The detectors by name: architecture, photo size, weights and licence of each. Plain data; `detection.detector` loads them.

Adding one is one constant here (its architecture a function of `detection.architectures` or any mmdetection model
configuration); a user's own goes in the run file with the same fields, see `from_fields`. NAME@flip looks at mirrored photos,
NAME@0.8 at smaller ones, NAME@flip@0.8 at both: the same weights, one more detector.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from detection import architectures as arch
from detection.categories import CATEGORIES

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE_MEAN, LITE_STD = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class DetectorSpec:
    """One detector: everything needed to build it, feed it and trust its weights.

    Attributes:
        name: short; goes into file names, run files and the report.
        model: mmdetection's model configuration, without a data preprocessor.
        scale_px: (long, short) sides a photo is fitted into, keeping its proportions.
        pad_multiple_px: height and width are padded on the right and at the bottom up to a multiple of this.
        mean, std: of RGB values 0 to 255, per channel.
        categories: names in the order of the model's outputs; must be among `detection.categories`.
        weights: file of safetensors under the weights folder.
        sha256: of that file; "" accepts any (a user's own file, said in the log).
        licence: of the weights.
        fusion_weight: how much its scores count in fusion, against 1; the run's `fusion.weights` overrides it.
        flip: it is shown mirrored photos; what it returns is of the upright ones. Set by `viewed` alone.
    """

    name: str
    model: Mapping[str, Any] = field(repr=False)
    scale_px: tuple[int, int] = (1333, 800)
    pad_multiple_px: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    categories: tuple[str, ...] = CATEGORIES
    weights: str = ""
    sha256: str = ""
    licence: str = "Apache-2.0"
    fusion_weight: float = 1.0
    flip: bool = False


def _lite(name: str, **more: Any) -> arch.Config:
    return dict(type="EfficientNetLite", name=name, **more)


_LITE = (40, 112, 192)  # channels of lite0 and lite1 at strides 8, 16, 32
_TINY: dict[str, Any] = dict(scale_px=(320, 320), mean=LITE_MEAN, std=LITE_STD)
_RESNET = (256, 512, 1024, 2048)

ATSS_TINY = DetectorSpec(
    "atss-tiny",
    arch.atss(_lite("tf_efficientnet_lite0"), _LITE, width=64, convs=2, n_levels=4),
    weights="atss-tiny.safetensors", sha256="91b61462d22d6fe277e2ba8ba1685a64014ddad869fab031d06831b787c0fd74", **_TINY,
)  # fmt: skip
CASCADE_MASK_RCNN_TINY = DetectorSpec(
    "cascade-mask-rcnn-tiny",
    arch.cascade_mask_rcnn(
        _lite("tf_efficientnet_lite0", last_stage_blocks=2), _LITE, width=64, fc_width=72, mask_convs=2,
        finest_stride=8, n_proposals=100, n_samples=64, n_levels=4,
    ),
    fusion_weight=4.0,
    weights="cascade-mask-rcnn-tiny.safetensors", sha256="d3cb025770291d5657157b84eff29a17cbc2b57f842db583fe2216492e16b857", **_TINY,
)  # fmt: skip
CENTERNET_TINY = DetectorSpec(
    "centernet-tiny",
    arch.centernet(_lite("tf_efficientnet_lite0"), arch.finest_level_neck(_LITE, 64), width=64, head_width=64),
    fusion_weight=0.25,
    weights="centernet-tiny.safetensors", sha256="0152348e70ec3719d7a6cfbbeded3f3fdd6bc1741c3637bc1a69baa7fc607f23", **_TINY,
)  # fmt: skip
RETINANET_LITE0_TINY = DetectorSpec(
    "retinanet-lite0-tiny",
    arch.retinanet(_lite("tf_efficientnet_lite0"), _LITE, width=64, convs=2, n_levels=4, norm=True),
    weights="retinanet-lite0-tiny.safetensors", sha256="07684093db7528317166284d02bc45337638e66595598265119e14e4f62148b7", **_TINY,
)  # fmt: skip
RETINANET_LITE1_TINY = DetectorSpec(
    "retinanet-lite1-tiny",
    arch.retinanet(_lite("tf_efficientnet_lite1"), _LITE, width=64, convs=2, n_levels=4, norm=True),
    weights="retinanet-lite1-tiny.safetensors", sha256="e9835b63a3d53fc665388ac03c546c43ac015cfebd1be6dca8410517a5ae4f05", **_TINY,
)  # fmt: skip

ATSS_R101 = DetectorSpec("atss_r101_fpn", arch.atss(arch.resnet(101), _RESNET), weights="atss_r101_fpn.safetensors")
CASCADE_MASK_RCNN_R101 = DetectorSpec(
    "cascade-mask-rcnn_r101_fpn",
    arch.cascade_mask_rcnn(arch.resnet(101), _RESNET),
    weights="cascade-mask-rcnn_r101_fpn.safetensors",
)
CENTERNET_R18 = DetectorSpec(
    "centernet_r18-dcnv2",
    arch.centernet(arch.resnet(18) | dict(frozen_stages=-1, norm_eval=False), arch.deconvolution_neck(512)),
    weights="centernet_r18-dcnv2.safetensors",
)
CENTERNET_HOURGLASS = DetectorSpec(
    "centernet_hourglass104",
    arch.centernet_hourglass(),
    pad_multiple_px=128,
    weights="centernet_hourglass104.safetensors",
)
RETINANET_R101 = DetectorSpec(
    "retinanet_r101_fpn", arch.retinanet(arch.resnet(101), _RESNET), weights="retinanet_r101_fpn.safetensors"
)
RETINANET_X101 = DetectorSpec(
    "retinanet_x101-64x4d_fpn",
    arch.retinanet(arch.resnext101_64x4d(), _RESNET),
    weights="retinanet_x101-64x4d_fpn.safetensors",
)

PROFILES: dict[str, tuple[DetectorSpec, ...]] = {
    "tiny": (ATSS_TINY, CASCADE_MASK_RCNN_TINY, CENTERNET_TINY, RETINANET_LITE0_TINY, RETINANET_LITE1_TINY),
    "paper": (ATSS_R101, CASCADE_MASK_RCNN_R101, CENTERNET_R18, RETINANET_R101, RETINANET_X101),
}
ALL: tuple[DetectorSpec, ...] = (*PROFILES["tiny"], *PROFILES["paper"], CENTERNET_HOURGLASS)


def named(name: str) -> DetectorSpec:
    """The shipped detector of that name, or a view of it: `atss-tiny`, `atss-tiny@flip`, `atss-tiny@0.8`, `atss-tiny@flip@1.25`.

    Raises:
        ValueError: no such name, or no such view; the message lists those there are.
    """
    base, at, view = name.partition("@")
    return viewed(_shipped(base), view) if at else _shipped(base)


def viewed(spec: DetectorSpec, view: str) -> DetectorSpec:
    """The detector as it sees mirrored photos (`flip`), photos of another size (a factor of `scale_px`), or both (`flip@1.25`).

    Raises:
        ValueError: none of these; a factor outside 0.25 to 4, of 1, or written in another way than Python would (0.80).

    >>> half = viewed(ATSS_TINY, "flip@0.5")
    >>> half.name, half.scale_px, half.flip, half.weights == ATSS_TINY.weights
    ('atss-tiny@flip@0.5', (160, 160), True, True)
    """
    flip, factors = view.partition("@")[0] == "flip", view.split("@")
    factors = factors[flip:]
    if not (flip and not factors) and not (len(factors) == 1 and factors[0] in _written(factors[0], *FACTORS)):
        low, high = FACTORS
        raise ValueError(
            f"detector {spec.name!r} has no view {view[:80]!r}; want flip, a factor of its size from {low:g} to {high:g} that is "
            "not 1 (0.8), or flip@FACTOR"
        )
    long, short = (max(1, round(side * float(factors[0]))) if factors else side for side in spec.scale_px)
    return dataclasses.replace(spec, name=f"{spec.name}@{view}", scale_px=(long, short), flip=flip)


FACTORS = (0.25, 4.0)


def _written(text: str, low: float, high: float) -> list[str]:
    """The one way to write the number in `text`; none where it is no number, out of range, or changes nothing."""
    try:
        value = float(text)
    except ValueError:
        return []
    return [f"{value:g}"] if low <= value <= high and value != 1 else []


def _shipped(name: str) -> DetectorSpec:
    for spec in ALL:
        if spec.name == name:
            return spec
    raise ValueError(f"no detector named {name!r}; there are: {', '.join(spec.name for spec in ALL)}")


def from_fields(fields: Mapping[str, Any]) -> DetectorSpec:
    """A user's own detector from the run file: `DetectorSpec`'s fields but `flip`, with `base: NAME` to start from a shipped one
    and `view: flip` or another of `viewed`'s.

    Raises:
        ValueError: unknown or missing field, category not of the 13, or a value of the wrong kind.
    """
    allowed = [*(f.name for f in dataclasses.fields(DetectorSpec) if f.name != "flip"), "view"]
    unknown = sorted(str(key) for key in set(fields) - {*allowed, "base"})
    if unknown:
        raise ValueError(
            f"detector {fields.get('name', '?')!r}: unknown field {unknown[0]!r}; allowed: base, {', '.join(allowed)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
        if key not in ("base", "view")
    }
    base = _shipped(fields["base"]) if "base" in fields else None
    if base is not None and "weights" in values and "sha256" not in values:
        values["sha256"] = ""  # the base's digest is of the base's file
    if base is None and not {"name", "model"} <= set(values):
        raise ValueError("a detector of your own needs at least `name` and `model`, or `name` and `base`")
    spec = dataclasses.replace(base, **values) if base is not None else DetectorSpec(**values)
    _check(spec)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def _check(spec: DetectorSpec) -> None:
    """Refuse what could not be built or would be fed wrongly."""
    who = f"detector {spec.name!r}"
    for name in ("name", "weights", "sha256", "licence"):
        if not isinstance(getattr(spec, name), str):
            raise ValueError(f"{who}: {name} wants text, got {getattr(spec, name)!r}")
    if not isinstance(spec.model, Mapping) or not isinstance(spec.model.get("type"), str):
        raise ValueError(f"{who}: model wants mmdetection's mapping with its type, got {spec.model!r}")
    for name, count, whole in (("scale_px", 2, True), ("mean", 3, False), ("std", 3, False)):
        value = getattr(spec, name)
        if not isinstance(value, tuple) or len(value) != count or not all(_is_number(v, whole) for v in value):
            raise ValueError(f"{who}: {name} wants {count} {'sides in pixels' if whole else 'numbers'}, got {value!r}")
    for name, value in (("scale_px", min(spec.scale_px)), ("std", min(spec.std))):
        if value <= 0:
            raise ValueError(f"{who}: {name} wants to be above 0, got {getattr(spec, name)!r}")
    if not _is_number(spec.pad_multiple_px, whole=True) or spec.pad_multiple_px < 1:
        raise ValueError(f"{who}: pad_multiple_px wants a whole number of at least 1, got {spec.pad_multiple_px!r}")
    if not _is_number(spec.fusion_weight) or spec.fusion_weight < 0:
        raise ValueError(f"{who}: fusion_weight wants a number from 0 up, got {spec.fusion_weight!r}")
    if not isinstance(spec.categories, tuple):
        raise ValueError(f"{who}: categories want a list of names, got {spec.categories!r}")
    strange = [name for name in spec.categories if name not in CATEGORIES]
    if strange:
        raise ValueError(f"{who}: category {strange[0]!r} is not one of {', '.join(CATEGORIES)}")
    outputs = sorted(set(_numbers_of_classes(spec.model)) - {len(spec.categories)}, key=str)
    if outputs:
        raise ValueError(
            f"{who}: its model tells {outputs[0]} categories apart, and categories names {len(spec.categories)}; want a name for each"
        )


def _is_number(value: Any, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def _numbers_of_classes(config: Any) -> Iterator[Any]:
    """Every `num_classes` of a configuration."""
    if isinstance(config, Mapping):
        yield from (value for key, value in config.items() if key == "num_classes")
    parts = config.values() if isinstance(config, Mapping) else config if isinstance(config, list | tuple) else ()
    for part in parts:
        yield from _numbers_of_classes(part)
