"""Each model of a run built, loaded and shown one photo, as its workers will do it: for `--check`.

In: the settings, the models and the photos taken. Out: a line a model with what it is and how long a photo takes, and
one that compares decoding with the detectors. A model that cannot be built, whose weights do not fit, or that fails on
the photo ends the check as a user error.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jobs.runs.catalogue import engine_of, weight_file
from jobs.runs.categories import found_by, listed
from jobs.runs.decoding import cores_to_decode
from jobs.runs.models import Catalogue, Model
from jobs.runs.photos import limit_threads
from jobs.runs.selection import Selected
from jobs.runs.settings import Settings
from jobs.stages.stored import StoredDetectWorker, StoredEmbedWorker
from store.decode import DecodeError, decode
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectStore, StorageError

TRIED = 20  # photos of the first shard, at most, until one can be decoded


def model_lines(
    settings: Settings,
    catalogue: Catalogue,
    models: tuple[tuple[Model, ...], tuple[Model, ...]],
    images: ImageSet,
    taken: Selected,
    output: ObjectStore,
) -> Iterator[str]:
    """A line a model, the detectors with their category ids first. Raises UserError, with the model's name."""
    photo, decoding_s = _first_photo(images, taken, settings.max_pixels)
    detecting_s = 0.0
    device = _device(settings, all(model.is_stored for of_stage in models for model in of_stage))
    for model in models[0]:
        if model.is_stored:
            StoredDetectWorker(settings, model, images, output).load("cpu")
            yield f"model: {model.name}, {_stored(model)}, {_classes(model)}"
            continue
        detector = _build(model, settings, catalogue.load_detector, device, category_ids=model.category_ids)
        limit_threads(settings.threads_per_actor)
        took = _seconds(model, photo, lambda pixels, by=detector: by.detect([pixels], batch_size=1))
        detecting_s += took
        yield f"model: {model.name}, {_facts(model, detector)}, {_classes(model)}, {_photo_in(took)}"
    if detecting_s:
        yield decoding_line(settings, device, decoding_s, detecting_s)
    for model in models[1]:
        if model.is_stored:
            StoredEmbedWorker(settings, model, images, output).load("cpu")
            yield f"model: {model.name}, {_stored(model)}, {model.spec.dim} dimensions"
            continue
        embedder = _build(model, settings, catalogue.load_embedder, device)
        limit_threads(settings.threads_per_actor)
        took = _seconds(model, photo, lambda pixels, by=embedder, of=model: _embed(of, by, pixels))
        yield f"model: {model.name}, {_facts(model, embedder)}, {model.spec.dim} dimensions, {_photo_in(took)}"


def decoding_line(settings: Settings, device: str, decoding_s: float, detecting_s: float) -> str:
    """Whether one actor's threads decode photos as fast as its detectors take them, in seconds a photo."""
    threads = settings.threads_per_actor
    line = f"decoding: {1000 * decoding_s:.0f} ms for a photo, the detectors {1000 * detecting_s:.0f} ms"
    cores = cores_to_decode(decoding_s, detecting_s)
    if cores <= threads or device == "cpu":
        return f"{line}: photos do not hold them up"
    short = f"{line}: an actor wants {cores} cores to decode and has {threads}"
    if settings.decoders == 0:
        return f"{short}; set decoders=auto, which takes free cores of the cluster, or threads_per_actor={cores}"
    return f"{short}; decoders={settings.decoders} takes others from the cluster's free cores"


def _first_photo(images: ImageSet, taken: Selected, max_pixels: int) -> tuple[np.ndarray | None, float]:
    """The first photo that can be decoded, and the seconds that takes; None where none of those tried can."""
    for shard in taken.shards[:1]:
        encoded = images.read(shard.name, columns=["image"]).column("image")
        for row in shard.row_numbers[:TRIED]:
            try:
                decode(encoded[row].as_buffer(), max_pixels=max_pixels)  # the first one imports its format
                start = time.perf_counter()
                return decode(encoded[row].as_buffer(), max_pixels=max_pixels), time.perf_counter() - start
            except DecodeError:
                continue
    return None, 0.0


def _device(settings: Settings, all_stored: bool) -> str:
    if all_stored or settings.device == "cpu":
        return "cpu"
    import torch  # heavy

    return "cuda" if torch.cuda.is_available() else "cpu"  # the run's GPUs may be on other nodes than this


def _build(model: Model, settings: Settings, load: Any, device: str, **more: Any) -> Any:
    """The model as a worker loads it: its weights' names and shapes are compared there."""
    how = {"weights": weight_file(model, settings), "allow_random_weights": settings.allow_random_weights} | more
    how["engine"] = engine_of(settings, device)
    if more:
        detect = settings.detect
        how |= {"score_threshold": detect.score_threshold, "max_per_image": detect.max_per_image}
    try:
        return load(model.spec, device, **how)
    except (UserError, StorageError):
        raise
    except Exception as error:  # whatever a network's own code raises
        raise UserError(_told(model, "cannot be loaded", error)) from error


def _seconds(model: Model, photo: np.ndarray | None, run: Any) -> float:
    """Seconds that a photo takes, after one that warms the network up; 0 without a photo."""
    if photo is None:
        return 0.0
    try:
        run(photo)
        start = time.perf_counter()
        run(photo)
    except Exception as error:
        raise UserError(
            _told(model, f"fails on a photo of {photo.shape[1]} x {photo.shape[0]} pixels", error)
        ) from error
    return time.perf_counter() - start


def _photo_in(seconds: float) -> str:
    return (
        f"{1000 * seconds:.0f} ms for a photo"
        if seconds
        else f"not tried, as none of the first {TRIED} photos can be decoded"
    )


def _embed(model: Model, embedder: Any, pixels: np.ndarray) -> None:
    from retrieval.crops import crop  # imports OpenCV

    box = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]])
    rows = embedder.embed(crop(pixels, box, model.spec.input_size, getattr(model.spec, "margin", 0.0)), batch_size=1)
    if rows.shape != (1, model.spec.dim) or not np.isfinite(rows).all():
        raise ValueError(f"its embedding of one crop is {rows.shape}, want (1, {model.spec.dim}) finite numbers")


def _told(model: Model, what: str, error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    text = text if text.startswith(model.name) else f"{model.name}: {what}: {text or type(error).__name__}"
    return text if isinstance(error, ValueError) else f"{text} ({type(error).__name__})"


# ---------------------------------------------------------------------------------------------------------------------
# What a model is, in words.


def _facts(model: Model, loaded: Any) -> str:
    spec, parts = model.spec, []
    if (n := _parameters(loaded)) is not None:
        parts.append(f"{n / 1e6:.1f} M parameters")
    if size := getattr(spec, "scale_px", None):
        parts.append(f"photos within {size[0]} x {size[1]} px")
    if size := getattr(spec, "input_size", None):
        parts.append(f"crops of {size} px")
    mean, std = getattr(spec, "mean", None), getattr(spec, "std", None)
    if mean and std:
        parts.append(f"mean {_numbers(mean)}, std {_numbers(std)}")
    if call := getattr(spec, "call", ""):
        parts.append(f"{call} version {spec.version}")
    if engine := getattr(loaded, "engine", None):
        parts.append(f"run by {engine}")
    parts.append(f"weights {model.file or '-'} {model.weights[:12]}")
    return ", ".join(parts)


def _parameters(loaded: Any) -> int | None:
    """Of the network that a loaded model holds, directly or one object further; None where there is none to be seen."""
    inner = getattr(loaded, "model", None)
    for one in (loaded, inner, *getattr(inner, "__dict__", {}).values()):
        if callable(getattr(one, "parameters", None)) and callable(getattr(one, "state_dict", None)):
            return sum(parameter.numel() for parameter in one.parameters())
    return None


def _stored(model: Model) -> str:
    return f"read from {', '.join(model.spec.source)}, digest {model.weights[:12]}"


def _classes(model: Model) -> str:
    found: Mapping[str, str | None] = found_by(model)
    if not found:
        return "category ids of the run"
    kept = [ours if own == ours else f"{own} -> {ours}" for (own, ours), i in _with_ids(model, found) if i]
    return f"{len(found)} classes, {len(kept)} used: {listed([str(name) for name in kept])}"


def _with_ids(model: Model, found: Mapping[str, str | None]) -> Iterator[tuple[tuple[str, str | None], int]]:
    return zip(found.items(), model.category_ids, strict=True)


def _numbers(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)
