"""How long a report takes: the first one of a run, the same again with its pictures there, and one without pictures.

Builds OUTPUT/report three times from a finished run and its image set; `--queries` is the setting `report.queries`.
With `--open` nothing is built: Chromium opens the query page of the report that is there and sorts it, five times.

    python benchmarks/report.py runs/ccp-eval runs/ccp-val
    python benchmarks/evaluation.py --photos 50000 --boxes 5 --detectors 1 --embedders 1 --keep runs/made-up
    python benchmarks/report.py runs/made-up/run --open
"""

import argparse
import json
import os
import shutil
import statistics
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
    parser.add_argument("imageset", nargs="*", help="the image sets it ran on, in order")
    parser.add_argument("--queries", type=int, default=500, help="queries with pictures (default 500)")
    parser.add_argument("--open", action="store_true", help="open the query page instead; OUTPUT is a folder")
    args = parser.parse_args()
    if args.open:
        open_and_sort(Path(args.output) / "report" / "queries.html")
        return
    if not args.imageset:
        parser.error("name the image sets that the run is over")
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


def open_and_sort(page: Path) -> None:
    """Time from the address until the queries are shown, and until another order is; a new browser each time."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    opening, sorting = [], []
    for _ in range(5):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=arguments)
            tab = browser.new_page()
            start = time.perf_counter()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("#list[data-shown='1']")
            opening.append(time.perf_counter() - start)
            shown = tab.locator("#count").inner_text()
            start = time.perf_counter()
            tab.select_option("[name=order]", "photo")
            tab.wait_for_selector("#list[data-shown='2']")
            sorting.append(time.perf_counter() - start)
            browser.close()
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{shown}, {load}\n\n| | median s | least | most |\n|---|--:|--:|--:|")
    for name, seconds in (("open", opening), ("sort", sorting)):
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
