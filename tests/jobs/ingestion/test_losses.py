"""What an ingestion lost, in words: photos and items apart, and the commonest kind of reason."""

import pytest

from jobs.ingestion.losses import OF_ITEM, commonest, losses


@pytest.mark.parametrize("reason, of_item", [
    ("item 3 is left out: box [0, 0, 0, 0] is not x1 < x2 and y1 < y2", True),      # store.photo_checks
    ("item 3: polygon 2 is left out: it has no area", True),
    ("annotation: item12 is left out: no category_id", True),                       # deepfashion2
    ("annotation 7 is left out: category_id 9 is none of the file's", True),        # coco
    ("annotation 7 is of image 3, which is not taken from the list", True),
    ("its 2 items are left out: they were drawn on 9 x 9", True),
    ("object 1 is left out: category 3 is no text", True),                          # parquet
    ("the item is left out: category '' is empty", True),
    ("annotation: no source", False),                                               # a whole photo of deepfashion2
    ("items {} are no list", False),                                                # a whole sample of webdataset
    ("row 5 and those after it cannot be read: cut short", False),
    ("image 3 has no id or no file_name", False),
])  # fmt: skip
def test_which_reasons_are_of_items(reason: str, of_item: bool) -> None:
    assert (OF_ITEM.match(reason) is not None) == of_item


@pytest.mark.parametrize("reasons, words", [
    (["no"], "1 photo could not be taken"),
    (["no"] * 1000, "1,000 photos could not be taken"),
    (["item 1 is left out"], "1 item could not be taken"),
    (["no", "no", "item 1 is left out"], "2 photos and 1 item could not be taken"),
])  # fmt: skip
def test_counts(reasons: list[str], words: str) -> None:
    assert losses(reasons) == words


@pytest.mark.parametrize("reasons, said", [
    (["a"], "a (1)"),
    (["a", "b"], "a (1)"),                                      # the first of equally common ones
    (["a", "b 1", "b 2.5"], "b 1 (2)"),                         # numbers may differ
    (["'x' is none", "'y' is none", "a"], "'x' is none (2)"),   # and quoted texts
    (["box [0, 1]", "box [2, -1e5]", "a"], "box [0, 1] (2)"),
])  # fmt: skip
def test_the_commonest_reason(reasons: list[str], said: str) -> None:
    assert commonest(reasons) == said
