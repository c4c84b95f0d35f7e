"""Versions of a large gallery: what building, judging and changing one takes; CPU seconds and memory of each step.

    python benchmarks/version_at_size.py                       # 1,000,000 x 512 rows, ivf_pq, some ten minutes
    python benchmarks/version_at_size.py --rows 100000         # a short run

The rows are those of parts.py: random, low rank plus noise, one garment a photo, in a gallery's results as the models
would leave them. The first night builds a version of all of them; on the second 1 % of the photos are gone and as many
are new. Models, copies and the comparison of photos are left out (nightly.py, bookkeeping.py). Memory is the highest
resident memory of a step less the memory at its start, mapped files included: of a first build most is vectors.npy.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa

from benchmarks.parts import DIM, digests, write_results
from jobs.gallery import build as building
from jobs.gallery import gate
from jobs.gallery.build import Wanted, build
from jobs.gallery.built import Built
from jobs.gallery.changes import photos_with_garments
from jobs.gallery.results import PhotoResults
from jobs.runs.marks import as_json
from jobs.runs.settings import Settings, record
from retrieval.gallery import Gallery, open_gallery
from store.objects import ObjectStore, open_store

T = TypeVar("T")


def status_mb(name: str) -> float:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def timed(night: str, step: str, work: Callable[[], T]) -> T:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    before, began, used = status_mb("VmRSS"), time.perf_counter(), time.process_time()
    found = work()
    took, spent = time.perf_counter() - began, time.process_time() - used
    print(f"| {night} | {step} | {spent:.2f} | {took:.2f} | {status_mb('VmHWM') - before:,.0f} |", flush=True)
    return found


def one_night(
    night: str,
    name: str,
    wanted: Wanted,
    results: PhotoResults,
    ids: np.ndarray,
    before: Gallery | None,
    out: ObjectStore,
) -> Gallery:
    """Build, judge and publish a version of the photos with these ids; the gallery that serves it."""
    photos = pa.table({
        "image_id": ids, "product_id": [""] * len(ids), "file_name": [f"{i}.jpg" for i in ids], "digest": digests(ids),
    })  # fmt: skip
    processed = timed(night, "results of all photos", results.photos)
    found = timed(night, "photos with garments", lambda: photos_with_garments(processed, photos))
    about = {
        "name": name, "schema": 1, "models": [{"name": "m", "dim": DIM}], "search": record(wanted.settings.search),
        "results": results.fingerprint, "results_parts": results.next_part,
        "wanted_kind": wanted.settings.gallery.index, "categories": ["top"],
        "budget_mb": wanted.settings.gallery.memory_mb, "classifier": results.classifier.basis,
        "tuned_to": wanted.settings.gallery.recall,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=out.local_path) as passing:
        step = "build" if before is None else "change"
        built: Built = timed(night, step, lambda: build(wanted, results, photos, before, Path(passing)))
        assert (before is None) == bool(built.rebuilt), built.rebuilt
        own = wanted.settings.gallery
        figures: dict[str, Callable[[], Any]] = {
            "recall": lambda: gate.of_index(built, own.least_recall),
            "counts": lambda: gate.of_counts(built, found, before),
            "rows": lambda: gate.of_rows(built),
            "canaries": lambda: gate.of_canaries(built, before, own.least_canaries),
        }
        judged = [timed(night, f"gate: {figure}", ask) for figure, ask in figures.items()]
        files = timed(night, "digests", built.files)
        timed(night, "write", lambda: built.write(out, about | {"files": files} | built.record()))
    out.write("CURRENT", as_json({"version": name, "history": []}))
    gallery = timed(night, "open, without reading files again", lambda: open_gallery(str(out.local_path), check=False))
    print("\n".join(str(figure) for figure in judged), f"{built.added:,} added, {built.removed:,} removed",
          file=sys.stderr)  # fmt: skip
    return gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--index", default="ivf_pq")
    parser.add_argument("--work", type=Path, help="an empty folder with 10 x rows x 512 bytes of room")
    args = parser.parse_args()
    building.LOCAL_ROWS = 2 * args.rows  # all in this process, whose CPU seconds are counted
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        hundredth = max(1, args.rows // 100)
        write_results(Path(folder), args.rows + hundredth)
        store = open_store(folder)
        results = PhotoResults(store.sub("results/random"), {"m": DIM})
        gallery = {"index": args.index, "memory_mb": 16_384}
        settings = Settings.model_validate({"gallery": gallery, "embedders": ("m",)})
        wanted = Wanted(settings, ("m",), ("top",), "never", "")
        print("| night | step | CPU s | s | MB |\n|---|---|--:|--:|--:|", flush=True)
        first = one_night("first", "000001-x", wanted, results, np.arange(args.rows), None, store)
        one_night("next", "000002-x", wanted, results, np.arange(hundredth, args.rows + hundredth), first, store)


if __name__ == "__main__":
    main()
