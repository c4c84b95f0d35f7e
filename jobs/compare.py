"""Train and judge variants of an embedder: losses, descriptors, sizes, backbones, mixtures; one table at the end.

    python jobs/compare.py VARIANTS.yaml --output runs/compare/losses
    python jobs/compare.py VARIANTS.yaml --output runs/compare/losses --minutes 90     # the same line again goes on

VARIANTS.yaml, its keys the flags of jobs/train_embedder.py without the dashes before them:

    base: {model: lite0-sg, imageset: [runs/ccp-train], validation: runs/ccp-val, input-size: 128, steps: 150}
    seeds: [0, 1, 2]
    variants:
      triplet: {}
      multi-similarity: {loss: multi-similarity}
      spoc: {descriptors: spoc}
    against: [triplet]                             # optional, what the others are compared with: else the first one
    final: {input-size: 160, steps: 600}           # optional: the winner once more, at full size

Each variant and seed is a Ray task with a folder of its own, OUTPUT/runs/VARIANT/seed-N, laid out as
jobs/training/run.py says. The winner is chosen by what is held out of training; the validation set is only reported.
OUTPUT/compare.json holds the rows, OUTPUT/compare.md the table: every seed, mean and spread, and the paired difference
from the variants of `against` with its interval.
"""

import contextlib
import io
import json
import shutil
import sys
import time
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, train_embedder
from jobs.comparison.plan import SHIPPED, SeedRun, final_run, read_plan, seed_runs
from jobs.comparison.table import as_markdown, compare_rows, winner
from jobs.comparison.trainings import CROPS, read_row, train_all
from jobs.runs import flags
from jobs.runs.places import refuse_other_kinds
from jobs.runs.progress import say
from jobs.training import flags as training_flags
from sources.arguments import minutes
from store.errors import UserError
from store.objects import open_store


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    plan = read_plan(args.plan)
    wanted, variants = seed_runs(plan), list(plan["variants"])
    for seed_run in wanted:
        check_flags(seed_run.variant, seed_run)
    store = open_store(args.output, endpoint_url=args.endpoint_url)
    ends = time.monotonic() + args.minutes * 60
    refuse_other_kinds(store, "a comparison")
    rows = {seed_run: row for seed_run in wanted if (row := read_row(store, seed_run)) is not None}
    say(f"{len(variants)} variants, {len(plan['seeds'])} seeds: {len(rows)} of {len(wanted)} trained already")
    todo = [seed_run for seed_run in wanted if seed_run not in rows]
    if args.dry_run:
        for seed_run in todo:
            say(f"to train: {seed_run.variant}, seed {seed_run.seed}")
        return 0
    new_rows, failures = train_all(store, todo, args, ends)
    rows |= new_rows

    lines = compare_rows(list(rows.values()), variants, plan["against"])
    unfinished = [seed_run for seed_run in wanted if seed_run not in rows and seed_run not in failures]
    if "final" in plan and not unfinished and rows:
        final = final_run(plan, winner(lines))
        check_flags("final", final)
        if (row := read_row(store, final)) is None:
            new_rows, new_failures = train_all(store, [final], args, ends)
            failures |= new_failures
            row = new_rows.get(final)
        if row is not None:
            name = f"{final.variant}, final"
            lines += compare_rows([{**row, "variant": name}], [name], [])
    table = as_markdown(lines)
    store.write("compare.json", (json.dumps({"variants": lines}, indent=1) + "\n").encode())
    store.write("compare.md", table.encode())
    say("\n" + table)
    for seed_run, reason in failures.items():
        say(f"{seed_run.variant}, seed {seed_run.seed}: {reason}")
    if not failures and not unfinished and store.local_path:
        shutil.rmtree(store.local_path / CROPS, ignore_errors=True)
    if unfinished:
        say(f"time is over with {len(unfinished)} of {len(wanted)} trainings to do; the same line goes on")
    return 3 if failures or unfinished else 0


def check_flags(name: str, seed_run: SeedRun) -> None:
    """Try a training's flags on its own parser, before any work; a UserError says which flag or value it refuses."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            args = train_embedder.parse([*seed_run.argv, "--output", "-"])
    except SystemExit:
        reason = messages.getvalue().strip().rpartition("error: ")[2]
        reason = reason or f"want flags that train, got {' '.join(seed_run.argv)}"
        raise UserError(f"variant {name}: {reason}") from None
    train_embedder.spec_of(args)


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    shipped = ", ".join(sorted(plan.stem for plan in SHIPPED.glob("*.yaml")))
    add("plan", type=Path, metavar="VARIANTS.yaml", help=f"a file, or one that comes with the project: {shipped}")
    add("--output", required=True, help="folder or s3:// for the trainings and the table")
    add("--minutes", type=minutes, default=float("inf"), help="start no training after this time (no end)")
    add("--threads", type=training_flags.threads, default=1, help="CPU cores of each training (1)")
    flags.add_device(add, default="cpu", numbered=True)
    flags.add_dry_run(add, text="say which trainings are left, and stop")
    flags.add_endpoint_url(add)
    return parser


if __name__ == "__main__":
    cli.run(main)
