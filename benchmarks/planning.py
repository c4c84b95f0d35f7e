"""What planning a run costs: units made, CPU seconds of one pass over them, and of a start with nothing to do.

    python benchmarks/planning.py

For 245 and 10,000 shards, 5 detectors, 3 embedders and both kinds of boxes, without photos, models or Ray: the shards
are made up, every output is an empty file on the local disk, and the marks are those that a run writes. `one pass`
makes the units of all stages, each with its fingerprint compared to its mark. `rerun` is a whole start, from the lock
to the exit status: run.json, marks and outputs are read, all six stages are planned, and nothing is done.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[1])

from detection.models import ATSS_TINY
from jobs.runs import marks
from jobs.runs.catalogue import SHIPPED
from jobs.runs.marks import Outcome
from jobs.runs.models import Model
from jobs.runs.planning import plan, run_stage
from jobs.runs.run import Run, open_run
from jobs.runs.selection import Selected, ShardTaken
from jobs.runs.settings import Settings
from jobs.stages import order
from retrieval.models import LITE0_SG
from store.categories import DEEPFASHION2
from store.files import digest
from store.objects import ObjectStore

DETECTORS, EMBEDDERS = 5, 3


def opened(folder: Path, n_shards: int) -> Any:
    """`open_run` over an image set that is made up."""
    shards = tuple(ShardTaken(f"shard-{i:05d}", digest(b"%d" % i), 256, None, 10_000_000) for i in range(n_shards))
    selected = Selected(shards, None, 128 * n_shards, 128 * n_shards, 400 * n_shards, 200 * n_shards)
    detectors = tuple(Model(f"detector{i}", ATSS_TINY, digest(b"d%d" % i), "") for i in range(DETECTORS))
    embedders = tuple(Model(f"embedder{i}", LITE0_SG, digest(b"e%d" % i), "") for i in range(EMBEDDERS))
    settings = Settings(
        imageset=("made up",),
        output=str(folder),
        detectors=tuple(model.name for model in detectors),
        embedders=tuple(model.name for model in embedders),
    )
    manifest = SimpleNamespace(source={})
    more: dict[str, Any] = {"categories": DEEPFASHION2, "check_ids": lambda: None, "manifest": manifest}
    images: Any = SimpleNamespace(digest="made up", shards=shards, **more)
    images.sets = (images,)
    with mock.patch("jobs.runs.run.select", lambda *_: selected):
        manager = open_run(settings, SHIPPED, (detectors, embedders), images=images)
        return manager, manager.__enter__()


def finish_everything(run: Run) -> None:
    """Write empty outputs and the marks, stage by stage; plain files, as waiting for the disk would take minutes."""
    folder = Path(run.store.uri)
    for stage in marks.STAGES:
        for unit in plan(run, order.IN_ORDER, stage):
            stamps = {key: _write(folder, key, b"", run.store) for key in unit.outputs}
            outcome = Outcome(dict.fromkeys(unit.outputs, digest(unit.path.encode())))
            run.marks[unit.path] = marks.mark_of(unit, outcome, stamps)
            run.present.update(stamps)
            _write(folder, unit.mark_key, marks.as_json(run.marks[unit.path]), run.store)


def _write(folder: Path, key: str, data: bytes, store: ObjectStore) -> str:
    """Returns the file's stamp."""
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(data)
    return store.info(key).stamp


def one_pass(run: Run) -> tuple[int, float]:
    """Units made, and seconds of CPU."""
    run.units.clear()
    start = time.process_time()
    plan(run, order.IN_ORDER, "report")
    units = [unit for of_stage in run.units.values() for unit in of_stage.values()]
    assert not any(map(run.reason, units))
    return len(units), time.process_time() - start


def rerun(folder: Path, n_shards: int) -> float:
    """Seconds of CPU."""
    start = time.process_time()
    manager, run = opened(folder, n_shards)
    list(order.plan_lines(run, marks.STAGES))
    for stage in marks.STAGES:
        run_stage(run, order.IN_ORDER, stage)
    assert order._status(run, marks.STAGES) == 0
    manager.__exit__(None, None, None)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[245, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, median of {args.rounds} rounds\n")
    print("| shards | units made | one pass, CPU s | rerun, CPU s |\n|--:|--:|--:|--:|")
    for n_shards in args.shards:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            manager, run = opened(folder, n_shards)
            finish_everything(run)
            passes = [one_pass(run) for _ in range(args.rounds)]
            manager.__exit__(None, None, None)
            reruns = [rerun(folder, n_shards) for _ in range(args.rounds)]
        seconds = statistics.median(spent for _, spent in passes)
        print(f"| {n_shards:,} | {passes[0][0]:,} | {seconds:.3f} | {statistics.median(reruns):.2f} |", flush=True)


if __name__ == "__main__":
    main()
