"""Consumer-to-shop accuracy at the benchmark's size: `retrieval.metrics` beside a plain evaluator of the same rules.

The baseline works the way the published evaluator does, in our words: for every photo it scans all results and all
true items, for every item the whole gallery, and walks the list anew for each k. Both get the official lists of
dictionaries, already in memory, and must give the same answer. Seconds are of CPU time, medians: both use one thread,
and another program on the machine then changes little.

The second table is of a run's own way, columns in which a box has one list and up to ten categories, beside the
official list, in which every category is an entry with a list of its own. Both must give the same answer.

    python benchmarks/metric.py                      # 17,821 query items, 27,334 shop items, 16,947 results of 20 boxes
    python benchmarks/metric.py --scale 0.1 --repeats 3
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from postproc.hypotheses import Hypotheses
from retrieval.metrics import KS, consumer_to_shop_accuracy
from retrieval.results import Results

CATEGORIES = 10  # of a box, in the second table

OFFICIAL_S = 40.0
"""What the published script was measured to need at full size, on another two-core machine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the benchmark's size (default 1.0)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of ours, of which the median counts (default 9)")
    parser.add_argument("--baseline-repeats", type=int, default=3, help="runs of the baseline, likewise (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up submission (default 0)")
    args = parser.parse_args()

    n_query, n_gallery, n_results = (round(n * args.scale) for n in (17_821, 27_334, 16_947))
    submission = made_up_submission(n_query, n_gallery, n_results, args.seed)
    plain_s, plain = median_s(lambda: baseline(*submission), args.baseline_repeats)
    ours_s, ours = median_s(lambda: consumer_to_shop_accuracy(*submission), args.repeats)
    if plain != ours:
        raise SystemExit(f"the two disagree: baseline {plain}, ours {ours}")

    print(f"{n_query:,} query items, {n_gallery:,} shop items, {n_results:,} results of 20 boxes; seed {args.seed}")
    print(f"{'':24}{'CPU s':>10}{'faster':>10}")
    print(f"{'plain baseline':24}{plain_s:>10.3f}{1:>9}x")
    print(f"{'retrieval.metrics':24}{ours_s:>10.3f}{plain_s / ours_s:>9.0f}x")
    if args.scale == 1:
        print(f"{'published script, noted':24}{OFFICIAL_S:>10.3f}   ours: {OFFICIAL_S / ours_s:.0f}x faster than that")
    top = ", ".join(f"top-{k} {share:.3f}" for k, share in ours["top"].items())
    print(f"both say: {top}, {ours['missed']:,} missed of {ours['queries']:,}")
    several_categories(*submission, args.repeats, args.seed)


def several_categories(results: list, query_gt: list, gallery_gt: list, repeats: int, seed: int) -> None:
    """Time one category a box and ten, in columns and as the official list."""
    print(f"\n{'':40}{'entries':>10}{'CPU s':>10}{'ratio':>10}")
    base = 0.0
    for n in (1, CATEGORIES):
        columns = in_columns(results, n, seed)
        entries = official(results, columns)
        answers = {}
        for name, shown in ((f"columns, {n} a box", columns), (f"official list, {n} a box", entries)):
            call = partial(consumer_to_shop_accuracy, shown, query_gt, gallery_gt)
            seconds, answers[name] = median_s(call, repeats)
            base = base or seconds
            print(f"{name:40}{len(entries):>10,}{seconds:>10.3f}{seconds / base:>10.2f}")
        first, *others = answers.values()
        if any(other != first for other in others):
            raise SystemExit(f"columns and list disagree: {answers}")


def in_columns(results: list[dict], n: int, seed: int) -> Results:
    """The results as columns, each with its own category and n - 1 others at random lower scores."""
    rng = np.random.default_rng(seed)
    names = ("query_image_id", "query_bbox", "query_cls", "query_score", "gallery_image_id", "gallery_bbox")
    columns: dict[str, Any] = {name: np.array([result[name] for result in results]) for name in names}
    order = np.argsort(rng.random((len(results), 13)), axis=1) + 1  # all categories, in an order of their own
    own = columns["query_cls"][:, None]
    category_id = np.concatenate([own, order[order != own].reshape(len(results), 12)], axis=1)[:, :n]
    share = np.sort(rng.random((len(results), n)), axis=1)[:, ::-1]
    share[:, 0] = 1
    hypotheses = Hypotheses(category_id, (columns["query_score"][:, None] * share).astype(np.float32))
    columns |= {"query_score": hypotheses.score[:, 0], "hypotheses": hypotheses}
    return Results(**columns, gallery_count=np.full(len(results), columns["gallery_image_id"].shape[1]))


def official(results: list[dict], columns: Results) -> list[dict]:
    """The same as the official list: an entry a category."""
    hypotheses = columns.hypotheses or Hypotheses.own(columns.query_cls, columns.query_score)
    return [
        result | {"query_cls": category_id, "query_score": score}
        for result, ids, scores in zip(results, hypotheses.category_id, hypotheses.score, strict=True)
        for category_id, score in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def median_s(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        answer = call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), answer


def baseline(results: list[dict], query_gt: list[dict], gallery_gt: list[dict]) -> dict[str, Any]:
    """The rules written down plainly, each answer from a scan of everything."""
    photo = np.array([r["query_image_id"] for r in results])
    score, cls = np.array([r["query_score"] for r in results]), np.array([r["query_cls"] for r in results])
    box = np.array([xywh(r["query_bbox"]) for r in results])
    true_photo, true_cls = np.array([q["query_image_id"] for q in query_gt]), np.array([q["cls"] for q in query_gt])
    style, pair = np.array([q["style"] for q in query_gt]), np.array([q["pair_id"] for q in query_gt])
    true_box = np.array([xywh(q["bbox"]) for q in query_gt])
    shop_photo = np.array([g["gallery_image_id"] for g in gallery_gt])
    shop_style, shop_pair = np.array([g["style"] for g in gallery_gt]), np.array([g["pair_id"] for g in gallery_gt])
    shop_box = np.array([xywh(g["bbox"]) for g in gallery_gt])

    right, missed = dict.fromkeys(KS, 0), 0
    for photo_id in np.unique(true_photo):
        truths, seen = np.flatnonzero(true_photo == photo_id), np.flatnonzero(photo == photo_id)
        if len(seen):
            belongs = mask.iou(box[seen], true_box[truths], np.zeros(len(truths))).argmax(axis=1)
        for position, truth in enumerate(truths):
            if style[truth] == 0:
                continue
            candidates = seen[(belongs == position) & (cls[seen] == true_cls[truth])] if len(seen) else seen
            if not len(candidates):
                missed += 1
                continue
            chosen = results[candidates[score[candidates].argmax()]]
            matching = np.flatnonzero((shop_pair == pair[truth]) & (shop_style == style[truth]))
            for k in KS:
                for shop_id, found in zip(chosen["gallery_image_id"][:k], chosen["gallery_bbox"][:k], strict=True):
                    there = matching[shop_photo[matching] == shop_id]
                    if len(there) and mask.iou([xywh(found)], shop_box[there], np.zeros(len(there))).max() >= 0.5:
                        right[k] += 1
                        break
    queries = int((style > 0).sum())
    return {"top": {k: n / queries for k, n in right.items()}, "missed": missed, "queries": queries}


def xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def made_up_submission(n_query: int, n_gallery: int, n_results: int, seed: int) -> tuple[list, list, list]:
    """Results, query truth and gallery truth of a plausible detector and embedder; a third right at 10."""
    rng = np.random.default_rng(seed)
    n_pairs = max(1, n_query // 5)
    query_gt, results, gallery_gt = [], [], []
    photo = np.sort(rng.integers(0, max(1, int(n_query / 1.65)), n_query))
    for image_id, box in zip(photo.tolist(), made_up_boxes(n_query, rng), strict=True):
        style, cls = int(rng.choice(4, p=[0.3, 0.4, 0.2, 0.1])), int(rng.integers(1, 14))
        truth = {"style": style, "cls": cls, "pair_id": image_id % n_pairs, "bbox": box}
        query_gt.append({"query_image_id": image_id} | truth)
    matching: dict[tuple[int, int], list[dict]] = {}
    wanted = sorted({(q["pair_id"], q["style"]) for q in query_gt if q["style"]})
    for row, box in enumerate(made_up_boxes(n_gallery, rng)):
        pair, style = wanted[row] if row < len(wanted) else (int(rng.integers(n_pairs)), int(rng.integers(4)))
        entry = {"gallery_image_id": n_query + int(row / 1.7), "style": style, "pair_id": pair, "bbox": box}
        gallery_gt.append(entry)
        matching.setdefault((pair, style), []).append(entry)
    for row in rng.integers(0, n_query, n_results).tolist():
        true = query_gt[row]
        cls = true["cls"] if rng.random() < 0.9 else int(rng.integers(1, 14))
        listed = [gallery_gt[i] for i in rng.integers(0, n_gallery, 20)]
        if rng.random() < 0.7 and (good := matching.get((true["pair_id"], true["style"]))):
            listed[min(int(rng.exponential(4)), 19)] = good[int(rng.integers(len(good)))]
        shifts = rng.normal(0, 8, (21, 4))
        results.append(
            {
                "query_image_id": true["query_image_id"],
                "query_bbox": (np.array(true["bbox"]) + shifts[20]).tolist(),
                "query_cls": cls,
                "query_score": round(float(rng.random()), 2),
                "gallery_image_id": [entry["gallery_image_id"] for entry in listed],
                "gallery_bbox": (np.array([entry["bbox"] for entry in listed]) + shifts[:20]).tolist(),
            }
        )
    return results, query_gt, gallery_gt


def made_up_boxes(n: int, rng: np.random.Generator) -> list[list[int]]:
    corner, size = rng.integers(0, 300, (n, 2)), rng.integers(60, 300, (n, 2))
    return np.concatenate([corner, corner + size], axis=1).tolist()


if __name__ == "__main__":
    main()
