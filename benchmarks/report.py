"""How long a report takes: the first one of a run, the same again with its pictures there, and one without pictures.

Builds OUTPUT/report three times from a finished run and its image set; `--queries` is the setting `report.queries`.

    python benchmarks/report.py runs/ccp-eval runs/ccp-val
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jobs.reports import site
from jobs.runs.events import memory
from store.imageset import ImageSet
from store.joined import open_imagesets
from store.objects import ObjectStore, open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="a finished run; its report is written again")
    parser.add_argument("imageset", nargs="+", help="the image sets it ran on, in order")
    parser.add_argument("--queries", type=int, default=500, help="queries with pictures (default 500)")
    args = parser.parse_args()
    output, images = open_store(args.output), open_imagesets(args.imageset)
    for entry in list(output.list("report/")):
        output.delete(entry.key)
    done = json.loads(output.read("metrics.json"))["images"]["done"]
    print(
        f"{done:,} images, {args.queries} queries with pictures\n\n"
        "| report | wall s | CPU s | pictures | MB |\n|---|--:|--:|--:|--:|"
    )
    measure(output, images, "without pictures", 0)
    measure(output, images, "first", args.queries)
    measure(output, images, "again", args.queries)
    print(f"\nmost memory of the process: {memory()['peak_mb']:.0f} MB")


def measure(output: ObjectStore, images: ImageSet, name: str, queries: int) -> None:
    """Build once and print a row; the images of the operating system's cache are as the row before left them."""
    wall, cpu = time.perf_counter(), time.process_time()
    site.build(output, images, queries=queries)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sizes = {entry.key: entry.size for entry in output.list("report/")}
    pictures = sum(key.startswith("report/pictures/") for key in sizes)
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {pictures:,} | {sum(sizes.values()) / 1e6:.1f} |")


if __name__ == "__main__":
    main()
