"""The benchmark's consumer-to-shop rules as loops over the official lists: an oracle for metrics and for runs."""

import numpy as np
from pycocotools import mask

KS = (1, 5, 10, 15, 20)


def plain(
    results: list[dict], query_gt: list[dict], gallery_gt: list[dict], threshold: float
) -> list[tuple[bool, int]]:
    """The rules as loops: per item with style > 0, if a result stands for it and the rank of its first right box."""

    def overlaps(box: list, others: list[dict]) -> np.ndarray:
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in [box, *(o["bbox"] for o in others)]]
        return mask.iou(boxes[:1], boxes[1:], [0] * len(others))[0]

    belongs: dict[int, list[dict]] = {}
    for r in results:
        rows = [i for i, q in enumerate(query_gt) if q["query_image_id"] == r["query_image_id"]]
        if rows:
            best = rows[int(np.argmax(overlaps(r["query_bbox"], [query_gt[i] for i in rows])))]
            if query_gt[best]["cls"] == r["query_cls"]:
                belongs.setdefault(best, []).append(r)
    answers = []
    for i, q in enumerate(query_gt):
        if q["style"] <= 0:
            continue
        rank = 0
        if i in belongs:
            standing = max(belongs[i], key=lambda r: r["query_score"])  # max keeps the first of equals
            pairs = zip(standing["gallery_image_id"], standing["gallery_bbox"], strict=True)
            matching = [g for g in gallery_gt if (g["pair_id"], g["style"]) == (q["pair_id"], q["style"])]
            for place, (photo, box) in enumerate(pairs, start=1):
                there = [g for g in matching if g["gallery_image_id"] == photo]
                if not rank and there and max(overlaps(box, there)) >= threshold:
                    rank = place
        answers.append((i in belongs, rank))
    return answers


def shares(answers: list[tuple[bool, int]]) -> dict[str, float | None]:
    n = len(answers)
    return {str(k): sum(0 < rank <= k for _, rank in answers) / n if n else None for k in KS}
