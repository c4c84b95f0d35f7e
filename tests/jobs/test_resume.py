"""Killed at random moments and started again with another number of workers, a run ends where a straight one does.

Real processes, real Ray, stand-in models. `SOAK_ROUNDS=10` for more rounds; `SOAK_SEED` repeats one that failed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stand_ins
from agreement import contract

REPO = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "1"))

pytestmark = pytest.mark.slow


def start(imageset: Path, output: Path, actors: int, pause_s: float = 0.05) -> subprocess.Popen:
    """The whole job in a session of its own; a photo takes a while, so that there is something to kill."""
    script = REPO / "tests" / "jobs" / "run_with_stand_ins.py"
    paths = os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])
    argv = ["--imageset", imageset, "--output", output, "--set", f"actors={actors}", "--set", "max_failed_share=1"]
    env = os.environ | {"PYTHONPATH": paths, "STAND_IN_PAUSE_S": str(pause_s), "OMP_NUM_THREADS": "1"}
    log = open(output.with_suffix(".log"), "ab")  # noqa: SIM115 - the process writes to it for as long as it lives
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, argv)],
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    """An undisturbed run: its image set, what it leaves, and how long it took in seconds."""
    folder = tmp_path_factory.mktemp("straight")
    stand_ins.imageset(folder / "imageset", 48, {5: stand_ins.KILLER})
    began = time.monotonic()
    process = start(folder / "imageset", folder / "run", actors=1)
    assert process.wait(timeout=900) == 0, (folder / "run.log").read_text()
    return folder / "imageset", contract(folder / "run"), time.monotonic() - began


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_an_interrupted_run_ends_byte_equal(
    straight: tuple[Path, dict[str, bytes], float], tmp_path: Path, number: int
) -> None:
    imageset, want, seconds = straight
    seed = int(os.environ.get("SOAK_SEED", random.randrange(10**6)))
    moment = random.Random(seed).uniform(0.10, 0.95) * seconds
    print(f"round {number}: seed {seed}, kill -9 after {moment:.1f} of {seconds:.1f} s")
    first = start(imageset, tmp_path / "run", actors=2)
    try:
        first.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    again = start(imageset, tmp_path / "run", actors=1)
    assert again.wait(timeout=900) == 0, (tmp_path / "run.log").read_text()
    found = contract(tmp_path / "run")
    assert sorted(found) == sorted(want)
    assert [name for name in want if found[name] != want[name]] == []


def test_the_image_that_kills_is_the_only_one_that_fails(straight: tuple[Path, dict[str, bytes], float]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(pa.BufferReader(straight[1]["failures.parquet"])).to_pylist()
    assert [(row["image_id"], row["stage"], row["reason"]) for row in rows] == [
        (5, "detect", "the process died on this image alone, twice"),
        (49, "detect", "cannot be decoded: image file is truncated"),
    ]


def test_a_second_run_at_the_same_time_is_refused(
    straight: tuple[Path, dict[str, bytes], float], tmp_path: Path
) -> None:
    first = start(straight[0], tmp_path / "run", actors=1, pause_s=60)  # it is at work for as long as the second takes
    try:
        end = time.monotonic() + 300  # a guard against hanging
        while not (tmp_path / "run" / "lock.json").exists():
            assert first.poll() is None and time.monotonic() < end, (tmp_path / "run.log").read_text()
            time.sleep(0.05)
        second = start(straight[0], tmp_path / "run", actors=1)
        assert second.wait(timeout=300) == 2
        assert "is at work here; wait for it" in (tmp_path / "run.log").read_text()
    finally:
        first.send_signal(signal.SIGTERM)  # politely: it gives the lock back
        assert first.wait(timeout=300) == 130
    assert not (tmp_path / "run" / "lock.json").exists()
