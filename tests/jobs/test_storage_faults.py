"""Whole runs on a bucket that misbehaves: they finish as if nothing had been wrong, or stop with one line and go on.

`s3_proxy` injects the faults; SeaweedFS is killed for real. Stand-in models; only the slow tests start Ray.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from agreement import contract
from s3_proxy import Proxy
from seaweed import Seaweed

from jobs.runs.marks import FOLDERS
from jobs.stages import order
from store.objects import open_store

REPO = Path(__file__).resolve().parents[2]
SHARE = ["--set", "max_failed_share=1"]  # the photo cut off in the middle is no trouble here
Full = Callable[..., int]
Calls = list[tuple[str, str, Any]]


_straight: dict[str, bytes] = {}


@pytest.fixture
def straight(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> dict[str, bytes]:
    """What an undisturbed run leaves, on a folder."""
    if not _straight:
        assert full(small_set, tmp_path / "straight", *SHARE) == 0
        _straight.update(contract(tmp_path / "straight"))
        calls.clear()
    return _straight


@pytest.fixture
def where(small_set: Path, s3_bucket: str, s3_proxy: Proxy, impatient: None) -> tuple[str, str]:
    """Image set and OUTPUT in the bucket behind the proxy."""
    store = open_store(f"{s3_bucket}/set")
    for path in small_set.iterdir():
        store.write_file(path.name, path)
    return f"{s3_bucket}/set", f"{s3_bucket}/run"


def start(script: str, imageset: str, output: str, log: Path, *more: str, **env: str) -> subprocess.Popen:
    """A whole run in a process of its own."""
    paths = os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])
    argv = [
        sys.executable,
        str(REPO / "tests" / "jobs" / script),
        "--imageset",
        imageset,
        "--output",
        output,
        *SHARE,
        *more,
    ]
    with open(log, "wb") as file:
        return subprocess.Popen(
            argv, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | env, stdout=file, stderr=file
        )


def one_line(log: Path) -> str:
    """The error a run ended with: one line, and no traceback."""
    said = log.read_text()
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if ": error: " in line]
    assert said.rstrip().endswith(line)
    return line


# ------------------------------------------------------------------------------------------------ trouble that passes


@pytest.mark.parametrize("faults", [
    {"503 SlowDown": 0.2},
    pytest.param({"drop": 0.1, "lose": 0.1}, marks=pytest.mark.slow),
    pytest.param({"stall": 0.02}, marks=pytest.mark.slow),
    pytest.param({"truncate": 0.1}, marks=pytest.mark.slow),
], ids=lambda faults: "+".join(faults))  # fmt: skip
def test_a_run_through_trouble_ends_as_without(
    where: tuple[str, str],
    s3_proxy: Proxy,
    straight: dict[str, bytes],
    calls: Calls,
    full: Full,
    faults: dict[str, float],
) -> None:
    s3_proxy.stall_s = 1.5
    for how, share in faults.items():
        s3_proxy.cause(how, share=share)
    assert full(*where, *SHARE) == 0
    assert set(s3_proxy.caused) == set(faults)
    s3_proxy.heal()
    assert contract(open_store(where[1])) == straight
    assert [call[:2] for call in calls] == [
        (stage, f"shard-{i:05d}") for stage in ("detect", "embed") for i in range(5)
    ]
    assert not open_store(where[1]).exists("lock.json")


@pytest.mark.slow
def test_what_a_late_listing_hides_is_not_done_again(
    where: tuple[str, str], s3_proxy: Proxy, straight: dict[str, bytes], calls: Calls, full: Full
) -> None:
    argv = [*stand_ins.SETTINGS, *SHARE, "--imageset", where[0], "--output", where[1]]
    order.main(["detect"], argv, None, stand_ins.CATALOGUE)
    s3_proxy.late_s = 600
    calls.clear()
    assert full(*where, *SHARE) == 0 and {stage for stage, _, _ in calls} == {"embed"}
    calls.clear()
    assert full(*where, *SHARE) == 0 and calls == []
    assert s3_proxy.caused["late"] > 0
    s3_proxy.heal()
    assert contract(open_store(where[1])) == straight


def test_a_start_asks_for_no_mark_and_no_output_that_is_not_listed(
    where: tuple[str, str], s3_proxy: Proxy, calls: Calls
) -> None:
    argv = [*stand_ins.SETTINGS, *SHARE, "--imageset", where[0], "--output", where[1]]
    order.main(["detect"], argv, None, stand_ins.CATALOGUE)
    finished = [info.key for info in open_store(where[1]).list("done/")]
    s3_proxy.sent.clear()
    calls.clear()
    order.main(["detect"], argv, None, stand_ins.CATALOGUE)
    keys = [key.partition("/run/")[2] for method, key in s3_proxy.sent if method in ("GET", "HEAD")]
    assert calls == []
    assert sorted(key for key in keys if key.startswith("done/")) == finished
    assert not [key for key in keys if key.startswith(FOLDERS)]


# ------------------------------------------------------------------------------------------------ trouble that stays


@pytest.mark.slow
@pytest.mark.parametrize("how, method, key, after, want", [
    ("403 ExpiredToken", ".*", "", 150,
     r"(reading|opening|looking at|writing) \S+ in s3://\S+: refused by the server, .* \(1 attempt\); "
     r"check the credentials"),
    ("507 XMinioStorageFull", "PUT", "run/embeddings/", 7,
     r"writing embeddings/\S+ in s3://\S+/run: the storage is full, .*said the proxy \(1 attempt\); make room"),
    ("truncate", "GET", "run/items/true/shard-00003", 0,
     r"reading items/true/shard-00003.parquet in s3://\S+/run: \d+ bytes that are not .* \(6 attempts\)"),
])  # fmt: skip
def test_a_run_that_cannot_go_on_says_why_and_goes_on_later(
    where: tuple[str, str], s3_proxy: Proxy, straight: dict[str, bytes], calls: Calls, full: Full, tmp_path: Path,
    how: str, method: str, key: str, after: int, want: str,
) -> None:  # fmt: skip
    s3_proxy.cause(how, method, key, after=after)
    log = tmp_path / "log"
    assert start("run_here.py", *where, log).wait(timeout=300) == 2, log.read_text()
    assert re.search(f"run_here.py: error: {want}", one_line(log)), log.read_text()
    s3_proxy.heal()
    marks = {info.key for info in open_store(where[1]).list("done/")}
    assert marks and "done/report/shard-00000.json" not in marks
    assert full(*where, *SHARE) == 0  # on this machine the dead run's lock is taken over at once
    repeated = {
        f"done/{stage}/{name}/{shard}.json" for stage, shard, work in calls if stage == "detect" for name in work
    }
    assert repeated & marks == set()
    assert contract(open_store(where[1])) == straight


# ------------------------------------------------------------------------------------------------ with Ray


@pytest.mark.slow
def test_actors_go_on_through_all_of_it_at_once(
    where: tuple[str, str], s3_proxy: Proxy, straight: dict[str, bytes], tmp_path: Path
) -> None:
    s3_proxy.cause(
        "503 SlowDown", "GET", "items/true/shard-00002", first=7
    )  # more than a read tries: the shard comes again
    for how in ("503 SlowDown", "drop", "lose", "truncate"):
        s3_proxy.cause(how, share=0.03)
    log = tmp_path / "log"
    assert start("run_with_stand_ins.py", *where, log).wait(timeout=500) == 0, log.read_text()
    assert "(6 attempts); trying again" in log.read_text()
    s3_proxy.heal()
    assert contract(open_store(where[1])) == straight


@pytest.fixture
def seaweed_of_its_own(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    (tmp_path / "weed").mkdir()
    with Seaweed(tmp_path / "weed") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="tests")
        yield server


def wait_for_marks(output: str, n: int, process: subprocess.Popen, log: Path) -> None:
    store = open_store(output)
    end = time.monotonic() + 300
    while len(store.list("done/")) < n:
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("script, down_s", [("run_with_stand_ins.py", 2.0), ("run_here.py", None)])
def test_a_server_killed_in_the_middle(
    small_set: Path,
    seaweed_of_its_own: Seaweed,
    straight: dict[str, bytes],
    tmp_path: Path,
    script: str,
    down_s: float | None,
) -> None:
    """With actors and patience it is back soon; without either it is gone until the run has stopped."""
    stand_ins.imageset("s3://tests/set")
    where, log, pause = ("s3://tests/set", "s3://tests/run"), tmp_path / "log", {"STAND_IN_PAUSE_S": "0.1"}
    process = start(script, *where, log, **pause)
    wait_for_marks(where[1], 4, process, log)
    seaweed_of_its_own.kill()
    if down_s is not None:
        time.sleep(down_s)
        seaweed_of_its_own.start()
    status = process.wait(timeout=400)
    print(f"{script}: status {status}")
    assert status == 2 if down_s is None else status in (0, 2), log.read_text()
    if status:
        assert re.search(r"error: \S+ (at )?\S+ in s3://tests/\S+: .*\(\d attempts?\)", one_line(log))
    if down_s is None:
        seaweed_of_its_own.start()
    seaweed_of_its_own.wait()
    assert start("run_here.py", *where, log).wait(timeout=300) == 0, log.read_text()
    assert contract(open_store(where[1])) == straight
