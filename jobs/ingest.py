"""Photos in, an image set out: the form every other job reads.

    # DeepFashion2's layout: SPLIT_DIR has image/ and annos/
    python jobs/ingest.py deepfashion2 data/validation runs/looks/imageset

    # the other sets of the pipeline's authors; each module in retrieval/datasets tells the layout, what is skipped, whose it is
    python jobs/ingest.py street2shop data/street2shop runs/sets/street2shop --check
    python jobs/ingest.py street2shop data/street2shop runs/sets/street2shop --split train

    # a plain folder, into a bucket
    python jobs/ingest.py folder photos/shop s3://BUCKET/shop --source shop --metadata products.csv

    # the same set, night after night: only what changed is read and written
    python jobs/ingest.py folder photos/shop s3://BUCKET/shop --source shop --metadata products.csv --update

    # drawn pictures with ground truth, no download
    python jobs/ingest.py drawn runs/demo/imageset --users 40 --shops 80 --seed 1

What cannot be taken becomes a row of IMAGESET/failures.parquet. Stopped half-way, start the same line again; a
finished image set is only replaced with --overwrite, or brought up to date with --update (a plain folder's, jobs/ingest_update.py). --check reads lists and names, tells what is missing and writes nothing;
status 0: complete, 2: not.
"""

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from store.imageset import Manifest

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli

Row = TypeVar("Row")
PROGRESS_S = 5.0
LISTED = {
    "street2shop": "Street2Shop, with meta/json/ and images/",
    "darn": "DARN, with image.txt and pic/",
    "mvc": "MVC, with mvc_info.json, attribute_labels.json and images/",
    "mpv": "MPV, with all_poseA_poseB_clothes.txt and MPV_192_256/",
}
"""Data sets whose lists name their photos: a module of retrieval/datasets each, with `listing(directory, split)`."""


def main(argv: list[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    from store import imageset

    started = time.monotonic()
    if vars(args).get("update") or vars(args).get("dry_run"):
        return _update(args)
    try:
        if vars(args).get("check"):
            return _check(args)
        rows, source = _rows(args)
    except ValueError as error:
        raise cli.UserError(str(error)) from error
    manifest = imageset.write_imageset(
        with_progress(_not_empty(rows, args)),
        args.imageset,
        source=source,
        max_images=args.shard_images,
        max_bytes=args.shard_bytes,
        endpoint_url=args.endpoint_url,
        overwrite=args.overwrite,
    )
    seconds = time.monotonic() - started
    rate = f"{manifest.images / max(seconds, 1e-9):,.0f} images/s"
    print(f"{args.imageset}: {described(manifest)}, {seconds:.1f} s, {rate}, digest {manifest.digest}")
    if source.get("skipped"):
        print(f"skipped: {_counts(source['skipped'])}")
    if not manifest.images:
        raise cli.UserError(f"not one photo could be taken; {args.imageset}/{imageset.FAILURES} has the reasons")
    return 0


def described(manifest: "Manifest") -> str:
    """How much a set holds, in words."""
    size = f"{manifest.images:,} images in {len(manifest.shards):,} shards, {manifest.bytes / 1e6:,.1f} MB"
    return f"{size}, {manifest.failures:,} failures"


def _update(args: argparse.Namespace) -> int:
    from jobs import ingest_update

    if not args.update:
        raise cli.UserError("--dry-run tells what --update would do; add --update")
    if args.overwrite:
        raise cli.UserError("--update keeps what is there and --overwrite replaces it; choose one")
    return ingest_update.update(args)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ingest.py", description="Make an image set from photos.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("imageset", metavar="IMAGESET", help="folder, file:// or s3:// to write to")
    common.add_argument(
        "--endpoint-url", help="address of an S3-compatible server (default: AWS_ENDPOINT_URL, else AWS)"
    )
    common.add_argument(
        "--shard-images", type=_positive, default=256, metavar="N", help="photos per shard (default 256)"
    )
    common.add_argument(
        "--shard-bytes", type=_positive, default=64_000_000, metavar="N", help="and bytes (default 64 MB)"
    )
    common.add_argument("--overwrite", action="store_true", help="replace a finished image set")
    kinds = parser.add_subparsers(dest="adapter", required=True, metavar="KIND")

    check = argparse.ArgumentParser(add_help=False)
    check.add_argument("--check", action="store_true", help="tell what is missing and write nothing")

    first = _first("split_dir", "SPLIT_DIR", "the folder with image/ and annos/")
    kind = kinds.add_parser(
        "deepfashion2", parents=[first, common, check], help="a DeepFashion2 split, with its annotations"
    )
    kind.add_argument("--limit", type=_positive, metavar="N", help="the first N photos by number (default: all)")

    first = _first("directory", "DIR", "folder of JPEG, PNG and WebP files, or s3://BUCKET/PREFIX")
    kind = kinds.add_parser("folder", parents=[first, common], help="a folder of photos, at any depth")
    kind.add_argument("--source", required=True, choices=("user", "shop"), help="consumers' photos, or a shop's")
    kind.add_argument(
        "--metadata", metavar="CSV", help="columns file_name, product_id, optionally pair_id; no others read"
    )
    kind.add_argument(
        "--max-pixels", type=_positive, default=50_000_000, metavar="N", help="per photo (default 50 million)"
    )

    kind.add_argument("--update", action="store_true", help="bring IMAGESET up to date; what did not change stays")
    kind.add_argument("--dry-run", action="store_true", help="with --update: tell what it would do and write nothing")

    for name, text in LISTED.items():
        first = _first("directory", "DIR", "the data set's folder")
        kind = kinds.add_parser(name, parents=[first, common, check], help=text)
        kind.add_argument("--split", metavar="NAME", help="as published (default: train, or all where there is none)")

    kind = kinds.add_parser("drawn", parents=[common], help="drawn pictures of garments, with ground truth")
    kind.add_argument("--users", required=True, type=_positive, metavar="N", help="consumer pictures")
    kind.add_argument("--shops", required=True, type=_positive, metavar="M", help="shop pictures")
    kind.add_argument("--seed", required=True, type=int, metavar="S", help="the same seed draws the same pictures")
    return parser


def _first(name: str, metavar: str, text: str) -> argparse.ArgumentParser:
    """A parent parser with one positional, so that it stands before IMAGESET."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(name, metavar=metavar, help=text)
    return parent


def _rows(args: argparse.Namespace) -> tuple[Iterable[Any], dict[str, Any]]:
    """The rows, and what the manifest says about where they come from."""
    if args.adapter == "deepfashion2":
        from retrieval.datasets import deepfashion2

        arguments = {"split_dir": args.split_dir, "limit": args.limit}
        rows: Iterable[Any] = deepfashion2.read(**arguments)
    elif args.adapter == "folder":
        from retrieval.datasets import folder

        arguments = {name: getattr(args, name) for name in ("directory", "source", "metadata", "max_pixels")}
        rows = folder.read(**arguments, endpoint_url=args.endpoint_url)
    elif args.adapter in LISTED:
        found, arguments = _listing(args)
        source = {"adapter": args.adapter, "arguments": arguments, "skipped": dict(found.skipped)}
        return found.rows(), source
    else:
        from retrieval.datasets import drawn

        arguments = {"users": args.users, "shops": args.shops, "seed": args.seed}
        rows = drawn.read(**arguments)
    return rows, {"adapter": args.adapter, "arguments": arguments}


def _listing(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """What the data set's lists say, and the arguments that were used."""
    adapter = importlib.import_module(f"retrieval.datasets.{args.adapter}")
    arguments = {"directory": args.directory, "split": args.split or adapter.SPLITS[0]}
    return adapter.listing(**arguments), arguments


def _check(args: argparse.Namespace) -> int:
    """Print what is missing; 0: complete, 2: not."""
    if args.adapter in LISTED:
        found, arguments = _listing(args)
        missing, remarks, place = found.missing(), found.remarks, args.directory
        listed = f"{len(found):,} photos listed for {arguments['split']}, skipped: {_counts(found.skipped)}"
    else:
        from retrieval.datasets import deepfashion2

        missing, remarks, place = deepfashion2.check(args.split_dir, args.limit), [], args.split_dir
        listed = f"{len(missing):,} files without their other half"
    for line in (*remarks, *missing):
        print(cli.one_line(line))
    print(f"{place}: {'incomplete' if missing else 'complete'}; {listed}")
    return 2 if missing else 0


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in skipped.items()) or "nothing"


def _not_empty(rows: Iterable[Any], args: argparse.Namespace) -> Iterator[Any]:
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    if not first:
        raise cli.UserError(
            f"no JPEG, PNG or WebP file in {vars(args).get('split_dir') or vars(args).get('directory')}"
        )
    return itertools.chain(first, rows)


def with_progress(rows: Iterable[Row], of: Callable[[Row], Any] = lambda row: row) -> Iterator[Row]:
    """The same rows; a line on standard error every few seconds. `of(row)` is the photo or failure."""
    from store.imageset import Failure

    started = told = time.monotonic()
    photos = failures = 0
    for row in rows:
        yield row
        if isinstance(of(row), Failure):
            failures += 1
        else:
            photos += 1
        now = time.monotonic()
        if now - told >= PROGRESS_S:
            told = now
            rate = (photos + failures) / (now - started)
            print(
                f"ingest: {photos:,} photos, {rate:,.0f}/s, {failures:,} failures so far", file=sys.stderr, flush=True
            )


def _positive(text: str) -> int:
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a number above 0, got {value}")
    return value


if __name__ == "__main__":
    cli.run(main)
