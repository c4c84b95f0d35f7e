"""Faults of every kind at random moments, several in a run: it ends as an undisturbed one does, byte for byte.

Three Ray nodes on this machine, the job in a process of its own, OUTPUT in a folder (on a small disk where we may mount
one) or in a bucket behind a proxy. A start that a fault ended is followed by the same line again, as a person would do
in the morning. CHAOS_ROUNDS=30 for more rounds (`make soak`); CHAOS_SEED=N begins with the round of that seed.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import own_ray
import pytest
import stand_ins
from agreement import contract
from s3_proxy import Proxy

from jobs import cli

REPO = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "5"))
FIRST_SEED = int(os.environ.get("CHAOS_SEED", "20"))  # 20 to 24 meet twelve of the fourteen kinds of fault
ODD = {30: stand_ins.STUMBLER} | ({5: stand_ins.KILLER} if ROUNDS > 5 else {})  # each death takes Ray seconds
STARTS = 8  # of the job in a round, at most
LASTS_S = 2.0  # a fault of storage
HEAD_GONE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # after which a job ends
DISK = 16_000_000  # bytes of the small disk; a run takes 7 MB, most of it the report's chart library

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(line: list[str], log: Path, **env: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])
    env = os.environ | {"PYTHONPATH": paths, "STAND_IN_PAUSE_S": "0.1", "OMP_NUM_THREADS": "1"} | HEAD_GONE | env
    argv = [sys.executable, str(REPO / "tests" / "jobs" / "run_with_stand_ins.py"), *line]
    with open(log, "ab") as told:
        return subprocess.Popen(argv, env=env, stdout=told, stderr=told, start_new_session=True)


# ------------------------------------------------------------------------------------------------ what can be hurt


def three_nodes() -> own_ray.Nodes:
    nodes = own_ray.Nodes()
    for _ in range(2):
        nodes.add()
    return nodes


@dataclass
class Round:
    """One run and what may befall it."""

    seed: int
    nodes: own_ray.Nodes
    output: str
    line: list[str]
    log: Path
    proxy: Proxy | None
    disk: Path | None
    chance: random.Random = field(init=False)
    happened: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def kill_a_worker(self, job: subprocess.Popen) -> None:
        self._signal_a_worker(signal.SIGKILL)

    def crash_a_worker(self, job: subprocess.Popen) -> None:
        self._signal_a_worker(signal.SIGSEGV)

    def freeze_a_worker(self, job: subprocess.Popen) -> None:
        self._signal_a_worker(signal.SIGSTOP)

    def _signal_a_worker(self, number: int) -> None:
        if workers := self.nodes.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(workers), number)

    def kill_a_node(self, job: subprocess.Popen) -> None:
        self.nodes.kill(self.chance.choice(self.nodes.others))
        self.nodes.add()

    def kill_the_driver(self, job: subprocess.Popen) -> None:
        job.kill()
        job.wait()  # nothing more befalls it

    def kill_the_head(self, job: subprocess.Popen) -> None:
        self.nodes.end()
        job.wait(timeout=120)  # it sees that the head is gone, and ends
        self.nodes = three_nodes()

    def disturb_storage(self, how: str) -> Callable[[subprocess.Popen], None]:
        def disturb(job: subprocess.Popen) -> None:
            assert self.proxy is not None
            self.proxy.cause(how, share=1.0 if how in FATAL else 0.4)
            time.sleep(LASTS_S)
            self.proxy.heal()

        return disturb

    def fill_the_disk(self, job: subprocess.Popen) -> None:
        assert self.disk is not None
        ballast = self.disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        time.sleep(LASTS_S)
        ballast.unlink()

    def faults(self) -> dict[str, Callable[[subprocess.Popen], None]]:
        always = (
            self.kill_a_worker,
            self.crash_a_worker,
            self.freeze_a_worker,
            self.kill_a_node,
            self.kill_the_driver,
            self.kill_the_head,
        )
        found: dict[str, Callable[[subprocess.Popen], None]] = {method.__name__: method for method in always}
        if self.proxy is not None:
            found |= {how: self.disturb_storage(how) for how in (*TRYING, *FATAL)}
        if self.disk is not None:
            found["fill_the_disk"] = self.fill_the_disk
        return found

    def play(self, seconds: float) -> int:
        """Start, hurt, start again until a start ends by itself with nothing left to befall it; its exit status."""
        faults = self.faults()
        names = self.chance.sample(sorted(faults), self.chance.randint(3, 4))
        began = time.monotonic()
        moments = sorted(self.chance.uniform(0.1, 0.9) * seconds for _ in names)
        plan = list(zip(moments, names, strict=True))
        for _ in range(STARTS):
            job = start(self.line, self.log, RAY_ADDRESS=self.nodes.address, **self.env)
            try:
                while job.poll() is None and plan:
                    if time.monotonic() - began < plan[0][0]:
                        time.sleep(0.1)
                        continue
                    _, name = plan.pop(0)
                    self.happened.append(f"{name} at {time.monotonic() - began:.0f} s")
                    faults[name](job)
                status = job.wait(timeout=300)
            finally:
                if job.poll() is None:
                    job.kill()
                    job.wait()
            self.happened.append(f"exit {status}")
            if status in (0, 3):
                return status
            self.told_why(status)
        raise AssertionError(f"not finished after {STARTS} starts: {self.story()}")

    def told_why(self, status: int) -> None:
        """Whatever ends a start says so: 2 in one line; -9 is our own kill; 1 when Ray's head is gone."""
        last = self.log.read_text().strip().splitlines()[-1]
        if status == 2:
            assert "run_with_stand_ins.py: error: " in last, self.story()
        else:
            assert (status == -signal.SIGKILL and "kill_the_driver" in self.happened[-2]) or (
                "kill_the_head" in self.happened[-2]
            ), self.story()

    def story(self) -> str:
        return f"seed {self.seed}: {', '.join(self.happened)}\n{self.log.read_text()[-4000:]}"


TRYING = ("503 SlowDown", "stall", "drop", "lose", "truncate")  # storage that a run gets over, mostly
FATAL = ("403 ExpiredToken", "507 XMinioStorageFull")  # storage that ends a start


# ------------------------------------------------------------------------------------------------ the test


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], float]:
    """An undisturbed run: its image set, what it leaves, and how long it took in seconds."""
    folder = tmp_path_factory.mktemp("straight")
    stand_ins.imageset(folder / "imageset", 48, ODD, max_images=4)
    line = ["--imageset", str(folder / "imageset"), "--output", str(folder / "run"), "--set", "actors=2"]
    began = time.monotonic()
    assert start(line, folder / "log").wait(timeout=600) == 3, (folder / "log").read_text()
    return folder / "imageset", contract(folder / "run"), time.monotonic() - began


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of a few MB where we may mount one: root, on Linux."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    may = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    yield folder if may else None
    if may:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Ray that notices deaths soon, for this process's nodes and the jobs on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "10",
        }.items():
            patch.setenv(name, value)
        yield


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + ROUNDS))
def test_whatever_happens_the_answer_is_whole(
    straight: tuple[Path, dict[str, bytes], float], quick: None, s3_endpoint: str, s3_client: Any,
    small_disk: Path | None, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    imageset, want, seconds = straight
    with Proxy(s3_endpoint, seed=seed) as proxy:
        in_a_bucket = seed % 2 == 1
        if in_a_bucket:
            s3_client.create_bucket(Bucket=f"chaos-{seed}-{os.getpid()}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            output, disk = f"s3://chaos-{seed}-{os.getpid()}/run", None
        else:
            output, disk = str((small_disk or tmp_path) / "run"), small_disk
        allowed, status = ("1", 0) if seed % 3 == 0 else ("0.01", 3)
        line = ["--imageset", str(imageset), "--output", output, "--set", "actors=2", "--set", "shard_deadline_s=30",
                "--set", f"max_failed_share={allowed}"]  # fmt: skip
        one = Round(seed, three_nodes(), output, line, tmp_path / "log", proxy if in_a_bucket else None, disk)
        try:
            assert one.play(seconds) == status, one.story()
        finally:
            one.nodes.end()
        print(f"seed {seed}, {'bucket' if in_a_bucket else 'folder'}: {', '.join(one.happened)}")
        proxy.heal()
        found = contract(output)
        assert sorted(found) == sorted(want), one.story()
        assert [name for name in want if found[name] != want[name]] == [], one.story()


def test_a_disk_that_fills_ends_a_run_with_one_line_and_costs_nothing(
    small_disk: Path | None, tmp_path: Path, calls: Any, full: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if small_disk is None:
        pytest.skip("mounting a small disk takes root on Linux")
    stand_ins.imageset(tmp_path / "imageset", 24)
    assert full(tmp_path / "imageset", tmp_path / "straight", "--set", "max_failed_share=1") == 0
    with open(small_disk / "ballast", "wb") as ballast:
        ballast.write(bytes(DISK - 60_000))
    monkeypatch.setattr(sys, "argv", ["full_eval.py"])
    with pytest.raises(SystemExit) as left:
        cli.run(lambda argv: full(tmp_path / "imageset", small_disk / "run", "--set", "max_failed_share=1"))
    told = capsys.readouterr().err.strip()
    assert left.value.code == 2 and told.count("\n") == 0
    assert re.match(r"full_eval.py: error: writing \S+ in \S+/disk/run: No space left on device", told), told
    assert calls and not [path for path in small_disk.rglob(".tmp-*")]
    (small_disk / "ballast").unlink()
    assert full(tmp_path / "imageset", small_disk / "run", "--set", "max_failed_share=1") == 0
    assert contract(small_disk / "run") == contract(tmp_path / "straight")
