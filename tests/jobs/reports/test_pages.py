"""Data for the pages' scripts stays data, and numbers are spelt for people."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reports.pages import as_script, content_of, duration

texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(texts)
def test_data_comes_back_and_nothing_in_it_is_markup(content):
    script = as_script("name", content)
    assert content_of(script) == content
    assert script.isascii() and not set(script) & set(b"<>&") and script.count(b"\n") == 1
    assert json.loads(script[len(b'(window.REPORT ??= {})["name"] = ') : -2]) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value):
    with pytest.raises(ValueError):
        as_script("name", [value])


@pytest.mark.parametrize(
    "seconds, want", [(None, "–"), (8.44, "8.4 s"), (59.96, "60.0 s"), (725, "12 min 05 s"), (11220, "3 h 07 min")]
)
def test_durations_read_as_a_person_says_them(seconds, want):
    assert duration(seconds) == want
