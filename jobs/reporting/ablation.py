"""What an ablation found, for a page: OUTPUT/ablation.parquet as `jobs/ablate.py` writes it, one row a variant.

In: that table. Out: a `Study` for each part and kind of boxes: variants in their order, the base of the comparison, queries that gained
and lost. `difference`, `low`, `high` are against the base variant; the interval is of 95 %.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs import tables
from store.objects import ObjectStore

KEY = "ablation.parquet"
MOST_QUERIES = 20  # helped, and as many hurt
NEEDED = ("part", "boxes", "name", "group", "metric", "value", "difference", "low", "high", "seconds", "peak_mb")


@dataclass(frozen=True)
class Study:
    """The variants that may be compared with each other.

    Attributes:
        title: what was varied.
        metric: of `value`, a fraction in [0, 1].
        rows: the table's rows as dictionaries.
    """

    title: str
    boxes: str
    metric: str
    rows: tuple[dict[str, Any], ...]

    @property
    def base(self) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["group"] == "base"), None)


@dataclass(frozen=True)
class Moved:
    """A query whose first right result moved; 0: none."""

    image_id: int
    item: int
    before: int
    after: int


def read_studies(output: ObjectStore) -> list[Study]:
    """The ablation of a run, [] without one.

    Raises:
        ValueError: the file lacks a column.
    """
    if not output.exists(KEY):
        return []
    table = tables.read(output, KEY)
    if lacking := [name for name in NEEDED if name not in table.column_names]:
        raise ValueError(
            f"{output.uri}/{KEY}: no column {', '.join(lacking)}; run jobs/ablate.py again, or remove the file"
        )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault((row["part"], row["boxes"] or ""), []).append(row)
    return [Study(_title(part, boxes), boxes, rows[0]["metric"], tuple(rows)) for (part, boxes), rows in found.items()]


def moved(entries: Iterable[dict[str, Any]] | None, *, gained: bool) -> list[Moved]:
    """Queries that moved, the most telling first: from or to "none" before those that only changed place.

    >>> [one.after for one in moved([dict(image_id=1, item=0, before=5, after=2), dict(image_id=2, item=0, before=0, after=3)], gained=True)]
    [3, 2]
    """
    found = [Moved(row["image_id"], row["item"], row["before"], row["after"]) for row in entries or ()]
    far = 1_000_000  # none is further away than any rank
    gain = {one: (one.before or far) - (one.after or far) for one in found}
    return sorted(found, key=lambda one: (-gain[one] if gained else gain[one], one.image_id, one.item))[:MOST_QUERIES]


def _title(part: str, boxes: str) -> str:
    return f"Retrieval, {boxes} boxes" if part == "retrieval" else "Fusing boxes" if part == "boxes" else part
