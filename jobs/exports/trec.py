"""Rankings as TREC runs with their qrels, which trec_eval, ranx and pytrec_eval read.

In: OUTPUT/rankings/ of a finished run, its image set. Out: `BOXES-MODEL.run` of each ranking, and `BOXES.qrels`, the
same for all models. `retrieval.trec` says what the queries and documents are; ranx gives the figures of metrics.json:

    ranx.evaluate(qrels, run, ["map", "mrr", "ndcg@10", "hit_rate@10"], make_comparable=True)
"""

import functools
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from jobs.exports.files import Writer
from jobs.exports.truth import BlockTruth
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import ranking_blocks
from retrieval.rankings import Rankings
from retrieval.results import Results
from retrieval.trec import trec_files
from retrieval.truth import truth_of
from store.errors import UserError

BLOCK = 500  # queries, or consumer photos, in memory at a time


def files(run: FinishedRun, boxes: str | None = None, model: str | None = None) -> dict[str, Writer]:
    """The files of this export by name; of one kind of boxes or one model alone where these are given.

    Raises:
        UserError: nothing says which results are right, so that there is no query.
    """
    rankings = run.rankings(boxes, model)
    truth = BlockTruth(truth_of(run.truth(), whole_photos=not run.detectors))
    if not len(truth.photos):
        advice = "TREC's files need consumer photos with true boxes, a pair_id or a product_id; --to csv needs none"
        raise UserError(f"{run.images.uri}: nothing says which results are right; {advice}")
    runs: dict[str, Writer] = {
        f"{kind}-{name}.run": functools.partial(write_run, run, truth, place, name) for kind, name, place in rankings
    }
    kinds = dict.fromkeys(kind for kind, _, _ in rankings)
    return runs | {f"{kind}.qrels": functools.partial(write_qrels, truth) for kind in kinds}


def write_run(run: FinishedRun, truth: BlockTruth, place: str, tag: str, file: TextIO) -> int:
    """Write rankings/PLACE.parquet as a TREC run named `tag`; returns the number of its lines."""
    n_lines = 0
    for block in ranking_blocks(run.store, place, BLOCK):
        answers = trec_files(block, truth.of(block.results.query_image_id.tolist()))
        n_lines += _write_lines(file, answers.run_lines(tag))
    return n_lines


def write_qrels(truth: BlockTruth, file: TextIO) -> int:
    """Write the right answers of every query, those that no list has included; returns the number of lines."""
    n_lines, no_lists = 0, _no_lists()
    for start in range(0, len(truth.photos), BLOCK):
        photos = truth.photos[start : start + BLOCK].tolist()
        n_lines += _write_lines(file, trec_files(no_lists, truth.of(photos)).qrels_lines())
    return n_lines


def _write_lines(file: TextIO, lines: Iterator[str]) -> int:
    n = 0
    for line in lines:
        file.write(f"{line}\n")
        n += 1
    return n


def _no_lists() -> Rankings:
    ids, boxes, numbers = np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int32)
    lists = np.zeros((0, 1), np.int64)
    results = Results(ids, boxes, ids, np.zeros(0), lists, np.zeros((0, 1, 4)), ids)
    return Rankings(results, numbers, lists.astype(np.int32), lists.astype(np.float32))
