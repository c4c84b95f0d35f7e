"""One garment for boxes of one place, one result for a product, and the search that goes deep enough for it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jobs.gallery.questions import NOTHING, PhotoGarments, ask, ask_in_words
from postproc.hypotheses import Hypotheses

BOX, BESIDE = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]


class Shelf:
    """A gallery of items in the order of every answer; the similarity of place n is 1 - n / 100."""

    def __init__(self, items: list[tuple[str, int, list[float]]]) -> None:
        names = ("product_id", "image_id", "bbox")
        self.items = [dict(zip(names, item, strict=True)) | {"id": i, "category_id": 8} for i, item in enumerate(items)]
        self.depths: list[int] = []
        self.categories: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self.items)

    def search(self, vectors: np.ndarray, k: int, *, category: Any) -> tuple[np.ndarray, np.ndarray]:
        self.depths.append(k)
        self.categories.append((category.category_id if isinstance(category, Hypotheses) else category).tolist())
        ids = np.arange(k)
        ids = np.where(ids < len(self), ids, -1)
        return np.tile(1 - np.arange(k) / 100, (len(vectors), 1)), np.tile(ids, (len(vectors), 1))

    def lookup(self, ids: np.ndarray) -> list[dict[str, Any]]:
        return [self.items[i] if i >= 0 else {} for i in ids.tolist()]


def garments(*boxes: list[float], score: tuple[float, ...], photo: tuple[int, ...] = ()) -> PhotoGarments:
    n = len(boxes)
    columns = {
        "photo": np.array(photo or [0] * n), "bbox": np.array(boxes, np.float32), "score": np.array(score, np.float32),
        "category_id": np.arange(1, n + 1), "vectors": np.ones((n, 2), np.float32),
        "hypothesis_id": np.arange(1, n + 1)[:, None], "hypothesis_score": np.array(score, np.float32)[:, None],
    }  # fmt: skip
    return PhotoGarments(**NOTHING | columns, failed={})


@pytest.mark.parametrize(
    "right_edge, photo, want",
    [
        (7.0, (0, 0), [2]),  # IoU 0.7: one garment, the surest stays
        (6.0, (0, 0), [1, 2]),  # 0.6 exactly: two
        (7.0, (0, 1), [1, 2]),  # in two photos
    ],
)
def test_boxes_of_one_place_are_one_garment(right_edge, photo, want):
    queries = garments(BOX, [0.0, 0.0, right_edge, 10.0], score=(0.3, 0.4), photo=photo)
    found = ask(Shelf([("p", 1, BOX)]), queries, 1, None)  # type: ignore[arg-type]
    assert sorted(one.category_id for answers in found.values() for one in answers) == want


@pytest.mark.parametrize("category_id, want", [(None, [1, 2]), (2, [1, 2]), (1, [1]), (3, [])])
def test_a_category_keeps_the_garments_that_are_likely_of_it(category_id, want):
    """The first garment is 1 or 2; that it is 3 is said with less than half of the score."""
    queries = garments(BOX, BESIDE, score=(0.6, 0.5))
    may_be = {"hypothesis_id": np.array([[1, 2, 3], [2, 0, 0]])}
    may_be["hypothesis_score"] = np.array([[0.6, 0.4, 0.2], [0.5, 0, 0]], np.float32)
    shelf = Shelf([("p", 1, BOX)])
    found = ask(shelf, dataclasses.replace(queries, **may_be), 1, category_id)  # type: ignore[arg-type]
    assert sorted(one.category_id for answers in found.values() for one in answers) == want
    # what the gallery weighs by: what each may be, or what the user says
    asked = [[1, 2, 3], [2, 0, 0]] if category_id is None else [category_id] * len(want)
    assert shelf.categories == ([asked] if want else [])


def test_words_of_a_category_find_the_items_that_are_likely_of_it():
    shelf = Shelf([("a", 1, BOX), ("b", 2, BOX)])
    shelf.items[1]["hypotheses"] = [{"category_id": 8, "score": 0.5}, {"category_id": 9, "score": 0.3}]
    (answer,) = ask_in_words(shelf, ["blue"], np.ones((1, 2)), 2, 9)  # type: ignore[arg-type]
    assert [hit.item["product_id"] for hit in answer.hits] == ["b"]


def test_a_product_is_found_once_with_its_best_picture():
    shelf = Shelf([("a", 1, BOX)] * 5 + [("b", 2, BOX), ("a", 3, BOX), ("c", 4, BOX)])
    (one,) = ask(shelf, garments(BOX, score=(0.5,)), 3, None)[0]  # type: ignore[arg-type]
    assert [(hit.rank, hit.item["id"]) for hit in one.hits] == [(1, 0), (2, 5), (3, 7)]
    assert [hit.similarity for hit in one.hits] == pytest.approx([1.0, 0.95, 0.93])
    assert shelf.depths == [3, 8]  # deeper, for five of the first three are of one product


def test_without_a_product_boxes_of_one_place_in_a_photo_are_one():
    shelf = Shelf([("", 1, BOX), ("", 1, [0.0, 0.0, 10.0, 9.0]), ("", 1, BESIDE), ("", 2, BOX)])
    (answer,) = ask_in_words(shelf, ["x"], np.ones((1, 2)), 4, None)  # type: ignore[arg-type]
    assert [hit.item["id"] for hit in answer.hits] == [0, 2, 3]


def test_every_picture_where_that_is_wanted():
    shelf = Shelf([("a", 1, BOX)] * 5)
    (one,) = ask(shelf, garments(BOX, score=(0.5,)), 3, None, every=True)[0]  # type: ignore[arg-type]
    assert [hit.item["id"] for hit in one.hits] == [0, 1, 2] and shelf.depths == [3]


def test_a_gallery_with_fewer_products_is_searched_whole_once():
    shelf = Shelf([("a", 1, BOX)] * 5)
    (one,) = ask(shelf, garments(BOX, score=(0.5,)), 3, None)[0]  # type: ignore[arg-type]
    assert len(one.hits) == 1 and shelf.depths == [3, 5]
