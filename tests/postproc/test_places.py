"""Keys found among others, against a dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from postproc.places import places, spans

KEYS = st.lists(st.one_of(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1])), max_size=8)


@given(keys=KEYS, wanted=KEYS)
def test_the_first_of_equal_keys_and_never_a_neighbour(keys: list, wanted: list) -> None:
    first = {key: place for place, key in reversed([*enumerate(keys)])}
    found = places(np.array(keys, np.int64), np.array(wanted, np.int64))
    assert found.tolist() == [first.get(key, -1) for key in wanted]


def test_the_shape_is_that_of_what_is_wanted() -> None:
    assert places(np.array([7, 5]), np.array([[5, 6], [7, 7]])).tolist() == [[1, -1], [0, 0]]
    assert places(np.zeros(0, np.int64), np.array([[5, 6], [7, 7]])).tolist() == [[-1, -1], [-1, -1]]


@given(held=KEYS, wanted=KEYS)
def test_all_pairs_of_equal_values(held: list, wanted: list) -> None:
    ordered = sorted(held)
    row, position = spans(np.array(ordered, np.int64), np.array(wanted, np.int64))
    want = [(i, j) for i, key in enumerate(wanted) for j, other in enumerate(ordered) if key == other]
    assert list(zip(row.tolist(), position.tolist(), strict=True)) == want
