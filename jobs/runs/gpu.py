"""Whether a device is there, and how busy an actor's GPU is.

Busy is nvidia-smi's own figure: the share of time in which any kernel ran on the GPU, whoever's.

Time spent in the models does not tell: networks that are small for their GPU spend it in Python, between kernels.
nvidia-smi is asked to write a line a second for as long as the actor lives; where there is none, or it does not know
the device, nothing is told.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.errors import UserError


class GpuBusy:
    """Samples of the GPUs that CUDA_VISIBLE_DEVICES names, since they were last asked for.

    The process ends with ours: its next line finds nobody who reads.
    """

    def __init__(self, gpus: str) -> None:
        self._samples: list[float] = []
        self._lock = threading.Lock()
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=1000", f"--id={gpus}"]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["nvidia-smi", *query], text=True, **pipes)
        threading.Thread(target=self._read, name="gpu-busy", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                percent = float(line)
            except ValueError:  # "[N/A]": a slice of a GPU, say
                continue
            with self._lock:
                self._samples.append(percent / 100)

    def mean(self) -> float | None:
        """Of the samples since the last call, in [0, 1]; None without any."""
        with self._lock:
            samples, self._samples = self._samples, []
        return sum(samples) / len(samples) if samples else None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def found_device(device: str) -> str:
    """The device that "auto" means in this process, cuda if PyTorch finds a GPU and else cpu; any other as it is given.

    A UserError refuses one that PyTorch does not find here, and lists those it finds.
    """
    if device == "cpu":
        return device
    import torch

    gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if gpus else "cpu"
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if device not in there:
        raise UserError(f"--device {device}: not found on this machine; take one of: {', '.join(there)}")
    return device


def may_be_here() -> bool:
    """Whether this machine has a driver of NVIDIA's or AMD's GPUs, or Windows' bridge to one; imports nothing."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def watch(environment: Mapping[str, str] = os.environ) -> GpuBusy | None:
    """A watch of this process's GPUs; None where it has none of its own or there is no nvidia-smi."""
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "")
    with contextlib.suppress(OSError):
        return GpuBusy(gpus) if gpus else None
    return None
