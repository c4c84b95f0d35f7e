"""How busy a GPU is: a program named nvidia-smi says so here, as the real one does, a number a line."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.runs import gpu
from jobs.runs.gpu import GpuBusy
from jobs.runs.pool import Host
from jobs.runs.retries import Job
from store.errors import UserError


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake nvidia-smi: it notes its arguments in the returned file and says 20, [N/A] and 60, ten times a second.

    It ends when its reader has gone.
    """
    asked, program = tmp_path / "asked", tmp_path / "nvidia-smi"
    lines = 'printf "20\\n[N/A]\\n60\\n"'
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{lines}\nwhile sleep 0.1; do {lines}; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return asked


def waits_for(busy: GpuBusy, n: int) -> None:
    """Until so many samples have come; two minutes are a guard against hanging."""
    end = time.monotonic() + 120
    while len(busy._samples) < n:
        assert time.monotonic() < end, "no samples"
        time.sleep(0.05)


def test_the_mean_of_what_came_since_it_was_asked(smi: Path) -> None:
    busy = gpu.watch({"CUDA_VISIBLE_DEVICES": "1,3"})
    assert busy is not None
    try:
        waits_for(busy, 2)
    finally:
        busy.end()
    for thread in threading.enumerate():  # no more comes
        if thread.name == "gpu-busy":
            thread.join()
    assert busy.mean() == pytest.approx(0.4, abs=0.1)
    assert busy.mean() is None  # the next mean is of what came since
    assert smi.read_text() == "--query-gpu=utilization.gpu --format=csv,noheader,nounits --loop-ms=1000 --id=1,3\n"


def test_no_gpu_of_ones_own_and_no_program(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.watch({}) is None and gpu.watch({"CUDA_VISIBLE_DEVICES": ""}) is None
    assert not smi.exists()
    monkeypatch.setenv("PATH", "")
    assert gpu.watch({"CUDA_VISIBLE_DEVICES": "0"}) is None


class Idle:
    """A worker that does nothing."""

    def load(self, device: str) -> dict[str, Any]:
        return {"device": device}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> str:
        return job.name

    def probe(self, job: Job, row: int) -> None: ...


@pytest.mark.parametrize("device, want", [("cuda", 0.4), ("cpu", None)])
def test_an_actor_tells_it_with_each_shard(
    smi: Path, monkeypatch: pytest.MonkeyPatch, device: str, want: float | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    host = Host(Idle(), device)
    account, _ = host.load()
    assert account["device"] == device and (host.gpu is None) == (device == "cpu")
    try:
        if host.gpu:
            waits_for(host.gpu, 10)
        answer, facts = host.run(Job("shard-0", (0,)), {}, False)
        assert answer == "shard-0" and facts.get("gpu_busy") == (want and pytest.approx(want, abs=0.05))
    finally:
        if host.gpu:
            host.gpu.end()


@pytest.mark.parametrize("n_gpus, there, absent, listed", [
    (0, ["cpu"], ["cuda", "cuda:0", ""], "cpu"),
    (2, ["cpu", "cuda", "cuda:0", "cuda:1"], ["cuda:2", "mps"], "cpu, cuda, cuda:0, cuda:1"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(n_gpus, there, absent, listed, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    assert gpu.found_device("auto") == ("cuda" if n_gpus else "cpu")
    for device in there:
        assert gpu.found_device(device) == device
    for device in absent:
        with pytest.raises(UserError) as caught:
            gpu.found_device(device)
        assert str(caught.value) == f"--device {device}: not found on this machine; take one of: {listed}"
