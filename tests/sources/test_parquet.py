"""Parquet files with pictures, by `datasets` and by pyarrow: columns, names, failures, and how much is in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ingest import main
from sources import parquet
from sources.folder import image_id
from store.errors import UserError
from store.formats import NO_PICTURE
from store.imageset import Failure, Photo, open_imageset
from store.objects import open_store
from tests.sources.four_forms import png


def written(path: Path, rows: list[dict[str, Any]], *, schema: pa.Schema | None = None, **how: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **how)
    return path


def photos(path: Path, **how: Any) -> list[Photo]:
    rows = [*parquet.read([path], "shop", **how)]
    assert all(isinstance(row, Photo) for row in rows), rows
    return rows  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"image": {"bytes": png(1), "path": "a/1.png"}}, "a/1.png"),
        (
            {"image": {"bytes": png(1), "path": "1.png"}, "file_name": "a/1.png"},
            "a/1.png",
        ),  # `datasets` cuts folders off
        ({"image": {"bytes": png(1), "path": None}}, "t.parquet/00000000"),
        ({"image": {"bytes": png(1)}}, "t.parquet/00000000"),
        ({"image": png(1)}, "t.parquet/00000000"),
        ({"image": png(1), "file_name": "x"}, "x"),
    ],
)
def test_the_name_of_a_photo(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    (photo,) = photos(written(tmp_path / "t.parquet", [row]))
    assert (photo.file_name, photo.image_id, photo.image) == (name, image_id(f"shop/{name}"), png(1))
    assert photo.attributes == {}


def test_columns_of_every_type(tmp_path: Path) -> None:
    row = {
        "photo": png(1),
        "sku": 12,
        "pair_id": 3,
        "short": 0.1,
        "when": datetime(2026, 1, 31, tzinfo=UTC),
        "new": True,
        "nothing": None,
        "vector": [1.0],
        "more": {"a": 1},
        "raw": b"x",
    }
    schema = pa.schema(
        [
            ("photo", pa.large_binary()),
            ("sku", pa.int32()),
            ("pair_id", pa.int64()),
            ("short", pa.float32()),
            ("when", pa.timestamp("ns", "UTC")),
            ("new", pa.bool_()),
            ("nothing", pa.string()),
            ("vector", pa.list_(pa.float32())),
            ("more", pa.struct([("a", pa.int8())])),
            ("raw", pa.binary()),
        ]
    )
    reading = parquet.read([written(tmp_path / "t", [row], schema=schema)], "user", image="photo", product_id="sku")
    (photo,) = reading
    assert isinstance(photo, Photo) and (photo.product_id, photo.pair_id, photo.items) == ("12", 3, ())
    assert photo.attributes == {"short": "0.1", "when": "2026-01-31T00:00:00+00:00", "new": "true"}
    assert [*reading.skipped] == [f"values of {name!r} that are no single ones" for name in ("vector", "more", "raw")]


NAMED = datasets.ClassLabel(names=["hat", "cape"])
BOXES = datasets.List(datasets.List(datasets.Value("float32")))
LAYOUTS = {
    "lists": ({"bbox": BOXES, "category": datasets.List(NAMED)}, {"bbox": [[1, 2, 3, 4]], "category": [1]}),
    "lists in the plural": (
        {"bbox": BOXES, "categories": datasets.List(NAMED)},
        {"bbox": [[1, 2, 3, 4]], "categories": [1]},
    ),
    "structs": (
        datasets.List({"bbox": datasets.List(datasets.Value("int64")), "category": NAMED}),
        [{"bbox": [1, 2, 3, 4], "category": 1}],
    ),
    "texts": (
        {"bbox": BOXES, "category": datasets.List(datasets.Value("string"))},
        {"bbox": [[1, 2, 3, 4]], "category": ["cape"]},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_objects_in_the_layouts_of_datasets(tmp_path: Path, layout: str) -> None:
    objects, value = LAYOUTS[layout]
    features = datasets.Features({"image": datasets.Image(), "objects": objects, "season": NAMED})
    row = {"image": {"bytes": png(1), "path": None}, "objects": value, "season": 0}
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "t.parquet")
    reading = parquet.read([tmp_path / "t.parquet"], "shop")
    (photo,) = reading
    assert isinstance(photo, Photo) and photo.attributes == {"season": "hat"} and not photo.weak_box
    (item,) = photo.items
    assert (reading.categories[item.category_id - 1], item.bbox) == ("cape", (1, 2, 4, 6))
    assert [*reading.categories] == (["cape"] if layout == "texts" else ["hat", "cape"])


@pytest.mark.parametrize("kind", [datasets.Value("string"), datasets.ClassLabel(names=["cape", "hat"])])
def test_a_category_of_the_whole_photo(tmp_path: Path, kind: Any) -> None:
    features = datasets.Features({"image": datasets.Image(), "category": kind})
    rows = [{"image": {"bytes": png(n), "path": f"{n}"}, "category": name} for n, name in enumerate(["cape", None])]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "t.parquet")
    first, second = photos(tmp_path / "t.parquet")
    assert (first.items[0].category_id, first.items[0].bbox, first.weak_box) == (1, (0, 0, 24, 32), True)
    assert (second.items, second.weak_box) == ((), True)


def test_rows_that_cannot_be_taken(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": png(1), "path": "1.png"}},
        {"image": {"bytes": None, "path": "2.png"}},
        {"image": {"bytes": None, "path": None}},
        {"image": None},
        {"image": {"bytes": b"no", "path": "5.png"}},
        {"image": {"bytes": png(6), "path": "1.png"}},
        {"image": {"bytes": png(7), "path": "7.png"}, "pair_id": -7},
        {
            "image": {"bytes": png(8), "path": "8.png"},
            "objects": {"bbox": [[1, 2, 3, 4], [1]], "category": ["hat", ""]},
        },
        {"image": {"bytes": png(9), "path": "9.png"}, "objects": {"bbox": [[1, 2, 3, 4]], "category": []}},
    ]
    objects = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))])
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("pair_id", pa.int64()), ("objects", objects)])
    found = [*parquet.read([written(tmp_path / "t", rows, schema=schema)], "user")]
    assert [row.file_name for row in found if isinstance(row, Photo)] == ["1.png", "8.png"]
    reasons = [(row.file_name, row.reason) for row in found if isinstance(row, Failure)]
    advice = "write the pictures into the file, as Dataset.push_to_hub does, or ingest their folder"
    assert reasons == [
        ("t/00000001", f"the file holds the path '2.png' and no picture; {advice}"),
        ("t/00000002", "no picture in this row"),
        ("t/00000003", "no picture in this row"),
        ("5.png", NO_PICTURE),
        ("1.png", "another photo of this name came before; make two sets of the files, one with --prefix"),
        ("7.png", "pair_id '-7' is not a whole number below 2^63"),
        ("8.png", "object 2 is left out: box [1.0] is not a list of four numbers"),
        (
            "9.png",
            "objects {'bbox': [[1.0, 2.0, 3.0, 4.0]], 'category': []} are no bbox and category of one length",
        ),
    ]


@pytest.mark.parametrize(
    ("rows", "how", "reason"),
    [
        ([{"url": "x"}], {}, "has no column 'image'; it has url"),
        ([{"image": "x"}], {}, "column 'image' is string; want pictures"),
        ([{"image": {"path": "x"}}], {}, "want pictures, as struct<bytes, path> or bytes"),
        ([{"image": {"bytes": "x"}}], {}, "want pictures"),
        ([{"image": b"x"}], {"product_id": "sku"}, "has no column 'sku'; it has image"),
        ([{"image": b"x"}], {"image": "photo"}, "has no column 'photo'"),
    ],
)
def test_files_with_other_columns(tmp_path: Path, rows: list[dict[str, Any]], how: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parquet.read([written(tmp_path / "t.parquet", rows)], "user", **how)


@pytest.mark.parametrize("name", ["image", "product_id", "colour"])
def test_a_column_named_twice_is_refused(tmp_path: Path, name: str) -> None:
    names = ["image", "product_id", "colour", name]
    columns = [pa.array([b"x"] if column == "image" else ["x"]) for column in names]
    pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=f"t.parquet has two columns '{name}'; write it again with one"):
        parquet.read([tmp_path / "t.parquet"], "user")


def test_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more")
    for place, reason in (
        (tmp_path / "x.parquet", "is no parquet file"),
        (tmp_path, "folder"),
        ("gone", "no file gone"),
    ):
        with pytest.raises(ValueError, match=reason):
            parquet.read([place], "user")


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "t.parquet", [{"url": "x"}])
    command = ["parquet", str(file), str(tmp_path / "set"), "--source", "user"]
    with pytest.raises(UserError, match=r"has no column 'image'; it has url$"):
        main(command)
    written(file, [], schema=pa.schema([("image", pa.binary())]))
    with pytest.raises(UserError, match=f"no picture in {file}$"):
        main(command)


def test_several_files_and_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    for number in (1, 2):
        row = {"image": {"bytes": png(number), "path": f"{number}.png"}, "category": ["hat", "cape"][number - 1]}
        file = written(tmp_path / f"{number}.parquet", [row])
        open_store(f"{s3_bucket}/in").write(f"{number}.parquet", file.read_bytes())
    here, there = (f"{place}/{n}.parquet" for n, place in ((1, tmp_path), (2, f"{s3_bucket}/in")))
    assert main(["parquet", here, there, f"{s3_bucket}/set", "--source", "shop"]) == 0
    images = open_imageset(f"{s3_bucket}/set")
    assert images.truth()["file_name"].to_pylist() == ["1.png", "2.png"] and images.categories == ("hat", "cape")
    assert images.manifest.source["arguments"]["files"] == [here, there]


def test_a_damaged_file_gives_what_comes_before_and_the_next_file(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(n), "path": f"{n}.png"}} for n in range(100)]
    first = written(tmp_path / "a.parquet", rows, row_group_size=25, compression="snappy", use_dictionary=False)
    second = written(tmp_path / "b.parquet", [{"image": {"bytes": png(1), "path": "last.png"}}])
    start = pq.read_metadata(first).row_group(2).column(0).data_page_offset
    data = bytearray(first.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    first.write_bytes(data)
    *taken, failure, last = parquet.read([first, second], "user")
    assert 32 <= len(taken) <= 50 and last.file_name == "last.png"
    assert isinstance(failure, Failure) and failure.file_name == "a.parquet"
    assert f"row {len(taken)} and those after it cannot be read" in failure.reason


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20))
def test_bytes_changed_at_random_never_end_an_ingestion(
    tmp_path_factory: pytest.TempPathFactory, changes: Sequence[tuple[int, int]]
) -> None:
    file = tmp_path_factory.mktemp("changed") / "t.parquet"
    written(file, [{"image": {"bytes": png(n), "path": f"{n}.png"}, "title": "x" * n} for n in range(40)])
    data = bytearray(file.read_bytes())
    for place, value in changes:
        data[place % (len(data) - 400)] = value  # the footer says how much memory Arrow takes
    file.write_bytes(data)
    try:
        reading = parquet.read([file], "user")
    except ValueError:
        return
    assert [*reading]


def test_no_more_than_a_batch_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the row groups are: rows that were asked for, and at most one batch of them beyond."""
    rows = [{"image": {"bytes": png(n % 256), "path": f"{n}.png"}} for n in range(500)]
    file = written(tmp_path / "t.parquet", rows, row_group_size=500)
    held: list[int] = []
    values = parquet.PhotoTable._values

    def counted(table: parquet.PhotoTable, batch: pa.RecordBatch) -> Any:
        held.append(batch.num_rows)
        return values(table, batch)

    monkeypatch.setattr(parquet.PhotoTable, "_values", counted)
    taken = 0
    for _ in parquet.read([file], "user"):
        taken += 1
        assert sum(held) - taken < parquet.BATCH_ROWS
    assert taken == 500 and max(held) <= parquet.BATCH_ROWS
