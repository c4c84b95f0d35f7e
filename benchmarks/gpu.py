"""The mapping stages on this machine's GPU: photos a second, by how many actors share it, and how busy it is.

    python benchmarks/gpu.py --imageset runs/ccp-val --actors 1 4
    python benchmarks/gpu.py --imageset runs/ccp-val --profile paper --actors 1 4 --set allow_random_weights=true

Each row is a `jobs/full_eval.py` in a fresh process, one after another, as a night is. The rates come from the
run's log, from the start of the stage's first shard to the end of its last one; loading the models has a column of
its own. "Later shards" leaves out each actor's first one, in which cuDNN meets most of its shapes. Busy is the
share of time in which a kernel ran, and memory the most that was taken, both by nvidia-smi twice a second. Without
a GPU the script says so and exits with 2.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]


class GpuSamples:
    """nvidia-smi's busy percentage and megabytes while the block runs: (seconds since the epoch, %, MB)."""

    def __enter__(self) -> "GpuSamples":
        query = "--query-gpu=utilization.gpu,memory.used"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "500"]
        self.samples: list[tuple[float, float, float]] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            busy, memory = line.split(",")
            self.samples.append((time.time(), float(busy), float(memory)))

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def stage_row(events: list[dict[str, Any]], name: str, samples: list[tuple[float, float, float]]) -> str:
    """One row of the table from a run's log."""
    loads = [e for e in events if e["stage"] == name and e["event"] == "loaded"]
    shards = sorted((e for e in events if e["stage"] == name and e["event"] == "shard"), key=lambda e: e["began"])
    firsts = {e["actor"]: e for e in reversed(shards)}
    later = [e for e in shards if firsts[e["actor"]] is not e]
    began, ended = shards[0]["began"], max(e["began"] + e["wall_s"] for e in shards)
    rate = sum(e["images"] for e in shards) / (ended - began)
    warm = sum(e["images"] for e in later) / sum(e["wall_s"] for e in later) * len(loads) if later else 0.0
    within = [(busy, memory) for when, busy, memory in samples if began <= when <= ended]
    busy = statistics.mean(busy for busy, _ in within) if within else 0.0
    load = max(e["wall_s"] for e in loads)
    memory = max((memory for _, memory in within), default=0.0)
    return f"{load:.0f} | {rate:.1f} | {warm:.1f} | {busy:.0f} % | {memory / 1e3:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imageset", required=True)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument(
        "--actors", type=int, nargs="+", default=[1, 4], help="numbers of actors that share the GPU (1 4)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of jobs/full_eval.py")
    args = parser.parse_args()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu_name = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        print("gpu.py: error: no nvidia-smi here; run it on a machine with an NVIDIA GPU", file=sys.stderr)
        sys.exit(2)
    print(f"{gpu_name}, profile {args.profile}\n")
    print("| actors | stage | load, s | photos/s | later shards | busy | GPU memory, GB |")
    print("|--:|---|--:|--:|--:|--:|--:|", flush=True)
    for n in args.actors:
        with tempfile.TemporaryDirectory() as scratch, GpuSamples() as gpu:
            line = [sys.executable, str(REPO / "jobs" / "full_eval.py")]
            line += ["--imageset", args.imageset, "--output", f"{scratch}/run"]
            line += ["--profile", args.profile, "--set", "device=cuda", "--set", f"gpus_per_actor={1 / n}"]
            line += [word for setting in args.set for word in ("--set", setting)]
            done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                sys.exit(done.stdout[-3000:])
            logs = sorted(Path(scratch, "run", "logs").glob("*.jsonl"))
            events = [json.loads(row) for log in logs for row in log.read_text().splitlines()]
        for name in ("detect", "embed"):
            print(f"| {n} | {name} | {stage_row(events, name, gpu.samples)} |", flush=True)


if __name__ == "__main__":
    main()
