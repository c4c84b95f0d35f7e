"""What a source gives to an ingestion: photos one at a time, their categories, and counts of what was left out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from store.categories import DEEPFASHION2
from store.imageset import Failure, Photo


@dataclass
class Reading:
    """Photos and failures, read once.

    Attributes:
        categories: names of the items' category ids, id 1 first; may grow while rows are read.
        skipped: what was left out without a look -> how many: files by their extension, entries of a list in words. May
            grow likewise.
        remarks: lines to say once the rows are read.
    """

    rows: Iterable[Photo | Failure]
    categories: Sequence[str] = DEEPFASHION2
    skipped: Counter[str] = field(default_factory=Counter)
    remarks: Sequence[str] = ()

    def __iter__(self) -> Iterator[Photo | Failure]:
        return iter(self.rows)
