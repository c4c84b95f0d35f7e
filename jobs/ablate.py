"""What each technique is worth on your own data, judged on a finished run's stored boxes and embeddings; no model runs.

    python jobs/ablate.py runs/first
    python jobs/ablate.py runs/first --only 'whiten*' --only 'dba*'      # some techniques only
    python jobs/ablate.py s3://BUCKET/runs/0142 --tune-fusion            # weights and thresholds of the detectors, too

In: OUTPUT of a finished `jobs/full_eval.py` and its image set. Every technique of `postproc/` is judged alone
against plain concatenation: Acc@10, paired 95 % interval over consumer photos, seconds, peak memory. Those that
helped are combined greedily, chosen on one half of the consumer photos and reported on the other; then each is
taken out of the best combination again. Ways to fuse boxes are judged by AP10, or by AP where the categories are not
DeepFashion2's; only a run with such a setting shows what it does to retrieval. Out: a table on standard output,
OUTPUT/ablation.parquet, a page of the report, and OUTPUT/ablation/, from which the same line goes on after it was
stopped.

Exit status: 0 done; 2 a mistake in the line or its input; 3 done, but a technique could not be judged; 1 anything else.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.ablation import verdict
from jobs.ablation.bench import Bench
from jobs.ablation.boxes import judge_fusions
from jobs.ablation.items import tune_items
from jobs.ablation.ranking import judge_searches
from jobs.ablation.tuning import tune_fusion
from jobs.reports import site
from jobs.runs import cluster, flags, tables
from jobs.runs.finished import open_finished
from jobs.runs.lock import Lock
from jobs.runs.marks import fingerprint
from jobs.runs.places import refuse_other_kinds
from jobs.runs.progress import say
from jobs.stages.report import mark_rewritten
from sources.arguments import positive
from store.errors import UserError

CODE = 2  # raise it when the same variant would be judged otherwise


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    run = open_finished(args.output, args.imageset, args.endpoint_url)
    refuse_other_kinds(run.store, "a run")
    lock = Lock(run.store)
    lock.take()
    try:
        bench = Bench(run, fingerprint({"code": CODE, "run": run.fingerprint()}), args.parallel)
        rows = judge_everything(bench, args)
        if not rows:
            raise UserError(
                f"{args.output}: nothing to judge; is there ground truth, and does --only name a technique?"
            )
        columns = {name: [row.get(name) for row in rows] for name in verdict.SCHEMA.names}
        tables.write(run.store, "ablation.parquet", tables.table(verdict.SCHEMA, columns))
        say("\n".join(verdict.lines(rows)))
        report = site.build(run.store, run.images, **run.record["settings"]["report"])  # existing pictures stay
        mark_rewritten(run.store)
        say(f"\nreport: {report}")
    finally:
        cluster.leave_ray()
        lock.release()
    for name, reason in bench.failures.items():
        say(f"{name}: could not be judged: {reason}")
    return 3 if bench.failures else 0


def judge_everything(bench: Bench, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of ablation.parquet."""
    record = bench.run.record
    rows: list[dict[str, Any]] = []
    if args.part != "retrieval" and record["detectors"]:
        if record["selected"]["items"]:
            rows += judge_fusions(bench, args.only)
            rows += tune_fusion(bench) if args.tune_fusion else []
        else:
            say("ablation: boxes: no ground truth to judge by")
    if args.part != "boxes":
        for kind in record["boxes"]:
            rows += judge_searches(bench, kind, args.only)
            rows += tune_items(bench) if args.tune_fusion and kind == "detected" and record["detectors"] else []
    return rows


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="folder of a finished run, or s3://BUCKET/PREFIX")
    flags.add_imageset(
        add, text="where the run's image set is now; repeat it for several, in the run's order (where they were)"
    )
    add(
        "--only", action="append", default=[], metavar="PATTERN",
        help="techniques by name, * and ? allowed; may be repeated (all)",
    )  # fmt: skip
    add("--part", choices=("boxes", "retrieval"), help="one half of the ablation (both)")
    add(
        "--tune-fusion",
        action="store_true",
        help="tune the detectors' weights and thresholds for AP, and the items' for Acc@10, on one half of the photos",
    )
    add("--parallel", type=positive, metavar="N", help="variants judged at once (as cores and memory allow)")
    flags.add_endpoint_url(add)
    return parser


if __name__ == "__main__":
    cli.run(main)
