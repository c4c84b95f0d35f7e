"""The stages in order, and the frame every one of their command lines shares: settings, lock, plan, work, answer."""

import argparse
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType

from jobs import check, config, detect, embed, evaluate, fuse, plan, rank, ray_cluster, report, run_log
from jobs.cli import UserError
from jobs.ledger import Opened, Run
from jobs.models import SHIPPED, Catalogue
from jobs.progress import say

IN_ORDER: dict[str, ModuleType] = {
    "detect": detect, "fuse": fuse, "embed": embed, "rank": rank, "evaluate": evaluate, "report": report,
}  # fmt: skip
REDUCE = ("rank", "evaluate", "report")  # stages this process does itself; the others log their own end
TOO_MANY_FAILED = 3  # exit status


def main(names: Sequence[str], argv: list[str] | None, doc: str | None, catalogue: Catalogue = SHIPPED) -> int:
    """Carry out the named stages; returns the exit status."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    config.add_arguments(parser)
    args = parser.parse_args(argv)
    settings = config.load(args)
    if args.check:
        return check.check(settings, catalogue)
    with _stoppable(), Opened(settings, catalogue, retry_failed=args.retry_failed) as run:
        for line in plan.lines(run, {name: IN_ORDER[name].units(run) for name in names}):
            say(line)
        try:
            for name in names:
                carry_out(run, name)
        finally:
            ray_cluster.leave_ray()
        if names[-1] in ("evaluate", "report"):
            for line in plan.answer(run):
                say(line)
        return _status(run, names)


def carry_out(run: Run, name: str) -> None:
    """One stage; what comes before it must be finished."""
    units = IN_ORDER[name].units(run)
    if any(unit.basis is None for unit in units):
        order = list(IN_ORDER)
        before = [
            other for other in order[: order.index(name)] if any(run.why(unit) for unit in IN_ORDER[other].units(run))
        ]
        raise UserError(
            f"{name}: {before[0]} is not finished with these settings; run jobs/{before[0]}.py or jobs/full_eval.py first"
        )
    todo, start = any(run.why(unit) for unit in units), time.monotonic()
    IN_ORDER[name].carry_out(run)
    if todo and name in REDUCE:
        run.log.tell("stage", name, seconds=round(time.monotonic() - start, 3), **run_log.memory())


def _status(run: Run, names: Sequence[str]) -> int:
    failed = {row["image_id"] for name in names for row in run.failures(IN_ORDER[name].units(run))}
    allowed = run.settings.max_failed_share
    if len(failed) <= allowed * run.selected.images:
        return 0
    share = len(failed) / run.selected.images
    say(f"{len(failed)} of {run.selected.images} images failed ({share:.1%}), more than max_failed_share {allowed:.1%} allows; "
        f"the reasons are in {run.settings.output}/failures.parquet")  # fmt: skip
    return TOO_MANY_FAILED


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the lock is given back, and the same line continues."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; what is finished stays, the same line again goes on from here")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
