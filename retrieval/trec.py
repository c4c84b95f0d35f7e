"""A run's rankings and their right answers as TREC's run and qrels, on which `ranx.evaluate` gives our figures.

By item, a query is IMAGE/N, the true item of number N of consumer photo IMAGE. Its documents are IMAGE/N too, shop
boxes of a list by photo and item number, but a box that finds a true shop item is listed as IMAGE/trueN, the item that
it found: qrels then hold true items and are the same for every model. By photo, queries and documents are image_ids.

Every query is in the qrels. One without any right answer has the line `QUERY 0 none 0`, so that it counts as 0. A query
without results is in no line of the run: `ranx.evaluate(qrels, run, ["map", "mrr", "ndcg@10"], make_comparable=True)`
counts it as 0, too. Scores are n, n - 1, … 1 for a list of n results, because equal similarities have an order here and
would have none there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval import metrics
from retrieval.photo_lists import join_photos
from retrieval.rankings import Rankings
from retrieval.truth import ItemTruth, PhotoTruth, Truth

NO_ANSWER = "none"  # the document, of relevance 0, of a query without any right answer


@dataclass(frozen=True)
class TrecFiles:
    """Queries by name in the truth's order: the documents of each list, best first; all right documents of each."""

    run: dict[str, list[str]]  # those with results
    qrels: dict[str, list[str]]  # every query

    def run_lines(self, tag: str = "run") -> Iterator[str]:
        """`QUERY Q0 DOCUMENT RANK SCORE TAG`, ranks from 1; `tag` has no blanks."""
        for query, documents in self.run.items():
            for place, document in enumerate(documents):
                yield f"{query} Q0 {document} {place + 1} {len(documents) - place} {tag}"

    def qrels_lines(self) -> Iterator[str]:
        """`QUERY 0 DOCUMENT RELEVANCE`."""
        for query, documents in self.qrels.items():
            yield from (f"{query} 0 {document} 1" for document in documents)
            if not documents:
                yield f"{query} 0 {NO_ANSWER} 0"


def trec_files(rankings: Rankings, truth: Truth) -> TrecFiles:
    """Run and qrels of one ranking; the figures on them are those of `truth.figures`."""
    return _by_photo(rankings, truth) if isinstance(truth, PhotoTruth) else _by_item(rankings, truth)


def _by_photo(rankings: Rankings, truth: PhotoTruth) -> TrecFiles:
    query, shop = truth.pairs
    qrels: dict[str, list[str]] = {str(image_id): [] for image_id in truth.photo.tolist()}
    for image_id, document in zip(truth.photo[query].tolist(), truth.shops.image_id[shop].tolist(), strict=True):
        qrels[str(image_id)].append(str(document))
    results = join_photos(rankings).results
    rows = zip(results.query_image_id.tolist(), results.gallery_image_id, results.gallery_count.tolist(), strict=True)
    lists = {str(image_id): [str(shop) for shop in shops[:n].tolist()] for image_id, shops, n in rows if n}
    return TrecFiles({name: lists[name] for name in qrels if name in lists}, qrels)


def _by_item(rankings: Rankings, truth: ItemTruth) -> TrecFiles:
    results = rankings.results
    answers = metrics.answers(results, truth.query_gt, truth.gallery_gt, k=results.gallery_image_id.shape[1])
    queries = _numbered(truth.query_gt, "query_image_id", "")
    items = _numbered(truth.gallery_gt, "gallery_image_id", "true")
    matching: dict[tuple[int, int], list[str]] = {}
    for entry, name in zip(truth.gallery_gt, items, strict=True):
        matching.setdefault((entry["pair_id"], entry["style"]), []).append(name)
    run: dict[str, list[str]] = {}
    qrels: dict[str, list[str]] = {}
    for row, entry_row, found in zip(answers.row.tolist(), truth.queries.tolist(), answers.found, strict=True):
        entry, name = truth.query_gt[entry_row], queries[entry_row]
        qrels[name] = matching.get((entry["pair_id"], entry["style"]), [])
        if row >= 0 and (n := int(results.gallery_count[row])):
            boxes = zip(
                results.gallery_image_id[row, :n].tolist(),
                rankings.gallery_item[row, :n].tolist(),
                found[:n].tolist(),
                strict=True,
            )
            run[name] = [items[shop] if shop >= 0 else f"{image}/{item}" for image, item, shop in boxes]
    return TrecFiles(run, qrels)


def _numbered(entries: Sequence[Any], key: str, word: str) -> list[str]:
    """IMAGE/N of every entry of a ground truth, N counted from 0 within the photo, `word` before it."""
    seen: dict[int, int] = {}
    names = []
    for entry in entries:
        number = seen[entry[key]] = seen.get(entry[key], -1) + 1
        names.append(f"{entry[key]}/{word}{number}")
    return names
