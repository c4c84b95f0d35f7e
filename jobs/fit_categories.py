"""Fit the classifier of detected garments (`retrieval.classifier`) on finished runs over annotated photos.

    python jobs/full_eval.py --imageset runs/ccp-train --output runs/ccp-train-eval
    python jobs/full_eval.py --imageset runs/drawn --output runs/drawn-eval
    python jobs/fit_categories.py runs/ccp-train-eval runs/drawn-eval --output weights/tiny/categories.safetensors

The photos should be those that the runs' models were trained with: the layer learns from the same ones. What training
held out (one pair_id in ten) judges the classifier, and that of the first run decides how sure it is. A run takes the
file by `--set search.classifier=FILE`, if its embedders, their weights and its categories are the same. Fitting takes a
minute or less, so there is nothing to resume.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.runs import flags
from jobs.runs.finished import FinishedRun, open_finished
from jobs.runs.labels import true_categories
from jobs.runs.progress import say
from jobs.runs.reader import read_items
from jobs.training.data import is_held_out
from postproc.calibration import reliability
from postproc.places import places
from retrieval.classifier import Classifier, Examples, fit, joined, with_weights
from store.errors import UserError
from store.files import publish_file

LEAST = 20  # held-out garments that the classifier's two weights are fitted to


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    runs = [open_finished(output, (), args.endpoint_url) for output in args.runs]
    embedders = embedders_of(runs[0])
    for run in runs[1:]:
        if (embedders_of(run), run.categories) != (embedders, runs[0].categories):
            raise UserError(f"{run.store.uri}: other embedders, weights or categories than {args.runs[0]}'s")
    parts = [read_examples(run, list(embedders)) for run in runs]
    learned = joined([examples.where(~held_out) for examples, _, held_out in parts])
    others = [examples.where(held_out) for examples, _, held_out in parts]
    say(f"{len(learned)} detected garments to learn from, {', '.join(str(len(each)) for each in others)} held out")
    if not len(learned) or len(others[0]) < LEAST:
        reason = f"want true boxes on photos, some to learn from and {LEAST} garments on photos held out of training"
        raise UserError(f"{', '.join(args.runs)}: {reason}")
    classifier = fit(learned, others[0], runs[0].categories, embedders)
    _, pair_id, held_out = parts[0]
    likely = [crossed(classifier, others[0], half=pair_id[held_out] // 10 % 2 == 0)]
    likely += [classifier.probabilities(each.hypotheses, each.embeddings) for each in others[1:]]
    for output, each, of_each in zip(args.runs, others, likely, strict=True):
        say(f"{output}, held out: {judge(each, of_each)}")
    data = classifier.save()
    with publish_file(Path(args.output)) as part:
        part.write_bytes(data)
    say(f"{args.output}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    return 0


def embedders_of(run: FinishedRun) -> dict[str, str]:
    """Embedder -> sha256 of its weights, without views of others."""
    return {each["name"]: each["weights"] for each in run.record["embedders"] if "@" not in each["name"]}


def read_examples(run: FinishedRun, embedders: list[str]) -> tuple[Examples, np.ndarray, np.ndarray]:
    """The run's detected garments of known category, N of them; (N,) int64, their pair_id; (N,) bool, held out."""
    items, truth = read_items(run.store, "detected", run.selected.names, embedders), run.truth()
    label = true_categories(items.image_id, items.bbox, truth)
    photo = places(truth.column("image_id").to_numpy(), items.image_id)[label > 0]
    pairs = truth.column("pair_id").to_numpy()[photo]
    facts = zip(items.image_id[label > 0].tolist(), pairs.tolist(), strict=True)
    held_out = [is_held_out({"image_id": image_id, "pair_id": pair_id}) for image_id, pair_id in facts]
    examples = Examples(label, items.hypotheses, items.embeddings).where(np.flatnonzero(label > 0))
    return examples, pairs, np.array(held_out, bool)


def crossed(classifier: Classifier, examples: Examples, half: np.ndarray) -> np.ndarray:
    """(N, C) probabilities for each half of the garments, the two weights fitted to the other; `half` is (N,) bool."""
    likely = np.zeros((len(examples), len(classifier.categories)))
    for rows, others in ((half, ~half), (~half, half)):
        if rows.any() and others.any():
            there = examples.where(others)
            fitted = with_weights(classifier, examples.where(rows))
            likely[others] = fitted.probabilities(there.hypotheses, there.embeddings)
    return likely


def judge(examples: Examples, likely: np.ndarray) -> str:
    """What (N, C) probabilities say of the examples, beside the fused boxes."""
    if not len(examples):
        return "no garment of a known category"
    right = likely.argmax(axis=1) + 1 == examples.label
    before = examples.hypotheses.category_id[:, 0] == examples.label
    error = reliability(likely.max(axis=1), right).error
    return (
        f"the right category is first for {before.mean():.3f} of {len(examples)} garments by the fused boxes, for "
        f"{right.mean():.3f} by the classifier; its expected calibration error is {error:.3f}"
    )


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="OUTPUT", help="folder of a finished run, or s3://BUCKET/PREFIX; one or several")
    add("--output", required=True, metavar="FILE", help="where the classifier goes, safetensors")
    flags.add_endpoint_url(add)
    return parser


if __name__ == "__main__":
    cli.run(main)
