"""Status of a run, from its folder alone: what is finished, what failed, whether someone is at work.

python jobs/status.py runs/demo
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, lock
from jobs.ledger import STAGES, expected, read_json, read_marks
from jobs.progress import say
from store.objects import ObjectStore, open_store


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder of the run: path, file:// or s3://BUCKET/PREFIX")
    parser.add_argument("--endpoint-url", help="of an S3-compatible store (default: the SDK's own chain)")
    args = parser.parse_args(argv)
    store = open_store(args.output, endpoint_url=args.endpoint_url)
    run = read_json(store, "run.json")
    if run is None:
        raise cli.UserError(f"{args.output}: holds no run (no run.json)")
    for line in lines(store, run):
        say(line)
    return 0


def lines(store: ObjectStore, run: Mapping) -> Iterator[str]:
    images = run["imageset"]
    yield f"{store.uri}: {images['images']} images of {images['uri']} in {images['shards']} shards, settings of {run['recorded']}"
    yield _at_work(store)
    marks = read_marks(store)
    wanted = expected(run)
    for stage in STAGES:
        done = {path: mark for path, mark in marks.items() if path.startswith(f"{stage}/")}
        seconds: Counter[str] = Counter()
        for mark in done.values():
            seconds.update(mark["seconds"])
        failed = len({row["image_id"] for mark in done.values() for row in mark["failures"]})
        spent = " ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value >= 0.5)
        last = max((mark["finished"] for mark in done.values()), default="")
        named = len(wanted[stage] & set(done))
        yield f"  {stage:9}{named:6} of {len(wanted[stage])} done" + (f", {failed} failed" if failed else "") + (
            f", {spent}" if spent else "") + (f", last {last}" if last else "")  # fmt: skip
    summary = (read_json(store, "metrics.json") or {}).get("summary", {})
    for name, value in summary.items():
        if isinstance(value, float):
            yield f"  {name}: {value:.3f}"


def _at_work(store: ObjectStore) -> str:
    holder = read_json(store, lock.KEY)
    if holder is None:
        return "  nobody is at work"
    if holder.get("host") == lock.host():
        state = "is at work" if lock.alive(holder) else "was killed; the same line again continues"
    else:
        state = f"last gave a sign of life at {holder.get('beat', 0):.0f} (seconds since 1970)"
    return f"  {lock.described(holder)} {state}"


if __name__ == "__main__":
    cli.run(main)
