"""The paired interval of AP10: its AP is the metric's own, and the interval is that of photos really drawn again."""

import numpy as np
import pytest

from detection.ap_interval import paired_interval
from detection.metrics import evaluate_boxes

N_PHOTOS = 12


def scene(seed: int, noise: float) -> tuple[dict, dict]:
    """True boxes of three categories on twelve photos, and boxes found near them with some strays."""
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 200, (40, 2))
    true = {
        "image_id": rng.integers(0, N_PHOTOS, 40), "category_id": rng.choice([1, 2, 8], 40),
        "bbox": np.concatenate([corner, corner + rng.uniform(40, 90, (40, 2))], 1), "area": np.full(40, 3000.0),
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    near = true["bbox"] + rng.normal(0, noise, (40, 4))
    strays = rng.uniform(0, 100, (30, 2))
    found = {
        "image_id": np.concatenate([true["image_id"], rng.integers(0, N_PHOTOS, 30)]),
        "category_id": np.concatenate([true["category_id"], rng.choice([1, 2, 8], 30)]),
        "bbox": np.concatenate([near, np.concatenate([strays, strays + 60], 1)]),
        "score": rng.random(70),
    }
    return true, found


@pytest.mark.parametrize("at_50", [False, True])
def test_its_ap_is_the_metrics(at_50):
    true, good = scene(1, 3.0)
    _, bad = scene(2, 9.0)
    photos = np.arange(N_PHOTOS)
    found = paired_interval(true, good, bad, photos, at_50=at_50, n_draws=50)
    name = "AP10_50" if at_50 else "AP10"
    assert found.ours == pytest.approx(evaluate_boxes(true, good, photos)[name], abs=1e-9)
    assert found.theirs == pytest.approx(evaluate_boxes(true, bad, photos)[name], abs=1e-9)
    assert found.difference == pytest.approx(found.ours - found.theirs)
    assert found.low <= found.difference <= found.high


def drawn_again(columns: dict, chosen: np.ndarray) -> dict:
    """The rows of these photos, a photo that comes twice as two photos."""
    parts = [(np.flatnonzero(columns["image_id"] == photo), i) for i, photo in enumerate(chosen)]
    rows = np.concatenate([rows for rows, _ in parts])
    numbers = np.concatenate([np.full(len(rows), i) for rows, i in parts])
    return {name: column[rows] for name, column in columns.items()} | {"image_id": numbers}


def test_the_interval_is_that_of_photos_really_drawn_again():
    true, good = scene(1, 3.0)
    _, bad = scene(2, 9.0)
    rng, differences = np.random.default_rng(7), []
    for _ in range(30):
        chosen = np.sort(rng.integers(N_PHOTOS, size=N_PHOTOS))
        again = [drawn_again(columns, chosen) for columns in (true, good, bad)]
        judged = [evaluate_boxes(again[0], found, np.arange(N_PHOTOS))["AP10"] for found in again[1:]]
        differences.append(judged[0] - judged[1])
    found = paired_interval(true, good, bad, np.arange(N_PHOTOS), n_draws=30, seed=7, confidence=0.9)
    # boxes of equal rank order only: a photo drawn twice ties with itself, which both count alike
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.05, 0.95]), abs=5e-3)


def test_a_detector_against_itself_differs_by_nothing():
    true, good = scene(1, 3.0)
    found = paired_interval(true, good, good, np.arange(N_PHOTOS), n_draws=20)
    assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_nothing_to_judge_by_is_refused():
    true, good = scene(1, 3.0)
    with pytest.raises(ValueError, match="no photo with a true item"):
        paired_interval(true, good, good, np.array([99]))
    with pytest.raises(ValueError, match="confidence"):
        paired_interval(true, good, good, np.arange(N_PHOTOS), confidence=1.0)
