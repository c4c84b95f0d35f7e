"""From names in the settings to models: which spec, which weight file, which digest.

The job runs with the catalogue `SHIPPED`; tests pass one of small stand-ins. A model of another kind than ours is told
by a key of its entry (DETECTOR_KINDS, EMBEDDER_KINDS). The kind's module has `from_fields(entry)` and imports neither
torch nor the model's own package; what it returns is a frozen dataclass with `name`, `weights` and `sha256`, whose
`LOADER` names the function that loads it in a worker, "package.module:function".
"""

import dataclasses
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import detection.models
import retrieval.models
from jobs.runs.categories import listed
from jobs.runs.models import Catalogue, Model
from jobs.runs.settings import Settings
from jobs.runs.versions import ROOT
from networks import engines
from networks.engines import Engine
from networks.weight_header import read_categories
from store.categories import DEEPFASHION2
from store.errors import UserError
from store.files import cached, file_sha256
from store.objects import ObjectMissing, ObjectStore, open_store

# Key of an entry -> module of such models.
DETECTOR_KINDS = {"config": "detection.own_config", "call": "detection.calls", "from": "detection.stored"}
EMBEDDER_KINDS = {
    "timm": "retrieval.timm_models",
    "open_clip": "retrieval.clip_models",
    "call": "retrieval.calls",
    "from": "retrieval.stored",
}


def _detector(entry: Any) -> Any:
    return _spec(entry, DETECTOR_KINDS, detection.models)


def _embedder(entry: Any) -> Any:
    return _spec(entry, EMBEDDER_KINDS, retrieval.models)


def _spec(entry: Any, kinds: Mapping[str, str], ours: ModuleType) -> Any:
    if not isinstance(entry, Mapping):
        return ours.named(entry)
    told = [key for key in kinds if key in entry]
    if len(told) > 1:
        raise ValueError(f"{entry.get('name', '?')!r} has both {told[0]!r} and {told[1]!r}; a model is of one kind")
    return (importlib.import_module(kinds[told[0]]) if told else ours).from_fields(entry)


def _load(spec: Any, device: str, **options: Any) -> Any:
    module, _, function = spec.LOADER.partition(":")
    return getattr(importlib.import_module(module), function)(spec, device, **options)  # imports torch


SHIPPED = Catalogue(_detector, _embedder, _load, _load)


def choose_models(settings: Settings, catalogue: Catalogue) -> tuple[tuple[Model, ...], tuple[Model, ...]]:
    """The detectors and the embedders of a run, in the order of the settings.

    A detector's classes are those that its weights were saved with. A UserError refuses an unknown model, a wrong
    field, two models of one name, missing weights, and classes other than those of the weights.
    """
    folder = weights_folder(settings)
    detectors = _find_models("detectors", settings.detectors, catalogue.detector, folder, settings)
    detectors = tuple(_with_stored_categories(model, settings) for model in detectors)
    return detectors, _find_models("embedders", settings.embedders, catalogue.embedder, folder, settings)


def load_all(models: tuple[Model, ...], load: Callable[[Model], Any]) -> dict[str, Any]:
    """Every model by its name. Views of one model (NAME@…) share the network loaded first, if its class can do that."""
    loaded: dict[str, Any] = {}
    networks: dict[tuple[str, str, tuple[int, ...]], Any] = {}
    for model in models:
        base = model.name.partition("@")[0], model.weights, model.category_ids
        view = getattr(networks.get(base), "view", None)
        loaded[model.name] = load(model) if view is None else view(model.spec)
        networks.setdefault(base, loaded[model.name])
    return loaded


def engine_of(settings: Settings, device: str) -> Engine:
    """What runs the networks of a worker on `device`, "cpu" or "cuda"."""
    return engines.choose(settings.engine, device, settings.threads_per_actor)


def notes_of(loaded: Any) -> dict[str, Any]:
    """What a loaded model has to say of a shard, for its mark: its notes, and the engine where that is ours."""
    engine = getattr(loaded, "engine", None)
    return {"notes": list(getattr(loaded, "notes", ()))} | ({"engine": engine} if engine else {})


def folder_of(model: Model, settings: Settings) -> ObjectStore:
    """Where the model's file lies: a place of its own, or the folder of all weights."""
    return (
        open_store(model.place, endpoint_url=settings.storage.endpoint_url) if model.place else weights_folder(settings)
    )


def weights_folder(settings: Settings) -> ObjectStore:
    place = settings.weights_dir or ROOT / "weights" / settings.profile
    return open_store(place, endpoint_url=settings.storage.endpoint_url)


def _find_models(
    where: str, entries: tuple, find: Callable, folder: ObjectStore, settings: Settings
) -> tuple[Model, ...]:
    models: list[Model] = []
    own = {entry["name"]: entry for entry in entries if isinstance(entry, Mapping)}
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
    if getattr(spec, "stored", False):
        spec, found = spec.found(settings.storage.endpoint_url)
        return Model(spec.name, spec, found, "")
    if not spec.weights:
        return _published(spec, settings)
    folder, place, name = place_of_weights(spec, folder, settings)
    try:
        exists = folder.exists(name)
    except ValueError as error:
        raise UserError(f"{spec.name}: weights {spec.weights!r} are not below {folder.uri}: {error}") from error
    if exists:
        return Model(spec.name, spec, spec.sha256 or _sha256(folder, name), name, place)
    if settings.allow_random_weights:
        return Model(spec.name, spec, "random", "")
    raise UserError(
        f"{spec.name}: no weights {spec.weights} in {folder.uri}; name their folder with --set weights_dir=…, train "
        "them (jobs/train_detector.py, jobs/train_embedder.py), or try the pipeline out with "
        "--set allow_random_weights=true"
    )


def place_of_weights(spec: Any, folder: ObjectStore, settings: Settings) -> tuple[ObjectStore, str, str]:
    """Where a spec's file of weights should lie: the store, the path or URI of a folder of its own, the file's name.

    `folder` is that of all weights, where a file without a folder of its own ("") lies.
    """
    if not re.match(r"[a-zA-Z0-9]+://|/|\.\.?/|~/", spec.weights):
        return folder, "", spec.weights
    place, name = os.path.split(os.path.expanduser(spec.weights))
    return open_store(place, endpoint_url=settings.storage.endpoint_url), place, name


def _published(spec: Any, settings: Settings) -> Model:
    """A model with its package's weights; a spec with `fetched` has them fetched now, and results follow the digest."""
    if (fetched := getattr(spec, "fetched", None)) is None:
        return Model(spec.name, spec, "published", "")
    try:
        spec = fetched()
    except UserError as error:
        if not settings.allow_random_weights:
            raise UserError(f"{spec.name}: {error}") from None
        return Model(spec.name, dataclasses.replace(spec, sha256=""), "random", "")
    return Model(spec.name, spec, spec.sha256, "")


def _with_stored_categories(model: Model, settings: Settings) -> Model:
    """The detector made for the categories that its file of weights names, if its kind looks for them there."""
    if with_names := getattr(model.spec, "with_names", None):
        try:
            return dataclasses.replace(model, spec=with_names(weight_file(model, settings)))
        except ValueError as error:
            raise UserError(str(error)) from error
    if not model.file or not isinstance(model.spec, detection.models.DetectorSpec):
        return model
    folder = folder_of(model, settings)
    with folder.open(model.file) as file:
        try:
            stored = read_categories(file.read)
        except ValueError as error:
            raise UserError(f"{model.name}: {folder.uri}/{model.file}: {error}") from error
    if stored is None or stored == model.spec.categories:
        return model
    if (given := model.spec.categories) != DEEPFASHION2:
        reason = f"its weights were trained for {listed(stored)}, and its entry names {listed(given)}"
        raise UserError(f"{model.name}: {reason}; leave `categories` out")
    return dataclasses.replace(model, spec=detection.models.with_categories(model.spec, stored))


def _sha256(folder: ObjectStore, name: str) -> str:
    if folder.local_path is None:
        return hashlib.sha256(folder.read(name)).hexdigest()
    return file_sha256(folder.local_path / name)


def weight_file(model: Model, settings: Settings) -> Path | None:
    """The model's weight file on this machine. One from a bucket is downloaded once, checked and kept."""
    if not model.file:
        return None
    folder = folder_of(model, settings)
    try:
        return cached(folder, model.file, model.weights)
    except ObjectMissing as error:
        message = f"{model.name}: {model.file} vanished from {folder.uri} since the run was planned"
        raise FileNotFoundError(message) from error
