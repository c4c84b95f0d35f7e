"""Rankings as CSV: a row a result, safe in a spreadsheet, and the same text again for a program."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.exports import rankings_csv
from jobs.exports.rankings_csv import COLUMNS, column_names, safe
from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from store.errors import UserError
from store.imageset import Item, Photo

BOX = (1.0, 2.0, 5.5, 6.25)
RECORD: dict[str, Any] = {
    "settings": {"limit": None, "search": {"steps": [{"step": "concat"}]}},
    "embedders": [{"name": "lite"}],
    "boxes": ["detected"],
}


def photo(image_id: int, source: str, pair: int = 0, items: int = 1, **more: Any) -> Photo:
    own = {"product_id": f"sku-{image_id}", "file_name": f"{image_id}.png"} | more
    return Photo(image_id, b"", 8, 8, source, pair, items=(Item(8, 1, BOX),) * items, **own)


def ranked(run: FinishedRun, lists: dict[int, list[int]], name: str = "detected/lite") -> None:
    """Queries by photo, each with a list of shop photos, best first: similarity 0.75, 0.5, 0.25."""
    rows = [
        {
            "query_image_id": query, "query_item": 0, "query_bbox": BOX, "query_score": 0.9, "query_category_id": 8,
            "query_hypotheses": [{"category_id": id_, "score": score} for id_, score in ((8, 0.9), (9, 0.25))],
            "gallery_image_id": shops, "gallery_item": [4] * len(shops), "gallery_bbox": [BOX] * len(shops),
            "similarity": [0.75 - 0.25 * place for place in range(len(shops))],
        }
        for query, shops in lists.items()
    ]  # fmt: skip
    tables.write(run.store, f"rankings/{name}.parquet", tables.table(tables.RANKINGS, columns(rows)))


def columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in tables.RANKINGS.names}


def exported(run: FinishedRun) -> list[dict[str, str]]:
    (write,) = rankings_csv.files(run).values()
    file = io.StringIO(newline="")
    n_rows = write(file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    assert n_rows == len(rows)
    return rows


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., FinishedRun]) -> FinishedRun:
    """Consumer photos 1, whose garment shop photo 11 shows, and 2, without a true garment; shop photos 11 and 12."""
    photos = [
        photo(1, "user", pair=5),
        photo(2, "user", items=0, attributes={"street": "yes"}),
        photo(11, "shop", pair=5, attributes={"price": "9.99", "rank": "top"}),
        photo(12, "shop", pair=6, product_id="=1+1", file_name="-a.png", attributes={"colour": 'red, "deep"\nblue'}),
    ]
    return make_run(tmp_path, photos, RECORD)


def test_a_row_a_result(run: FinishedRun) -> None:
    ranked(run, {1: [12, 11], 2: [11]})
    first, second, third = exported(run)
    assert list(first) == [
        *COLUMNS,
        "colour",
        "price",
        "attribute_rank",
    ]  # attributes of consumers' photos are left out
    assert second == {
        "query_file_name": "1.png", "query_image_id": "1", "query_item": "0", "query_x1": "1.0", "query_y1": "2.0",
        "query_x2": "5.5", "query_y2": "6.25", "query_score": "0.9", "query_category": "trousers",
        "query_hypotheses": "trousers 0.9; skirt 0.25",
        "query_product_id": "sku-1", "rank": "2", "similarity": "0.5", "shop_file_name": "11.png",
        "shop_image_id": "11", "shop_item": "4", "shop_x1": "1.0", "shop_y1": "2.0", "shop_x2": "5.5",
        "shop_y2": "6.25", "shop_product_id": "sku-11", "right": "1", "colour": "", "price": "9.99",
        "attribute_rank": "top",
    }  # fmt: skip
    assert [row["right"] for row in (first, second, third)] == ["0", "1", ""]
    assert (first["shop_product_id"], first["shop_file_name"]) == ("'=1+1", "'-a.png")
    assert first["colour"] == 'red, "deep"\nblue'


def test_without_true_boxes_a_photo_of_the_same_product_is_right(
    tmp_path: Path, make_run: Callable[..., FinishedRun]
) -> None:
    """By pair_id where both have one, else by product_id; photo 3 has neither, so that nothing is known of it."""
    photos = [
        photo(1, "user", pair=5, items=0, product_id="a"),
        photo(2, "user", items=0, product_id="a"),
        photo(3, "user", items=0, product_id=""),
        photo(11, "shop", pair=5, items=0, product_id="b"),
        photo(12, "shop", pair=6, items=0, product_id="a"),
        photo(13, "shop", items=0, product_id=""),
    ]
    run = make_run(tmp_path, photos, RECORD)
    ranked(run, {query: [11, 12, 13] for query in (1, 2, 3)})
    right = [row["right"] for row in exported(run)]
    assert right == ["1", "0", "0", "0", "1", "0", "", "", ""]


def test_blocks_give_the_same_rows(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {1: [12, 11], 2: []}
    ranked(run, lists)
    whole = exported(run)
    monkeypatch.setattr(rankings_csv, "BLOCK", 1)
    assert exported(run) == whole and len(whole) == 2


def test_no_query_is_a_header_alone(run: FinishedRun) -> None:
    ranked(run, {})
    assert exported(run) == []


def test_kinds_and_models_that_the_run_has(run: FinishedRun) -> None:
    run = FinishedRun(run.store, run.images, run.record | {"boxes": ["detected", "true"]})
    assert list(rankings_csv.files(run)) == ["rankings-detected-lite.csv", "rankings-true-lite.csv"]
    assert list(rankings_csv.files(run, "true", "lite")) == ["rankings-true-lite.csv"]
    with pytest.raises(UserError, match="no rankings of big; it has lite"):
        rankings_csv.files(run, None, "big")


@pytest.mark.parametrize("text, want", [
    ("", ""),
    ("red", "red"),
    ("a=b", "a=b"),
    ("=1+1", "'=1+1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("+49 30", "'+49 30"),
    ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
    ("-5.50", "-5.50"),  # numbers stay numbers
    ("+7", "+7"),
    ("-5\n=1", "'-5\n=1"),
    ("\t=1", "'\t=1"),
    ("\r=1", "'\r=1"),
    ("'quoted'", "''quoted'"),
])  # fmt: skip
def test_no_text_is_a_formula(text: str, want: str) -> None:
    assert safe(text) == want


@given(st.text(st.characters(codec="utf-8")) | st.text("=+-@\t\r\n'1"))
def test_text_comes_back(text: str) -> None:
    cell = safe(text)
    assert cell.removeprefix("'") == text and (cell == text or cell == f"'{text}")


@pytest.mark.parametrize("attributes, want", [
    ([], []),
    (["price", "title"], ["price", "title"]),
    (["Rank", "attribute_rank"], ["attribute_Rank", "attribute_attribute_rank"]),  # DuckDB's names have no case
    (["Colour", "colour"], ["Colour", "attribute_colour"]),
])  # fmt: skip
def test_every_column_has_its_own_name(attributes: list[str], want: list[str]) -> None:
    assert column_names(attributes) == want
