"""Names of categories: which a set may have, and a list that grows while photos are read."""

import pytest

from store.categories import DEEPFASHION2, MOST, CategoryList, category_name, problem


@pytest.mark.parametrize(
    "names, reason",
    [
        ((), None),
        (DEEPFASHION2, None),
        (("Röcke & Kleider", "hat"), None),
        (("hat", "hat"), "category 'hat' is named twice"),
        (("",), "category '': want a name"),
        ((" hat",), "category ' hat': want a name"),
        (("a\nb",), "want a name of 1 to 200 printable letters"),
        (("x" * 201,), "want a name of 1 to 200"),
        ((5,), "category '5': want a name"),
        ([str(n) for n in range(MOST)], None),
        ([str(n) for n in range(MOST + 1)], "32768 categories, at most 32767 are possible"),
    ],
)
def test_names(names, reason):
    found = problem(names)
    assert found is None if reason is None else reason in found


def test_a_list_grows_in_order_of_first_use():
    names = CategoryList(("skirt",))
    assert [names.id_of(name) for name in ("cape", "skirt", "hat", "cape")] == [2, 1, 3, 2]
    assert tuple(names) == ("skirt", "cape", "hat") and names[-1] == "hat" and names[:2] == ["skirt", "cape"]
    with pytest.raises(ValueError, match="category ''"):
        names.id_of("")
    assert len(names) == 3


def test_a_full_list_refuses_one_more():
    names = CategoryList([str(n) for n in range(MOST)])
    assert names.id_of("7") == 8
    with pytest.raises(ValueError, match="category 'cape': there are 32767 already"):
        names.id_of("cape")


def test_an_unknown_id_is_told_by_its_number():
    assert [category_name(("cape", "hat"), i) for i in (1, 2, 3, 0)] == ["cape", "hat", "category 3", "photo"]


def test_a_list_of_repeated_names_has_each_once():
    names = CategoryList(["cape", "hat", "cape"])
    assert tuple(names) == ("cape", "hat") and names.id_of("cape") == 1 and names.id_of("belt") == 3
