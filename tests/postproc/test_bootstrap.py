"""The paired bootstrap: by hand where it can be, against a plain loop, and how often its interval holds the truth."""

import numpy as np
import pytest

from postproc.bootstrap import paired_interval


@pytest.mark.parametrize("ours, theirs, photo, want", [
    ([1, 1, 1], [0, 0, 0], [1, 2, 3], (1, 1, 1)),      # always better
    ([0, 1], [0, 1], [1, 2], (0, 0, 0)),               # never different
    ([1, 0], [0, 1], [7, 7], (0, 0, 0)),               # one photo: what is drawn is always the same
    ([0.5], [0.25], [1], (0.25, 0.25, 0.25)),
])  # fmt: skip
def test_by_hand(ours, theirs, photo, want):
    assert paired_interval(np.array(ours), np.array(theirs), np.array(photo)) == pytest.approx(want)


def test_against_a_plain_loop():
    rng = np.random.default_rng(3)
    ours, theirs, photo = rng.random(30), rng.random(30), rng.integers(0, 9, 30)
    draws = np.random.default_rng(5)
    names = np.unique(photo)
    means = []
    for _ in range(200):
        chosen = names[draws.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(photo == name) for name in chosen])
        means.append((ours[rows] - theirs[rows]).mean())
    want = (ours - theirs).mean(), np.quantile(means, 0.05), np.quantile(means, 0.95)
    assert paired_interval(ours, theirs, photo, confidence=0.9, n_draws=200, seed=5) == pytest.approx(want)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        shared = rng.normal(size=40)  # a photo's own luck, the same for its two queries
        difference = np.repeat(shared, 2) + rng.normal(size=80) + 0.3
        _, low, high = paired_interval(difference, np.zeros(80), np.repeat(np.arange(40), 2), n_draws=300, seed=trial)
        inside += low <= 0.3 <= high
    assert 0.88 <= inside / 200 <= 0.99


@pytest.mark.parametrize("wrong, message", [
    (([1.0], [1.0, 2.0], [1]), "want three"),
    (([], [], []), "want three"),
    (([np.nan], [1.0], [1]), "want finite"),
])  # fmt: skip
def test_wrong_input_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(*map(np.array, wrong))
    with pytest.raises(ValueError, match="confidence"):
        paired_interval(np.ones(2), np.ones(2), np.ones(2), confidence=1.5)
