"""The gallery's models on a few photos and texts, in a process of their own, whose death costs one photo alone.

In: a folder with request.json (settings and categories of version.json, the device, the texts) and imageset/ (the
photos). Out: garments.npz in it, see `PhotoGarments`. The night's shard workers detect, fuse and embed, one after the
other, without Ray.

    python jobs/gallery/infer.py FOLDER
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__" and (Path(__file__).resolve().parents[2] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from jobs import cli
from jobs.gallery.questions import NOTHING, PhotoGarments
from jobs.gallery.results import fingerprint_of
from jobs.gallery.versions import settings_record
from jobs.runs.catalogue import SHIPPED, choose_models
from jobs.runs.categories import with_category_ids
from jobs.runs.gpu import found_device
from jobs.runs.models import Catalogue
from jobs.runs.pool import thread_limits
from jobs.runs.reader import read_items
from jobs.runs.retries import Job
from jobs.runs.run_classifier import RunClassifier
from jobs.runs.settings import SearchSettings, Settings, check_together
from jobs.runs.validation import build
from jobs.stages.classify import classifier_for
from jobs.stages.detect import DetectWorker
from jobs.stages.embed import EmbedWorker
from jobs.stages.fuse import FuseWorker
from store.categories import recorded
from store.errors import UserError
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import ObjectStore, open_store

SCRIPT = Path(__file__).resolve()
START_S, PHOTO_S = 600, 120  # limits: to start the process, and for each photo
MAX_REASON = 300  # characters
REQUEST, ANSWER = "request.json", "garments.npz"


# --- in the process that searches -------------------------------------------------------------------------------------


def settings_of(version: Mapping[str, Any], catalogue: Catalogue, *, weights_dir: str | None = None) -> Settings:
    """The settings a version was made with; its models are found here and compared with those it was made by.

    `version` is version.json; `weights_dir` is where the weights are now, if not where they were that night.

    Raises:
        UserError: no settings recorded, weights that are not here, other weights, another model or other code.
    """
    name = f"version {version.get('name', '?')}"
    if "settings" not in version:
        advice = "publish anew (reindex_gallery.py … --retrain now)"
        raise UserError(f"{name}: it does not say with which settings its models were run; {advice}")
    settings = check_together(build(Settings, version["settings"], ""))
    if weights_dir is not None:
        settings = settings.replace(weights_dir=weights_dir)
    detectors, embedders = choose_models(settings, catalogue)
    detectors = with_category_ids(detectors, recorded(version))
    bases = [*version["detectors"], *(model["basis"] for model in version["models"])]
    for model, basis in zip((*detectors, *embedders), bases, strict=True):
        if model.basis["weights"] != basis["weights"]:
            here, there = model.basis["weights"][:16], basis["weights"][:16]
            reason = f"{model.name} here has weights {here}, the version was made with {there}"
            raise UserError(f"{name}: {reason}; restore those or name their folder with --weights-dir")
        if model.basis != basis:
            reason = f"{model.name} here is another model than the one it was made with"
            raise UserError(f"{name}: {reason}; use that night's code, or publish anew")
    if (made_with := version.get("classifier")) is None:  # the fused boxes decided, and do so for what is asked
        settings = settings.replace(search=SearchSettings())
    elif (here := classifier_for(settings, detectors, embedders, recorded(version))).basis != made_with:
        reason = f"its garments' categories are those of {made_with['file']} {made_with['sha256'][:16]}"
        reason += f", which is not what is here ({here.sha256[:16] or here.note or 'none'})"
        raise UserError(f"{name}: {reason}; restore that or name its folder with --weights-dir, or publish anew")
    has_hypotheses = "hypotheses" in version["settings"].get("items", {})
    if fingerprint_of(settings, (*detectors, *embedders), hypotheses=has_hypotheses) != version["results"]:
        reason = "photos are processed differently here than on the night it was made"
        raise UserError(f"{name}: {reason}; use that night's code, or publish anew")
    return settings


def infer(
    photos: Mapping[int, tuple[bytes, int, int]],
    settings: Settings,
    categories: Sequence[str],
    script: Path = SCRIPT,
    texts: Sequence[str] = (),
) -> PhotoGarments:
    """Put photos and texts through the models in a process of their own; where it dies, each photo is tried alone.

    `photos`: number -> encoded bytes, width and height of the upright photo in px; there may be none. `categories` are
    the names of the gallery's category ids. `script` is what the process runs; a test brings stand-ins. UserError: the
    models cannot be loaded, an embedder takes no text, or a text is refused.
    """
    garments, reason = _infer_once(photos, settings, categories, script, texts)
    if garments is not None:
        return garments
    if not photos:
        raise UserError(reason)
    if len(photos) == 1:
        return PhotoGarments(**NOTHING, failed=dict.fromkeys(photos, reason))
    parts = [infer({number: photo}, settings, categories, script, texts) for number, photo in photos.items()]
    failed = {number: reason for part in parts for number, reason in part.failed.items()}
    parts = [part for part in parts if len(part)] or parts[:1]  # without garments, the vectors' width is not known
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in NOTHING}
    return PhotoGarments(**columns, failed=failed, texts=parts[0].texts)


def _infer_once(
    photos: Mapping[int, tuple[bytes, int, int]],
    settings: Settings,
    categories: Sequence[str],
    script: Path,
    texts: Sequence[str],
) -> tuple[PhotoGarments | None, str]:
    """The garments; or None and how the process ended."""
    with tempfile.TemporaryDirectory(prefix="infer-") as folder:
        # as the gallery's own photos are processed, without what `items.query_score_threshold` adds
        rows = (Photo(number, *photo, source="shop") for number, photo in photos.items())
        write_imageset(rows, f"{folder}/imageset", source={"adapter": "infer", "arguments": {}})
        request = {
            "settings": settings_record(settings), "categories": list(categories), "device": settings.device,
            "texts": list(texts),
        }  # fmt: skip
        Path(folder, REQUEST).write_text(json.dumps(request), encoding="utf-8")
        limit, command = START_S + PHOTO_S * len(photos), [sys.executable, str(script), folder]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": limit}
        try:
            process = subprocess.run(command, env=os.environ | thread_limits(settings.threads_per_actor), **how)
        except subprocess.TimeoutExpired:
            return None, f"the models took longer than {limit} s"
        last = (process.stderr.decode("utf-8", "replace").strip() or "nothing said").splitlines()[-1]
        if process.returncode == 2:
            raise UserError(last.partition("error: ")[2] or last)
        if process.returncode:
            return None, f"the models' process ended with {process.returncode}: {last}"[:MAX_REASON]
        with np.load(Path(folder, ANSWER), allow_pickle=False) as arrays:
            failed = dict(zip(arrays["failed"].tolist(), arrays["reason"].tolist(), strict=True))
            columns = {name: arrays[name] for name in (*NOTHING, "texts") if name in arrays}
            return PhotoGarments(**columns, failed=failed), ""


# --- in the process with the models -----------------------------------------------------------------------------------


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED) -> int:
    folders = sys.argv[1:] if argv is None else argv
    if len(folders) != 1:
        raise UserError("want one folder, as jobs/search.py makes it")
    answer(Path(folders[0]), catalogue)
    return 0


def answer(folder: Path, catalogue: Catalogue) -> None:
    """Detect, fuse and embed the photos of FOLDER/imageset, and embed the texts; writes FOLDER/garments.npz."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    settings = build(Settings, request["settings"], "")
    detectors, embedders = choose_models(settings, catalogue)
    detectors = with_category_ids(detectors, request["categories"])
    images, output = open_imageset(folder / "imageset"), open_store(folder / "run")
    device = found_device(request["device"])
    detector_names, names = (tuple(model.name for model in models) for models in (detectors, embedders))
    embed = EmbedWorker(settings, catalogue, embedders, images, output)
    stages: list[tuple[Any, tuple[Any, ...]]] = [
        (DetectWorker(settings, catalogue, detectors, images, output), detector_names),
        (FuseWorker(settings, detector_names, ("detected",), images, output), ("fuse",)),
        (embed, tuple(("detected", name) for name in names)),
    ]
    shards = [shard.name for shard in images.shards]
    failed: dict[int, str] = {}
    for worker, work in (stage for stage in (stages if shards else stages[-1:]) if stage[1]):
        try:
            worker.load(device)
        except (ValueError, OSError) as error:  # weights that do not fit their model
            raise UserError(str(error)) from error
        for shard in images.shards:
            outcomes = worker.run(Job(shard.name, tuple(range(shard.rows)), work), {}, False)
            for outcome in outcomes.values():
                failed |= {row["image_id"]: row["reason"] for row in outcome.failures}
    classifier = classifier_for(settings, detectors, embedders, request["categories"])
    arrays = _garments(output, shards, names, failed, settings.items.hypotheses, classifier) if shards else NOTHING
    if request["texts"]:
        arrays = arrays | {"texts": embed_texts(embed.embedders, request["texts"])}
    reasons = {"failed": np.array(list(failed), np.int64), "reason": np.array(list(failed.values()), np.str_)}
    np.savez(folder / ANSWER, allow_pickle=False, **arrays, **reasons)


def _garments(
    output: ObjectStore,
    shards: Sequence[str],
    embedders: Sequence[str],
    failed: Mapping[int, str],
    most: int,
    classifier: RunClassifier,
) -> dict[str, np.ndarray]:
    """What the stages wrote, as the arrays of `PhotoGarments`, `most` hypotheses wide."""
    items = read_items(output, "detected", shards, embedders).classified(classifier)
    after = ((0, 0), (0, most - items.hypotheses.category_id.shape[1]))
    good = ~np.isin(items.image_id, list(failed))  # as at night, a photo that failed in one model has no garments
    arrays = {
        "photo": items.image_id, "bbox": items.bbox, "score": items.score, "category_id": items.category_id,
        "hypothesis_id": np.pad(items.hypotheses.category_id, after),
        "hypothesis_score": np.pad(items.hypotheses.score, after),
        "vectors": np.concatenate([items.embeddings[name] for name in embedders], axis=1),
    }  # fmt: skip
    return {name: rows[good] for name, rows in arrays.items()}


def embed_texts(embedders: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """(T, D) float32: the rows of the embedders, name -> loaded model, side by side.

    UserError names the embedders that take no text, or says why one refuses these.
    """
    if without := [name for name, embedder in embedders.items() if not hasattr(embedder, "embed_text")]:
        reason = f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} no text tower"
        raise UserError(f"--text: {reason}; a gallery whose embedders are all of `open_clip` can be asked with words")
    try:
        return np.concatenate([embedder.embed_text(texts) for embedder in embedders.values()], axis=1)
    except ValueError as error:
        raise UserError(f"--text: {error}") from error


if __name__ == "__main__":
    cli.run(main)
