"""From names in the settings to models: which spec, which weight file, which digest.

`SHIPPED` is what the job runs with; a `Catalogue` is passed in so that tests can bring small stand-ins. Nothing here imports torch:
the two `load` functions do so in the worker that calls them.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cli import UserError
from jobs.config import ROOT, Settings
from store.cached import cached
from store.objects import ObjectMissing, ObjectStore, open_store

NO_VIEW = {
    "flip": False,
    "margin": 0.0,
}  # fields that say nothing so: what was made before there were views stays valid


@dataclass(frozen=True)
class Catalogue:
    """Where models come from.

    Attributes:
        detector, embedder: an entry of the settings (name or mapping) -> spec, a frozen dataclass with `name`, `weights`, `sha256`.
        load_detector, load_embedder: (spec, device, *, weights: Path | None, allow_random_weights: bool) -> model.
    """

    detector: Callable[[Any], Any]
    embedder: Callable[[Any], Any]
    load_detector: Callable[..., Any]
    load_embedder: Callable[..., Any]


@dataclass(frozen=True)
class Model:
    """A model of this run, ready to be loaded anywhere.

    Attributes:
        name: goes into file names.
        spec: what its package's `load` wants.
        weights: sha256 of the weight file; "published" for a backbone as published, "random" where there is no file.
        file: name of the weight file under the weights folder, "" where there is none to be read.
    """

    name: str
    spec: Any
    weights: str
    file: str

    @functools.cached_property
    def basis(self) -> dict[str, str]:
        """What the model's results follow from: the weights, and the spec but for where they lie and their licence."""
        elsewhere = {"weights", "sha256", "licence", "fusion_weight"}
        fields = {f.name: getattr(self.spec, f.name) for f in dataclasses.fields(self.spec) if f.name not in elsewhere}
        for name, plain in NO_VIEW.items():
            if fields.get(name) == plain:
                del fields[name]
        text = json.dumps(_plain(fields), sort_keys=True).encode()
        return {"name": self.name, "spec": hashlib.blake2b(text, digest_size=16).hexdigest(), "weights": self.weights}


def _detector(entry: Any) -> Any:
    from detection import models

    return models.from_fields(entry) if isinstance(entry, Mapping) else models.named(entry)


def _embedder(entry: Any) -> Any:
    from retrieval import models

    return models.from_fields(entry) if isinstance(entry, Mapping) else models.named(entry)


def _load_detector(spec: Any, device: str, **how: Any) -> Any:
    from detection import detector

    return detector.load(spec, device, **how)


def _load_embedder(spec: Any, device: str, **how: Any) -> Any:
    from retrieval import embedder

    return embedder.load(spec, device, **how)


SHIPPED = Catalogue(_detector, _embedder, _load_detector, _load_embedder)


def chosen(settings: Settings, catalogue: Catalogue) -> tuple[tuple[Model, ...], tuple[Model, ...]]:
    """The detectors and the embedders of a run, in the order of the settings.

    Raises:
        UserError: unknown model, wrong field, two of one name, or weights that are not there.
    """
    folder = weights_folder(settings)
    detectors = _choose("detectors", settings.detectors, catalogue.detector, folder, settings)
    return detectors, _choose("embedders", settings.embedders, catalogue.embedder, folder, settings)


def load_all(models: tuple[Model, ...], load: Callable[[Model], Any]) -> dict[str, Any]:
    """Every model by its name; views of one model (NAME@…) are made around the network that is loaded first, where it can."""
    loaded: dict[str, Any] = {}
    first: dict[tuple[str, str], Any] = {}
    for model in models:
        base = model.name.partition("@")[0], model.weights
        view = getattr(first.get(base), "view", None)
        loaded[model.name] = load(model) if view is None else view(model.spec)
        first.setdefault(base, loaded[model.name])
    return loaded


def with_fusion_weights(settings: Settings, detectors: tuple[Model, ...]) -> Settings:
    """The settings with `fusion.weights` filled in from the detectors' specs, unless the user set them or all are 1."""
    weights = tuple(float(getattr(model.spec, "fusion_weight", 1.0)) for model in detectors)
    if settings.fusion.weights is not None or set(weights) == {1.0}:
        return settings
    return dataclasses.replace(settings, fusion=dataclasses.replace(settings.fusion, weights=weights))


def weights_folder(settings: Settings) -> ObjectStore:
    place = settings.weights_dir or ROOT / "weights" / settings.profile
    return open_store(place, endpoint_url=settings.storage.endpoint_url)


def _choose(where: str, entries: tuple, find: Callable, folder: ObjectStore, settings: Settings) -> tuple[Model, ...]:
    models: list[Model] = []
    own = {entry["name"]: entry for entry in entries if isinstance(entry, Mapping) and "name" in entry}
    for i, entry in enumerate(entries):
        base, at, view = entry.partition("@") if isinstance(entry, str) else ("", "", "")
        try:
            spec = find({**own[base], "view": view} if at and base in own else entry)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{where}[{i}]: {error}") from error
        if any(spec.name == model.name for model in models):
            raise UserError(f"{where}: two models are named {spec.name!r}; results of one would overwrite the other's")
        models.append(_with_weights(spec, folder, settings))
    return tuple(models)


def _with_weights(spec: Any, folder: ObjectStore, settings: Settings) -> Model:
    if not spec.weights:
        return Model(spec.name, spec, "published", "")
    try:
        there = folder.exists(spec.weights)
    except ValueError as error:
        raise UserError(f"{spec.name}: weights {spec.weights!r} are not below {folder.uri}: {error}") from error
    if not there:
        if settings.allow_random_weights:
            return Model(spec.name, spec, "random", "")
        raise UserError(
            f"{spec.name}: no weights {spec.weights} in {folder.uri}; name their folder with --set weights_dir=…, train them "
            "(jobs/train_detector.py, jobs/train_embedder.py), or try the pipeline out with --set allow_random_weights=true"
        )
    return Model(spec.name, spec, spec.sha256 or _sha256(folder, spec.weights), spec.weights)


def _sha256(folder: ObjectStore, name: str) -> str:
    if folder.local_path is None:
        return hashlib.sha256(folder.read(name)).hexdigest()
    with open(folder.local_path / name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_file(model: Model, folder: ObjectStore) -> Path | None:
    """The model's weight file on this machine; a bucket's is fetched once a machine, checked and kept."""
    if not model.file:
        return None
    try:
        return cached(folder, model.file, model.weights)
    except ObjectMissing as error:
        raise FileNotFoundError(
            f"{model.name}: {model.file} vanished from {folder.uri} since the run was planned"
        ) from error


def describe(model: Model) -> dict[str, Any]:
    """The model as plain JSON, for run.json."""
    fields = {f.name: getattr(model.spec, f.name) for f in dataclasses.fields(model.spec)}
    return {"name": model.name, "weights": model.weights, "spec": _plain(fields)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
