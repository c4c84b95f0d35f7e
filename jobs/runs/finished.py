"""A finished run, opened for reading: its image set, its models, what a search over it is judged with.

In: OUTPUT with run.json, items/, embeddings/, detections/, rankings/, and its image set. Out: `FinishedRun`, and
`SearchData`, all that a task needs to judge a search. Nothing is written and no lock is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.runs import tables
from jobs.runs.marks import WHOLE, fingerprint, read_marks
from jobs.runs.reader import EmbeddedItems, facts_of, indexed_hypotheses, ranked_hypotheses, read_photos, read_sides
from jobs.runs.run_record import is_over, read_record
from jobs.runs.selection import Selected, select
from retrieval.metrics import KS
from retrieval.search_plan import SearchPlan
from retrieval.step_kinds import GalleryFacts
from retrieval.truth import Truth, truth_of
from store.categories import recorded
from store.errors import UserError
from store.imageset import ImageSet
from store.joined import open_imagesets
from store.manifest import ImageSetError
from store.objects import ObjectStore, open_store


@dataclass(frozen=True)
class SearchData:
    """Everything a search is judged with, for one kind of boxes."""

    queries: EmbeddedItems  # of consumers' photos
    gallery: EmbeddedItems  # of shops' photos
    facts: GalleryFacts  # of the gallery's items
    truth: Truth
    length: int  # results of a list


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, opened for reading; `record` is the content of run.json."""

    store: ObjectStore
    images: ImageSet
    record: Mapping[str, Any]

    @property
    def models(self) -> list[str]:
        return [model["name"] for model in self.record["embedders"]]

    @property
    def detectors(self) -> tuple[str, ...]:
        return tuple(detector["name"] for detector in self.record["detectors"])

    @property
    def categories(self) -> tuple[str, ...]:
        """Names; category id n is `categories[n - 1]`."""
        return recorded(self.record)

    def rankings(self, boxes: str | None = None, model: str | None = None) -> list[tuple[str, str, str]]:
        """Kind of boxes, name in metrics.json, and place below rankings/ of every ranking.

        Args:
            boxes: one kind alone; None: all. model: one name alone; None: all.

        Raises:
            UserError: the run has none of that kind, or none of that name.
        """
        kinds = self.record["boxes"]
        if boxes is not None and boxes not in kinds:
            raise UserError(f"{self.store.uri}: no rankings by {boxes} boxes; it has {', '.join(kinds)}")
        judged = SearchPlan.of(self.record["settings"]["search"]["steps"], self.models).judged
        if model is not None and model not in judged:
            raise UserError(f"{self.store.uri}: no rankings of {model}; it has {', '.join(judged)}")
        chosen = {name: place for name, place in judged.items() if model in (None, name)}
        return [
            (kind, name, place.replace("BOXES", kind))
            for kind in kinds if boxes in (None, kind) for name, place in chosen.items()
        ]  # fmt: skip

    @property
    def selected(self) -> Selected:
        """The photos that the run took."""
        return select(self.images, self.record["settings"].get("limit"), self.record.get("selected"))

    def truth(self) -> pa.Table:
        """image_id, source, pair_id, product_id, items … of the photos the run took, in its order."""
        return read_photos(self.images, self.selected.shards)

    def fingerprint(self) -> str:
        """A digest of everything stored that an ablation reads, from the digests in the run's marks."""
        marks = read_marks(self.store).items()
        stages = ("detect", "fuse", "embed")
        outputs = {f"done/{path}.json": mark["outputs"] for path, mark in marks if path.split("/")[0] in stages}
        kept = {name: self.record.get("settings", {}).get(name) for name in ("items", "fusion")}
        columns = ["query_image_id", "query_item", "query_hypotheses"]
        places = {kind: f"rankings/{kind}.parquet" for kind in self.record["boxes"]}
        judged = {kind: tables.digest_of(tables.read(self.store, key, columns)) for kind, key in places.items()}
        parts = {"imageset": self.images.digest, "outputs": outputs, "settings": kept, "hypotheses": judged}
        return fingerprint(parts)

    def search_data(self, kind: str) -> SearchData:
        """Of one kind of boxes; as in `rank`, an item that lacks an embedding of some model is left out."""
        truth = self.truth()
        queries, gallery = read_sides(self.store, kind, self.selected.names, self.models, truth)
        judged_by = truth_of(truth, whole_photos=not self.detectors)
        # a photo's lists are joined: at least as long as the run's they give the run's figures
        top_k = self.record["settings"]["search"]["top_k"] if judged_by.kind == "photo" else 0
        length = max(top_k, max(KS))
        queries = queries.with_hypotheses(ranked_hypotheses(self.store, kind, queries))
        gallery = gallery.with_hypotheses(indexed_hypotheses(self.store, kind, gallery))
        return SearchData(queries, gallery, facts_of(gallery, truth), judged_by, length)


def open_finished(output: str, imagesets: Sequence[str] = (), endpoint_url: str | None = None) -> FinishedRun:
    """Open the run in OUTPUT for reading; `imagesets` is where its image sets are now, empty where they were.

    UserError: no run there, one that has not ranked everything, or other image sets than the run's.
    """
    store = open_store(output, endpoint_url=endpoint_url)
    record = read_record(store)
    if not record:
        raise UserError(f"{output}: no run.json; want the --output of a finished jobs/full_eval.py")
    endpoint_url = endpoint_url or record["settings"]["storage"]["endpoint_url"]
    recorded = record["imagesets"]
    try:
        images = open_imagesets(imagesets or [entry["uri"] for entry in recorded], endpoint_url=endpoint_url)
    except ImageSetError as error:
        raise UserError(f"{error} (--imageset, once for each set of the run)") from error
    if not is_over(record, images):
        now = ", ".join(part.digest for part in images.sets)
        then = ", ".join(f"{entry['digest']} ({entry['uri']})" for entry in recorded)
        advice = "say with --imageset, once for each and in this order, where they are"
        raise UserError(f"{images.uri}: digest {now}, the run is over {then}; {advice}")
    for kind in record["boxes"]:
        if not store.exists(f"done/rank/{kind}/{WHOLE}.json"):
            advice = "finish the run with jobs/full_eval.py first"
            raise UserError(f"{output}: its {kind} boxes are not ranked yet; {advice}")
    return FinishedRun(store, images, record)
