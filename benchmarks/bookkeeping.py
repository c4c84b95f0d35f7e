"""What the driver's bookkeeping costs by the number of photos, with empty work: time and memory of every step.

    OMP_NUM_THREADS=1 python benchmarks/bookkeeping.py --photos 1000000 4000000

Shards, photos and marks are made up; no photo is stored, no model and no Ray runs. Five detectors, three embedders, one
kind of boxes, 256 photos a shard, as `jobs/ingest.py` writes. Every step runs in a process of its own:

    manifest   write and read the image set's manifest.json
    plan       a first start: the units of all stages and their fingerprints, what is to do and why
    marks      make the mark of every unit that workers finish, as `Run.finish` writes it
    rerun      a start of a finished run: read all marks and the listing, plan all stages, find nothing to do
    status     read all marks, count them
    night      compare tonight's photos with those of the version before and with the results by digest; 1 % changed

Marks and the listing come from a store that makes each when it is asked for, so that no disk is measured; what making
them costs is in `marks`. Memory is the most that the process held, less what it held before the step.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

sys.path[0] = str(Path(__file__).resolve().parents[1])

from detection.models import ATSS_TINY
from jobs import status
from jobs.gallery.changes import compare
from jobs.runs import marks, run, run_record
from jobs.runs.catalogue import SHIPPED
from jobs.runs.marks import Outcome, Unit
from jobs.runs.models import Model
from jobs.runs.planning import plan
from jobs.runs.selection import Selected, ShardTaken
from jobs.runs.settings import Settings
from jobs.stages import order
from retrieval.models import LITE0_SG
from store import manifest
from store.categories import DEEPFASHION2
from store.files import digest
from store.objects import ObjectInfo, ObjectMissing

SHARD, DETECTORS, EMBEDDERS = 256, 5, 3
SECONDS = {"read": 1.234, "infer": 12.345, "write": 0.123}
STAMP = "1764547200000000000-81920"
CHANGED = 0.01


class MadeUp:
    """A store of the run: marks and outputs are made when they are asked for, and nothing is kept."""

    uri, local_path = "made-up", Path(".")

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}  # by mark's key
        self.infos: list[ObjectInfo] = []

    def hold(self, units: Iterator[Unit]) -> None:
        for unit in units:
            self.units[unit.mark_key] = unit
            self.infos += [ObjectInfo(key, 81_920, STAMP) for key in (unit.mark_key, *unit.outputs)]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (info for info in self.infos if info.key.startswith(prefix))

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, 81_920, STAMP)

    def exists(self, key: str) -> bool:
        return key in self.units

    def read(self, key: str) -> bytes:
        if key not in self.units:
            raise ObjectMissing(key)
        return marks.as_json(made_mark(self.units[key]))

    def read_stamped(self, key: str) -> tuple[bytes, str]:
        return self.read(key), ""


def made_mark(unit: Unit) -> dict[str, Any]:
    outputs = {key: digest(key.encode()) for key in unit.outputs}
    return marks.mark_of(unit, Outcome(outputs, 256, SECONDS), dict.fromkeys(outputs, STAMP))


def made_run(n_photos: int, store: Any) -> run.Run:
    """A run over made-up shards."""
    n = -(-n_photos // SHARD)
    shards = tuple(ShardTaken(f"shard-{i:05d}", digest(b"%d" % i), SHARD, None, 10_000_000) for i in range(n))
    selected = Selected(shards, None, n_photos // 10, n_photos - n_photos // 10, n_photos, 0)
    detectors = tuple(Model(f"detector{i}", ATSS_TINY, digest(b"d%d" % i), "") for i in range(DETECTORS))
    embedders = tuple(Model(f"embedder{i}", LITE0_SG, digest(b"e%d" % i), "") for i in range(EMBEDDERS))
    settings = Settings(
        imageset=("made up",),
        output="made up",
        boxes=("detected",),
        detectors=tuple(model.name for model in detectors),
        embedders=tuple(model.name for model in embedders),
    )
    images: Any = SimpleNamespace(digest="made up", shards=shards, uri="made up", manifest=SimpleNamespace(source={}))
    images.sets = (images,)
    lock: Any = None
    return run.Run(settings, store, images, SHIPPED, detectors, embedders, DEEPFASHION2, selected, lock)


def planned(of: run.Run) -> Iterator[Unit]:
    """All units, each marked as done in turn, so that those after it have a basis."""
    for stage in marks.STAGES:
        for unit in plan(of, order.IN_ORDER, stage):
            of.marks[unit.path] = made_mark(unit)
            of.present |= dict.fromkeys(unit.outputs, STAMP)
            yield unit


# ---------------------------------------------------------------------------------------------------------------------
# Steps: each prepares, then returns what is measured.


def step_manifest(n_photos: int) -> Callable[[], Any]:
    names = (f"shard-{i:05d}" for i in range(-(-n_photos // SHARD)))
    shards = [manifest.Shard(name, SHARD, 10_000_000, digest(name.encode())) for name in names]

    def work() -> None:
        whole = manifest.manifest_of(shards, 0, {"adapter": "made up", "arguments": {}}, DEEPFASHION2, None)
        data = manifest.manifest_bytes(whole)
        store: Any = SimpleNamespace(uri="made-up", read=lambda key: data, exists=lambda key: True)
        assert manifest.read_manifest(store).images == whole.images

    return work


def step_plan(n_photos: int) -> Callable[[], Any]:
    of = made_run(n_photos, MadeUp())
    return lambda: list(order.plan_lines(of, marks.STAGES))


def step_marks(n_photos: int) -> Callable[[], Any]:
    of = made_run(n_photos, MadeUp())
    units = plan(of, order.IN_ORDER, "detect")
    return lambda: sum(len(marks.as_json(made_mark(unit))) for unit in units)


def step_rerun(n_photos: int) -> Callable[[], Any]:
    store = MadeUp()
    store.hold(planned(made_run(n_photos, store)))

    def work() -> None:
        again = made_run(n_photos, store)
        again.marks = marks.read_marks(store, marks.expected(again.description())["detect"])  # type: ignore[arg-type]
        again.present = marks.read_listing(store, again.marks)  # type: ignore[arg-type]
        lines = list(order.plan_lines(again, marks.STAGES))
        assert "to do" not in "".join(lines)

    return work


def step_status(n_photos: int) -> Callable[[], Any]:
    store = MadeUp()
    of = made_run(n_photos, store)
    store.hold(planned(of))
    record = of.description() | {"schema": run_record.SCHEMA}

    def work() -> None:
        with mock.patch("jobs.status.at_work", lambda store: None):
            list(status.run_lines(status.run_status(store, record)))  # type: ignore[arg-type]

    return work


def step_night(n_photos: int) -> Callable[[], Any]:
    n_changed = max(1, int(n_photos * CHANGED))

    def photos(first: int) -> pa.Table:
        ids = np.arange(first, first + n_photos)
        bits = np.stack([ids.astype("<u8") * np.uint64(0x9E3779B97F4A7C15), ids.astype("<u8")], axis=1)
        fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n_photos, [None, pa.py_buffer(bits.tobytes())])
        names = pa.array(ids).cast(pa.string())
        shards = pa.array(np.char.add("shard-", (ids // SHARD).astype(str)))
        columns = {"image_id": ids, "source": pa.array(["shop"]).take(pa.array(np.zeros(n_photos, np.int8)))}
        columns |= {"product_id": names, "file_name": names, "digest": fixed, "shard": shards, "row": ids % SHARD}
        return pa.table(columns)

    now, before = photos(n_changed), photos(0)
    n = len(before)
    garments = pa.table({"digest": before["digest"], "items": np.ones(n, np.int32), "reason": pa.array([""] * n)})
    images: Any = SimpleNamespace(photos=lambda columns: now, uri="made up")
    gallery: Any = SimpleNamespace(version="v00001", items=pa.table({"image_id": before["image_id"]}))
    results: Any = SimpleNamespace(photos=lambda: garments)

    def work() -> None:
        with mock.patch("jobs.gallery.changes.tables.read", lambda *_: before):
            found = compare(images, results, MadeUp(), gallery, retry_failed=False)  # type: ignore[arg-type]
        assert (found.added, found.removed, found.new) == (n_changed, n_changed, n_changed), found

    return work


STEPS = {
    "manifest": step_manifest, "plan": step_plan, "marks": step_marks, "rerun": step_rerun, "status": step_status,
    "night": step_night,
}  # fmt: skip


def measure(name: str, n_photos: int) -> tuple[float, float]:
    """CPU seconds and MB of a step, in this process."""
    work = STEPS[name](n_photos)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident_mb()
    start = time.process_time()
    work()
    return time.process_time() - start, _peak_mb() - before


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        cpu, mb = measure(args.step, args.photos[0])
        print(f"{cpu:.2f} | {max(mb, 0):.0f}")
        return
    print(f"load {os.getloadavg()[0]:.1f}\n")
    heads = "".join(f" {n:,} photos: CPU s | MB |" for n in args.photos)
    print(f"| step |{heads}\n|---|{'--:|--:|' * len(args.photos)}")
    for name in args.steps:
        lines = [
            subprocess.run(
                [sys.executable, __file__, "--step", name, "--photos", str(n)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for n in args.photos
        ]
        print(f"| {name} | {' | '.join(lines)} |", flush=True)


if __name__ == "__main__":
    main()
