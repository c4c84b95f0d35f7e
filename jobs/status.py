"""Status of a run, from its folder alone: what is finished, what failed, whether someone is at work.

python jobs/status.py runs/demo
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.runs import lock
from jobs.runs.marks import expected, has_parts, read_json, read_marks
from jobs.runs.progress import say
from jobs.runs.run_record import read_record
from store.errors import UserError
from store.objects import ObjectStore, open_store


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("output", help="folder of the run: path, file:// or s3://BUCKET/PREFIX")
    parser.add_argument("--endpoint-url", help="of an S3-compatible store (default: the SDK's own chain)")
    args = parser.parse_args(argv)
    store = open_store(args.output, endpoint_url=args.endpoint_url)
    run = read_record(store)
    if not run:
        raise UserError(f"{args.output}: holds no run (no run.json)")
    for line in status_lines(store, run):
        say(line)
    return 0


def status_lines(store: ObjectStore, run: Mapping) -> Iterator[str]:
    sets = run["imagesets"]
    photos = ", ".join(f"{entry['images']} images of {entry['uri']}" for entry in sets)
    shards = sum(entry["shards"] for entry in sets)
    yield f"{store.uri}: {photos} in {shards} shards, settings of {run['recorded']}"
    yield f"  {_worker_state(store)}"
    marks = read_marks(store)
    for stage, units in expected(run).items():
        yield _stage_line(stage, units, {path: mark for path, mark in marks.items() if path.startswith(f"{stage}/")})
    metrics = read_json(store, "metrics.json") or {}
    if has_parts(metrics, {"summary": dict}):
        yield from (f"  {name}: {value:.3f}" for name, value in metrics["summary"].items() if isinstance(value, float))


def _stage_line(stage: str, units: set[str], marks: Mapping[str, Mapping]) -> str:
    """One stage: units done of those wanted, failed photos, seconds, time of the last mark."""
    seconds: Counter[str] = Counter()
    for mark in marks.values():
        seconds.update(mark["seconds"])
    parts = [f"  {stage:9}{len(units & set(marks)):6} of {len(units)} done"]
    if failed := {row["image_id"] for mark in marks.values() for row in mark["failures"]}:
        parts.append(f"{len(failed)} failed")
    if spent := " ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if value >= 0.5):
        parts.append(spent)
    if marks:
        parts.append(f"last {max(mark['finished'] for mark in marks.values())}")
    return ", ".join(parts)


def _worker_state(store: ObjectStore) -> str:
    holder = lock.holder_of(store)
    if not holder:
        return "nobody is at work"
    if holder["host"] == lock.host():
        state = "is at work" if lock.alive(holder) else "was killed; the same line again continues"
    else:
        state = f"last gave a sign of life at {holder['beat']:.0f} (seconds since 1970)"
    return f"{lock.described(holder)} {state}"


if __name__ == "__main__":
    cli.run(main)
