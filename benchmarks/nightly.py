"""What a night costs by how much of the shop changed, beside building the whole gallery.

    python benchmarks/nightly.py                  # 20,000 photos, some ten minutes
    python benchmarks/nightly.py --photos 2000    # a short run

Pictures of one rectangle and the tests' stand-in models, in this process and without Ray: a photo costs some
milliseconds instead of a second, so what is seen is the job around the models, at its worst. Half of a change is
photos that come, half photos that go.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(REPO), str(REPO / "tests" / "jobs")]

import stand_ins

from jobs import reindex_gallery
from jobs.runs import shards
from store.imageset_write import write_imageset

CHANGES = (0.0, 0.01, 0.05, 0.20)


def night(imageset: Path, gallery: Path, kind: str) -> tuple[dict[str, Any], float, float]:
    """One night: the summary, wall seconds, CPU seconds."""
    argv = ["--imageset", imageset, "--gallery", gallery, "--set", "gallery.copies=0", "--set", f"gallery.index={kind}"]
    said, wall, cpu = io.StringIO(), time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(said):
        status = reindex_gallery.main([*stand_ins.SETTINGS, *map(str, argv)], stand_ins.CATALOGUE)
    if status:
        raise SystemExit(said.getvalue())
    return json.loads(said.getvalue().splitlines()[-1]), time.perf_counter() - wall, time.process_time() - cpu


def write(numbers: Sequence[int], imageset: Path) -> None:
    photos = (stand_ins.photo(number, "shop", number) for number in numbers)
    write_imageset(photos, imageset, source={"adapter": "stand-in", "arguments": {}}, overwrite=True)


def measure(photos: int, kind: str, folder: Path) -> list[tuple[str, dict[str, Any], float, float]]:
    """The full build, then a night for every share of CHANGES: name, summary, wall s, CPU s."""
    numbers = list(range(photos))
    write(numbers, folder / "set")
    found = [("full build", *night(folder / "set", folder / "gallery", kind))]
    for share in CHANGES:
        half = round(share * photos / 2)
        numbers = [*numbers[half:], *range(numbers[-1] + 1, numbers[-1] + 1 + half)]
        write(numbers, folder / "set")
        found.append((f"{share:.0%} changed", *night(folder / "set", folder / "gallery", kind)))
        print(f"{found[-1][0]}: {found[-1][2]:.1f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000, help="shop photos (20000)")
    parser.add_argument("--index", default="flat", choices=("flat", "hnsw", "ivf_flat"), help="kind of index (flat)")
    args = parser.parse_args()
    shards.run_on_actors = functools.partial(stand_ins.here, [])
    with tempfile.TemporaryDirectory(prefix="nightly-") as folder:
        found = measure(args.photos, args.index, Path(folder))
    print("| | photos through the models | garments | wall s | CPU s | of the full build's CPU |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, summary, wall, cpu in found:
        print(
            f"| {name} | {summary['detected']:,} | {summary['rows']:,} | {wall:.1f} | {cpu:.1f} "
            f"| {cpu / found[0][3]:.3f} |"
        )


if __name__ == "__main__":
    main()
