"""The stages in order, and what every stage's command does: settings, lock, plan, work, figures."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs import cli
from jobs.runs import cluster, flags, one_process
from jobs.runs.catalogue import SHIPPED, choose_models
from jobs.runs.categories import remarks
from jobs.runs.config_text import asked, groups_of_settings
from jobs.runs.marks import STAGES, read_json
from jobs.runs.models import Catalogue, executed
from jobs.runs.planning import IN_DRIVER, plan, run_stage
from jobs.runs.progress import clear_bar, say
from jobs.runs.run import Run, open_run
from jobs.runs.run_record import read_record
from jobs.runs.selection import remark_on_pixels
from jobs.runs.settings import add_arguments, load
from jobs.stages import detect, embed, evaluate, fuse, rank, report
from jobs.stages.check import check
from store.errors import UserError
from store.objects import open_store

IN_ORDER = dict(zip(STAGES, (detect, fuse, embed, rank, evaluate, report), strict=True))
OF_A_RUN = ("evaluate", "report")  # stages that say what a run has found, and compute nothing of their own
TOO_MANY_FAILED = 3  # exit status
TOPS = ("1", "5", "10", "20")  # the lengths of lists that are printed
# what is printed below the figures with all hypotheses, where it is another: words -> name in metrics.json
OTHER_TOPS = {"its own category alone": "top_one_category", "any category": "top_any_category"}


def main(names: Sequence[str], argv: list[str] | None, doc: str | None, catalogue: Catalogue = SHIPPED) -> int:
    """Run the named stages; returns the exit status."""
    args = parser(doc).parse_args(argv)
    if set(names) <= set(OF_A_RUN) and args.output is not None:
        args.recorded = recorded_settings(args)
    if asked(args, catalogue):
        return 0
    settings = load(args)
    if args.check:
        return check(settings, catalogue)
    models = choose_models(settings, catalogue)
    with open_run(settings, catalogue, models, retry_failed=args.retry_failed, write=not args.dry_run) as run:
        for line in plan_lines(run, names):
            say(line)
        if args.dry_run:
            return 0
        try:
            for name in names:
                if name in IN_DRIVER:
                    one_process.end()  # no models from here on: its memory is free for what follows
                run_stage(run, IN_ORDER, name)
        except KeyboardInterrupt:
            say("stopped; what is finished stays, the same line again goes on from here")
            raise
        finally:
            clear_bar()
            one_process.end()
            cluster.leave_ray()
        if names[-1] in ("evaluate", "report"):
            for line in figure_lines(run):
                say(line)
        return _status(run, names)


def recorded_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """The settings of the run in OUTPUT, which hold where the line names no other profile or run file.

    UserError: there is no run.
    """
    store = open_store(args.output, endpoint_url=args.endpoint_url)
    if store.local_path is None:
        store.probe(write=False)  # ends within seconds where the bucket is out of reach
    record = read_record(store)
    if not record:
        raise UserError(f"{args.output}: no run.json; want the --output of a run that jobs/full_eval.py has made")
    return None if args.profile or args.config else record["settings"]


def parser(doc: str | None) -> cli.Parser:
    """The command line that full_eval and every stage have."""
    parser = cli.Parser(description=doc, epilog=groups_of_settings())
    add_arguments(parser)
    add = parser.add_argument
    add(
        "--check",
        action="store_true",
        help="check versions, devices and storage, pass a photo through each model, and stop",
    )
    flags.add_dry_run(add, text="say what is done and what is to do, write nothing, and stop")
    add("--retry-failed", action="store_true", help="process the shards that hold failed photos again")
    return parser


def _status(run: Run, names: Sequence[str]) -> int:
    failed = {row["image_id"] for name in names for row in run.failures(plan(run, IN_ORDER, name))}
    allowed = run.settings.max_failed_share
    if len(failed) <= allowed * run.selected.images:
        return 0
    share = len(failed) / run.selected.images
    say(
        f"{len(failed)} of {run.selected.images} images failed ({share:.1%}), more than max_failed_share {allowed:.1%} "
        f"allows; the reasons are in {run.settings.output}/failures.parquet"
    )
    return TOO_MANY_FAILED


# ---------------------------------------------------------------------------------------------------------------------
# What a run says before its work and after it.


def plan_lines(run: Run, names: Sequence[str]) -> Iterator[str]:
    """The plan of these stages: what there is, what is done, what is to do and for which reason."""
    taken, settings = run.selected, run.settings
    size = sum(shard.bytes for shard in taken.shards) / 1e6
    yield f"{', '.join(settings.imageset)} -> {settings.output}"
    photos = f"{taken.images} images ({taken.users} consumers', {taken.shops} shops', {taken.items} true items)"
    yield f"  {photos} in {len(taken.shards)} shards, {size:.1f} MB"
    yield f"  detectors: {', '.join(model.name for model in run.detectors) or 'none, the whole photo is the item'}"
    yield f"  embedders: {', '.join(model.name for model in run.embedders)}; boxes: {', '.join(run.box_kinds)}"
    yield from (f"  {line}" for line in executed((*run.detectors, *run.embedders)))
    for remark in (*remarks(run.detectors, run.categories), remark_on_pixels(run.images, settings.max_pixels)):
        if remark:
            yield f"  {remark}"
    yield f"  device: {settings.device}, actors: {settings.actors}, {settings.threads_per_actor} threads each"
    for name in names:
        units = plan(run, IN_ORDER, name)
        reasons = Counter(reason for unit in units if (reason := run.reason(unit)))
        todo = sum(reasons.values())
        words = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield f"  {name:9}{len(units) - todo:6} of {len(units)} done" + (f", to do: {words}" if todo else "")


def figure_lines(run: Run) -> Iterator[str]:
    """The figures of metrics.json as tables for the terminal, without what was not judged, and where the report is."""
    metrics = read_json(run.store, "metrics.json") or {}
    yield from _detection_lines(metrics)
    yield from _retrieval_lines(metrics)
    for note in metrics.get("summary", {}).get("notes", ()):
        yield f"note: {note}"
    images = metrics.get("images", {})
    yield f"{images.get('done')} of {images.get('total')} images done, {images.get('failed')} failed"
    if run.store.exists("report/index.html"):
        yield f"report: {run.store.uri}/report/index.html"


def _detection_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    rows = metrics.get("detection", {})
    if all(figures["AP"] is None for figures in rows.values()):
        return
    yield ""
    yield f"{'boxes':28}{'AP':>8}{'AP50':>8}{'AP10':>8}{'AP10_50':>8}{'AP10, consumers':>17}{'AP10_50, masks':>16}"
    for name, figures in rows.items():
        plain = "".join(_figure(figures[key]) for key in ("AP", "AP50", "AP10", "AP10_50"))
        consumers = _figure((figures["consumers"] or {}).get("AP10"))
        masks = _figure((figures["masks"] or {}).get("AP10_50"))
        yield f"{name:28}{plain}{consumers:>17}{masks:>16}"


def _retrieval_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    retrieval = metrics.get("retrieval", {})
    rows = [figures for models in retrieval.values() for figures in models.values()]
    ks = [k for k in TOPS if any(figures["top"][k] is not None for figures in rows)]  # lists end at search.top_k
    if not ks:
        return
    title = " ".join(["retrieval", *(f"by {truth}" for truth in {figures["truth"] for figures in rows} - {None})])
    heads = "".join(f"{name:>8}" for name in (*(f"Acc@{k}" for k in ks), "mAP", "missed", "queries"))
    yield ""
    yield f"{title:28}{heads}"
    for kind, models in retrieval.items():
        for name, figures in models.items():
            measured = "".join(_figure(value) for value in (*(figures["top"][k] for k in ks), figures["map"]))
            yield f"{name + ', ' + kind:28}{measured}{figures['missed']:8}{figures['queries']:8}"
            for words, key in OTHER_TOPS.items():
                if (top := figures.get(key, figures["top"])) != figures["top"]:
                    yield f"  {words:26}{''.join(_figure(top[k]) for k in ks)}"


def _figure(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.3f}"
