"""Bring a published gallery up to date: only what changed is detected and embedded, a bad version is never published.

    python jobs/ingest.py folder PHOTOS/shop runs/shop --source shop --metadata products.csv --update
    python jobs/reindex_gallery.py --imageset runs/shop --gallery runs/gallery
    python jobs/reindex_gallery.py --imageset runs/shop --gallery runs/gallery --dry-run     # says what it would do
    python jobs/reindex_gallery.py --gallery runs/gallery --list
    python jobs/reindex_gallery.py --gallery runs/gallery --rollback [VERSION]
    python jobs/reindex_gallery.py --gallery runs/gallery --prune --keep 7

In: image sets (their shop photos), models as for jobs/full_eval.py. Out: GALLERY, read with
`retrieval.gallery.open_gallery` or jobs/search.py. The last line on standard output is one JSON object, for alerting;
`--metrics FILE` writes the same for Prometheus.

Exit status: 0 published, or nothing to do; 2 a mistake in the line or its input, or another run is at work; 3 more
photos failed than max_failed_share allows; 4 the gate refused the new version; 1 anything else. With 3 and 4 the
version before goes on serving.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.gallery import versions
from jobs.runs import flags, one_process
from jobs.runs.catalogue import SHIPPED
from jobs.runs.cluster import leave_ray
from jobs.runs.config_text import asked, groups_of_settings
from jobs.runs.lock import Lock, check_file
from jobs.runs.models import Catalogue
from jobs.runs.places import nothing_left, refuse_other_kinds
from jobs.runs.progress import clear_bar
from jobs.runs.settings import Settings, load
from sources.arguments import positive
from store.errors import UserError
from store.objects import ObjectStore, open_store

FAILED, REFUSED = 3, 4
EXIT_STATUS = {"published": 0, "unchanged": 0, "failed": FAILED, "refused": REFUSED}
GAUGES = {
    "rows": "garments that can be found",
    "photos": "shop photos tonight",
    "detected": "photos through the models tonight",
    "failed": "photos without a result",
    "photos_per_s": "photos through the models a second",
    "seconds": "seconds the night took",
    "age_s": "seconds since the current version was written",
}


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, epilog=groups_of_settings())
    add = parser.add_argument
    add("--gallery", required=True, help="the gallery: folder, file:// or s3://BUCKET/PREFIX")
    flags.add_imageset(add, text="image set whose shop photos the gallery is to hold; repeat it for several")
    flags.add_dry_run(add, text="say what changed and what a night would take, or what --prune would remove or "
                      "--rollback would make current; write nothing")  # fmt: skip
    add(
        "--retrain", choices=("never", "auto", "now"), default="never",
        help="learn clusters and projections again: never, when the night before advises it, or now (never)",
    )  # fmt: skip
    add("--retry-failed", action="store_true", help="try photos again that failed on an earlier night")
    add("--metrics", metavar="FILE", help="write the summary for node_exporter's textfile collector (Prometheus)")
    flags.add_settings(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the versions")
    instead.add_argument(
        "--rollback", nargs="?", const="", metavar="VERSION",
        help="make the version before the current one serve again, or one by name",
    )  # fmt: skip
    instead.add_argument(
        "--prune", action="store_true",
        help="remove old versions; never the current one, nor one superseded less than 24 h ago",
    )  # fmt: skip
    add("--keep", type=positive, default=7, metavar="N", help="with --prune: newest versions to keep (7)")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    line = parser()
    args = line.parse_args(argv)
    args.upkeep = args.list or args.prune or args.rollback is not None
    if not (args.upkeep or args.imageset or args.config or args.print_config or args.list_models):
        line.error("--imageset is required, except with --list, --rollback or --prune")
    args.limit = args.compare = args.top = None
    args.output = args.gallery and f"{str(args.gallery).rstrip('/')}/work"
    return args


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED) -> int:
    args = parse(argv)
    if asked(args, catalogue):
        return 0
    if args.upkeep:
        with nothing_left(open_store(args.gallery, endpoint_url=args.endpoint_url)):
            return upkeep(args)
    if args.metrics:
        check_metrics(args.metrics)
    settings = load(args)
    with nothing_left(open_store(args.gallery, endpoint_url=settings.storage.endpoint_url)):
        return one_night(args, settings, catalogue)


def one_night(args: argparse.Namespace, settings: Settings, catalogue: Catalogue) -> int:
    """A night, or with --dry-run its forecast; returns the exit status."""
    from jobs.gallery import night as nights  # FAISS

    how = {"write": not args.dry_run, "retry_failed": args.retry_failed, "retrain": args.retrain}
    night = nights.Night.open(settings, catalogue, args.gallery, **how)
    if args.dry_run:
        nights.forecast(night)
        return 0
    lock = Lock(night.store)
    lock.take()
    try:
        summary = nights.run(night, lock)
    except UserError:
        raise
    except Exception:
        # a run that took the lock over sweeps up what this night was building: then that is the reason to give
        with contextlib.suppress(OSError):
            check_file(lock)
        raise
    finally:
        clear_bar()
        one_process.end()
        leave_ray()
        lock.release()
    print(nights.summary_line(summary), flush=True)
    if args.metrics:
        with nights.report_unwritten(f"--metrics {args.metrics}"):
            write_metrics(Path(args.metrics), summary)
    return EXIT_STATUS[summary["status"]]


def upkeep(args: argparse.Namespace) -> int:
    """--list, --rollback, --prune."""
    store = open_store(args.gallery, endpoint_url=args.endpoint_url)
    if args.list:
        print("\n".join(versions.table(store)))
        return 0
    refuse_other_kinds(store, "a gallery")
    if args.dry_run:
        prune_or_roll_back(args, store, None)
        return 0
    lock = Lock(store)
    lock.take()
    try:
        prune_or_roll_back(args, store, lock)
    finally:
        lock.release()
    return 0


def prune_or_roll_back(args: argparse.Namespace, store: ObjectStore, lock: Lock | None) -> None:
    """Do it and say so; without the lock only say what would be done."""
    write = lock is not None
    if args.prune:
        removed = versions.prune(store, args.keep, lock=lock, write=write)
        names = f"{len(removed)}: {', '.join(removed)}"
        print(f"{'removed' if write else 'would remove'} {names}" if removed else "nothing to remove")
        return
    left, now = versions.roll_back(store, args.rollback or None, write=write)
    if write:
        print(f"{now} is current again, {left} is not; readers follow with their next refresh")
    else:
        print(f"{now} would be current again, {left} would not")


def check_metrics(metrics: str) -> None:
    """Refuse a file that cannot be written, which would otherwise show only after the night."""
    folder = Path(metrics).absolute().parent
    if Path(metrics).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--metrics {metrics}: want a file in a folder that exists and can be written")


def write_metrics(path: Path, summary: Mapping[str, Any]) -> None:
    """The summary as gauges, in a file that is replaced whole."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile  # heavy, with --metrics alone

    registry = CollectorRegistry()
    for name, meaning in GAUGES.items():
        if summary.get(name) is not None:
            Gauge(f"clothes_gallery_{name}", meaning, registry=registry).set(summary[name])
    gate = Gauge("clothes_gallery_gate", "figures of the gate", ["figure"], registry=registry)
    for figure, value in summary.get("gate", {}).items():
        if value is not None:
            gate.labels(figure).set(value)
    serving = summary["status"] in ("published", "unchanged")
    Gauge("clothes_gallery_published", "1 where the shop is up to date", registry=registry).set(serving)
    finished = "clothes_gallery_finished_timestamp_seconds"
    Gauge(finished, "when the night ended", registry=registry).set(int(time.time()))
    write_to_textfile(str(path), registry)


if __name__ == "__main__":
    cli.run(main)
