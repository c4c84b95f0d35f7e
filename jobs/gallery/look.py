"""The gallery's models on a few photos, in a process of their own: torch is never where FAISS is, and a photo that kills costs this process alone.

In: a folder with look.json (the settings of version.json, the device) and imageset/ (the photos). Out: found.npz in it, see `Found`.
Detecting, fusing and embedding are those of a night, shard workers called one after the other, without Ray.

    python jobs/gallery/look.py FOLDER
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if __name__ == "__main__" and (Path(__file__).resolve().parents[2] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from jobs import cli, config
from jobs.cli import UserError
from jobs.config import Settings
from jobs.models import SHIPPED, Catalogue, chosen

if TYPE_CHECKING:
    from store.imageset import Shard

SCRIPT = Path(__file__).resolve()
RECORDED = (
    "profile", "detectors", "embedders", "weights_dir", "allow_random_weights", "max_pixels",
    "detect", "fusion", "items", "embed", "threads_per_actor", "storage",
)  # fmt: skip
START_S, PHOTO_S = 600, 120  # the process may take so long, and so much more for each photo
MAX_REASON = 300  # letters
PARTS = ("photo", "bbox", "score", "category_id", "vectors")  # of `Found`, a row a garment


@dataclass(frozen=True)
class Found:
    """The garments of some photos, photo by photo, the surest first.

    Attributes:
        photo: (N,) int64, the number of the photo each is in.
        bbox: (N, 4) float32, px x1 y1 x2 y2 of the upright photo. score: (N,) float32. category_id: (N,) int8.
        vectors: (N, D) float32, each embedder's unit row side by side, in the settings' order, as `Gallery.search` wants them.
        failed: number of a photo -> why nothing is known of it.
    """

    photo: np.ndarray
    bbox: np.ndarray
    score: np.ndarray
    category_id: np.ndarray
    vectors: np.ndarray
    failed: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.photo)

    def where(self, rows: np.ndarray) -> "Found":
        """Some of the garments."""
        return Found(**{name: getattr(self, name)[rows] for name in PARTS}, failed=self.failed)


# ---------------------------------------------------------------------------------------------------------------------
# In the process that asks.


def recorded(settings: Settings) -> dict[str, Any]:
    """What version.json keeps of the settings, so that a photo can be looked at later as the gallery's were: plain JSON, no credentials."""
    kept = {name: value for name, value in config.record(settings).items() if name in RECORDED}
    if settings.weights_dir is not None:  # a relative folder means another one elsewhere
        from jobs.models import weights_folder

        kept["weights_dir"] = weights_folder(settings).uri
    return kept


def settings_of(record: Mapping[str, Any], catalogue: Catalogue, *, weights_dir: str | None = None) -> Settings:
    """The settings a version was made with, its models found here and compared with those it was made by.

    Args:
        record: version.json. weights_dir: folder of the weights, where they lie elsewhere than they did that night.

    Raises:
        UserError: in one line: nothing recorded, weights that are not here, other weights, another model or other code.
    """
    from jobs.gallery.results import fingerprint_of

    name = record.get("name", "?")
    if "settings" not in record:
        raise UserError(
            f"version {name}: it does not say with which settings its models were run; publish anew (reindex_gallery.py … --retrain now)"
        )
    settings = config.consistent(config.build(Settings, record["settings"], ""))
    if weights_dir is not None:
        settings = dataclasses.replace(settings, weights_dir=weights_dir)
    detectors, embedders = chosen(settings, catalogue)
    then = [*record["detectors"], *(model["basis"] for model in record["models"])]
    for model, basis in zip((*detectors, *embedders), then, strict=True):
        if model.basis["weights"] != basis["weights"]:
            raise UserError(
                f"version {name}: {model.name} here has weights {model.basis['weights'][:16]}, the version was made with {basis['weights'][:16]}; "
                "restore those or name their folder with --weights-dir"
            )
        if model.basis != basis:
            raise UserError(
                f"version {name}: {model.name} here is another model than the one it was made with; use that night's code, or publish anew"
            )
    if fingerprint_of(settings, (*detectors, *embedders)) != record["results"]:
        raise UserError(
            f"version {name}: photos are looked at in another way here than on the night it was made; use that night's code, or publish anew"
        )
    return settings


def ask(photos: Mapping[int, tuple[bytes, int, int]], settings: Settings, script: Path = SCRIPT) -> Found:
    """Photos through the models, in a process that ends with them; where it dies, each photo is tried alone.

    Args:
        photos: number -> encoded bytes, width and height of the upright photo in px.
        script: what the process runs; a test brings stand-ins.

    Raises:
        UserError: the models cannot be loaded, in one line.
    """
    found, reason = _ask_once(photos, settings, script)
    if found is not None:
        return found
    if len(photos) == 1:
        return _nothing(dict.fromkeys(photos, reason))
    return _together([ask({number: photo}, settings, script) for number, photo in photos.items()])


def _ask_once(
    photos: Mapping[int, tuple[bytes, int, int]], settings: Settings, script: Path
) -> tuple[Found | None, str]:
    """What was found; or None and how the process ended."""
    from store.imageset import Photo, write_imageset

    with tempfile.TemporaryDirectory(prefix="look-") as folder:
        rows = (Photo(number, *photo, source="user") for number, photo in photos.items())
        write_imageset(rows, f"{folder}/imageset", source={"adapter": "look", "arguments": {}})
        request = {"settings": recorded(settings), "device": settings.device}
        Path(folder, "look.json").write_text(json.dumps(request), encoding="utf-8")
        limit = START_S + PHOTO_S * len(photos)
        try:
            done = subprocess.run(
                [sys.executable, str(script), folder], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return None, f"the models took longer than {limit} s"
        said = (done.stderr.decode("utf-8", "replace").strip() or "nothing said").splitlines()[-1]
        if done.returncode == 2:
            raise UserError(said.partition("error: ")[2] or said)
        if done.returncode:
            return None, f"the models' process ended with {done.returncode}: {said}"[:MAX_REASON]
        return _read(Path(folder, "found.npz")), ""


def _read(path: Path) -> Found:
    with np.load(path, allow_pickle=False) as arrays:
        failed = dict(zip(arrays["failed"].tolist(), arrays["reason"].tolist(), strict=True))
        return Found(**{name: arrays[name] for name in PARTS}, failed=failed)


def _nothing(failed: Mapping[int, str]) -> Found:
    whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Found(whole, np.zeros((0, 4), np.float32), real, whole.astype(np.int8), np.zeros((0, 0), np.float32), failed)


def _together(parts: list[Found]) -> Found:
    failed = {number: reason for part in parts for number, reason in part.failed.items()}
    full = [part for part in parts if len(part)]
    if not full:
        return _nothing(failed)
    return Found(**{name: np.concatenate([getattr(part, name) for part in full]) for name in PARTS}, failed=failed)


# ---------------------------------------------------------------------------------------------------------------------
# In the process with the models.


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED) -> int:
    places = sys.argv[1:] if argv is None else argv
    if len(places) != 1:
        raise UserError("want one folder, as jobs/search.py makes it")
    look(Path(places[0]), catalogue)
    return 0


def look(folder: Path, catalogue: Catalogue) -> None:
    """Detect, fuse and embed the photos of FOLDER/imageset; writes FOLDER/found.npz."""
    from jobs.detect_shard import DetectShard
    from jobs.embed_shard import EmbedShard
    from jobs.fuse_shard import FuseShard
    from jobs.trial import Job
    from store.imageset import open_imageset
    from store.objects import open_store

    request = json.loads((folder / "look.json").read_text(encoding="utf-8"))
    settings = config.build(Settings, request["settings"], "")
    detectors, embedders = chosen(settings, catalogue)
    images, output, device = open_imageset(folder / "imageset"), open_store(folder / "run"), _device(request["device"])
    names = [model.name for model in embedders]
    detect = DetectShard(settings, catalogue, detectors, images, output, device)
    fuse = FuseShard(settings, tuple(model.name for model in detectors), images, output)
    embed = EmbedShard(settings, catalogue, embedders, images, output, device)
    stages = (
        (detect, tuple(model.name for model in detectors)),
        (fuse, ("detected",)),
        (embed, tuple(("detected", name) for name in names)),
    )
    failed: dict[int, str] = {}
    for worker, work in stages:
        _load(worker)
        for shard in images.shards:
            outcomes = worker.run(Job(shard.name, tuple(range(shard.rows)), work), {}, False)
            for outcome in outcomes.values():
                failed |= {row["image_id"]: row["reason"] for row in outcome.failures}
    arrays = [_items(output, shard, names) for shard in images.shards]
    known = {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]} if arrays else {}
    good = ~np.isin(known["photo"], list(failed))  # of a photo that failed in one model nothing is kept, as by night
    known = {name: values[good] for name, values in known.items()}
    known |= {"failed": np.array(list(failed), np.int64), "reason": np.array(list(failed.values()), np.str_)}
    np.savez(folder / "found.npz", allow_pickle=False, **known)


def _load(worker: Any) -> None:
    try:
        worker.load()
    except (ValueError, OSError) as error:  # weights that are not what they are said to be
        raise UserError(str(error)) from error


def _items(output: Any, shard: "Shard", names: list[str]) -> dict[str, np.ndarray]:
    """One shard's items that every embedder has a row of."""
    from jobs import tables

    items = tables.read(output, f"items/detected/{shard.name}.parquet")
    keys = list(zip(items.column("image_id").to_pylist(), items.column("item").to_pylist(), strict=True))
    rows: list[dict[tuple[int, int], np.ndarray]] = []
    width = 0
    for name in names:
        table = tables.read(output, f"embeddings/detected/{name}/{shard.name}.parquet")
        mine = zip(table.column("image_id").to_pylist(), table.column("item").to_pylist(), strict=True)
        vectors = tables.rows_of(table.column("embedding")).astype(np.float32)
        rows.append(dict(zip(mine, vectors, strict=True)))
        width += vectors.shape[1]
    kept = [i for i, key in enumerate(keys) if all(key in one for one in rows)]
    joined = [np.concatenate([one[keys[i]] for one in rows]) for i in kept]
    return {
        "photo": items.column("image_id").to_numpy()[kept],
        "bbox": tables.rows_of(items.column("bbox"))[kept],
        "score": items.column("score").to_numpy()[kept],
        "category_id": items.column("category_id").to_numpy()[kept],
        "vectors": np.array(joined, np.float32).reshape(-1, width),
    }


def _device(wanted: str) -> str:
    """`cuda` where it is asked for, or possible and not refused."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    cli.run(main)
