"""From which number of photos on Ray and its actors are sooner done than one process: detect, fuse and embed, five
detectors and three embedders, on synthetic photos in two shards.

    OMP_NUM_THREADS=1 python benchmarks/start.py [--photos 8,64,128]

Both ways run in turn, each as a command of its own with all its imports. CPU seconds are those of the command and of
every process it started, looked at ten times a second.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.update(OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

import ray  # noqa: F401  (psutil comes with it)

COMMAND = """
import sys
from jobs.runs import shards
from jobs.stages import order
shards.FEW_PHOTOS = int(sys.argv[1])
sys.exit(order.main(["detect", "fuse", "embed"], sys.argv[2:], None))
"""


def write_photos(n: int, imageset: Path) -> None:
    ingest = [
        sys.executable,
        "jobs/ingest.py",
        "drawn",
        str(imageset),
        "--users",
        str(n // 2),
        "--shops",
        str(n - n // 2),
    ]
    ingest += ["--seed", "1", "--shard-images", str(n - n // 2)]
    subprocess.run(ingest, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def cost(few_photos: int, imageset: Path, output: Path) -> tuple[float, float]:
    """Seconds by the clock and CPU seconds of the three stages; one process takes runs of up to `few_photos`."""
    line = ["--imageset", str(imageset), "--output", str(output), "--set", "device=cpu"]
    import psutil

    spent: dict[int, float] = {}
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(few_photos), *line],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    ) as command:
        root = psutil.Process(command.pid)
        while command.poll() is None:
            for process in [root, *root.children(recursive=True)]:
                try:
                    spent[process.pid] = sum(process.cpu_times()[:2])
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
    assert command.returncode == 0
    return time.monotonic() - began, sum(spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default="8,64,128", help="numbers of photos (8,64,128)")
    numbers = [int(n) for n in parser.parse_args().photos.split(",")]
    print(f"{'photos':>8}{'one process, s':>16}{'CPU s':>8}{'Ray, s':>10}{'CPU s':>8}{'Ray / one, s':>14}")
    for n in numbers:
        with tempfile.TemporaryDirectory() as folder:
            imageset = Path(folder, "imageset")
            write_photos(n, imageset)
            one = cost(n, imageset, Path(folder, "one"))
            ray = cost(0, imageset, Path(folder, "ray"))
        print(f"{n:8}{one[0]:16.1f}{one[1]:8.1f}{ray[0]:10.1f}{ray[1]:8.1f}{ray[0] / one[0]:14.2f}", flush=True)


if __name__ == "__main__":
    main()
