"""Crops kept on disk: the same as cut anew, cut once, whole or not at all, and never those of other photos or sizes."""

import os

import numpy as np
import pytest

from jobs.training import crops_cache
from jobs.training.data import LearningPhoto, LearningSet
from sources.mixtures import MixturePart
from tests.jobs.pictures import pairs


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[LearningPhoto]:
    uri = pairs(tmp_path_factory.mktemp("set"))
    return list(LearningSet([MixturePart("pairs", uri, 1.0)]).photos())


def same(one: list | None, other: list | None) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(
        np.array_equal(a.canvas, b.canvas) and a.box == b.box and a.extent == b.extent
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("as_jpeg", [False, True])
def test_kept_crops_are_those_cut_anew(photos, tmp_path, as_jpeg, monkeypatch):
    folder = str(tmp_path / os.fsdecode(b"caf\xe9"))  # a name need not be UTF-8
    cut = list(crops_cache.pieces(photos, 32, as_jpeg))
    first = list(crops_cache.pieces(photos, 32, as_jpeg, folder))
    monkeypatch.setattr(crops_cache, "cut", None)  # the second time nothing is decoded
    second = list(crops_cache.pieces(photos, 32, as_jpeg, folder))
    assert len(cut) == len(photos) and sum(map(len, cut)) > 0
    assert all(map(same, cut, first)) and all(map(same, cut, second))


def test_a_photo_that_cannot_be_decoded_stays_none(photos, tmp_path, monkeypatch):
    whole = crops_cache.cut

    def broken(photo, size, as_jpeg=False):
        return None if photo is photos[1] else whole(photo, size, as_jpeg)

    monkeypatch.setattr(crops_cache, "cut", broken)
    for _ in range(2):
        found = list(crops_cache.pieces(photos, 32, False, str(tmp_path)))
        assert [number for number, one in enumerate(found) if one is None] == [1]


@pytest.mark.parametrize("change", ["size", "as_jpeg", "photos"])
def test_others_are_not_taken(photos, tmp_path, change):
    list(crops_cache.pieces(photos, 32, False, str(tmp_path)))
    which = photos[1:] if change == "photos" else photos
    size, as_jpeg = (48 if change == "size" else 32), change == "as_jpeg"
    found = list(crops_cache.pieces(which, size, as_jpeg, str(tmp_path)))
    assert all(map(same, found, crops_cache.pieces(which, size, as_jpeg)))
    assert len(list(tmp_path.iterdir())) == 2


def test_half_a_file_is_cut_anew(photos, tmp_path, capsys):
    list(crops_cache.pieces(photos, 32, False, str(tmp_path)))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    found = list(crops_cache.pieces(photos, 32, False, str(tmp_path)))
    assert all(map(same, found, crops_cache.pieces(photos, 32, False)))
    assert "cropping again" in capsys.readouterr().out


def test_a_training_that_dies_while_cutting_leaves_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(crops_cache, "cut", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(crops_cache.pieces(photos, 32, False, str(tmp_path)))
    assert not list(tmp_path.iterdir())
