"""Status of a run or a gallery, from its folder alone: what is finished or serves, what failed, whether someone works.

    python jobs/status.py runs/demo/run
    python jobs/status.py s3://BUCKET/gallery
    python jobs/status.py runs/demo/run --json      # the same as one JSON object

Of a gallery: the version that serves, its garments and age, the last night that built a version, and whether a night is
at work.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.gallery.versions import NIGHTS, WORK
from jobs.runs import flags, lock
from jobs.runs.marks import expected, has_parts, read_json, read_marks
from jobs.runs.places import holds
from jobs.runs.progress import say
from jobs.runs.run_record import read_record
from retrieval import gallery_files
from store.errors import UserError
from store.objects import ObjectStore, open_store


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "output", metavar="PLACE", help="folder of a run or a gallery: path, file:// or s3://BUCKET/PREFIX"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags.add_endpoint_url(parser.add_argument)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    store = open_store(args.output, endpoint_url=args.endpoint_url)
    run = read_record(store)
    if run:
        status, lines = run_status(store, run), run_lines
    elif holds(store, "a gallery"):
        status, lines = gallery_status(store), gallery_lines
    else:
        raise UserError(f"{args.output}: holds no run (no run.json) and no gallery (no CURRENT)")
    say(json.dumps(status) if args.json else "\n".join(lines(status)))
    return 0


# --- a run ------------------------------------------------------------------------------------------------------------


def run_status(store: ObjectStore, run: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values; `stages` has the units done of those wanted, and what their marks say."""
    marks = read_marks(store)
    metrics = read_json(store, "metrics.json") or {}
    summary = metrics["summary"] if has_parts(metrics, {"summary": dict}) else {}
    return {
        "kind": "run",
        "place": store.uri,
        "imagesets": run["imagesets"],
        "recorded": run["recorded"],
        "at_work": at_work(store),
        "stages": {
            stage: _stage(units, {path: mark for path, mark in marks.items() if path.startswith(f"{stage}/")})
            for stage, units in expected(run).items()
        },
        "summary": {name: value for name, value in summary.items() if isinstance(value, float)},
    }


def _stage(units: set[str], marks: Mapping[str, Mapping]) -> dict[str, Any]:
    seconds: Counter[str] = Counter()
    for mark in marks.values():
        seconds.update(mark["seconds"])
    failed = {row["image_id"] for mark in marks.values() for row in mark["failures"]}
    last = max((mark["finished"] for mark in marks.values()), default=None)
    return {"done": len(units & set(marks)), "of": len(units), "failed": len(failed), "seconds": seconds, "last": last}


def run_lines(status: Mapping[str, Any]) -> Iterator[str]:
    sets = status["imagesets"]
    photos = ", ".join(f"{entry['images']} images of {entry['uri']}" for entry in sets)
    shards = sum(entry["shards"] for entry in sets)
    yield f"{status['place']}: {photos} in {shards} shards, settings of {status['recorded']}"
    yield f"  {in_words(status['at_work'])}"
    for name, stage in status["stages"].items():
        parts = [f"  {name:9}{stage['done']:6} of {stage['of']} done"]
        if stage["failed"]:
            parts.append(f"{stage['failed']} failed")
        if spent := " ".join(f"{part} {value:.0f} s" for part, value in stage["seconds"].items() if value >= 0.5):
            parts.append(spent)
        if stage["last"]:
            parts.append(f"last {stage['last']}")
        yield ", ".join(parts)
    yield from (f"  {name.replace('acc@', 'Acc@')}: {value:.3f}" for name, value in status["summary"].items())


# --- a gallery --------------------------------------------------------------------------------------------------------


def gallery_status(store: ObjectStore) -> dict[str, Any]:
    """Plain JSON values. `last_night`: the summary of the last night that built a version. `work`: of a night at work,
    the run of its models."""
    now = time.time()
    serving = gallery_files.current(store)[0] if store.exists(gallery_files.CURRENT) else None
    record: Mapping[str, Any] = gallery_files.read_record(store, serving) if serving else {}
    nights = sorted(info.key for info in store.list(f"{NIGHTS}/"))
    holder, work = at_work(store), store.sub(WORK)
    run = read_record(work) if holder else {}
    return {
        "kind": "gallery",
        "place": store.uri,
        "version": serving,
        "items": record.get("rows", 0),
        "photos": record.get("photos", 0),
        "index": record["index"]["kind"] if record else None,
        "parts": len(gallery_files.part_records(record)) if record else None,
        "created": record.get("created"),
        "age_s": round(now - float(record.get("created", now)), 1) if record else None,
        "last_night": read_json(store, nights[-1]) if nights else None,
        "at_work": holder,
        "work": run_status(work, run) if run else None,
    }


def gallery_lines(status: Mapping[str, Any]) -> Iterator[str]:
    if status["version"]:
        age = timedelta(seconds=round(status["age_s"]))
        index = status["index"] + (f" in {status['parts']} parts" if status["parts"] > 1 else "")
        garments = f"{status['items']:,} garments of {status['photos']:,} photos, index {index}"
        yield f"{status['place']}: version {status['version']}, {garments}, written {age} ago"
    else:
        yield f"{status['place']}: no version is published"
    if night := status["last_night"]:
        names = ("status", "version", "added", "changed", "removed", "failed", "seconds", "advice")
        facts = ", ".join(f"{name} {night[name]}" for name in names if night.get(name) not in (None, ""))
        yield f"  last night that built a version: {facts}"
    yield f"  {in_words(status['at_work'])}"
    if status["work"]:
        yield from (f"  {line}" for line in run_lines(status["work"]))


# --- who is at work ---------------------------------------------------------------------------------------------------


def at_work(store: ObjectStore) -> dict[str, Any] | None:
    """Who holds the lock; `alive` is None where another machine's process cannot be seen, `beat` its last sign of life,
    in seconds since 1970."""
    holder = lock.holder_of(store)
    if not holder:
        return None
    alive = lock.alive(holder) if holder["host"] == lock.host() else None
    return {"who": lock.described(holder), "alive": alive, "beat": holder["beat"]}


def in_words(holder: Mapping[str, Any] | None) -> str:
    if holder is None:
        return "nobody is at work"
    if holder["alive"] is None:
        state = f"last gave a sign of life at {holder['beat']:.0f} (seconds since 1970)"
    else:
        state = "is at work" if holder["alive"] else "was killed; the same line again continues"
    return f"{holder['who']} {state}"


if __name__ == "__main__":
    cli.run(main)
