"""A detector of mmdetection's as its users have it: a configuration file and a checkpoint. Plain data, without torch.

    {name: rtmdet, config: rtmdet_tiny.py, checkpoint: rtmdet_tiny.pth, classes: {person: null}}

Taken from the configuration: `model` with its data preprocessor, the test pipeline, `custom_imports` and the names of
the classes. `detection.config_files` reads it; a Python configuration is executed. `detection.own_detector` builds the
model.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from detection import config_files
from detection.models import check_classes, viewed
from networks.stored_names import stored_names
from store.categories import problem

LOADS_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations")  # steps that a photo without truth does without
FIELDS = ("name", "config", "checkpoint", "sha256", "categories", "classes", "scale_px", "fusion_weight", "view")


@dataclass(frozen=True)
class MmdetectionSpec:
    """A detector that its configuration file describes: what it takes to build it, feed it and trust its weights."""

    LOADER: ClassVar[str] = "detection.own_detector:load"

    name: str  # short; goes into file names, run files and the report
    config: str  # the file it was read from
    model: Mapping[str, Any] = field(repr=False)  # mmdetection's model configuration, data preprocessor included
    pipeline: tuple[Mapping[str, Any], ...] = field(repr=False)  # what a photo goes through, loading it first
    scale_px: tuple[int, int]  # of the pipeline's Resize, which it overrides
    imports: tuple[str, ...] = ()  # modules to import before the model is built
    categories: tuple[str, ...] = ()  # its own names of what it finds; () until `with_names` has seen the checkpoint
    dataset: str = ""  # type of the test data set, whose names hold where neither file has any
    weights: str = ""  # the checkpoint: a name under the weights folder, a path or a URI; NAME.pth unless given
    sha256: str = ""  # of that file; "" accepts any
    fusion_weight: float = 1.0  # as in `DetectorSpec`, like the next two
    flip: bool = False
    classes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def executes(self) -> str:
        """What of the user's is run as code, for a line at the start; "" where nothing is."""
        files = [self.config] if self.config.endswith(".py") else []
        return " and ".join(files + [f"module {name}" for name in self.imports])

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the channels in the model's order, values 0 to 255; () where photos are not normalised."""
        return tuple(self.model["data_preprocessor"].get("mean") or ())

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.model["data_preprocessor"].get("std") or ())

    @property
    def channels(self) -> str:
        """The order in which the model sees them: mmdetection loads BGR, which the preprocessor may turn round."""
        preprocessor = self.model["data_preprocessor"]
        return "RGB" if preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr") else "BGR"

    def with_names(self, checkpoint: Path | None) -> "MmdetectionSpec":
        """The detector with the names of its classes, which neither its entry nor its configuration need have.

        They are then those in the checkpoint's `meta`, else those of the configuration's data set, as mmdetection has
        them. Raises ValueError where there are none, or not as many as the model tells apart.
        """
        if self.categories:
            return self
        names = stored_names(checkpoint) if checkpoint else None
        if names is None:
            names = config_files.dataset_names(self.dataset) or config_files.dataset_names("CocoDataset")
        _check_names(self, names)
        return dataclasses.replace(self, categories=names)


def from_fields(fields: Mapping[str, Any]) -> MmdetectionSpec:
    """The detector of a run file's entry; reads the configuration, and executes it where it is Python.

    Raises ValueError for an unknown or missing field, a value of the wrong kind, or a configuration that cannot be
    used.
    """
    who = f"detector {fields.get('name', '?')!r:.90}"
    if unknown := sorted(str(key) for key in set(fields) - set(FIELDS)):
        raise ValueError(f"{who}: unknown field {unknown[0]!r:.90}; beside config there are: {', '.join(FIELDS)}")
    for key in ("name", "config", "checkpoint", "sha256"):
        if not isinstance(fields.get(key, ""), str) or (key in ("name", "config") and not fields.get(key)):
            raise ValueError(f"{who}: {key} wants text, got {fields.get(key)!r:.90}")
    try:
        spec = _from_config(fields, config_files.read(fields["config"]))
    except config_files.ConfigError as error:
        raise ValueError(f"{who}: config {fields['config']:.200}: {error}") from error
    if type(spec.fusion_weight) not in (int, float) or not spec.fusion_weight >= 0:
        raise ValueError(f"{who}: fusion_weight wants a number from 0 up, got {spec.fusion_weight!r:.90}")
    check_classes(who, spec.classes)
    if spec.categories or "categories" in fields:
        _check_names(spec, spec.categories)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def resized(pipeline: tuple[Mapping[str, Any], ...], scale_px: tuple[int, int]) -> tuple[dict[str, Any], ...]:
    """The test pipeline for photos of another size: of every resizing step, and of padding to a fixed size.

    That one becomes a multiple of 32 pixels, which every network takes.
    """
    steps = [dict(step) for step in pipeline]
    if tuple(_scale(pipeline)) == scale_px:
        return tuple(steps)
    for step in steps:
        match _kind(step):
            case "Resize" | "FixScaleResize":
                step["scale"] = scale_px
            case "FixShapeResize":
                step["width"], step["height"] = scale_px
            case "Pad" if step.get("size"):
                step["size"] = tuple(-(-side // 32) * 32 for side in scale_px)
    return tuple(steps)


def _from_config(fields: Mapping[str, Any], config: dict[str, Any]) -> MmdetectionSpec:
    model, dataset = config.get("model"), _test_dataset(config)
    if not isinstance(model, dict) or not isinstance(model.get("type"), str):
        raise config_files.ConfigError("has no `model` with its type; want a configuration of mmdetection 3")
    if not isinstance(model.get("data_preprocessor"), dict):
        raise config_files.ConfigError("model has no data_preprocessor; want a configuration of mmdetection 3")
    pipeline = dataset.get("pipeline") or config.get("test_pipeline")
    if not isinstance(pipeline, list | tuple) or not all(isinstance(s, dict) and _kind(s) for s in pipeline):
        raise config_files.ConfigError("has no test_dataloader.dataset.pipeline, a list of steps with their types")
    steps = tuple(step for step in pipeline if _kind(step) not in LOADS_ANNOTATIONS)
    imports = config.get("custom_imports") or {}
    modules = imports.get("imports", ()) if isinstance(imports, dict) else None
    modules = [modules] if isinstance(modules, str) else modules
    if not isinstance(modules, list | tuple) or not all(isinstance(name, str) for name in modules):
        raise config_files.ConfigError(f"custom_imports wants `imports`, a list of modules, got {imports!r:.200}")
    categories = fields.get("categories", _stated_names(dataset))
    if not isinstance(categories, list | tuple):
        raise config_files.ConfigError(f"categories want a list of names, got {categories!r:.90}")
    scale_px = fields.get("scale_px", _scale(steps))
    sides = scale_px if isinstance(scale_px, list | tuple) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= 2**13 for side in sides):
        raise config_files.ConfigError(f"scale_px wants 2 sides in pixels, above 0, got {scale_px!r:.90}")
    kind, name = str(dataset.get("type", "")).rpartition(".")[2], fields["name"]
    return MmdetectionSpec(
        name=name, config=fields["config"], model=_without_downloads(model), pipeline=steps,
        scale_px=(sides[0], sides[1]), imports=tuple(modules), categories=tuple(categories),
        dataset=kind, weights=fields.get("checkpoint", f"{name}.pth"),
        sha256=fields.get("sha256", ""), fusion_weight=fields.get("fusion_weight", 1.0),
        classes=fields.get("classes", {}),
    )  # fmt: skip


def _test_dataset(config: dict[str, Any]) -> dict[str, Any]:
    """The data set of the test data loader; of one that wraps others the first inside; {} where there is none."""
    dataset = (config.get("test_dataloader") or {}) if isinstance(config.get("test_dataloader"), dict) else {}
    dataset = dataset.get("dataset")
    for _ in range(10):
        if not isinstance(dataset, dict) or "pipeline" in dataset:
            break
        inside = dataset.get("datasets") or [dataset.get("dataset")]
        dataset = (inside[0] if isinstance(inside, list | tuple) else None) or dataset
    return dataset if isinstance(dataset, dict) else {}


def _stated_names(dataset: dict[str, Any]) -> tuple[str, ...]:
    """The classes that the configuration itself gives its data set."""
    metainfo = dataset.get("metainfo")
    given = {str(key).lower(): value for key, value in metainfo.items()} if isinstance(metainfo, dict) else {}
    names = given.get("classes", ())
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or (names and problem(list(names))):
        raise config_files.ConfigError(f"metainfo: classes want names, each once, got {names!r:.200}")
    return tuple(names)


def _kind(step: dict[str, Any] | Mapping[str, Any]) -> str:
    """The type of a pipeline's step without the package in front."""
    kind = step.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else ""


def _scale(steps: Sequence[Mapping[str, Any]]) -> Any:
    """The size to which the pipeline resizes a photo."""
    for step in steps:
        kind = _kind(step)
        if kind in ("Resize", "FixScaleResize") and step.get("scale"):
            scale = step["scale"]
            return (scale, scale) if isinstance(scale, int) else scale
        if kind == "FixShapeResize":
            return step.get("width"), step.get("height")
    raise config_files.ConfigError("its test pipeline has no Resize to a fixed scale")


def _without_downloads(value: Any) -> Any:
    """A model's configuration without the places that it would start training from."""
    if isinstance(value, dict):
        return {
            key: _without_downloads(part)
            for key, part in value.items()
            if not (key == "init_cfg" and "Pretrained" in str(part)) and key != "pretrained"
        }
    return type(value)(map(_without_downloads, value)) if isinstance(value, list | tuple) else value


def _check_names(spec: MmdetectionSpec, names: tuple[str, ...]) -> None:
    who, n = f"detector {spec.name!r:.90}", _n_classes(spec.model)
    if reason := problem(list(names)) if names else "want at least one name":
        raise ValueError(f"{who}: categories: {reason}")
    if n not in (None, len(names)):
        source = "categories names" if spec.categories else f"{spec.weights:.200} names"
        raise ValueError(f"{who}: its model tells {n} classes apart, and {source} {len(names)}; set `categories`")


def _n_classes(model: Mapping[str, Any]) -> int | None:
    """How many classes the model's configuration says that its box head tells apart; None where it does not say."""
    roi_head = model.get("roi_head")
    for head in (model.get("bbox_head"), roi_head.get("bbox_head") if isinstance(roi_head, dict) else None):
        first = head[0] if isinstance(head, list | tuple) and head else head
        if isinstance(first, dict) and type(first.get("num_classes")) is int:
            return first["num_classes"]
    return None
