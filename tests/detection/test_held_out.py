"""What a detector gets wrong on photos held out: the surest mistake of each photo, and why it is one."""

import numpy as np
import pytest

from detection import held_out
from detection.detections import Detections
from detection.training_photos import Sample
from store.categories import DEEPFASHION2

BOX, ELSEWHERE = (10, 10, 50, 50), (100, 100, 140, 140)
SKIRT, TROUSERS = 9, 8


def seen(*photos: tuple[list[tuple], list[tuple]]) -> held_out.HeldOutDetections:
    """Photos as (true (box, category), found (box, category, score)); numbers from 7 on."""
    truth, found = [], []
    for true, boxes in photos:
        truth.append(
            Sample(
                np.zeros((200, 200, 0), np.uint8), np.array([b for b, _ in true], np.float32).reshape(-1, 4),
                np.array([c - 1 for _, c in true], np.int64), [[] for _ in true],
            )
        )  # fmt: skip
        found.append(
            Detections(
                np.array([b for b, _, _ in boxes], np.float32).reshape(-1, 4),
                np.array([s for _, _, s in boxes], np.float32),
                np.array([c for _, c, _ in boxes], np.int16),
                None,
            )
        )
    return held_out.HeldOutDetections(list(range(7, 7 + len(photos))), truth, found, DEEPFASHION2)


@pytest.mark.parametrize("true, found, want", [
    ([], [], None),
    ([(BOX, SKIRT)], [(BOX, SKIRT, 0.9)], None),                                                  # right
    ([(BOX, SKIRT)], [(BOX, TROUSERS, 0.9)], (TROUSERS, "is skirt")),                             # another category
    ([(BOX, SKIRT)], [(ELSEWHERE, SKIRT, 0.9)], (SKIRT, "lies on no garment")),
    ([], [(BOX, SKIRT, 0.9)], (SKIRT, "lies on no garment")),
    ([(BOX, SKIRT)], [(BOX, SKIRT, 0.9), (BOX, TROUSERS, 0.5), (ELSEWHERE, SKIRT, 0.4)], (TROUSERS, "is skirt")),
    ([(BOX, SKIRT)], [((10, 10, 50, 30), SKIRT, 0.9)], None),                                     # IoU 1/2 is right
])  # fmt: skip
def test_the_surest_mistake_of_a_photo(true, found, want):
    mistakes = held_out.surest_mistakes(seen((true, found)))
    assert [(one.number, one.category_id, one.reason) for one in mistakes] == ([] if want is None else [(7, *want)])


def test_surest_first_over_photos():
    wrong = [([], [(BOX, SKIRT, score)]) for score in (0.3, 0.9, 0.6)]
    assert [one.number for one in held_out.surest_mistakes(seen(*wrong))] == [8, 9, 7]
    assert [one.number for one in held_out.surest_mistakes(seen(*wrong), n=1)] == [8]


def test_figures_by_category():
    judged = seen(([(BOX, SKIRT), (ELSEWHERE, TROUSERS)], [(BOX, SKIRT, 0.9)]))
    found = held_out.per_category(judged)
    assert list(found) == ["trousers", "skirt"] and [one["items"] for one in found.values()] == [1, 1]
    assert [one["AP"] for one in found.values()] == pytest.approx([0, 1])
    assert held_out.figures_of(judged)["AP50"] == pytest.approx(0.5)
    assert (
        held_out.per_category(held_out.HeldOutDetections([], [], [], DEEPFASHION2))
        == held_out.figures_of(held_out.HeldOutDetections([], [], [], DEEPFASHION2))
        == {}
    )
