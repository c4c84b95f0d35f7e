"""Bring a published gallery up to date: only what changed is detected and embedded, a bad version is never published.

    python jobs/ingest.py folder PHOTOS/shop runs/shop --source shop --metadata products.csv --update
    python jobs/reindex_gallery.py --imageset runs/shop --gallery runs/gallery
    python jobs/reindex_gallery.py --imageset runs/shop --gallery runs/gallery --dry-run     # says what it would do
    python jobs/reindex_gallery.py --gallery runs/gallery --list
    python jobs/reindex_gallery.py --gallery runs/gallery --rollback [VERSION]
    python jobs/reindex_gallery.py --gallery runs/gallery --prune --keep 7

In: an image set (its shop photos), models as for jobs/full_eval.py. Out: GALLERY, read with `retrieval.gallery.open_gallery` or
jobs/search.py. The last line on standard output is one JSON object, for alerting; `--metrics FILE` writes the same for Prometheus.

Exit status: 0 published, or nothing to do; 2 a mistake in the line or its input, or another run is at work; 3 more photos failed than
max_failed_share allows; 4 the gate refused the new version; 1 anything else. With 3 and 4 the version before goes on serving.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, ray_cluster
from jobs.cli import UserError
from jobs.models import SHIPPED, Catalogue
from jobs.progress import say

if TYPE_CHECKING:
    from jobs.gallery.night import Changes, Night
    from retrieval.gallery import Gallery

FAILED, REFUSED = 3, 4  # exit status


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", required=True, help="the gallery: folder, file:// or s3://BUCKET/PREFIX")
    parser.add_argument("--imageset", help="image set whose shop photos it is to hold")
    parser.add_argument("--dry-run", action="store_true", help="say what changed and what it would cost; write nothing")
    parser.add_argument(
        "--retrain",
        choices=("never", "auto", "now"),
        default="never",
        help="learn clusters and projections again: never, when drift advises it, now (never)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="try photos again that failed on an earlier night")
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="write the summary in Prometheus' text format, for node_exporter's textfile collector",
    )
    parser.add_argument("--profile", choices=("tiny", "paper"), default="tiny", help="models and sizes (default: tiny)")
    parser.add_argument("--config", metavar="RUN.yaml", help="settings on top of the profile's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one setting on top of both; may be repeated",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="the versions there are")
    instead.add_argument(
        "--rollback",
        nargs="?",
        const="",
        metavar="VERSION",
        help="make the version before the current one serve again, or one by name",
    )
    instead.add_argument(
        "--prune",
        action="store_true",
        help="remove old versions; never the current one, nor one superseded less than 24 h ago",
    )
    parser.add_argument("--keep", type=int, default=7, metavar="N", help="with --prune: newest versions to keep (7)")
    parser.add_argument(
        "--endpoint-url", help="of an S3-compatible store, with --list, --rollback and --prune (the SDK's own chain)"
    )
    args = parser.parse_args(argv)
    if args.keep < 1:
        parser.error(f"--keep wants 1 or more, got {args.keep}")
    if not (args.list or args.prune or args.rollback is not None) and not args.imageset:
        parser.error("--imageset is wanted, unless --list, --rollback or --prune is asked for")
    args.limit, args.compare, args.output = None, None, f"{str(args.gallery).rstrip('/')}/work"
    return args


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED) -> int:
    args = parse(argv)
    if args.list or args.prune or args.rollback is not None:
        return keep_house(args)
    if args.metrics:
        check_metrics(args.metrics)
    settings = config.load(args)

    from jobs.gallery.night import Night
    from jobs.gallery.versions import still_ours
    from jobs.lock import Lock

    how = {"retry_failed": args.retry_failed, "retrain": args.retrain}
    night = Night.open(settings, catalogue, args.gallery, write=not args.dry_run, **how)
    if args.dry_run:
        dry_run(night)
        return 0
    lock = Lock(night.store)
    lock.take()
    try:
        summary = carry_out(night, lock)
    except UserError:
        raise
    except Exception:  # who took the lock over sweeps up what this night was building
        with contextlib.suppress(OSError):
            still_ours(lock)
        raise
    finally:
        ray_cluster.leave_ray()
        lock.release()
    from jobs.gallery.night import summary_line

    print(summary_line(summary), flush=True)
    if args.metrics:
        with only_told(f"--metrics {args.metrics}"):
            write_metrics(Path(args.metrics), summary)
    return {"published": 0, "unchanged": 0, "failed": FAILED, "refused": REFUSED}[summary["status"]]


def check_metrics(metrics: str) -> None:
    """Raises:
    UserError: no such file can be written, which would show only after the night.
    """
    folder = Path(metrics).absolute().parent
    if Path(metrics).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--metrics {metrics}: want a file in a folder that is there and can be written")


@contextlib.contextmanager
def only_told(what: str) -> Iterator[None]:
    """Once CURRENT is where it shall be, what cannot be written besides changes nothing of how the night ended."""
    try:
        yield
    except OSError as error:
        print(f"reindex_gallery.py: {what} is not written: {cli.one_line(str(error))}", file=sys.stderr, flush=True)


def keep_house(args: argparse.Namespace) -> int:
    """--list, --rollback, --prune."""
    from jobs.gallery import versions
    from jobs.lock import Lock
    from store.objects import open_store

    store = open_store(args.gallery, endpoint_url=args.endpoint_url)
    if args.list:
        print("\n".join(versions.table(store)))
        return 0
    lock = Lock(store)
    lock.take()
    try:
        if args.prune:
            removed = versions.prune(store, args.keep, lock=lock)
            print(f"removed {len(removed)}: {', '.join(removed)}" if removed else "nothing to remove")
        else:
            left, now = versions.roll_back(store, args.rollback or None)
            print(f"{now} is current again, {left} is not; readers follow with their next refresh")
    finally:
        lock.release()
    return 0


def dry_run(night: "Night") -> None:
    """What changed, and what it would cost."""
    from jobs.gallery import versions
    from retrieval.gallery import Gallery

    now = versions.pointer(night.store)
    before = Gallery(night.store, now[0], check=False) if now else None
    changes = night.changes(before)
    say(str(changes))
    tell_cost(night, changes, before)


def tell_cost(night: "Night", changes: "Changes", before: "Gallery | None") -> None:
    """The index to be, its memory and disk, and the time the models will take, by what the night before took.

    Raises:
        UserError: an index of that kind does not fit so many garments or the budget.
    """
    photos = len(changes.photos)
    garments = int(photos * (len(before) / max(1, before.record["photos"]) if before is not None else 1.3))
    made = night.estimate(garments)
    say(f"index: {made.kind} of about {garments:,} garments, {made.memory_mb:,.0f} MB while searching, {made.build_mb:,.0f} MB while building, "
        f"{made.disk_mb:,.0f} MB on disk, {made.build_s:,.0f} s to build anew{'; ' + made.why if made.why else ''}")  # fmt: skip
    pace = (before.record.get("photo_s") if before is not None else None) or None
    if changes.new and pace:
        say(f"models: {changes.new:,} photos, about {changes.new * pace:,.0f} s at the pace of an earlier night")


def carry_out(night: "Night", lock: Any) -> dict[str, Any]:
    """The whole night; returns the summary."""
    from jobs.gallery import versions
    from jobs.gallery.night import NIGHTS, drifted
    from jobs.ledger import as_json
    from retrieval.gallery import Gallery

    start = time.monotonic()
    versions.sweep(night.store)  # what a killed night was building is as large as the gallery
    now = versions.pointer(night.store)
    before = Gallery(night.store, now[0]) if now else None
    serving = None if before is None else before.version
    changes = night.take_over(before)
    say(str(changes))
    summary: dict[str, Any] = {
        "added": changes.added, "changed": changes.changed, "removed": changes.removed, "unchanged": changes.unchanged,
        "photos": len(changes.photos), "detected": changes.new, "before": serving,
    }  # fmt: skip
    if before is not None and changes.nothing and not anew(night, changes, before):
        said = {
            "status": "unchanged",
            "version": before.version,
            "rows": len(before),
            "failed": failures(night, changes),
        }
        return (
            summary
            | said
            | {"seconds": round(time.monotonic() - start, 1), "age_s": round(versions.age_s(before.record), 1)}
        )
    tell_cost(night, changes, before)
    models_s = night.detect_and_embed(changes.rows, changes.photos)
    failed = failures(night, changes)
    name = versions.next_name(night.store)
    with night.built(changes, before, name) as built:
        lock.check()
        figures = night.gate(built, changes, before, failed)
        first = first_of(night, before) if not built.rebuilt else None
        recall = figures[0].value
        more = {"photos": len(changes.photos), "photo_s": models_s / changes.new if changes.new > 20 else (before.record.get("photo_s") if before is not None else None),
                "before": serving, "rebuilt": built.rebuilt, "trained_in": first["name"] if first else name}  # fmt: skip
        record = night.record(built, name, more)
        if all(figure.good for figure in figures):
            figures.insert(1, night.copies(built, record, changes))
        advice = drifted(record, first, recall, night.settings.gallery.recall)
        record |= {"gate": {figure.name: figure.as_json() for figure in figures}, "advice": advice}
        night.write(built, record)
    for figure in figures:
        say(f"gate: {figure}{'' if figure.good else ' - REFUSED'}")
    bad = [figure.name for figure in figures if not figure.good]
    status = "published" if not bad else "failed" if bad == ["failed"] else "refused"
    if status == "published":
        lock.check()
        versions.point_to(night.store, name, now[1] if now else None, why="published")
    if advice:
        say(f"advice: train again (--retrain now): {advice}")
    spent = time.monotonic() - start
    summary |= {
        "status": status, "version": name if status == "published" else serving, "refused": bad, "failed": failed,
        "rows": record["rows"] if status == "published" else len(before) if before is not None else 0, "garments_added": built.added, "garments_removed": built.removed, "rebuilt": built.rebuilt, "index": record["index"]["kind"],
        "gate": {figure.name: figure.value for figure in figures}, "advice": advice, "seconds": round(spent, 1),
        "photos_per_s": round(changes.new / models_s, 3) if changes.new and models_s else None, "age_s": 0.0 if status == "published" else (round(versions.age_s(before.record), 1) if before is not None else None),
    }  # fmt: skip
    with only_told(f"{night.store.uri}/{NIGHTS}/{name}.json"):
        night.store.write(f"{NIGHTS}/{name}.json", as_json(summary))
    return summary


def anew(night: "Night", changes: "Changes", before: "Gallery") -> str:
    """Why a night without changed photos builds all the same, "" where it does not."""
    from jobs.gallery.build import why_anew

    reason = why_anew(night.wanted, night.results, changes.photos, before)
    return "" if reason.startswith("dba") else reason


def failures(night: "Night", changes: "Changes") -> int:
    """Tonight's photos without a result."""
    import pyarrow.compute as pc

    known = night.results.photos()
    bad = known.filter(pc.not_equal(known.column("reason"), "")).column("digest").combine_chunks()
    return int(pc.sum(pc.is_in(changes.photos.column("digest"), value_set=bad)).as_py() or 0)


def first_of(night: "Night", before: "Gallery | None") -> dict[str, Any] | None:
    """The record of the version whose training tonight's index goes on with; None where it is gone."""
    from retrieval.gallery import GalleryError, read_record

    if before is None:
        return None
    try:
        return read_record(night.store, before.record.get("trained_in") or before.version)
    except GalleryError:
        return before.record


def write_metrics(path: Path, summary: dict[str, Any]) -> None:
    """The summary as gauges, in a file that is replaced whole."""
    names = {
        "rows": "garments that can be found", "photos": "shop photos tonight", "detected": "photos through the models tonight",
        "failed": "photos without a result", "photos_per_s": "photos through the models a second", "seconds": "seconds the night took",
        "age_s": "seconds since the current version was written",
    }  # fmt: skip
    lines = []
    for name, words in names.items():
        if summary.get(name) is not None:
            lines += [
                f"# HELP clothes_gallery_{name} {words}",
                f"# TYPE clothes_gallery_{name} gauge",
                f"clothes_gallery_{name} {summary[name]}",
            ]
    for name, value in summary.get("gate", {}).items():
        if value is not None:
            lines.append(f'clothes_gallery_gate{{figure="{name}"}} {value}')
    lines.append(f"clothes_gallery_published {int(summary['status'] in ('published', 'unchanged'))}")
    lines.append(f"clothes_gallery_finished_timestamp_seconds {time.time():.0f}")
    part = path.with_name(f"{path.name}.part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    cli.run(main)
