"""This checkout beside another one: the same evaluation of the same image set, in turns, and whether results agree.

    git worktree add ../before COMMIT && (cd ../before && make install)
    python benchmarks/two_checkouts.py --other ../before --imageset runs/ccp-val --rounds 3
    python benchmarks/two_checkouts.py --other ../before --imageset runs/ccp-val --set limit=64

Each run is `jobs/full_eval.py` in a fresh process and a fresh OUTPUT, on one actor with one thread, by the checkout's
own environment. The image set is one that both can read: let the older checkout ingest it. Seconds of a stage are what
its shards took by the run's log (read, infer and write), start-up left out; CPU seconds are those of the whole command
with all its processes, read from /proc twice a second. Medians of the rounds; the ratio is the other one's figure by
ours. Fused boxes agree where one of the same photo and category lies within 0.01 px; rows of embeddings are compared
for annotated boxes, by the largest difference.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[1]
MARK = "TWO_CHECKOUTS"  # environment of every process of a run
TICKS = os.sysconf("SC_CLK_TCK")
PARTS = ("read_s", "infer_s", "write_s")
FIGURES = ("detect, s", "embed, s", "whole command, s", "whole command, CPU s")


def cpu_of(mark: str) -> dict[int, float]:
    """CPU seconds of the living processes that carry the mark, by pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICKS
        except OSError:  # it has ended meanwhile
            continue
    return found


def evaluate(checkout: Path, output: Path, words: list[str]) -> dict[str, float]:
    """The figures of one run."""
    mark = uuid.uuid4().hex
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python), "jobs/full_eval.py", "--output", str(output), *words]
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    cpu: dict[int, float] = {}
    start = time.perf_counter()
    with open(f"{output}.log", "w+b") as log:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            cpu |= cpu_of(mark)
            time.sleep(0.5)
        log.seek(0)
        if process.returncode:
            sys.exit(f"two_checkouts.py: {checkout}: {log.read()[-3000:].decode(errors='replace')}")
    whole = time.perf_counter() - start
    logs = sorted((output / "logs").glob("*.jsonl"))
    events = [json.loads(line) for path in logs for line in path.read_text().splitlines()]

    def stage(name: str) -> float:
        return sum(e.get(part, 0.0) for e in events if (e["event"], e["stage"]) == ("shard", name) for part in PARTS)

    return dict(zip(FIGURES, (stage("detect"), stage("embed"), whole, sum(cpu.values())), strict=True))


def table_of(output: Path, folder: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((output / folder).glob("*.parquet"))])


def boxes_of(output: Path) -> dict[tuple[int, int], np.ndarray]:
    """(image_id, category_id) -> fused boxes (N, 4)."""
    found: dict[tuple[int, int], list[Any]] = {}
    for row in table_of(output, "fused").select(["image_id", "category_id", "bbox"]).to_pylist():
        found.setdefault((row["image_id"], row["category_id"]), []).append(row["bbox"])
    return {key: np.array(boxes) for key, boxes in found.items()}


def matched_share(ours: Path, others: Path) -> float:
    """Share of the other one's fused boxes that ours have too, within 0.01 px."""
    mine, theirs = boxes_of(ours), boxes_of(others)
    n = sum(map(len, theirs.values()))
    hits = 0
    for key, boxes in theirs.items():
        near = mine.get(key, np.zeros((0, 4)))
        hits += sum(bool((np.abs(near - box).max(axis=1) <= 0.01).any()) for box in boxes)
    return hits / max(n, 1)


def largest_difference(ours: Path, others: Path, model: str) -> float:
    """Between the two rows of the same annotated garment, over all of them and all dimensions."""
    both = []
    for output in (ours, others):
        table = table_of(output, f"embeddings/true/{model}").sort_by([("image_id", "ascending"), ("item", "ascending")])
        both.append(np.array(table["embedding"].to_pylist(), np.float64))
    return float(np.abs(both[0] - both[1]).max())


def figures_of(output: Path) -> dict[str, float]:
    """Every number of metrics.json that both may have, by its path."""
    found: dict[str, float] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{path}/{key}")
        elif isinstance(value, float) and any(name in path for name in ("ap10", "top", "AP10")):
            found[path] = value

    walk(json.loads((output / "metrics.json").read_text()), "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", required=True, type=Path, help="a checkout with an environment of its own in .venv")
    parser.add_argument("--imageset", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of jobs/full_eval.py")
    args = parser.parse_args()
    words = ["--imageset", str(args.imageset.resolve()), "--profile", "tiny"]
    fixed = ("device=cpu", "actors=1", "threads_per_actor=1", "report.queries=0")
    words += [word for setting in (*fixed, *args.set) for word in ("--set", setting)]
    checkouts = {"this checkout": REPO, "the other": args.other.resolve()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        for n in range(args.rounds):
            for name, checkout in checkouts.items():
                rounds[name].append(evaluate(checkout, Path(scratch, f"{name}-{n}"), words))
        ours, others = (Path(scratch, f"{name}-0") for name in checkouts)
        print("| | this checkout | the other | ratio |\n|---|--:|--:|--:|")
        for figure in FIGURES:
            pairs = [(mine[figure], theirs[figure]) for mine, theirs in zip(*rounds.values(), strict=True)]
            mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(theirs / mine for mine, theirs in pairs if mine)
            print(f"| {figure} | {mine:.1f} | {theirs:.1f} | {ratio:.2f} |")
        print(f"\nfused boxes of the other that this one has within 0.01 px: {matched_share(ours, others):.4%}")
        for model in sorted(path.name for path in (ours / "embeddings" / "true").iterdir()):
            print(
                f"{model}: rows of annotated garments differ by {largest_difference(ours, others, model):.1e} at most"
            )
        mine_all, theirs_all = figures_of(ours), figures_of(others)
        shared = sorted(mine_all.keys() & theirs_all.keys())
        worst = max(shared, key=lambda path: abs(mine_all[path] - theirs_all[path]))
        print(
            f"{len(shared)} figures of metrics.json (AP10, top-k) compared; the largest difference is "
            f"{abs(mine_all[worst] - theirs_all[worst]):.4f}, of {worst}"
        )


if __name__ == "__main__":
    main()
