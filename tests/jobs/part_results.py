"""Results of a model `m` made by hand, versions built from them in parts, and stores that wait. For tests only."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.gallery.build import Wanted, build
from jobs.gallery.built import Built, Published
from jobs.gallery.built_parts import BuiltParts
from jobs.gallery.parts import build_parts
from jobs.gallery.results import PhotoResults
from jobs.runs.marks import as_json
from jobs.runs.settings import Settings, record
from postproc.hypotheses import Hypotheses
from retrieval.gallery import Gallery
from retrieval.hypotheses import as_column
from store.local import LocalStore
from store.objects import ObjectStore

DIM = 8


def wanted(parts: int, steps: Sequence[Mapping[str, Any]] = ({"step": "concat"},), **gallery: Any) -> Wanted:
    settings = Settings.model_validate(
        {"gallery": {"parts": parts, **gallery}, "embedders": ("m",), "search": {"steps": tuple(steps)}}
    )
    return Wanted(settings, ("m",), ("top",), "never", "")


def rows_of(image_ids: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, DIM) float32 unit rows; of photos of one number modulo 1,000 they are equal, so that similarities tie."""
    rows = np.random.default_rng(seed).normal(size=(1_000, DIM)).astype(np.float32)[image_ids % 1_000]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def photos_of(image_ids: np.ndarray, product: str = "p") -> pa.Table:
    return pa.table({
        "image_id": image_ids, "product_id": [f"{product}{i // 3}" for i in image_ids.tolist()],
        "file_name": [f"{i}.png" for i in image_ids.tolist()],
        "digest": pa.array([i.to_bytes(16, "big") for i in image_ids.tolist()], pa.binary(16)),
        "shard": ["shard-00000"] * len(image_ids),
    })  # fmt: skip


def results_in(store: ObjectStore, image_ids: np.ndarray) -> PhotoResults:
    """One garment a photo; of an odd photo it may be of the next category too, ever more surely."""
    results, n = PhotoResults(store.sub("results/hand"), {"m": DIM}), len(image_ids)
    digests = photos_of(image_ids).column("digest")
    category_id = (1 + image_ids % 13).astype(np.int64)
    likely = np.stack([np.ones(n), np.linspace(0, 1, n) * (image_ids % 2)], axis=1).astype(np.float32)
    may_be = Hypotheses(np.stack([category_id, np.where(likely[:, 1] > 0, 1 + category_id % 13, 0)], axis=1), likely)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows_of(image_ids).reshape(-1)), DIM)
    boxes = pa.FixedSizeListArray.from_arrays(pa.array(np.tile(np.array([0, 0, 9, 9], np.float32), n)), 4)
    items = pa.table({
        "digest": digests, "bbox": boxes, "score": np.linspace(0.3, 0.9, n, dtype=np.float32),
        "category_id": category_id.astype(np.int16), "votes": np.ones(n, np.int8),
        "hypotheses": as_column(may_be), "m": vectors,
    })  # fmt: skip
    photos = pa.table({"digest": digests, "items": np.ones(n, np.int32), "reason": [""] * n})
    results.add(photos, items)
    return results


def published(wish: Wanted, results: PhotoResults, image_ids: np.ndarray, before: Published | None, store: ObjectStore,
              name: str, product: str = "p") -> tuple[Gallery, BuiltParts]:  # fmt: skip
    """A version in parts, whole, though the gate never saw it: opened, and how it was built."""
    with build_parts(wish, results, photos_of(image_ids, product), before, store, name) as built:
        built.write(store, record_of(wish, results, built, name))
    return Gallery(store, name), built


def in_one(
    wish: Wanted, results: PhotoResults, image_ids: np.ndarray, store: ObjectStore, name: str, product: str = "p"
) -> Gallery:
    """The same garments as one index, built anew."""
    with tempfile.TemporaryDirectory() as passing:
        built = build(wish, results, photos_of(image_ids, product), None, Path(passing))
        built.write(store, record_of(wish, results, built, name))
    return Gallery(store, name)


def record_of(wish: Wanted, results: PhotoResults, built: Built | BuiltParts, name: str) -> dict[str, object]:
    own = wish.settings.gallery
    return {
        "name": name, "schema": 1, "created": 0.0, "models": [{"name": "m", "dim": DIM}], "categories": ["top"],
        "search": record(wish.settings.search), "results": results.fingerprint, "results_parts": results.next_part,
        "wanted_kind": own.index,
        "budget_mb": own.memory_mb, "tuned_to": own.recall, "files": built.files(), **built.record(),
    }  # fmt: skip


class HeldStore(LocalStore):
    """A folder in which files of parts are written only once the file `hold` in it is gone; `held/NODE` says by whom.

    Workers on Ray find this class by PYTHONPATH.
    """

    def write_file(self, key: str, path: str | Path) -> None:
        import ray

        if "/part-" in key:
            held = self.local_path / "held"
            held.mkdir(exist_ok=True)
            (held / ray.get_runtime_context().get_node_id()).touch()
            while (self.local_path / "hold").exists():
                time.sleep(0.05)
        super().write_file(key, path)


def node_of(part: Gallery) -> str:
    """Run where a part is served: Ray's node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def publish(store: ObjectStore, name: str) -> None:
    store.write("CURRENT", as_json({"version": name, "history": []}))
