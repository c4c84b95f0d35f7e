"""Export: a finished run as files for other software: COCO detections, TREC runs, rankings as CSV.

    python jobs/export.py runs/first --to coco runs/first-coco      # detections-DETECTOR.json, fused.json, truth.json
    python jobs/export.py runs/first --to trec runs/first-trec      # BOXES-MODEL.run, BOXES.qrels
    python jobs/export.py runs/first --to csv s3://BUCKET/first     # rankings-BOXES-MODEL.csv

docs/formats.md describes every file, docs/recipes.md shows what reads them. Files appear whole or not at all. Memory
holds what is known of the run's photos, and of its tables a shard or a block of queries.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.exports import coco, rankings_csv, trec
from jobs.exports.files import publish_text, refuse_existing, refuse_foreign
from jobs.runs import flags
from jobs.runs.finished import open_finished
from jobs.runs.progress import say
from store.objects import open_store


def main(argv: list[str] | None = None) -> int:
    line = parser()
    args = line.parse_args(argv)
    if args.to == "coco" and args.boxes:
        line.error("--boxes chooses rankings, and --to coco writes detections; leave it out")
    run = open_finished(args.output, args.imageset, args.endpoint_url)
    target = open_store(args.folder, endpoint_url=args.endpoint_url)
    refuse_foreign(target)
    match args.to:
        case "coco":
            files = coco.files(run, args.model)
        case "trec":
            files = trec.files(run, args.boxes, args.model)
        case _:
            files = rankings_csv.files(run, args.boxes, args.model)
    if not args.overwrite:
        refuse_existing(target, files)
    for name, write in files.items():
        with publish_text(target, name) as file:
            n_rows = write(file)
        say(f"{target.uri}/{name}: {n_rows} rows")
    return 0


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="folder of a finished run, or s3://BUCKET/PREFIX")
    add("--to", required=True, choices=("coco", "trec", "csv"), help="format of the files")
    add("folder", metavar="DIR", help="folder or s3://BUCKET/PREFIX for the files, empty or with an earlier export")
    add("--boxes", choices=("detected", "true"), help="rankings by these boxes only (by all that the run has)")
    add("--model", metavar="NAME", help="one only: a detector or fused; of rankings an embedder, concat or steps")
    add("--overwrite", action="store_true", help="replace files that DIR holds")
    flags.add_imageset(
        add, text="where the run's image set is now; repeat it for several, in the run's order (where they were)"
    )
    flags.add_endpoint_url(add)
    return parser


if __name__ == "__main__":
    cli.run(main)
