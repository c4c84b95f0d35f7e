"""What would have been right where a query was answered wrongly: the shop's garment, and its rank among all of them.

In: the ground truth, items/ and embeddings/ of a run, the steps of its index. Out: an `Expected` a query. Rankings hold
the first results only, so the rank is counted here: exactly, over the stored embeddings, a shard at a time. Where the
search does more than compare embeddings (expansion, re-ranking, rules), ranks beyond its lists stay unknown.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jobs.reports.reasons import IOU, Expected, Key
from jobs.reports.truth import Box, GroundTruth, as_box, of_photos
from jobs.runs import tables
from jobs.runs.reader import consumers, read_items
from postproc.boxes import iou_with
from retrieval import steps
from retrieval.step_kinds import Phase
from retrieval.truth import ItemTruth
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectMissing, ObjectStore


class _Candidate(NamedTuple):
    query: int
    key: Key
    bbox: Box


def find(
    output: ObjectStore, imageset: ImageSet, kind: str, truth: GroundTruth, asked: Mapping[int, Sequence[Key]]
) -> tuple[dict[int, Expected | None], int]:
    """The right answers of some queries, and how many items (by photo: photos) the gallery has; 0 where not counted.

    Args:
        kind: of boxes, detected or true.
        asked: number of a query of the truth -> the items that were searched with for it; there may be none.

    Returns:
        An entry for each query of `asked`, None where the set has no right answer; and the size.
    """
    shops = _right_shops(truth, asked)
    expected: dict[int, Expected | None] = dict.fromkeys(asked)
    expected |= {query: Expected(*found[0]) for query, found in shops.items()}
    candidates = list(_candidates(output, kind, truth, shops))
    for one in reversed(candidates):
        expected[one.query] = Expected(one.key[0], one.bbox, one.key[1])
    gallery = _Gallery.of(output, imageset, kind, truth)
    searched = [one for one in candidates if asked[one.query]]
    if gallery is None or not searched:
        return expected, 0
    try:
        best, size = gallery.best(searched, asked)
    except UserError:  # embeddings that somebody removed
        return expected, 0
    for query, (one, rank, similarity) in best.items():
        expected[query] = Expected(one.key[0], one.bbox, one.key[1], rank, similarity)
    return expected, size


def _right_shops(truth: GroundTruth, asked: Iterable[int]) -> dict[int, list[tuple[int, Box | None]]]:
    """The shop photos that are right for each query that has some, with their true boxes if the truth has boxes."""
    known, shops = truth.rankings, {}
    if isinstance(known, ItemTruth):
        by_style: dict[tuple[int, int], list[tuple[int, Box | None]]] = {}
        for entry in known.gallery_gt:
            garment = entry["gallery_image_id"], as_box(entry["bbox"])
            by_style.setdefault((entry["pair_id"], entry["style"]), []).append(garment)
        for query in asked:
            entry = known.entry(query)
            shops[query] = by_style.get((entry["pair_id"], entry["style"]), [])
    else:
        queries, photos = known.pairs
        for query in asked:
            shops[query] = [(int(known.shops.image_id[photo]), None) for photo in photos[queries == query].tolist()]
    return {query: found for query, found in shops.items() if found}


def _candidates(
    output: ObjectStore, kind: str, truth: GroundTruth, shops: Mapping[int, Sequence[tuple[int, Box | None]]]
) -> Iterator[_Candidate]:
    """The run's items that are right for each query, in the gallery's order."""
    wanted: dict[int, list[tuple[int, Box | None]]] = {}
    for query, found in shops.items():
        for image_id, bbox in found:
            wanted.setdefault(image_id, []).append((query, bbox))
    for shard, ids in truth.shards_of(wanted).items():
        try:
            items = tables.read(output, f"items/{kind}/{shard}.parquet", ["image_id", "item", "bbox"])
        except ObjectMissing:
            continue
        for row in of_photos(items, ids).to_pylist():
            for query, bbox in wanted[row["image_id"]]:
                if bbox is None or iou_with(np.array([row["bbox"]]), np.array(bbox))[0] >= IOU:
                    yield _Candidate(query, (row["image_id"], row["item"]), as_box(row["bbox"]))


@dataclass(frozen=True)
class _Gallery:
    """The embeddings of a run as its search compares them, read a shard at a time."""

    output: ObjectStore
    imageset: ImageSet
    kind: str
    truth: GroundTruth
    models: list[str]
    search: steps.FittedSearch  # without its gallery

    @classmethod
    def of(cls, output: ObjectStore, imageset: ImageSet, kind: str, truth: GroundTruth) -> "_Gallery | None":
        """None where the search does more than compare embeddings, or the run has no index."""
        try:
            about = json.loads(output.read(f"index/{kind}/index.json"))
            names = [model["name"] for model in about["models"]]
            search = steps.FittedSearch(steps.parse(about["steps"], names), about["weights"], {})
            if any(step.kind.fit for step in search.steps):
                learned = output.read(f"index/{kind}/steps.safetensors")
                search = steps.load(search.steps, {}, learned, search.weights)
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return None
        plain = all(step.kind.phase <= Phase.JOIN for step in search.steps)
        return cls(output, imageset, kind, truth, names, search) if plain else None

    def best(
        self, candidates: Sequence[_Candidate], asked: Mapping[int, Sequence[Key]]
    ) -> tuple[dict[int, tuple[_Candidate, int, float]], int]:
        """Of each query the candidate most like it, its rank and its similarity; and the size of the gallery."""
        keys = [one.key for one in candidates] + [key for one in candidates for key in asked[one.query]]
        vectors, places = self._lookup(set(keys))
        best: dict[int, tuple[_Candidate, float]] = {}
        for one in candidates:
            queries = [vectors[key] for key in asked[one.query] if key in vectors]
            if one.key in vectors and queries:
                similarity = float(np.float32(max(float(query @ vectors[one.key]) for query in queries)))
                if one.query not in best or similarity > best[one.query][1]:
                    best[one.query] = one, similarity
        if not best:
            return {}, 0
        stacked = [[vectors[key] for key in asked[query] if key in vectors] for query in best]
        goals = [(similarity, *places[one.key]) for one, similarity in best.values()]
        ranks, size = self._ranks(stacked, np.array(goals))
        return {
            query: (one, rank, similarity)
            for (query, (one, similarity)), rank in zip(best.items(), ranks.tolist(), strict=True)
        }, size

    def _lookup(self, wanted: set[Key]) -> tuple[dict[Key, np.ndarray], dict[Key, tuple[int, int]]]:
        """(D,) float64 of each item that has embeddings; and number of its shard and its row, by photo the photo's."""
        vectors, places = {}, {}
        numbers = {shard: number for number, shard in enumerate(self.truth.shard_ids)}
        for shard in self.truth.shards_of(image_id for image_id, _ in wanted):
            image_id, item, rows = self._read(shard)
            begin = np.maximum.accumulate(np.where(_begins(image_id), np.arange(len(rows)), 0))
            for row, key in enumerate(zip(image_id.tolist(), item.tolist(), strict=True)):
                if key in wanted:
                    vectors[key] = rows[row]
                    places[key] = numbers[shard], row if self._by_item else int(begin[row])
        return vectors, places

    def _ranks(self, queries: Sequence[Sequence[np.ndarray]], goals: np.ndarray) -> tuple[np.ndarray, int]:
        """(Q,) int64, the 1-based rank of each query's goal, and the size of the gallery.

        `queries` has the vectors of each query: of several, as of several items of a photo where photos are ranked, the
        most similar counts. `goals` (Q, 3) are similarity, number of the shard and row, which decides between equals.
        """
        stacked = np.array([vector for vectors in queries for vector in vectors])
        begins = np.cumsum([0, *map(len, queries)])[:-1]
        goal, own_shard, own_row = np.float32(goals[:, :1]), goals[:, 1:2], goals[:, 2:]
        ahead, size = np.zeros(len(goals), np.int64), 0
        for number, shard in enumerate(self.truth.shard_ids):
            image_id, _, rows = self._read(shard)
            sold = np.flatnonzero(~np.isin(image_id, self._consumers(shard)))
            if not len(sold):
                continue
            similarity = np.maximum.reduceat((stacked @ rows[sold].T).astype(np.float32), begins, axis=0)
            if not self._by_item:
                photo = np.flatnonzero(_begins(image_id[sold]))
                similarity, sold = np.maximum.reduceat(similarity, photo, axis=1), sold[photo]
            earlier = (number < own_shard) | ((number == own_shard) & (sold < own_row))
            itself = (number == own_shard) & (sold == own_row)
            ahead += (((similarity > goal) & ~itself) | ((similarity == goal) & earlier)).sum(axis=1)
            size += similarity.shape[1]
        return ahead + 1, size

    @property
    def _by_item(self) -> bool:
        return self.truth.rankings.kind == "item"

    def _read(self, shard: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image_id (N,), item (N,) and embeddings (N, D) float64 of a shard."""
        items = read_items(self.output, self.kind, [shard], self.models)
        (rows,) = self.search.project(items.embeddings).values()
        return items.image_id, items.item, rows.astype(np.float64)

    def _consumers(self, shard: str) -> np.ndarray:
        return consumers(self.imageset.read(shard, columns=["image_id", "source"]))


def _begins(image_id: np.ndarray) -> np.ndarray:
    """(N,) bool: where a photo's items begin."""
    return np.r_[True, image_id[1:] != image_id[:-1]][: len(image_id)]
