"""What was found, for a terminal: one line an item, whatever its names hold."""

import pytest

from jobs.gallery.answers import Answer, FoundGarment, Hit, Offer, as_json, lines, table
from store.categories import DEEPFASHION2


def hit(rank: int, product: str = "p", name: str = "a.jpg", **more: object) -> Hit:
    item = {"product_id": product, "file_name": name, "category_id": 8, "bbox": [1.4, 2.0, 30.6, 40.0]}
    return Hit(rank, 1 - rank / 10, item | more)


def test_a_table_stands_in_columns():
    assert table([hit(1), hit(2, "longer", "b.jpg", category_id=1)], DEEPFASHION2) == [
        "rank  similarity  product  file name  category          box x1 y1 x2 y2 px",
        "   1      0.9000  p        a.jpg      trousers          1 2 31 40",
        "   2      0.8000  longer   b.jpg      short sleeve top  1 2 31 40",
    ]


def test_titles_and_prices_stand_where_the_shop_tells_them():
    offers = {1: Offer("Midi skirt", "49.90 EUR", attributes={"price": "49.90", "colour": "red"}), 2: Offer("p")}
    hits = [hit(1, id=1), hit(2, id=2)]
    assert table(hits, DEEPFASHION2, offers) == [
        "rank  similarity  product  title       price      file name  category  box x1 y1 x2 y2 px",
        "   1      0.9000  p        Midi skirt  49.90 EUR  a.jpg      trousers  1 2 31 40",
        "   2      0.8000  p                               a.jpg      trousers  1 2 31 40",
    ]
    said = as_json(Answer("", b"", [], text="red", hits=hits), DEEPFASHION2, offers)
    assert [item["attributes"] for item in said["items"]] == [{"price": "49.90", "colour": "red"}, {}]


@pytest.mark.parametrize(
    "garments, first",
    [(0, "x.jpg: no garments found"), (1, "x.jpg: 1 garment found"), (2, "x.jpg: 2 garments found")],
)
def test_garments_are_counted(garments, first):
    said = lines(Answer("x.jpg", b"", [FoundGarment((0, 0, 9, 9), 0.25, 9, [])] * garments), DEEPFASHION2)
    assert said[0] == first
    assert said[1:] == [
        line
        for i in range(1, garments + 1)
        for line in (f"  {i}. skirt 0.25, box 0 0 9 9", "     the gallery has nothing for it")
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\r\x1b[31mb", "\x9b2J", "‮gpj.exe", "x" * 5000, "\0", "\ud800"])
def test_a_name_is_never_more_than_a_part_of_its_line(name):
    said = lines(Answer(name, b"", [FoundGarment((0, 0, 9, 9), 0.25, 9, [hit(1, name, name)])]), DEEPFASHION2)
    assert len(said) == 4 and all(line.isprintable() for line in said)


def test_a_long_name_is_there_to_be_copied():
    assert "n" * 90 in table([hit(1, "n" * 90), hit(2)], DEEPFASHION2)[1]


def test_a_category_nobody_knows_has_its_number():
    assert "category 14" in table([hit(1, category_id=14)], DEEPFASHION2)[1]


def test_what_a_garment_may_be_is_named():
    may_be = [(10, 0.5), (9, 0.6), (1, 0.29)]  # 0.29 is less than half of 0.6
    said = lines(Answer("x.jpg", b"", [FoundGarment((0, 0, 9, 9), 0.5, 10, [], may_be)]), DEEPFASHION2)
    assert said[1] == "  1. skirt or short sleeve dress 0.50, box 0 0 9 9"
    pairs = [{"category_id": 8, "score": 0.5}, {"category_id": 7, "score": 0.25}]
    assert "trousers or shorts" in table([hit(1, hypotheses=pairs)], DEEPFASHION2)[1]
    assert " trousers " in table([hit(1, hypotheses=None)], DEEPFASHION2)[1]
