"""The paired bootstrap: by hand where it can be, against a plain loop, and how often its interval holds the truth."""

from statistics import NormalDist

import numpy as np
import pytest

from postproc.bootstrap import interval_of_alike, paired_interval

ZZ = NormalDist().inv_cdf(0.975) ** 2  # 3.84


@pytest.mark.parametrize("ours, theirs, photo, want", [
    ([1, 1, 1], [0, 0, 0], [1, 2, 3], (1, 1 - 2 * ZZ / (3 + ZZ), 1)),         # always better
    ([0, 1], [0, 1], [1, 2], (0, -ZZ / (2 + ZZ), ZZ / (2 + ZZ))),             # never different
    ([1, 0], [0, 1], [7, 7], (0, -ZZ / (1 + ZZ), ZZ / (1 + ZZ))),             # one photo: every draw is the same
    ([0.5], [0.25], [1], (0.25, 0.25 - 1.25 * ZZ / (1 + ZZ), 0.25 + 0.75 * ZZ / (1 + ZZ))),
])  # fmt: skip
def test_photos_that_say_the_same_by_hand(ours, theirs, photo, want):
    assert paired_interval(np.array(ours), np.array(theirs), np.array(photo)) == pytest.approx(want)


@pytest.mark.parametrize("n", [1, 2, 25, 1000])
@pytest.mark.parametrize("right", [False, True])
def test_none_or_all_right_is_wilsons_interval(n, right):
    """The ends p of Wilson's interval solve (p - share)² = z² p (1 - p) / n."""
    low, high = interval_of_alike(float(right), n, (0.0, 1.0))
    assert (low == 0 or right) and (high == 1 or not right) and high - low > 0
    for end in (low, high):
        assert (end - right) ** 2 == pytest.approx(ZZ * end * (1 - end) / n)


def test_one_photo_that_differs_is_drawn_as_before():
    ours = np.array([1.0] * 24 + [0.0])
    mean, low, high = paired_interval(ours, np.zeros(25), np.arange(25), bounds=(0, 1))
    assert (mean, high) == (0.96, 1.0) and low == pytest.approx(0.88)


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
