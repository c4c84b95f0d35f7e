"""The gate's figures of an index: of one part (`gate`), or of several, each of which looks at its own files.

Their limits and meaning are the same. What a part says of itself, where it is served, is added up here. Recall and
canaries are of whole answers: what all parts find together, beside what exact search of all parts finds, or what all
parts found the night before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.gallery import gate
from jobs.gallery.built import SEED, Built, Published
from jobs.gallery.built_parts import BuiltParts, part_of, servers_of
from jobs.gallery.gate import FIRST, SAMPLE, Figure
from jobs.gallery.served import ServedGallery
from jobs.runs.settings import GallerySettings
from retrieval.ann_tune import recall
from retrieval.gallery import Gallery


@dataclass(frozen=True)
class PartFigures:
    """What a part says of its own files."""

    rows: int  # living
    bad_rows: float  # not finite or not of unit length
    faults: str  # of its counts, "" for none
    image_ids: np.ndarray  # (M,) int64 of the photos whose garments it has
    sample: np.ndarray  # (S, D) float32 living rows, drawn at random


def figures(
    built: Built | BuiltParts,
    record: Mapping[str, Any],
    found: np.ndarray,
    before: Published | None,
    own: GallerySettings,
) -> list[Figure]:
    """Recall, counts, rows and canaries; `record` is version.json to be; `found` (M,) image_ids with garments."""
    if isinstance(built, Built):
        return [
            gate.of_index(built, own.least_recall),
            gate.of_counts(built, found, before),
            gate.of_rows(built),
            gate.of_canaries(built, before, own.least_canaries),
        ]
    now = built.open(record)
    parts: list[PartFigures] = now.ask(examine)
    return [
        of_index(now, parts, own.least_recall),
        of_counts(parts, found, 0 if before is None else len(before)),
        Figure("rows", sum(part.bad_rows for part in parts), 0.0, most=True),
        of_canaries(now, built, before, own.least_canaries),
    ]


def examine(part: Gallery) -> PartFigures:
    """Run where the part is served: its own figures."""
    built: Any = part  # as far as the gate looks, a gallery of one part is a version of one part
    image_ids = np.unique(part.items["image_id"].to_numpy())
    living = built.index.living
    rng = np.random.default_rng([SEED + 1, *part.parts])
    rows = rng.permutation(living)[:SAMPLE]
    return PartFigures(
        rows=len(part),
        bad_rows=float(gate.of_rows(built).value or 0),
        faults=gate.of_counts(built, image_ids, None).note,
        image_ids=image_ids,
        sample=np.asarray(built.index.vectors[rows], np.float32),
    )


def of_index(now: ServedGallery, parts: Sequence[PartFigures], limit: float) -> Figure:
    """Recall of the parts together, for stored rows moved a little, as many of each part as it has a share in all."""
    rows = np.array([part.rows for part in parts])
    if not rows.sum():
        return Figure("recall", None, limit, note="no garments")
    rng = np.random.default_rng(SEED + 1)
    drawn = rng.choice(rows.sum(), min(SAMPLE, rows.sum()), replace=False)
    counts = np.bincount(np.searchsorted(np.cumsum(rows), drawn, side="right"), minlength=len(parts))
    sample = np.concatenate([part.sample[:n] for part, n in zip(parts, counts, strict=True)])
    index: Any = SimpleNamespace(rows=now.rows, search=now.nearest, exact=now.exact)
    return Figure("recall", round(recall(index, gate.moved(sample, rng), FIRST), 4), limit)


def of_counts(parts: Sequence[PartFigures], found: np.ndarray, n_before: int) -> Figure:
    """1 where each part agrees with itself, has the photos that belong to it, and all have those wanted; else 0."""
    image_ids = np.concatenate([part.image_ids for part in parts])
    where = np.repeat(np.arange(len(parts)), [len(part.image_ids) for part in parts])
    elsewhere = int((part_of(image_ids, len(parts)) != where).sum())
    same_photos = np.array_equal(np.sort(image_ids), np.sort(found))
    faults = {f"part {number}: {part.faults}": bool(part.faults) for number, part in enumerate(parts)}
    faults |= {
        f"{elsewhere} photos in a part that is not theirs": elsewhere > 0,
        f"garments of {len(image_ids)} photos, {len(found)} wanted": not same_photos,
        f"no garment at all, {n_before} in the version before": n_before > 0 and not any(part.rows for part in parts),
    }
    notes = [note for note, is_so in faults.items() if is_so]
    return Figure("counts", float(not notes), 1.0, note=", ".join(notes))


def of_canaries(now: ServedGallery, built: BuiltParts, before: Published | None, limit: float) -> Figure:
    """As `gate.of_canaries`: the queries are rows of the version before whose garments are as they were."""
    if before is None or built.rebuilt:
        return Figure("canaries", None, limit, note=built.rebuilt or "no night before to compare with")
    with ServedGallery(built.store, before.version, servers_of(built.store)) as then:
        ids = np.concatenate(then.ask(some_ids, SAMPLE // len(built.parts) + 1))
        chosen = np.sort(unchanged(then, now, ids))
        if not len(chosen):
            return Figure("canaries", None, limit, note="nothing is as it was")
        queries = then.vectors(chosen)
        answer = then.nearest(queries, FIRST)
        same = unchanged(then, now, np.unique(answer[1][answer[1] >= 0]))
        return gate.found_again(answer, now.nearest(queries, FIRST), same, limit)


def some_ids(part: Gallery, most: int) -> np.ndarray:
    """Run where the part is served: ids of so many garments, drawn at random."""
    ids = part.items["id"].to_numpy()
    order = np.random.default_rng([SEED + 2, *part.parts]).permutation(len(ids))
    drawn: np.ndarray = ids[order[:most]]
    return drawn


def unchanged(then: ServedGallery, now: ServedGallery, ids: np.ndarray) -> np.ndarray:
    """Those of the ids whose garments are in both versions, of photos of the same bytes."""
    return gate.unchanged(then.table(ids), now.table(ids))


def choose_photos(version: Gallery | ServedGallery, n: int, seed: int) -> dict[int, list[float]]:
    """As `gate.choose_photos`, of all parts."""
    if isinstance(version, Gallery):
        return boxes_in(version, n, seed)
    boxes: dict[int, list[float]] = {}
    for of_part in version.ask(boxes_in, n, seed):
        boxes |= of_part
    drawn = np.random.default_rng([SEED, seed]).permutation(sorted(boxes))[:n].tolist()
    return {image_id: boxes[image_id] for image_id in sorted(drawn)}


def boxes_in(part: Gallery, n: int, seed: int) -> dict[int, list[float]]:
    return gate.choose_photos(part.items, n, seed)
