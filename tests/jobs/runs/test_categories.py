"""The categories of a run, and what detectors' classes become: tables of sets, classes and ids, and what is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import pytest

from detection.models import ATSS_TINY
from jobs.runs.categories import remarks, resolve, with_category_ids
from jobs.runs.models import Model
from store.categories import DEEPFASHION2, recorded
from store.errors import UserError
from store.imageset import ImageSet

COCO = ("person", "tie", "dress")


@dataclasses.dataclass(frozen=True)
class Spec:
    name: str
    categories: tuple[str, ...]
    classes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SetOf:
    categories: tuple[str, ...]


def detector(*categories: str, name: str = "own", **classes: str | None) -> Model:
    return Model(name, Spec(name, categories, classes), "weights", "")


def joined(stated: tuple[str, ...], *detectors: Model) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    categories, models = resolve(cast(ImageSet, SetOf(stated)), detectors)
    return categories, [model.category_ids for model in models]


@pytest.mark.parametrize("stated, detectors, want, ids", [
    (DEEPFASHION2, [detector(*DEEPFASHION2)], DEEPFASHION2, [tuple(range(1, 14))]),  # as ever
    (("cape", "dress"), [detector(*COCO)], ("cape", "dress"), [(0, 0, 2)]),  # by name
    (("cape", "dress"), [detector(*COCO, tie="cape")], ("cape", "dress"), [(0, 1, 2)]),  # by entry
    (("cape", "dress"), [detector(*COCO, tie="dress")], ("cape", "dress"), [(0, 2, 2)]),  # two become one
    (("cape", "dress"), [detector(*COCO, tie="cape", dress=None)], ("cape", "dress"), [(0, 1, 0)]),
    (("tie", "dress"), [detector(*COCO, tie="dress", dress="tie")], ("tie", "dress"), [(0, 2, 1)]),
    ((), [detector(*COCO, person=None)], ("tie", "dress"), [(0, 1, 2)]),  # the set states none
    ((), [detector("b", "a"), detector("c", "a", name="second")], ("b", "a", "c"), [(1, 2), (3, 2)]),
    ((), [detector("b", "a"), detector("x", name="second", x="b")], ("b", "a"), [(1, 2), (1,)]),
    (("cape",), [], ("cape",), []),
    (("Cape", "DRESS"), [detector(*COCO, tie="cape")], ("Cape", "DRESS"), [(0, 1, 2)]),  # in another letter case
    (("Dress", "DRESS", "cape"), [detector("dress", "cape")], ("Dress", "DRESS", "cape"), [(0, 3)]),  # which of two?
    (("Dress", "dress"), [detector("dress")], ("Dress", "dress"), [(2,)]),
])  # fmt: skip
def test_what_each_class_becomes(stated, detectors, want, ids):
    assert joined(stated, *detectors) == (want, ids)


@pytest.mark.parametrize("detectors, reason", [
    ([detector(*COCO, dres="cape")], "own: classes: it has no class 'dres'; did you mean 'dress'?"),
    ([detector(*COCO, zzz=None)], "own: classes: it has no class 'zzz'; there are: person, tie, dress"),
    ([detector(*COCO, tie="CAP")], "own: classes: 'CAP' is no category of this run; did you mean 'cape'?"),
    ([detector(*COCO, tie="cap")], "own: classes: 'cap' is no category of this run; did you mean 'cape'?"),
    ([detector("person", "tie")], "own: none of its classes (person, tie) is a category of this run (cape, dress)"),
    ([detector(*COCO, dress=None)], "own: none of its classes"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(detectors, reason):
    with pytest.raises(UserError) as refused:
        joined(("cape", "dress"), *detectors)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("detectors, want", [
    ([detector(*COCO, person=None, tie="cape")], []),                          # all is said in the entry
    ([detector(*COCO)], ["own: boxes of person, tie are left out; no category of this run has such a name",
                         "no detector finds cape"]),
    ([detector(*COCO, person=None), detector("cape", name="second")],
     ["own: boxes of tie are left out; no category of this run has such a name"]),
    ([], []),
])  # fmt: skip
def test_what_is_left_out_and_what_is_not_found_is_said(detectors, want):
    categories = ("cape", "dress")
    assert list(remarks(with_category_ids(detectors, categories), categories)) == want


def test_categories_that_differ_in_letter_case_alone_are_named() -> None:
    categories = ("Skirt", "cape", "skirt")
    (first, *_) = remarks(with_category_ids([detector("cape")], categories), categories)
    assert first == "categories 'Skirt' and 'skirt' differ in letter case alone: they are 2 here"


def test_hundreds_of_names_make_one_short_line() -> None:
    categories = tuple(f"c{i}" for i in range(300))
    (line,) = remarks(with_category_ids([detector("c7")], categories), categories)
    assert line == "no detector finds c0, c1, c2, c3, c4, c5, c6, c8, c9, c10 and 289 more"


def test_detections_of_before_stay_valid_and_follow_from_the_ids_else() -> None:
    plain = Model("atss-tiny", ATSS_TINY, ATSS_TINY.sha256, "")
    (same,) = with_category_ids([plain], DEEPFASHION2)
    (more,) = with_category_ids([plain], (*DEEPFASHION2, "cape"))
    assert same.basis == more.basis == plain.basis and set(plain.basis) == {"name", "spec", "weights"}
    skirts = dataclasses.replace(plain, spec=dataclasses.replace(ATSS_TINY, classes={"skirt": "kilt"}))
    (moved,) = with_category_ids([skirts], ("kilt", "vest"))
    assert moved.basis == plain.basis | {"classes": [0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]}


@pytest.mark.parametrize("record, want", [
    ({}, DEEPFASHION2), ({"categories": ["cape"]}, ("cape",)), ({"categories": []}, DEEPFASHION2),
])  # fmt: skip
def test_records_of_before_have_deepfashion2s(record: dict[str, Any], want: tuple[str, ...]) -> None:
    assert recorded(record) == want
