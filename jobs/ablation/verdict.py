"""What a variant's ranks say beside the base's: accuracy, the paired difference with its interval, who was helped, who hurt.

In: ranks of the first right result, of two searches, on the same queries. Out: a row of ablation.parquet. The greedy choice is made on
one half of the consumer photos and told on the other, so that a choice among many does not flatter itself.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from postproc.bootstrap import paired_interval

METRIC_K = 10  # what is compared: top-10, the paper's figure
EXAMPLES = 20  # queries helped and hurt that are kept
CHANGE = pa.struct([("image_id", pa.int64()), ("item", pa.int32()), ("before", pa.int32()), ("after", pa.int32())])
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("part", "boxes", "name", "group", "steps", "metric")]
    + [
        (name, pa.float64())
        for name in (
            "value", "difference", "low", "high", "half_value", "half_difference", "half_low", "half_high", "seconds", "peak_mb",
            "top1", "top5", "top10", "top20",
        )
    ]
    + [("helped", pa.list_(CHANGE)), ("hurt", pa.list_(CHANGE)), ("spent", pa.string())]
)  # fmt: skip


def chosen_half(photo: np.ndarray) -> np.ndarray:
    """(A,) bool: the half of the photos that choices are made on; by the photo's id alone, so it stays the same between runs."""
    return np.array([hashlib.blake2b(str(int(one)).encode(), digest_size=1).digest()[0] & 1 for one in photo], bool)


def right(ranks: Sequence[int], k: int = METRIC_K) -> np.ndarray:
    """(A,) float: 1 where a right result is among the first k."""
    found = np.asarray(ranks)
    return ((found >= 1) & (found <= k)).astype(np.float64)


def worth(ranks: Sequence[int], on: np.ndarray) -> tuple[float, float]:
    """Top-10 and, to part equals, top-1 of some queries: what the greedy choice makes greatest."""
    return (float(right(ranks)[on].mean()), float(right(ranks, 1)[on].mean())) if on.any() else (0.0, 0.0)


def row(
    kind: str,
    name: str,
    group: str,
    steps: str,
    judged: Mapping[str, Any],
    base: Mapping[str, Any],
    photo: np.ndarray,
    item: np.ndarray,
) -> dict[str, Any]:
    """One line of the table.

    Args:
        judged, base: from `jobs.ablation.ranking.judge`. photo, item: (A,) of the queries asked.
        group: base, single, greedy or removed; the last two were chosen, so they are told on the other half too.
    """
    ours, theirs = right(judged["ranks"]), right(base["ranks"])
    found = {f"top{k}": float(right(judged["ranks"], k).mean()) for k in (1, 5, 10, 20)}
    line: dict[str, Any] = {
        "part": "retrieval", "boxes": kind, "name": name, "group": group, "steps": steps, "metric": f"top-{METRIC_K}",
        "value": float(ours.mean()), "seconds": sum(seconds for _, seconds in judged["seconds"]), "peak_mb": judged["peak_mb"],
        "spent": ", ".join(f"{step} {seconds:.2f}" for step, seconds in judged["seconds"]),
    } | found  # fmt: skip
    if group == "base":
        return line | {"helped": [], "hurt": []}
    line |= dict(zip(("difference", "low", "high"), paired_interval(ours, theirs, photo), strict=True))
    other = ~chosen_half(photo)
    if group in ("greedy", "removed") and other.any():
        line["half_value"] = float(ours[other].mean())
        told = paired_interval(ours[other], theirs[other], photo[other])
        line |= dict(zip(("half_difference", "half_low", "half_high"), told, strict=True))
    line["helped"], line["hurt"] = changes(base["ranks"], judged["ranks"], photo, item)
    return line


def changes(
    before: Sequence[int], after: Sequence[int], photo: np.ndarray, item: np.ndarray
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """The queries whose first right result rose and fell most; none found counts as place 21."""
    was, now = (np.where(np.asarray(ranks) > 0, ranks, 21) for ranks in (before, after))
    gain = was - now

    def listed(order: np.ndarray) -> list[dict[str, int]]:
        return [
            {"image_id": int(photo[i]), "item": int(item[i]), "before": int(before[i]), "after": int(after[i])}
            for i in order
        ]

    rising = np.argsort(-gain, kind="stable")
    falling = np.argsort(gain, kind="stable")
    return listed([i for i in rising[:EXAMPLES] if gain[i] > 0]), listed([i for i in falling[:EXAMPLES] if gain[i] < 0])  # type: ignore[arg-type]


def word(low: float | None, high: float | None) -> str:
    """helps, hurts, or what other photos might undo."""
    if low is None or high is None:
        return ""
    return "helps" if low > 0 else "hurts" if high < 0 else "noise"
