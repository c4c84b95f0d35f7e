"""What is learnt from: one's own sets and mixtures, and never a photo that judges."""

import argparse
import dataclasses

import pytest

from jobs.training import flags
from jobs.training.data import LearningSet
from store.errors import UserError
from store.imageset import Item, Photo
from store.imageset_write import write_imageset
from tests.jobs.pictures import png


def photo(image_id: int, pair_id: int, shade: int) -> Photo:
    return Photo(image_id, png(shade), 8, 6, "shop", pair_id=pair_id, items=(Item(1, 1, (0, 0, 8, 6)),))


def write(folder, *photos: Photo) -> str:
    write_imageset(photos, folder, source={"adapter": "test", "arguments": {}})
    return str(folder)


def args(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_imagesets(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("words, want", [
    (["--imageset", "a"], [("a", 1.0)]),
    (["--imageset", "a:0.5", "--imageset", "s3://b/c"], [("a", 0.5), ("s3://b/c", 1.0)]),
    (["--mixture", "m1", "--data", "sets/"], [("sets/deepfashion2", 1.0), ("sets/street2shop", 1.0)]),
    (["--mixture", "m0", "--data", "s3://b", "--imageset", "own:2"], [("s3://b/deepfashion2", 1.0), ("own", 2.0)]),
])  # fmt: skip
def test_parts(words, want):
    assert [(part.uri, part.weight) for part in flags.imagesets(args(*words))] == want


@pytest.mark.parametrize("words, message", [
    ([], "nothing to learn from"),
    (["--mixture", "m1"], "--mixture and --data go together"),
    (["--imageset", "a:0"], "weight '0'"),
])  # fmt: skip
def test_parts_that_cannot_be(words, message):
    with pytest.raises(UserError, match=message):
        flags.imagesets(args(*words))


def test_photos_that_judge_are_not_learnt_from(tmp_path):
    """Bytes by shade: 1 and 2 are learnt from, 10 is held out and comes again in the other set, 20 validates."""
    first = write(tmp_path / "a", photo(1, 1, 1), photo(2, 10, 10), photo(3, 3, 20), photo(4, 20, 20))
    second = write(tmp_path / "b", photo(1, 7, 10), photo(2, 8, 2), photo(3, 30, 10))
    validation = write(tmp_path / "v", photo(1, 5, 20), photo(2, 6, 21))
    learning = LearningSet(flags.imagesets(args("--imageset", first, "--imageset", second)), validation)
    found = [(p.part, p.facts["pair_id"], p.held_out) for p in learning.photos()]
    assert found == [(0, 1, False), (0, 10, True), (1, 8, False), (1, 30, True)]
    assert learning.left_out == {"in the validation set": 2, "held out elsewhere": 1}  # pairs 3 and 20; pair 7
    assert [p.facts["pair_id"] for p in learning.validation_photos()] == [5, 6]
    assert next(iter(learning.photos())).read()["image"] == png(1)


def test_a_checkpoint_remembers_the_data(tmp_path):
    first = write(tmp_path / "a", photo(1, 1, 1))
    sets = flags.imagesets(args("--imageset", first))
    want = LearningSet(sets).identity()
    assert want["validation"] is None and want["data"][0][1] == 1.0
    heavier = LearningSet([sets[0]._replace(weight=2.0)])
    assert heavier.identity() != want
    other = write(tmp_path / "b", dataclasses.replace(photo(1, 1, 1), pair_id=2))
    assert LearningSet(flags.imagesets(args("--imageset", other))).identity() != want


def test_where_the_pair_is_unknown_the_photo_decides(tmp_path):
    unknown = write(tmp_path / "a", *(photo(n, 0, n) for n in range(1, 22)))
    found = list(LearningSet(flags.imagesets(args("--imageset", unknown))).photos())
    assert [p.facts["image_id"] for p in found if p.held_out] == [10, 20]


def test_loose_boxes_teach_only_who_takes_them(tmp_path):
    loose = write(tmp_path / "a", photo(1, 1, 1), dataclasses.replace(photo(2, 2, 2), weak_box=True))
    bare = dataclasses.replace(photo(3, 3, 3), items=())
    write_imageset([bare], tmp_path / "b", source={"adapter": "test", "arguments": {}})
    sets = flags.imagesets(args("--imageset", loose, "--imageset", str(tmp_path / "b")))
    assert [p.facts["pair_id"] for p in LearningSet(sets).photos()] == [1, 2]
    strict = LearningSet(sets, weak_boxes=False)
    assert [p.facts["pair_id"] for p in strict.photos()] == [1]
    assert strict.left_out_counts() == "1 with weak boxes, 1 without garments"
