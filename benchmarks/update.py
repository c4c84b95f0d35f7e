"""What a night costs that changes one photo in a hundred: `--update`, a fresh ingestion, and a night without changes.

    python benchmarks/update.py                     # 20,000 drawn photos of 96 x 96 px, three nights
    python benchmarks/update.py --images 2000 --rounds 1

Each step is `jobs/ingest.py folder …` as a process of its own, start-up included; seconds by the clock, medians over
the nights. A night changes 0.4 %, adds 0.3 % and removes 0.3 % of the photos, spread over the whole folder. Afterwards
the updated set must hold what the fresh one does, or it stops. "Bytes written" are those of the files that are new or
other than before.
"""

import argparse
import io
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

if __name__ == "__main__":  # import from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from store.imageset import open_imageset

REPO = Path(__file__).resolve().parents[1]
SIDE_PX, HOUR_S = 96, 3600


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of an update against a fresh ingestion.")
    parser.add_argument("--images", type=int, default=20_000, help="photos in the folder (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="nights (default 3)")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"ingest anew": [], "update, 1 % changed": [], "update, no change": []}
    written: dict[str, list[int]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as box:
        photos, updated, fresh = Path(box, "photos"), Path(box, "updated"), Path(box, "fresh")
        for number in range(args.images):
            draw(photos, number, version=0)
        ingest(photos, updated, "--update")
        for night in range(1, args.rounds + 1):
            change(photos, args.images, night)
            for name, place, how in (
                ("update, 1 % changed", updated, "--update"),
                ("update, no change", updated, "--update"),
                ("ingest anew", fresh, "--overwrite"),
            ):
                before = {} if place == fresh else files(place)
                seconds[name].append(ingest(photos, place, how))
                written[name].append(sum(size for _, (size, _) in files(place).items() - before.items()))
            agree(updated, fresh)
    report(args, seconds, written)


def draw(folder: Path, number: int, version: int) -> None:
    """A photo of some 2 kB, changed for the last time an hour ago."""
    path = folder / f"{number % 100:02}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng([number, version]).integers(0, 256, (6, 6, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
    path.write_bytes(data.getvalue())
    os.utime(path, (time.time() - HOUR_S,) * 2)


def change(folder: Path, n: int, night: int) -> None:
    """0.4 % of the photos changed, 0.3 % added, 0.3 % removed."""
    there = sorted(folder.rglob("*.jpg"))
    chosen = random.Random(night).sample(there, n * 7 // 1000)
    for path in chosen[: n * 4 // 1000]:
        draw(folder, int(path.stem), night)
    for path in chosen[n * 4 // 1000 :]:
        path.unlink()
    for number in range(n * 3 // 1000):
        draw(folder, n * (night + 1) + number, night)


def ingest(photos: Path, place: Path, how: str) -> float:
    """Seconds of the command."""
    line = [sys.executable, "jobs/ingest.py", "folder", str(photos), str(place), "--source", "shop", how]
    start = time.perf_counter()
    done = subprocess.run(line, cwd=REPO, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"status {done.returncode}: {' '.join(line)}\n{done.stdout}{done.stderr}")
    return seconds


def files(place: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of the last change."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in place.iterdir()}


def agree(updated: Path, fresh: Path) -> None:
    one, two = (
        {(row["image_id"], row["digest"]) for row in open_imageset(place).photos(("image_id", "digest")).to_pylist()}
        for place in (updated, fresh)
    )
    if one != two:
        raise SystemExit(f"the updated set differs from a fresh one in {len(one ^ two)} photos")


def report(args: argparse.Namespace, seconds: dict[str, list[float]], written: dict[str, list[int]]) -> None:
    print(f"{args.images:,} photos, {args.rounds} nights, load {os.getloadavg()[0]:.1f}")
    print("| | seconds | against ingesting anew | MB written |\n|---|--:|--:|--:|")
    for name, values in seconds.items():
        ratio = statistics.median(anew / value for anew, value in zip(seconds["ingest anew"], values, strict=True))
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {ratio:.1f}x faster | {statistics.median(written[name]) / 1e6:.2f} |")


if __name__ == "__main__":
    main()
