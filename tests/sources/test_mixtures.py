"""Mixtures: the paper's six by name, and one's own as URI[:WEIGHT]."""

import pytest

from sources import mixtures
from sources.mixtures import MixturePart


def test_the_papers_mixtures():
    """Each is the first with something added; m5 has all."""
    assert list(mixtures.MIXTURES) == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert {names[0] for names in mixtures.MIXTURES.values()} == {"deepfashion2"}
    assert set(mixtures.MIXTURES["m4"]) == set(mixtures.MIXTURES["m3"]) | set(mixtures.MIXTURES["m2"])
    assert mixtures.MIXTURES["m5"] == ("deepfashion2", "street2shop", "darn", "mvc", "mpv")


@pytest.mark.parametrize(
    "root, want",
    [("runs/sets", "runs/sets/darn"), ("s3://B/x/", "s3://B/x/darn"), ("/", "/darn"), ("file:///d", "file:///d/darn")],
)
def test_parts(root, want):
    assert [part.name for part in mixtures.parts("m3", root)] == ["deepfashion2", "street2shop", "darn"]
    assert mixtures.parts("m3", root)[2] == MixturePart("darn", want, 1.0)


def test_no_such_mixture():
    with pytest.raises(ValueError, match="mixture 'm6': want one of m0, m1, m2, m3, m4, m5"):
        mixtures.parts("m6", "runs")
    with pytest.raises(ValueError, match="m1: want the place that holds deepfashion2, street2shop"):
        mixtures.parts("m1", "")


@pytest.mark.parametrize(
    "text, name, uri, weight",
    [
        ("runs/darn", "darn", "runs/darn", 1.0),
        ("runs/darn:2", "darn", "runs/darn", 2.0),
        ("runs/darn/:0.5", "darn", "runs/darn/", 0.5),
        ("darn:1e-3", "darn", "darn", 0.001),
        ("s3://bucket/darn", "darn", "s3://bucket/darn", 1.0),
        ("s3://bucket/darn:3", "darn", "s3://bucket/darn", 3.0),
        ("s3://bucket", "bucket", "s3://bucket", 1.0),
        ("file:///data/darn:0.1", "darn", "file:///data/darn", 0.1),
        ("C:\\sets\\darn", "darn", "C:\\sets\\darn", 1.0),
        ("C:\\sets\\darn:4", "darn", "C:\\sets\\darn", 4.0),
        ("runs/12:30/darn", "darn", "runs/12:30/darn", 1.0),
        ("runs/darn:v2:1", "darn:v2", "runs/darn:v2", 1.0),  # a colon in the last part: with its weight
    ],
)
def test_own_parts(text, name, uri, weight):
    assert mixtures.parse(text) == MixturePart(name, uri, weight)


@pytest.mark.parametrize("tail", ["0", "-1", "nan", "inf", "", "heavy", "1,5"])
def test_bad_weights(tail):
    with pytest.raises(ValueError, match=rf"weight '{tail}'; want URI or URI:WEIGHT with a finite weight above 0"):
        mixtures.parse(f"s3://bucket/darn:{tail}")


@pytest.mark.parametrize("text", ["", ":2", "/"])
def test_no_address(text):
    with pytest.raises(ValueError, match="no address"):
        mixtures.parse(text)
