"""A model of a run, and where models come from: plain records, without a package of networks."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.categories import DEEPFASHION2
from store.files import digest

# Fields of a spec that its digest leaves out at these values: results from before there were views stay valid.
NO_VIEW = {"flip": False, "margin": 0.0}
# Fields of a spec that a model's results do not depend on.
ELSEWHERE = {
    "weights", "sha256", "licence", "fusion_weight", "classes", "source", "images", "published", "config", "dataset",
    "tokenizer",
}  # fmt: skip

AS_BEFORE = tuple(range(1, len(DEEPFASHION2) + 1))  # category ids of every detector when there were no others


@dataclass(frozen=True)
class Catalogue:
    """Where models come from."""

    # an entry of the settings (name or mapping) -> spec, a frozen dataclass with `name`, `weights` and `sha256`
    detector: Callable[[Any], Any]
    embedder: Callable[[Any], Any]
    # (spec, device, *, weights: Path | None, allow_random_weights: bool, engine: Engine) -> model; detectors take
    # score_threshold, max_per_image and category_ids too, see `detection.detector.load`
    load_detector: Callable[..., Any]
    load_embedder: Callable[..., Any]


@dataclass(frozen=True)
class Model:
    """A model of this run, ready to be loaded anywhere."""

    name: str  # part of file names
    spec: Any  # what `load` of the model's package takes
    weights: str  # sha256 of the weight file; "published" for a backbone as published, "random" if there is no file
    file: str  # name of the weight file, "" if there is none to read
    place: str = ""  # path or URI of the folder that it lies in; "" for the folder of all weights
    # of a detector: the category id that each of its classes becomes in this run, 0 where its boxes are left out
    category_ids: tuple[int, ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether its results are read from files (`from`); `weights` is the digest of those then."""
        return getattr(self.spec, "stored", False)

    @functools.cached_property
    def basis(self) -> dict[str, Any]:
        """What the model's results depend on: its weights, a digest of the fields of its spec that matter, and what its
        classes become; that is left out for DeepFashion2's as they are, for results from before stay valid."""
        given = _fields(self.spec).items()
        fields = {
            name: value for name, value in given if name not in ELSEWHERE and (name, value) not in NO_VIEW.items()
        }
        spec = digest(json.dumps(fields, sort_keys=True).encode())
        classes = {} if self.category_ids in ((), AS_BEFORE) else {"classes": list(self.category_ids)}
        return {"name": self.name, "spec": spec, "weights": self.weights, **classes}


def executed(models: Sequence[Model]) -> Iterator[str]:
    """A line for each model with which code of the user's is run: a Python configuration, a module, a class. Its views
    run the same."""
    runs = {model.name.partition("@")[0]: getattr(model.spec, "executes", "") for model in models}
    yield from (f"{name}: executes {what}" for name, what in runs.items() if what)


def describe(model: Model) -> dict[str, Any]:
    """The model as plain JSON, for run.json."""
    return {"name": model.name, "weights": model.weights, "spec": _fields(model.spec)}


def _fields(spec: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(spec, f.name)) for f in dataclasses.fields(spec)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
