"""Names, views and a user's own fields, for any spec; the tables of detectors and embedders have tests of their own."""

from dataclasses import dataclass

import pytest

from networks.specs import find, own, parse_view


@dataclass(frozen=True)
class Spec:
    name: str
    size: tuple[int, int] = (1, 1)
    weights: str = ""
    sha256: str = ""
    flip: bool = False


SHIPPED = (Spec("small", (2, 2), "small.safetensors", "ab"), Spec("large"))


@pytest.mark.parametrize("view, want", [
    ("flip", (True, 1.0)),
    ("x0.5", (False, 0.5)),
    ("flip@x2", (True, 2.0)),
    ("x0.25", (False, 0.25)),     # the limits themselves
    ("x4", (False, 4.0)),
    ("x0.2", None),               # below
    ("x4.1", None),               # above
    ("x1", None),                 # changes nothing
    ("x0.50", None),              # not as Python writes it
    ("0.5", None),                # no prefix
    ("xnan", None),
    ("x2@flip", None),            # the other way round
    ("flip@flip", None),
    ("flip@x2@x2", None),
    ("flip@", None),
    ("", None),
])  # fmt: skip
def test_a_view_is_a_mirror_a_number_or_both(view, want):
    assert parse_view(view, "x", (0.25, 4.0), unchanged=1.0) == want


def test_a_spec_is_found_by_name():
    assert find(SHIPPED, "large", "model") is SHIPPED[1]
    with pytest.raises(ValueError, match="no model named 'tiny'; there are: small, large"):
        find(SHIPPED, "tiny", "model")


@pytest.mark.parametrize("fields, want", [
    ({"name": "mine", "size": [3, 4]}, Spec("mine", (3, 4))),                                     # lists are tuples
    ({"name": "mine", "base": "small"}, Spec("mine", (2, 2), "small.safetensors", "ab")),
    ({"base": "small", "weights": "mine"}, Spec("small", (2, 2), "mine", "")),                    # another file
    ({"base": "small", "weights": "mine", "sha256": "cd"}, Spec("small", (2, 2), "mine", "cd")),
    ({"base": "small", "view": "flip"}, Spec("small", (2, 2), "small.safetensors", "ab")),        # left to the caller
])  # fmt: skip
def test_own_fields_go_over_those_of_the_base(fields, want):
    assert own(fields, Spec, SHIPPED, "model", needs="size", hidden=("flip",)) == want


@pytest.mark.parametrize("fields, message", [
    ({"name": "mine", "size": [1, 1], "flip": True}, "model 'mine': unknown field 'flip'; allowed: base, name, size"),
    ({"name": "mine"}, "at least `name` and `size`, or `name` and `base`"),
    ({"name": "small", "weights": "x"}, "'small' ships with the program: to change its fields, add `base: small`"),
    ({"base": "tiny"}, "no model named 'tiny'"),
    ({"base": ["small"]}, "no model named"),
])  # fmt: skip
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        own(fields, Spec, SHIPPED, "model", needs="size", hidden=("flip",))
