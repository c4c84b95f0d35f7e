"""The GPU benchmark on a CPU, with so few photos that its figures mean nothing: every part runs and is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
DETECTORS = ("atss-tiny", "cascade-mask-rcnn-tiny", "centernet-tiny", "retinanet-lite0-tiny", "retinanet-lite1-tiny")


def printed(*more: str) -> list[list[str]]:
    """The cells of each line."""
    line = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--drawn", "2", "--profile", "tiny", "--threads", "1"]
    done = subprocess.run([*line, *more], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "cuda" in more else 0), done.stderr
    return [[cell.strip() for cell in row.strip("| ").split("|")] for row in (done.stdout + done.stderr).splitlines()]


@pytest.mark.slow
def test_every_part_is_printed() -> None:
    rows = {row[0]: row[1:] for row in printed("--device", "cpu")}
    assert float(rows["1"][0]) > 0  # photos that one thread decodes in a second
    for name in DETECTORS:
        engine, rate, flops, *_, found = rows[name]
        assert engine == "torch" and float(rate) > 0 and 1 < float(flops) < 5 and found.startswith("100.0% of ")
    for stage in ("detect", "embed"):
        assert rows[stage][0] == "torch" and all(float(rate) > 0 for rate in rows[stage][2:4])


@pytest.mark.slow
def test_what_does_not_fit_the_time_is_named() -> None:
    told = "\n".join(row[0] for row in printed("--device", "cpu", "--minutes", "0"))
    for part in (*DETECTORS, "detect"):
        assert f"left out for lack of time: {part}, torch" in told
    assert "left out without detections: embed" in told


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "not found on this machine" in printed("--device", "cuda")[-1][0]
