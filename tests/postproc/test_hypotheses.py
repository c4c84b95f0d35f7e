"""Which categories an item may have: boxes one can check by eye, and the plain rule as a loop."""

import numpy as np
import pytest

from postproc.boxes import iou_with
from postproc.hypotheses import Hypotheses, hypotheses_of

ITEM = (0, 0, 10, 10)
LIMITS = {"iou_threshold": 0.5, "score_threshold": 0.02, "most": 5}


def of(rows: list[tuple], kept: list[int], **changes: float) -> list[list[tuple[int, float]]]:
    """Hypotheses as pairs, from rows (box, score, category id, photo)."""
    boxes = np.array([row[0] for row in rows], float).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], float)
    labels, image = (np.array([row[i] for row in rows], np.int64) for i in (2, 3))
    found = hypotheses_of(boxes, scores, labels, image, np.array(kept, np.int64), **LIMITS | changes)
    assert (found.score[~found.real] == 0).all()
    return [
        [(int(i), round(float(value), 4)) for i, value in zip(ids[real], score[real], strict=True)]
        for ids, score, real in zip(found.category_id, found.score, found.real, strict=True)
    ]


@pytest.mark.parametrize("rows, kept, changes, want", [
    ([], [], {}, []),                                                                        # nothing detected
    ([(ITEM, .9, 3, 0)], [0], {}, [[(3, .9)]]),                                              # nothing but the item
    ([(ITEM, .4, 3, 0), (ITEM, .7, 1, 0)], [0], {}, [[(3, .4), (1, .7)]]),                   # its own comes first
    ([(ITEM, .9, 3, 0), (ITEM, .5, 4, 0), (ITEM, .7, 1, 0)], [0], {}, [[(3, .9), (1, .7), (4, .5)]]),
    ([(ITEM, .9, 3, 0), (ITEM, .5, 9, 0), (ITEM, .5, 4, 0)], [0], {}, [[(3, .9), (4, .5), (9, .5)]]),  # equal: lower id
    ([(ITEM, .9, 3, 0), (ITEM, .3, 1, 0), (ITEM, .5, 1, 0)], [0], {}, [[(3, .9), (1, .5)]]),  # once, the best
    ([(ITEM, .4, 3, 0), (ITEM, .9, 3, 0)], [0], {}, [[(3, .4)]]),                            # its own score, no other's
    ([(ITEM, .9, 3, 0), ((0, 0, 10, 5), .5, 1, 0)], [0], {}, [[(3, .9), (1, .5)]]),          # IoU 0.5 exactly counts
    ([(ITEM, .9, 3, 0), ((0, 0, 10, 4.9), .5, 1, 0)], [0], {}, [[(3, .9)]]),                 # 0.49 does not
    ([(ITEM, .9, 3, 0), (ITEM, .5, 1, 1)], [0], {}, [[(3, .9)]]),                            # another photo's
    ([(ITEM, .9, 3, 0), (ITEM, .02, 1, 0), (ITEM, .019, 2, 0)], [0], {}, [[(3, .9), (1, .02)]]),
    ([(ITEM, .01, 3, 0), (ITEM, .01, 1, 0)], [0], {}, [[(3, .01)]]),                         # its own in any case
    ([(ITEM, .9, 3, 0), (ITEM, .5, 1, 0), (ITEM, .4, 2, 0)], [0], {"most": 2}, [[(3, .9), (1, .5)]]),
    ([(ITEM, .9, 3, 0), (ITEM, .5, 1, 0)], [0], {"most": 1}, [[(3, .9)]]),
    ([(ITEM, .9, 3, 0), (ITEM, .5, 1, 1), (ITEM, .8, 1, 0)], [1, 0], {}, [[(1, .5)], [(3, .9), (1, .8)]]),  # as kept
])  # fmt: skip
def test_by_eye(rows: list[tuple], kept: list[int], changes: dict, want: list) -> None:
    assert of(rows, kept, **changes) == want


@pytest.mark.parametrize("seed", range(20))
def test_the_plain_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, most = 90, int(rng.integers(1, 6))
    corner = rng.integers(0, 8, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(4, 9, (n, 2))], axis=1).astype(float)
    scores, labels, image = rng.integers(0, 8, n) / 8, rng.integers(1, 6, n), rng.integers(0, 3, n)
    kept = rng.permutation(n)[:12]
    found = hypotheses_of(boxes, scores, labels, image, kept, iou_threshold=0.5, score_threshold=0.25, most=most)
    for place, item in enumerate(kept.tolist()):
        near = (image == image[item]) & (iou_with(boxes, boxes[item]) >= 0.5) & (scores >= 0.25)
        best = {label: scores[near & (labels == label)].max() for label in set(labels[near].tolist())}
        best.pop(int(labels[item]), None)
        others = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
        want = [(int(labels[item]), scores[item]), *others][:most]
        real = found.real[place]
        assert list(zip(found.category_id[place, real], found.score[place, real], strict=True)) == want


def test_own_alone() -> None:
    own = Hypotheses.own(np.array([4, 0], np.int16), np.array([0.5, 1]))
    assert own.category_id.tolist() == [[4], [0]] and own.score.tolist() == [[0.5], [0]]
    assert own.real.tolist() == [[True], [False]] and len(own) == 2
    assert own[np.array([1])].category_id.tolist() == [[0]]
