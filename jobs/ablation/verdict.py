"""What a variant's ranks say beside the base's: accuracy, paired difference with its interval, queries helped and hurt.

In: ranks of the first right result, of two searches, on the same queries. Out: rows of ablation.parquet, and the table
a person reads. The greedy choice is made on one half of the consumer photos and reported on the other, so that the best
of many does not look better than it is.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from postproc.bootstrap import paired_interval

METRIC_K = 10  # variants are compared by Acc@10, the paper's figure
EXAMPLES = 20  # queries helped, and as many hurt, that are kept
LONGEST = 20  # results further down are not looked at
NO_RESULT = LONGEST + 1  # the rank of a query without a right result among them
CHANGE = pa.struct([("image_id", pa.int64()), ("item", pa.int32()), ("before", pa.int32()), ("after", pa.int32())])
FIGURES = (
    "value", "difference", "low", "high", "half_value", "half_difference", "half_low", "half_high",
    "seconds", "peak_mb", "top1", "top5", "top10", "top20",
)  # fmt: skip
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("part", "boxes", "name", "group", "steps", "metric")]
    + [(name, pa.float64()) for name in FIGURES]
    + [("helped", pa.list_(CHANGE)), ("hurt", pa.list_(CHANGE)), ("spent", pa.string())]
)
GROUPS = ("base", "single", "greedy", "removed", "tuned")  # in the order of the table


def selection_half(photo: np.ndarray) -> np.ndarray:
    """(A,) bool: the half of the photos that choices are made on; it follows from the image_id alone, in every run."""
    digests = (hashlib.blake2b(str(int(image_id)).encode(), digest_size=1).digest() for image_id in photo)
    return np.array([digest[0] & 1 for digest in digests], bool)


def is_right(ranks: Sequence[int], k: int = METRIC_K) -> np.ndarray:
    """(A,) float: 1 where a right result is among the first k."""
    array = np.asarray(ranks)
    return ((array >= 1) & (array <= k)).astype(np.float64)


def worth(ranks: Sequence[int], mask: np.ndarray) -> tuple[float, float]:
    """Acc@10 and, where that is equal, Acc@1 of some of the queries: what the greedy choice maximises."""
    if not mask.any():
        return 0.0, 0.0
    return float(is_right(ranks)[mask].mean()), float(is_right(ranks, 1)[mask].mean())


def row(
    kind: str, name: str, group: str, steps: str, judged: Mapping[str, Any], base: Mapping[str, Any],
    photo: np.ndarray, item: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """One row of ablation.parquet, from two answers of `jobs.ablation.ranking.judge`.

    `group` is base, single, greedy, removed or tuned; the last three were chosen, so they get figures on the other half
    too.
    `photo` and `item` (A,) are those of the judged queries.
    """
    ours, theirs = is_right(judged["ranks"]), is_right(base["ranks"])
    line: dict[str, Any] = {
        "part": "retrieval", "boxes": kind, "name": name, "group": group, "steps": steps, "metric": f"top-{METRIC_K}",
        "value": float(ours.mean()), "peak_mb": judged["peak_mb"],
        "seconds": sum(seconds for _, seconds in judged["seconds"]),
        "spent": ", ".join(f"{step} {seconds:.2f}" for step, seconds in judged["seconds"]),
        **{f"top{k}": float(is_right(judged["ranks"], k).mean()) for k in (1, 5, 10, 20)},
    }  # fmt: skip
    if group == "base":
        return line | {"helped": [], "hurt": []}
    line["difference"], line["low"], line["high"] = paired_interval(ours, theirs, photo)
    other = ~selection_half(photo)
    if group in ("greedy", "removed", "tuned") and other.any():
        interval = paired_interval(ours[other], theirs[other], photo[other])
        line["half_value"] = float(ours[other].mean())
        line["half_difference"], line["half_low"], line["half_high"] = interval
    line["helped"], line["hurt"] = changes(base["ranks"], judged["ranks"], photo, item)
    return line


def changes(
    before: Sequence[int], after: Sequence[int], photo: np.ndarray, item: np.ndarray
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """The queries whose first right result rose most, and those whose fell most; no result counts as rank 21."""
    old, new = (np.where(np.asarray(ranks) > 0, ranks, NO_RESULT) for ranks in (before, after))

    def largest(gain: np.ndarray) -> list[dict[str, int]]:
        return [
            {"image_id": int(photo[i]), "item": int(item[i]), "before": int(before[i]), "after": int(after[i])}
            for i in np.argsort(-gain, kind="stable")[:EXAMPLES]
            if gain[i] > 0
        ]

    return largest(old - new), largest(new - old)


def word(low: float | None, high: float | None) -> str:
    """Whether the interval says that a variant helps or hurts; noise: other photos might say otherwise."""
    if low is None or high is None:
        return ""
    return "helps" if low > 0 else "hurts" if high < 0 else "noise"


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table a person reads: a part for each kind of boxes, single techniques by falling difference."""
    for part, boxes in dict.fromkeys((row["part"], row["boxes"]) for row in rows):
        shown = [row for row in rows if (row["part"], row["boxes"]) == (part, boxes)]
        shown.sort(key=_place)
        title = f"{part}, {boxes} boxes" if boxes else part
        metric = shown[0]["metric"].replace("top-", "Acc@")
        yield ""
        yield f"{title:44}{metric:>8}{'difference':>28}  {'':6}{'on the other half':>28}{'s':>9}{'MB':>8}"
        for row in shown:
            name = row["name"] if row["group"] in ("base", "single") else f"{row['group']}: {row['name']}"
            yield (
                f"{name[:43]:44}{row['value']:8.3f}{_interval(row, ''):>28}  {word(row.get('low'), row.get('high')):6}"
                f"{_interval(row, 'half_'):>28}{row['seconds']:9.2f}{row['peak_mb']:8.0f}"
            )


def _place(row: Mapping[str, Any]) -> tuple[int, float]:
    return GROUPS.index(row["group"]), -(row.get("difference") or 0) if row["group"] == "single" else 0


def _interval(row: Mapping[str, Any], prefix: str) -> str:
    difference, low, high = (row.get(f"{prefix}{name}") for name in ("difference", "low", "high"))
    return "" if difference is None or low is None or high is None else f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
