"""File names, links, product lists and addresses made to lead elsewhere."""

import csv
import functools
import io
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import full_eval, ingest, status
from store.imageset import open_imageset
from store.objects import StorageError, open_store
from tests.fuzz import guard
from tests.jobs.pictures import png

LONG = "x" * 296 + ".png"  # 300 letters: no file system has a name like that


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """box/in/a.png, beside it box/outside.png; the set is to lie in box/set."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    (tmp_path / "outside.png").write_bytes(png(2))
    return tmp_path


def folder(box: Path, *more: str) -> guard.Said:
    argv = ["folder", str(box / "in"), str(box / "set"), "--source", "shop", "--overwrite", *more]
    with guard.untouched(box, but="set"):
        return guard.run(ingest.main, argv, box / "set")


def answer(box: Path) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    """What was taken: name -> product_id, pair_id; and what was not: name -> reason."""
    failed = {row["file_name"]: row["reason"] for row in pq.read_table(box / "set" / "failures.parquet").to_pylist()}
    rows = open_imageset(box / "set").truth().to_pylist()
    return {row["file_name"]: (row["product_id"], row["pair_id"]) for row in rows}, failed


# ------------------------------------------------------------------------------------------------ what lies in a folder


def test_links(box):
    """A link inside the folder is its photo; one that leads out, or to a folder, or in circles, is left out."""
    links = {
        "same.png": "a.png",
        "out.png": "../outside.png",
        "absolute.png": str(box / "outside.png"),
        "up": "..",
        "passwd.png": "/etc/passwd",
    }
    links |= {
        "circle.png": "circle.png",
        "gone.png": "nowhere.png",
        "chain.png": "out.png",
        "device.png": "/dev/zero",
        "home": ".",
    }
    for name, target in links.items():
        (box / "in" / name).symlink_to(target)
    assert folder(box).status == 0
    taken, failed = answer(box)
    assert set(taken) == {"a.png", "same.png"}
    assert failed == {
        "circle.png": "cannot be read: Too many levels of symbolic links",
        "gone.png": "cannot be read: No such file or directory",
    }


def test_folders_nested_too_deeply_are_refused_in_one_line(box):
    """300 folders of 20 letters in each other: a path of 6,000 letters."""
    top = os.open(box / "in", os.O_RDONLY)
    at = top
    for _ in range(300):
        os.mkdir("x" * 20, dir_fd=at)
        at = os.open("x" * 20, os.O_RDONLY, dir_fd=at)
    try:
        said = guard.run(ingest.main, ["folder", str(box / "in"), str(box / "set"), "--source", "shop"], box / "set")
        assert said.line.endswith("File name too long") and "cannot read folder" in said.line
    finally:
        os.rename("x" * 20, "top", src_dir_fd=top, dst_dir_fd=top)
        subprocess.run(["rm", "-rf", str(box / "in" / "top")], check=True)


def test_a_pipe_is_not_waited_for(box):
    os.mkfifo(box / "in" / "pipe.png")
    assert folder(box).status == 0
    assert answer(box)[1] == {"pipe.png": "cannot be read: not a plain file"}


def test_a_file_of_terabytes_is_not_read(box):
    (box / "in" / "huge.png").touch()
    os.truncate(box / "in" / "huge.png", 1 << 42)
    assert folder(box).status == 0
    assert answer(box)[1] == {"huge.png": "cannot be read: 4398046511104 bytes are more than 536870912"}


@pytest.mark.parametrize("name", ["000001.png", "000001.json"])
def test_pipes_and_devices_in_a_deepfashion2_split(name, tmp_path):
    for part in ("image", "annos"):
        (tmp_path / "split" / part).mkdir(parents=True)
    (tmp_path / "split" / "image" / "000001.png").write_bytes(png(1))
    (tmp_path / "split" / "annos" / "000001.json").write_text('{"source": "user", "pair_id": 1}')
    for how in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path = next((tmp_path / "split").rglob(name))
        path.unlink()
        how(path)
        argv = ["deepfashion2", str(tmp_path / "split"), str(tmp_path / "set"), "--overwrite"]
        said = guard.run(ingest.main, argv, tmp_path / "set")
        assert said.status == 2 and "not one photo could be taken" in said.line
        [failure] = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
        assert failure["reason"] == "cannot be read: not a plain file"


@pytest.mark.parametrize(
    "name",
    ["é.png", "e\u0301.png", "衣服.png", "\u202egnp.exe.png", "a\nb.png", "a\tb.png", "\x1b[2J.png", "<script>.png",
     "-rf.png", "a,b\".png", "\\..\\..\\x.png", "%2e%2e%2fx.png", "$(touch owned).png", "`touch owned`.png",
     "|x.png", "~.png", "x" * 250 + ".png", b"\xff\xfe.png"],
)  # fmt: skip
def test_any_name_a_file_may_have(name, box):
    """Names are data: kept as they are, U+FFFD where they are no UTF-8, and never a path of the set."""
    (box / "in" / os.fsdecode(name)).write_bytes(png(3))
    assert folder(box).status == 0
    taken, failed = answer(box)
    assert set(taken) == {"a.png", name if isinstance(name, str) else "\ufffd\ufffd.png"} and not failed
    assert sorted(path.name for path in (box / "set").iterdir()) == [
        "failures.parquet",
        "manifest.json",
        "shard-00000.arrow",
    ]


# ------------------------------------------------------------------------------------------------ product lists


def products(*rows: object, head: str = "file_name,product_id,pair_id") -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return f"{head}\r\n{text.getvalue()}".encode("utf-8", "surrogatepass")


pairs = functools.partial(products, head="file_name,product_id")
REFUSED = [
    ("nothing", b"", "is empty, or its first line is"),
    ("no head", b"a.png,SKU\n", "no column file_name"),
    ("no product_id", b"file_name,sku\na.png,1\n", "names none of product_id, pair_id and category"),
    ("UTF-16", "file_name,product_id\na.png,SKU\n".encode("utf-16"), "is not a UTF-8 CSV"),
    ("Latin-1", "file_name,product_id\na.png,\u00e9\n".encode("latin-1"), "is not a UTF-8 CSV"),
    ("a Parquet file", b"PAR1" + bytes(range(256)), "is not a UTF-8 CSV"),
    ("a field of 200,000 letters", products(["a.png", "x" * 200_000]), "field larger than field limit"),
    ("a quote that never ends", b'file_name,product_id\na.png,"' + b"x\n" * 100_000, "field larger than field limit"),
    ("the same twice", pairs(["a.png", 1], ["a.png", 2]), "line 3: a.png occurs twice"),
    ("an escape sequence twice", pairs(["\x1b[2J", 1], ["\x1b[2J", 2]), r"\x1b[2J occurs twice"),
    ("a name of 100,000 letters twice", pairs(["x" * 10**5, 1], ["x" * 10**5, 2]), "xxxxx"),
    ("no name", pairs(["", "SKU"]), "line 2: no file_name"),
    ("a pair of letters", products(["a.png", "SKU", "one"]), "pair_id 'one' is not a whole number"),
    ("a pair below 0", products(["a.png", "SKU", -1]), "pair_id '-1' is not a whole number"),
    ("a pair in other digits", products(["a.png", "SKU", "\u0663"]), "pair_id '\u0663' is not a whole number"),
    ("a pair of 5000 digits", products(["a.png", "SKU", "9" * 5000]), "pair_id '99999"),
    ("a pair of 2^63", products(["a.png", "SKU", 2**63]), "pair_id '9223372036854775808' is not a whole number"),
    ("more cells than the head", products(["a.png", "SKU", 7, "x"]), "line 2: 4 cells, the header has 3"),
    ("fewer cells", products(["a.png", "SKU"]), "line 2: 2 cells, the header has 3"),
    ("a line's end in a product", products(["a.png", "SKU\n1", 7]), "runs over a line's end"),
    ("a line's end in a name", products(["a\nb.png", "SKU", 7]), "runs over a line's end"),
    ("a NUL in a name", products(["a\0b.png", "SKU", 7]), "runs over a line's end"),
    ("a product that is none", products(["a.png", "nan", 7]), "leave the cell empty where there is none"),
    ("a head alone", products(), "no rows below its header"),
]  # fmt: skip


@pytest.mark.parametrize("why, data, reason", REFUSED, ids=[row[0] for row in REFUSED])
def test_an_invalid_product_list_is_refused(why, data, reason, box):
    (box / "products.csv").write_bytes(data)
    line = folder(box, "--metadata", str(box / "products.csv")).line
    assert reason in line and f"{box / 'products.csv'}" in line


def test_odd_but_right(box):
    """Names that match no file of the folder are failures, wherever they point; ids are any text."""
    strange = [
        "../outside.png",
        str(box / "outside.png"),
        "./a.png",
        "IN/A.PNG",
        LONG,
        "file:///etc/passwd",
        "C:\\a.png",
    ]
    rows = [
        ["a.png", "SKU <b>'\"", 7, "ignored"],
        *([name, "1", "", ""] for name in strange),
    ]
    head = "file_name,product_id,pair_id,more"
    (box / "products.csv").write_bytes(b"\xef\xbb\xbf" + products(*rows, head=head))
    refused = folder(box, "--metadata", str(box / "products.csv"))
    assert refused.status == 2 and "7 of 8 rows of the CSV name no picture" in refused.line
    assert folder(box, "--metadata", str(box / "products.csv"), "--allow-missing").status == 0
    taken, failed = answer(box)
    assert taken == {"a.png": ("SKU <b>'\"", 7)}
    gone = "in the metadata, but there is no such picture in the folder"
    assert failed == dict.fromkeys(strange, gone)


NAME = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "a.png",
            "b.png",
            "sub/c.jpg",
            "../outside.png",
            "/etc/passwd",
            "a\0",
            LONG,
            "=cmd()",
            "<script>",
            "\ud800",
            '"',
            "\n",
        ]
    ),
)
ROW = st.lists(st.one_of(NAME, st.integers(-5, 2**70).map(str)), max_size=5)
LIST = st.builds(
    lambda rows, head: products(*rows, head=head),
    st.lists(ROW, max_size=6),
    st.sampled_from(
        [
            "file_name,product_id,pair_id",
            "product_id,file_name",
            "file_name,file_name,product_id",
            "file_name;product_id",
            "",
        ]
    ),
)
SOUND = products(["a.png", "SKU", 1], ["b.png", "\u00e9", 2], ["sub/c.jpg", "", 0])


@guard.fuzzed()
@given(data=st.one_of(LIST, guard.broken([SOUND])))
def test_any_product_list_is_read_or_refused(data, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "lists"
    if not box.exists():
        (box / "in" / "sub").mkdir(parents=True)
        for number, name in enumerate(("a.png", "b.png", "sub/c.jpg")):
            (box / "in" / name).write_bytes(png(number))
    (box / "products.csv").write_bytes(data)
    said = folder(box, "--metadata", str(box / "products.csv"))
    guard.inputs["test_csv_and_paths"] += 1
    if said.status == 0:
        taken, failed = answer(box)
        assert {"a.png", "b.png", "sub/c.jpg"} <= {*taken, *failed}


PER_FOLDER = 10
ON_DISK = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.text(min_size=1, max_size=40).map(lambda text: text.encode("utf-8", "replace")),
)


@guard.fuzzed(PER_FOLDER)
@given(names=st.lists(ON_DISK, min_size=PER_FOLDER, max_size=PER_FOLDER))
def test_any_file_name_is_a_row(names, tmp_path_factory):
    box = tmp_path_factory.mktemp("names")
    (box / "in").mkdir()
    kept = {name.replace(b"/", b"_").replace(b"\0", b"_").lstrip(b".") + b".png" for name in names}
    for name in kept:
        (box / "in" / os.fsdecode(name)).write_bytes(png(1))
    assert folder(box).status == 0
    guard.inputs["test_csv_and_paths"] += len(names)
    images = open_imageset(box / "set")
    assert images.manifest.images == len(kept)
    assert all(name.endswith(".png") and name.encode() for name in images.truth()["file_name"].to_pylist())


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    "address",
    ["", "s3://", "s3:///x", "s3://bucket/../../x",  "http://127.0.0.1/x", "file://elsewhere/x", "file://",
     "~no-such-user/x", "ftp://x", "://", LONG, "x/" * 3000, "\udcff\udcfe", "a\nb"],
)  # fmt: skip
def test_addresses(address, box, monkeypatch):
    """Each is a place below this folder or one line; reading one makes nothing."""
    monkeypatch.chdir(box / "in")
    argv = ["--imageset", address, "--output", str(box / "set")]
    with guard.untouched(box, but="set"):
        assert guard.run(full_eval.main, argv, box / "set").status == 2
        assert guard.run(status.main, [address], box / "set").status == 2
    argv = ["folder", str(box / "in"), address, "--source", "shop"]
    assert guard.run(ingest.main, argv, box / "in").status == (0 if address in ("\udcff\udcfe", "a\nb") else 2)


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "", ".", "a//b", "a/./b", "x\0y", ".tmp-x"])
@pytest.mark.parametrize("does", ["read", "size", "open", "delete", "write", "create", "sub", "list"])
def test_keys_stay_in_their_store(does, key, box):
    (box / "x").write_bytes(b"not yours")
    store = open_store(box / "in")
    more = (b"",) if does in ("write", "create") else ()
    with guard.untouched(box, but="nothing"), guard.watched(box / "nothing"):
        if does == "list" and not key:
            assert [info.key for info in store.list()] == ["a.png"]
        else:
            with pytest.raises(ValueError, match="bad object key"):
                getattr(store, does)(key, *more)


@pytest.mark.parametrize("key", [LONG, "x/" * 3000 + "x", "a.png/b"])
def test_impossible_keys_are_storage_errors_or_missing(key, box):
    store = open_store(box / "in")
    with pytest.raises((StorageError, FileNotFoundError)):
        store.read(key)
    with pytest.raises(StorageError):
        store.write(key, b"")
