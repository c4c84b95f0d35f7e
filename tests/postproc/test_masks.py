"""Mask votes against pixels drawn one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postproc.masks import vote, vote_batch


def runs(pixels):
    """A line of pixels as run lengths, off first."""
    changes = np.flatnonzero(np.diff(pixels, prepend=0))
    return np.diff(changes, prepend=0, append=len(pixels))


def drawn(lengths):
    """Run lengths as a line of pixels."""
    return np.repeat(np.arange(len(lengths)) % 2, lengths)


@pytest.mark.parametrize(
    ("masks", "weights", "want"),
    [
        ([[1, 2, 1]], None, [1, 2, 1]),  # one mask is itself
        ([[4]], None, [4]),  # all off
        ([[0, 4]], None, [0, 4]),  # all on
        ([[0, 2, 2], [1, 2, 1]], None, [1, 1, 2]),  # 1100 and 0110: half is not enough
        ([[0, 2, 2], [1, 2, 1]], [0.6, 0.4], [0, 2, 2]),  # the heavier one
        ([[0, 2, 2], [1, 2, 1]], [0, 0], [1, 1, 2]),  # weights of nothing: all alike
        ([[0, 2, 2], [1, 2, 1], [3, 1]], [0.4, 0.3, 0.3], [1, 1, 2]),  # 0.7 on at 1; 0.4, 0.3 and 0.3 elsewhere
        ([[2, 0, 2]], None, [4]),  # a run of no length says nothing
        ([[0, 4], [4]], [0.1 + 0.2, 0.3], [4]),  # half, but for rounding
    ],
)
def test_a_pixel_is_on_where_more_than_half_of_the_weight_is(masks, weights, want):
    assert vote([np.array(mask) for mask in masks], weights).tolist() == want


@given(st.data())
def test_runs_are_pixels(data):
    n, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5))
    pixels = np.array(data.draw(st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=k, max_size=k)))
    weights = np.array(data.draw(st.lists(st.integers(0, 4), min_size=k, max_size=k)))
    got = vote([runs(line) for line in pixels], weights)
    shares = weights if weights.sum() else np.ones(k)
    np.testing.assert_array_equal(drawn(got), 2 * (shares @ pixels) > shares.sum())
    assert (got[1:] > 0).all()
    order = data.draw(st.permutations(range(k)))
    assert vote([runs(pixels[i]) for i in order], weights[list(order)]).tolist() == got.tolist()


def test_a_batch_is_one_by_one_and_none_where_no_member_has_a_mask():
    rng = np.random.default_rng(0)
    masks = [runs(rng.integers(0, 2, 20)) for _ in range(9)]
    place, weights = np.array([3, 0, 3, 3, 1, 0, 1, 3, 0]), rng.uniform(0, 1, 9)
    fused = vote_batch(place, masks, weights, 5)
    assert fused[2] is None and fused[4] is None
    for one in (0, 1, 3):
        inside = np.flatnonzero(place == one)
        assert fused[one].tolist() == vote([masks[k] for k in inside], weights[inside]).tolist()
    assert vote_batch(np.zeros(0, int), [], np.zeros(0), 2) == [None, None]


@pytest.mark.parametrize(
    ("masks", "weights", "message"),
    [
        ([], None, "0 masks"),
        ([[2, 2], [2, 1]], None, "mask 0 has 4 pixels, mask 1 3"),
        ([[2, 2], [-1, 5]], None, "mask 1"),
        ([[2, 2.5]], None, "mask 0"),
        ([[2, np.nan]], None, "mask 0"),
        ([[]], None, "mask 0"),
        ([[2, 2]], [1, 2], "1 masks"),
        ([[2, 2]], [np.nan], "1 masks"),
        ([[2, 2]], [-1], "1 masks"),
    ],
)
def test_wrong_input_is_refused(masks, weights, message):
    with pytest.raises(ValueError, match=message):
        vote([np.array(mask) for mask in masks], weights)


@pytest.mark.parametrize(("place", "weights"), [([2], [1]), ([-1], [1]), ([0, 1], [1]), ([0], [1, 1])])
def test_a_wrong_batch_is_refused(place, weights):
    with pytest.raises(ValueError, match="fusing masks"):
        vote_batch(np.array(place), [np.array([1, 1])], np.array(weights), 2)
