"""The sources that `jobs/ingest.py` reads: their names, their arguments, their rows, and what is missing of them.

To add one: a module in `sources`, and its line in ADAPTERS. The module is imported only where its source is asked for.
It has

    ARGUMENTS                what `read` takes and the manifest records, the photos' place first
    add_arguments(parser)    the flags that set them
    read(**ARGUMENTS)        a `sources.reading.Reading`; takes `endpoint_url` too where READS_BUCKETS is true
    IDS                      optional, what its image_ids are the hash of
    check(**ARGUMENTS)       lines about what is missing, without opening a picture; optional, gives the flag --check

or, where a published data set's lists name its photos, SPLITS and `listing(directory, split)` instead of the first
three.
"""

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jobs import cli
from sources.reading import Reading


class Adapter(NamedTuple):
    module: str
    help: str


ADAPTERS = {
    "deepfashion2": Adapter("sources.deepfashion2", "a DeepFashion2 split, with its annotations"),
    "folder": Adapter("sources.folder", "a folder of photos, at any depth"),
    "coco": Adapter("sources.coco", "a folder of photos with COCO instance annotations"),
    "parquet": Adapter("sources.parquet", "parquet files that hold the photos, as Hugging Face datasets writes them"),
    "webdataset": Adapter("sources.webdataset", "tar files of photos, as img2dataset and webdataset write them"),
    "lookbench": Adapter("sources.lookbench", "LookBench, with SUBSET/query.parquet and gallery.parquet"),
    "street2shop": Adapter("sources.street2shop", "Street2Shop, with meta/json/ and images/"),
    "darn": Adapter("sources.darn", "DARN, with image.txt and pic/"),
    "mvc": Adapter("sources.mvc", "MVC, with mvc_info.json, attribute_labels.json and images/"),
    "mpv": Adapter("sources.mpv", "MPV, with all_poseA_poseB_clothes.txt and MPV_192_256/"),
    "drawn": Adapter("sources.drawn.source", "synthetic images of garments, with ground truth"),
}


# What a place of a source holds, by its patterns; any other folder is one of plain photos
SIGNS = {
    "deepfashion2": ("annos", "image"),
    "lookbench": ("*/query.parquet",),
    "street2shop": ("meta/json", "images"),
    "darn": ("image.txt", "pic"),
    "mvc": ("mvc_info.json",),
    "mpv": ("all_poseA_poseB_clothes.txt",),
    "parquet": ("*.parquet",),
    "webdataset": ("*.tar",),
}


def likely_source(place: str) -> str:
    """The name of the source that a file, a folder or an address looks like."""
    path = Path(place)
    for name, patterns in SIGNS.items():
        if path.is_dir() and all(any(path.glob(pattern)) for pattern in patterns):
            return name
        if not path.is_dir() and any(path.match(pattern) for pattern in patterns if pattern.startswith("*.")):
            return name
    return "folder"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The arguments of one source."""
    module = _module(name)
    if _has_lists(module):
        first = module.SPLITS[0]
        parser.add_argument("directory", metavar="DIR", help="the data set's folder")
        parser.add_argument("--split", default=first, metavar="NAME", help=f"as published (default: {first})")
    else:
        module.add_arguments(parser)
    if _has_lists(module) or hasattr(module, "check"):
        parser.add_argument("--check", action="store_true", help="tell what is missing and write nothing")


def open_source(args: argparse.Namespace) -> tuple[Reading, dict[str, Any]]:
    """The photos, and what the manifest says about where they come from.

    Raises a ValueError where the photos are not laid out as the source expects.
    """
    module, arguments = _module(args.adapter), arguments_of(args)
    source = {"adapter": args.adapter, "arguments": arguments}
    if _has_lists(module):
        listing = module.listing(**arguments)
        return Reading(listing.rows(), skipped=listing.skipped), source
    if hasattr(module, "IDS"):
        source["ids"] = module.IDS
    more = {"endpoint_url": args.endpoint_url} if getattr(module, "READS_BUCKETS", False) else {}
    return module.read(**arguments, **more), source


def check(args: argparse.Namespace) -> int:
    """Print what is missing. Returns the exit status, 0: complete, 2: not. Raises as `open_source`."""
    module, arguments = _module(args.adapter), arguments_of(args)
    if _has_lists(module):
        listing = module.listing(**arguments)
        missing, remarks = listing.missing(), listing.remarks
        summary = f"{len(listing):,} photos listed for {args.split}, skipped: {in_words(listing.skipped)}"
    else:
        missing, remarks = module.check(**arguments), []
        summary = f"{len(missing):,} files that cannot be taken"
    for line in (*remarks, *missing):
        print(cli.one_line(line))
    print(f"{place_of(args)}: {'incomplete' if missing else 'complete'}; {summary}")
    return 2 if missing else 0


def arguments_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the manifest records of the command line."""
    module = _module(args.adapter)
    names = ("directory", "split") if _has_lists(module) else module.ARGUMENTS
    return {name: getattr(args, name) for name in names}


def place_of(args: argparse.Namespace) -> str:
    """Where the photos lie."""
    place = next(iter(arguments_of(args).values()))
    return ", ".join(place) if isinstance(place, list) else str(place)


def in_words(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in skipped.items()) or "nothing"


def _module(name: str) -> ModuleType:
    return importlib.import_module(ADAPTERS[name].module)


def _has_lists(module: ModuleType) -> bool:
    return hasattr(module, "listing")
