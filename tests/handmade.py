"""Versions of a gallery made by hand, of a few rows and no models. For tests only."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval import ann_build
from retrieval.ann import AnnIndex
from retrieval.ann_plan import plan
from retrieval.gallery_files import ITEMS, RECORD, VERSIONS
from store.files import file_digest
from store.objects import ObjectStore

DIM = 6
CONCAT = ({"step": "concat"},)


def rows(ids: Sequence[int], seed: int = 0) -> np.ndarray:
    """(N, DIM) float32 unit rows; an id has the same row in every version of one seed."""
    found = np.array([np.random.default_rng([seed, one]).normal(size=DIM) for one in ids], np.float32).reshape(-1, DIM)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def version(
    store: ObjectStore,
    name: str,
    ids: Sequence[int],
    *,
    seed: int = 0,
    steps: Sequence[Mapping[str, Any]] = CONCAT,
    kind: str = "flat",
    gone: Sequence[int] = (),
    replaced: Mapping[int, int] | None = None,
    hypotheses: Mapping[int, Mapping[int, float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write a whole version of one model `m`; returns version.json.

    Args:
        ids: garments; the image of each is its number, its category number % 13 + 1, its product "p<number // 2>".
        gone: ids that were put in and taken out again. replaced: id -> seed of the row it had before.
        hypotheses: id -> category id -> score, of garments that may be of several categories, the own first.
    """
    with tempfile.TemporaryDirectory() as passing:
        first, last = Path(passing, "first"), Path(passing, "last")
        first.mkdir()
        start = [*ids, *gone]
        vectors = rows(start, seed)
        for one, other in (replaced or {}).items():
            vectors[start.index(one)] = rows([one], other)[0]
        made = plan(kind, len(start), DIM, budget_mb=1000)
        ann_build.write_vectors(first, vectors, np.array(start, np.int64))
        if kind != "flat":
            ann_build.build(made, first)
        index, folder = AnnIndex.open(first, made), first
        if gone or replaced:
            again = np.array(list(replaced or {}), np.int64)
            out = np.array([*gone, *again], np.int64)
            index, folder = index.with_changes(last, rows(again.tolist(), seed), again, out), last
        items = [
            {"id": one, "image_id": one, "bbox": [0.0, 0.0, 9.0, 9.0], "category_id": one % 13 + 1, "score": 0.5,
             "product_id": f"p{one // 2}", "file_name": f"{one}.png", "digest": one.to_bytes(16, "big"),
             "hypotheses": [{"category_id": i, "score": s} for i, s in (hypotheses or {}).get(one, {}).items()]}
            for one in ids
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(items, ITEMS), folder / "items.parquet")
        files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        for file in files:
            store.write_file(f"{VERSIONS}/{name}/{file}", folder / file)
    record = {
        "schema": 1, "name": name, "created": time.time(), "files": files, "models": [{"name": "m", "dim": DIM}],
        "search": {"steps": list(steps), "weights": None, "pool": 50}, "index": asdict(index.plan), "parameters": {},
        "rows": len(ids), "results": "by hand", "gate": {},
    } | more  # fmt: skip
    store.write(f"{VERSIONS}/{name}/{RECORD}", json.dumps(record).encode())
    return record
