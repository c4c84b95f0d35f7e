"""Many small drawn photos through the whole job with stand-in models and two actors.

Memory stays flat, and time grows with the photos. There are 1,200 photos; `make soak` sets SOAK_PHOTOS=100000. The
image set, the run and a plot of memory and of photos over time stay in runs/soak/PHOTOS, so that an interrupted soak
can go on.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
PHOTOS = int(os.environ.get("SOAK_PHOTOS", "1200"))
SHARD = 256 if PHOTOS >= 50_000 else 32  # photos; a short run wants shards enough to see a course
MAPS = ("detect", "fuse", "embed")  # stages whose memory must not grow; rank holds the gallery's rows by design
GROWTH = 1.10  # of resident memory, after the first tenth of a stage's shards
SLOWER = 1.5  # a shard of the second half against one of the first, median seconds of the actors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + PHOTOS // 10)]


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Sampler(threading.Thread):
    """The driver's resident memory once a second: (seconds since the epoch, MB)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.samples = pid, list[tuple[float, float]]()

    def run(self) -> None:
        while True:
            try:
                self.samples.append((time.time(), resident_mb(self.pid)))
            except (OSError, IndexError):  # it has ended
                return
            time.sleep(1.0)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[tuple[float, float]], Path]:
    """The run's log, the driver's memory, and the folder of both."""
    from sources.drawn import source as drawn
    from store.imageset_write import write_imageset

    folder = REPO / "runs" / "soak" / str(PHOTOS) if PHOTOS > 10_000 else tmp_path_factory.mktemp("soak")
    if not (folder / "imageset" / "manifest.json").exists():
        rows = drawn.read(PHOTOS // 10, PHOTOS - PHOTOS // 10, seed=1, size_px=64)
        source = {"adapter": "drawn", "arguments": {"photos": PHOTOS}}
        write_imageset(rows, folder / "imageset", source=source, max_images=SHARD)
    argv = [
        "--imageset",
        folder / "imageset",
        "--output",
        folder / "run",
        "--set",
        "actors=2",
        "--set",
        "report.queries=10",
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"}
    with open(folder / "run.txt", "ab") as output:
        script = Path(__file__).with_name("run_with_stand_ins.py")
        process = subprocess.Popen(
            [sys.executable, str(script), *map(str, argv)], env=env, stdout=output, stderr=output
        )
    sampler = Sampler(process.pid)
    sampler.start()
    assert process.wait() == 0, (folder / "run.txt").read_text()[-3000:]
    with open(folder / "driver.jsonl", "a") as kept:
        kept.writelines(json.dumps(sample) + "\n" for sample in sampler.samples)
    driver = [tuple(json.loads(line)) for line in (folder / "driver.jsonl").read_text().splitlines()]
    lines = [line for path in sorted((folder / "run" / "logs").iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines], driver, folder


def shards_of(events: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "shard" and event["stage"] == stage]


def at(event: dict[str, Any]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(event["time"]).timestamp()


@pytest.mark.parametrize("stage", MAPS)
def test_memory_is_flat_after_the_first_tenth(told: Any, stage: str) -> None:
    events, driver, _ = told
    done = shards_of(events, stage)
    by_process: dict[str, list[float]] = defaultdict(list)
    for event in done:
        if "actor" in event:
            by_process[f"actor {event['pid']}"].append(event["rss_mb"])
    from_s, to_s = at(done[0]), at(done[-1])
    by_process["driver"] = [mb for when, mb in driver if from_s <= when <= to_s] or [0.0]
    for process, course in by_process.items():
        after = course[len(course) // 10 :]
        print(f"{stage}, {process}: {after[0]:.0f} MB after a tenth, at most {max(after):.0f} MB")
        assert max(after) <= GROWTH * after[0] + 2.0, f"{stage}, {process}: {course}"


if PHOTOS >= 50_000:  # in a short run one busy minute of the machine is a half

    @pytest.mark.parametrize("stage", MAPS)
    def test_the_second_half_takes_no_longer_than_the_first(told: Any, stage: str) -> None:
        """After the first tenth, by the actors' own seconds: other work on the machine comes and goes."""
        done = [event for event in shards_of(told[0], stage) if event["images"] == SHARD]
        spent = [event["read_s"] + event["infer_s"] + event["write_s"] for event in done]
        spent = spent[len(spent) // 10 :]
        half = len(spent) // 2
        ratio = statistics.median(spent[half:]) / statistics.median(spent[:half])
        print(f"{stage}: a shard of the second half takes {ratio:.2f} times one of the first's time")
        assert ratio < SLOWER


def test_the_course_is_drawn_and_the_overhead_stated(told: Any) -> None:
    events, driver, folder = told
    for stage in MAPS:
        done = shards_of(events, stage)
        images = sum(event["images"] for event in done)
        parts = {
            part: sum(event.get(f"{part}_s", 0.0) for event in done) / images * 1e3
            for part in ("read", "infer", "write", "waited")
        }
        print(f"{stage}: {images} photos, ms a photo: " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items()))
    plot(events, driver, folder / "soak.html")
    assert (folder / "soak.html").stat().st_size > 5000
    print(f"plot: {folder / 'soak.html'}")


def plot(events: list[dict[str, Any]], driver: list[tuple[float, float]], path: Path) -> None:
    """Resident memory of driver and actors, and photos done, over time, as a page for a browser."""
    from plotly.subplots import make_subplots

    start = driver[0][0]
    figure = make_subplots(rows=2, shared_xaxes=True)

    def line(row: int, name: str, points: list[tuple[float, float]]) -> None:
        x, y = zip(*points, strict=True)
        figure.add_scatter(x=x, y=y, name=name, mode="lines", row=row, col=1)

    line(1, "driver", [(when - start, mb) for when, mb in driver])
    for stage in MAPS:
        done = shards_of(events, stage)
        by_actor: dict[Any, list[tuple[float, float]]] = defaultdict(list)
        for event in done:
            if "actor" in event:
                by_actor[event["actor"]].append((at(event) - start, event["rss_mb"]))
        for actor, course in by_actor.items():
            line(1, f"{stage} actor {actor}", course)
        totals = itertools.accumulate(event["images"] for event in done)
        line(2, f"{stage}, photos", [(at(event) - start, total) for event, total in zip(done, totals, strict=True)])
    figure.update_yaxes(title="resident memory, MB", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="photos done", row=2, col=1)
    figure.update_xaxes(title="seconds since the start", row=2, col=1)
    figure.write_html(path)
