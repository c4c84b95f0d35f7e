"""What an ingestion could not take, in one line: photos and items apart, and the commonest reason.

In: IMAGESET/failures.parquet, the set's items. Reasons count as one where they differ only in numbers and quoted texts.
"""

import re
from collections import Counter
from collections.abc import Sequence

import pyarrow.compute as pc

from store.errors import UserError
from store.imageset import FAILURES, open_imageset

# How the reasons begin that `sources` and `store.photo_checks` give for an item; all others are of photos.
OF_ITEM = re.compile(r"(annotation: )?(the item|item ?\d+|object \d+|annotation \d+|its \d+ items)\b")
VALUES = re.compile(r"'[^']*'|\[[^]]*\]|-?\d+(\.\d+)?(e-?\d+)?")


def tell_losses(imageset: str, endpoint_url: str | None) -> None:
    """Print the line, if there is anything to tell.

    Raises a UserError where items were given and the set has none of them.
    """
    images = open_imageset(imageset, endpoint_url=endpoint_url)
    if not images.manifest.failures:
        return
    reasons = images.failures()["reason"].to_pylist()
    print(f"{losses(reasons)}, see {imageset}/{FAILURES}; most often: {commonest(reasons)}")
    of_items = [reason for reason in reasons if OF_ITEM.match(reason)]
    if of_items and not pc.sum(pc.list_value_length(images.photos(["items"])["items"])).as_py():
        raise UserError(f"not one of the items could be taken; most often: {commonest(of_items)}")


def losses(reasons: Sequence[str]) -> str:
    """How many photos and items the reasons are of.

    >>> losses(["no such picture", "item 2 is left out: style -1", "item 3 is left out: style -1"])
    '1 photo and 2 items could not be taken'
    """
    n_items = sum(OF_ITEM.match(reason) is not None for reason in reasons)
    counts = ((len(reasons) - n_items, "photo"), (n_items, "item"))
    named = [f"{n:,} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n]
    return f"{' and '.join(named)} could not be taken"


def commonest(reasons: Sequence[str]) -> str:
    """The first reason of the commonest kind, and how many are of it; of equally common ones the first.

    >>> commonest(["no picture", "item 2 is left out: style -1", "item 3 is left out: style -7"])
    'item 2 is left out: style -1 (2)'
    """
    kinds = [VALUES.sub("#", reason) for reason in reasons]
    kind, count = Counter(kinds).most_common(1)[0]
    return f"{reasons[kinds.index(kind)]} ({count:,})"
