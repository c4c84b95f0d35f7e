"""The seller's CSV: what is refused with its line, and which row means which picture."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.metadata import Facts, Garment, match, read_metadata


def written(folder: Path, text: str) -> Path:
    (folder / "shop.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / "shop.csv"


BOXES = "file_name,category,x1,y1,x2,y2\n"


@pytest.mark.parametrize("why, text, facts", [
    ("two columns", "file_name,product_id\na.jpg,P1\n", {"a.jpg": Facts("P1", 0)}),
    ("a byte order mark, CRLF", "\ufefffile_name,product_id\r\na.jpg,P1\r\n", {"a.jpg": Facts("P1", 0)}),
    ("quotes and a comma", 'file_name,product_id\n"a,b.jpg","P ""1"""\n', {"a,b.jpg": Facts('P "1"', 0)}),
    ("other columns, any order", "price,pair_id,product_id,file_name\n9,7,P,a.jpg\n",
     {"a.jpg": Facts("P", 7, (("price", "9"),))}),
    ("an empty cell is no attribute", "file_name,product_id,price\na,P,\n", {"a": Facts("P")}),
    ("a text of two lines", 'file_name,product_id,text\na,P,"x\ny"\n', {"a": Facts("P", 0, (("text", "x\ny"),))}),
    ("a column without a name", ",file_name,product_id\n0,a,P\n", {"a": Facts("P")}),
    ("a pair alone", "file_name,pair_id\na,4\n", {"a": Facts("", 4)}),
    ("a category alone", "file_name,category\na,cape\n", {"a": Facts("", 0, (), (Garment("cape"),))}),
    ("two garments", BOXES + "a,cape,1,2,3,4.5\na,hat,,,,\nb,,,,,\n",
     {"a": Facts("", 0, (), (Garment("cape", (1, 2, 3, 4.5)), Garment("hat"))), "b": Facts()}),
    ("the largest pair", f"file_name,product_id,pair_id\na,P,{2**63 - 1}\n", {"a": Facts("P", 2**63 - 1)}),
    ("nothing known", "file_name,product_id,pair_id\na.jpg,,\n", {"a.jpg": Facts("", 0)}),
    ("spaces around names", "file_name , product_id\na.jpg, P\n", {"a.jpg": Facts("P")}),
    ("rows of commas alone", "file_name,product_id\n,\na.jpg,P\n , \n", {"a.jpg": Facts("P")}),
    ("one box of shares among pixels", BOXES + "a,cape,0,0,1,1\nb,hat,0,0,1,2\n",
     {"a": Facts(garments=(Garment("cape", (0, 0, 1, 1)),)), "b": Facts(garments=(Garment("hat", (0, 0, 1, 2)),))}),
    ("empty lines", "file_name,product_id\n\na.jpg,P\n\n", {"a.jpg": Facts("P", 0)}),
    ("a product that begins so", "file_name,product_id\na.jpg,nano\n", {"a.jpg": Facts("nano", 0)}),
])  # fmt: skip
def test_rows(tmp_path: Path, why: str, text: str, facts: dict) -> None:
    assert read_metadata(written(tmp_path, text)) == facts, why


HEADER = "file_name,product_id,pair_id\n"


@pytest.mark.parametrize("why, text, message", [
    ("nothing", "", "shop.csv is empty, or its first line is"),
    ("a first line of nothing", "\n" + HEADER, "shop.csv is empty, or its first line is"),
    ("another header", "name,product_id\na.jpg,P\n", "no column file_name in its first line; it has 'name', 'prod"),
    *((f"a header with {name}", f"{name},product_id\na.jpg,P\n", f"in its first line; it has '{name}': call it file_n")
      for name in ("File_Name", "filename", "file name", "File-Name")),
    ("a header with Product ID", "file_name,Product ID\na,P\n", "it has 'Product ID': call it product_id"),
    ("semicolons", "file_name;product_id\na;P\n", "its cells are separated by semicolons; save it with commas"),
    ("semicolons, and a comma", 'product_id;"price, EUR";file_name\n', "its cells are separated by semicolons"),
    ("tabs", "file_name\tproduct_id\na\tP\n", "its cells are separated by tabs; save it with commas"),
    ("a line for Excel", "sep=;\nfile_name;product_id\na;P\n", "its first line is 'sep=;'; take it away"),
    ("a line for Excel, commas", "sep=,\n" + HEADER, "its first line is 'sep='; take it away"),
    ("a column twice", "file_name,product_id,product_id\na.jpg,P,Q\n", "names column 'product_id' more than once"),
    ("a header alone", HEADER, "no rows below its header"),
    ("a short row", HEADER + "a.jpg,P,1\nb.jpg,P\n", "line 3: 2 cells, the header has 3"),
    ("more cells than columns", HEADER + "a.jpg,P,1,x\n", "line 2: 4 cells, the header has 3"),
    ("a quote left open", HEADER + 'a.jpg,"P,1\nb.jpg,Q,2\n', "line 3: unexpected end of data; is a quote left open"),
    ("closed by the next row's", HEADER + 'a.jpg,"P,1\nb.jpg,"Q",2\n', "is a quote left open before it"),
    ("a line's end in an id", HEADER + 'a.jpg,"P\nQ",1\n', r"line 3: product_id 'P\\nQ' runs over a line's end"),
    ("a line's end in a name", HEADER + '"a\n.jpg",P,1\n', r"line 3: file_name 'a\\n.jpg' runs over a line's end"),
    ("no name", HEADER + ",P,1\n", "line 2: no file_name"),
    ("a name twice", HEADER + "a.jpg,P,1\na.jpg,P,1\n", "line 3: a.jpg occurs twice; .* needs a category$"),
    ("a photo of two products", HEADER + "a.jpg,P,1\na.jpg,Q,1\n", "occurs twice; .* only one can be its product"),
    *((f"a missing value: {word}", HEADER + f"a.jpg,{word},1\n", f"line 2: product_id '{word}'; leave the cell empty")
      for word in ("nan", "NaN", "None", "NULL", "<NA>", "#N/A")),
    *((f"a pair of {pair}", HEADER + f"a.jpg,P,{pair}\n", f"line 2: pair_id '{pair}' is not a whole number below 2")
      for pair in ("-1", "1.0", "x", "٣", str(2**63), "1" * 40)),
    ("neither products, pairs nor categories", "file_name,price\na,5\n", "names none of product_id, pair_id and cat"),
    ("half a box", "file_name,category,x1,y1\na,cape,1,2\n", "a box needs the columns .*; there is x1, y1"),
    ("boxes of no category", "file_name,product_id,x1,y1,x2,y2\na,P,1,2,3,4\n", "a box needs the columns category"),
    ("a box without a category", BOXES + "a,,1,2,3,4\n", "line 2: a box without a category"),
    ("three numbers", BOXES + "a,cape,1,2,3,\n", "line 2: box 1, 2, 3, : want four numbers, or four empty cells"),
    ("a word for a number", BOXES + "a,cape,1,2,3,wide\n", "line 2: box 1, 2, 3, wide: want four numbers"),
    ("a missing category", BOXES + "a,nan,1,2,3,4\n", "line 2: category 'nan'; leave the cell empty"),
    ("the same garment twice", BOXES + "a,cape,,,,\na,cape,,,,\n", "line 3: a has the same cape twice"),
    ("a photo twice", BOXES + "a,cape,,,,\na,,,,,\n", "line 3: a occurs twice"),
    ("rows that disagree", "file_name,category,price\na,cape,5\na,hat,6\n",
     "line 3: a has price '6' here and '5' before; the rows of a photo must agree"),
    ("Latin-1", HEADER + "caf\udce9.jpg,P,1\n", 'is not a UTF-8 CSV: .* byte 0xe9 .*; save it as "CSV UTF-8"'),
    ("UTF-16", "\udcff\udcfef\0i\0", 'is not a UTF-8 CSV: it is UTF-16; save it as "CSV UTF-8"'),
    ("a workbook", "PK\x03\x04\udcff\udcfe", 'is not a UTF-8 CSV: it is an Excel workbook; save it as "CSV UTF-8"'),
    ("shares of the sides", BOXES + "a,cape,0.1,0.2,0.5,1\nb,hat,0,0,1.001,0.5\nc,hat,,,,\n",
     "shop.csv: all 2 boxes end within 1.5 x 1.5 pixels; want pixels, not shares"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, why: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_metadata(written(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*shop.csv: No such file"):
        read_metadata(tmp_path / "shop.csv")


CAFE = [unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD")]


@pytest.mark.parametrize("why, rows, pictures, matched", [
    ("equal", ["a.jpg"], ["a.jpg", "b.jpg"], {"a.jpg": "a.jpg"}),
    ("another case", ["A.JPG", "shoes/B.jpg"], ["a.jpg", "Shoes/b.jpg"],
     {"a.jpg": "A.JPG", "Shoes/b.jpg": "shoes/B.jpg"}),
    ("./ in front", ["./a.jpg"], ["a.jpg"], {"a.jpg": "./a.jpg"}),
    ("/ in front", ["/a.jpg"], ["a.jpg"], {"a.jpg": "/a.jpg"}),
    ("composed for decomposed", CAFE[:1], CAFE[1:], {CAFE[1]: CAFE[0]}),
    ("decomposed for composed", CAFE[1:], CAFE[:1], {CAFE[0]: CAFE[1]}),
    ("another system's separator", ["x\\a.jpg"], ["x/a.jpg"], {"x/a.jpg": "x\\a.jpg"}),
    ("a bucket's prefix", ["shop/1/a.jpg", "shop/1/x/b.jpg"], ["a.jpg", "x/b.jpg"],
     {"a.jpg": "shop/1/a.jpg", "x/b.jpg": "shop/1/x/b.jpg"}),
    ("another machine's path", ["C:\\Bob\\a.jpg", "C:\\Bob\\b.jpg"], ["a.jpg", "b.jpg"],
     {"a.jpg": "C:\\Bob\\a.jpg", "b.jpg": "C:\\Bob\\b.jpg"}),
    ("two pictures of one key", ["A.jpg"], ["a.jpg", "a.JPG"], {}),
    ("two rows of one key", ["A.jpg", "./a.JPG"], ["a.jpg"], {}),
    ("the equal one is not taken twice", ["a.jpg", "A.jpg"], ["a.jpg"], {"a.jpg": "a.jpg"}),
    ("the equal one leaves the other", ["a.jpg", "A.jpg"], ["a.jpg", "a.JPG"], {"a.jpg": "a.jpg", "a.JPG": "A.jpg"}),
    ("folders that differ are no prefix", ["x/a.jpg", "y/b.jpg"], ["a.jpg", "b.jpg"], {}),
    ("none", ["c.jpg"], ["a.jpg"], {}),
    ("no pictures", ["c.jpg"], [], {}),
])  # fmt: skip
def test_which_row_means_which_picture(why: str, rows: list, pictures: list, matched: dict) -> None:
    assert match(rows, pictures) == matched, why


NAMES = st.lists(st.text("aAé/.\\é", min_size=1, max_size=6), unique=True, max_size=8)


@given(rows=NAMES, pictures=NAMES)
def test_every_name_is_used_once_and_equal_names_belong_together(rows: list, pictures: list) -> None:
    matched = match(rows, pictures)
    assert set(matched) <= set(pictures) and set(matched.values()) <= set(rows)
    assert len(set(matched.values())) == len(matched)
    assert all(matched[name] == name for name in set(rows) & set(pictures))
