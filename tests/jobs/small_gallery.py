"""A small gallery of stand-in models' rows, and asking it. The fixture `calls` keeps Ray out of it."""

from pathlib import Path

import infer_with_stand_ins
import stand_ins

from jobs import reindex_gallery, search

ALL_COUNTS = ("--set", "max_failed_share=1", "--set", "gallery.copies=0")  # one photo of the small set is cut off


def publish(imageset: Path, gallery: Path, *more: str) -> None:
    line = ["--imageset", str(imageset), "--gallery", str(gallery), *stand_ins.SETTINGS, *ALL_COUNTS, *more]
    assert reindex_gallery.main(line, stand_ins.CATALOGUE) == 0


def ask(gallery: Path, *line: str | Path) -> int:
    words = [str(word) for word in ("--device", "cpu", *line, "--gallery", gallery)]  # `auto` would import torch
    return search.main(words, stand_ins.CATALOGUE, infer_with_stand_ins.SCRIPT)
