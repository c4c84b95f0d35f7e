"""Photos in, an image set out: the form every other job reads.

    # DeepFashion2's layout: SPLIT_DIR has image/ and annos/
    python jobs/ingest.py deepfashion2 data/validation runs/looks/imageset

    # the other sets of the pipeline's authors; each module in sources tells the layout, what is skipped, whose it is
    python jobs/ingest.py street2shop data/street2shop runs/sets/street2shop --check
    python jobs/ingest.py street2shop data/street2shop runs/sets/street2shop --split train

    # a plain folder, into a bucket
    python jobs/ingest.py folder photos/shop s3://BUCKET/shop --source shop --metadata products.csv

    # what other tools write: COCO annotations, Hugging Face datasets, img2dataset's tar files
    python jobs/ingest.py coco photos/street instances.json runs/street --source user
    python jobs/ingest.py parquet data/train-*.parquet runs/shop --source shop --product-id sku
    python jobs/ingest.py webdataset shards/*.tar s3://BUCKET/shop --source shop

    # the same set, night after night: only what changed is read and written
    python jobs/ingest.py folder photos/shop s3://BUCKET/shop --source shop --metadata products.csv --update

    # synthetic images with ground truth, no download
    python jobs/ingest.py drawn runs/demo/imageset --users 40 --shops 80 --seed 1

What cannot be taken becomes a row of IMAGESET/failures.parquet; a line counts photos and items and tells the commonest
reason. Where not one photo, or not one of the items, could be taken the status is 2. Stopped half-way, start the same
line again. A finished image set is only replaced with --overwrite; that of a plain folder can be brought up to date
with --update (jobs/ingestion/update.py). --check reads lists and names, tells what is missing and writes nothing;
status 0: complete, 2: not.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.ingestion import adapters
from jobs.ingestion.losses import tell_losses
from jobs.ingestion.progress import described, with_progress
from jobs.ingestion.update import update
from jobs.runs import flags
from jobs.runs.places import refuse_other_kinds
from sources.arguments import positive, whole
from store.errors import UserError
from store.imageset import FAILURES, Failure, Photo
from store.imageset_write import own_keys, write_imageset
from store.manifest import MANIFEST
from store.objects import open_store


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.dry_run and not args.update:
        raise UserError("--dry-run tells what --update would do; add --update")
    if args.update and args.overwrite:
        raise UserError("--update keeps what is there and --overwrite replaces it; choose one")
    place = open_store(args.imageset, endpoint_url=args.endpoint_url)
    if not args.check:
        refuse_other_kinds(place, "an image set")
        if not place.exists(MANIFEST):
            own_keys(place)  # --dry-run is refused too where an ingestion would be
    if args.update:
        return update(args)
    started = time.monotonic()
    try:
        if args.check:
            return adapters.check(args)
        reading, source = adapters.open_source(args)
    except ValueError as error:
        raise UserError(str(error)) from error
    rows = with_progress(_not_empty(reading.rows, args), judge_profiles=True)
    how = {"max_images": args.shard_images, "max_bytes": args.shard_bytes, "overwrite": args.overwrite}
    how |= {"categories": reading.categories, "skipped": reading.skipped}
    manifest = write_imageset(rows, args.imageset, source=source, endpoint_url=args.endpoint_url, **how)
    seconds = time.monotonic() - started
    rate = f"{manifest.images / max(seconds, 1e-9):,.0f} images/s"
    print(f"{args.imageset}: {described(manifest)}, {seconds:.1f} s, {rate}, digest {manifest.digest}")
    for line in reading.remarks:
        print(line)
    if manifest.skipped:
        print(f"skipped: {adapters.in_words(manifest.skipped)}")
    if not manifest.images:
        raise UserError(f"not one photo could be taken; {args.imageset}/{FAILURES} has the reasons")
    tell_losses(args.imageset, args.endpoint_url)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    line = parser(argv[:1])
    place = argv[0] if argv else ""
    if place not in adapters.ADAPTERS and place[:1] != "-" and ("/" in place or Path(place).exists()):
        kind, photos = adapters.likely_source(place), cli.one_line(place)
        names = ", ".join(adapters.ADAPTERS)
        line.error(f"{photos} is no KIND of source, which comes first ({names}): ingest.py {kind} {photos} …?")
    return line.parse_args(argv)


def parser(kind: list[str]) -> cli.Parser:
    """With the arguments of the source of that name alone, since they bring its module."""
    parser = cli.Parser(prog="ingest.py", description="Make an image set from photos.")
    parser.set_defaults(check=False, update=False, dry_run=False)  # flags that only some sources have
    common = cli.Parser(add_help=False)
    add = common.add_argument
    add("imageset", metavar="IMAGESET", help="folder, file:// or s3:// to write to")
    flags.add_endpoint_url(add)
    add("--shard-images", type=positive, default=256, metavar="N", help="photos per shard (default 256)")
    add("--shard-bytes", type=whole(1, 2**40), default=64_000_000, metavar="N", help="and bytes (default 64 MB)")
    add("--overwrite", action="store_true", help="replace a finished image set")
    kinds = parser.add_subparsers(dest="adapter", required=True, metavar="KIND")
    for name, adapter in adapters.ADAPTERS.items():
        own = cli.Parser(add_help=False)
        if kind == [name]:
            adapters.add_arguments(own, name)
        kinds.add_parser(name, parents=[own, common], help=adapter.help)
    return parser


def _not_empty(rows: Iterable[Photo | Failure], args: argparse.Namespace) -> Iterable[Photo | Failure]:
    rows = iter(rows)
    for first in rows:
        return itertools.chain([first], rows)
    raise UserError(f"no picture in {adapters.place_of(args)}")


if __name__ == "__main__":
    cli.run(main)
