"""Files under OUTPUT that another program replaced: taken as they are, and what follows from them is done again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stand_ins
from agreement import contract

from store.errors import UserError
from store.objects import open_store

Full = Callable[..., int]
Calls = list[tuple[str, str, Any]]
DETECTIONS = "detections/near/shard-00000.parquet"
EMBEDDINGS = "embeddings/detected/fine/shard-00001.parquet"
ENOUGH = ("--set", "max_failed_share=1")


def finish(imageset: Path, output: Path | str, full: Full, calls: Calls) -> dict[str, bytes]:
    assert full(imageset, output, *ENOUGH) == 0
    calls.clear()
    return contract(str(output))


def todo(said: str) -> dict[str, str]:
    """Stage -> what the plan says is to do."""
    lines = [line.split() for line in said.splitlines() if ", to do: " in line]
    return {words[0]: " ".join(words[words.index("do:") + 1 :]) for words in lines}


def without_last_box(table: pa.Table) -> pa.Table:
    return table.slice(0, len(table) - 1)


def test_replaced_detections_stay_and_what_follows_is_done_again(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finish(small_set, tmp_path, full, calls)
    one_less = without_last_box(pq.read_table(tmp_path / DETECTIONS))
    pq.write_table(one_less, tmp_path / DETECTIONS)
    capsys.readouterr()

    assert full(small_set, tmp_path, *ENOUGH) == 0
    said = capsys.readouterr().out
    assert f"{DETECTIONS}: replaced by another program" in said
    assert {stage: words for stage, words in todo(said).items() if stage in ("detect", "fuse")} == {
        "fuse": "1 input changed"
    }
    assert pq.read_table(tmp_path / DETECTIONS) == one_less
    key = "fused/shard-00000.parquet"
    assert contract(tmp_path)[key] != before[key]
    mark = json.loads((tmp_path / "done/detect/near/shard-00000.json").read_text())
    assert mark["replaced"] == [DETECTIONS]

    assert full(small_set, tmp_path, *ENOUGH) == 0
    said = capsys.readouterr().out
    assert todo(said) == {} and "another program" not in said


def test_replaced_embeddings_are_ranked(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    before = finish(small_set, tmp_path, full, calls)
    table = pq.read_table(tmp_path / EMBEDDINGS)
    rows = table.column("embedding").to_pylist()
    mirrored = pa.array([[-value for value in row] for row in rows], table.schema.field("embedding").type)
    pq.write_table(table.set_column(2, table.schema.field("embedding"), mirrored), tmp_path / EMBEDDINGS)
    assert full(small_set, tmp_path, *ENOUGH) == 0
    assert calls == []
    now = contract(tmp_path)
    assert now["rankings/detected/fine.parquet"] != before["rankings/detected/fine.parquet"]
    assert now["rankings/true.parquet"] == before["rankings/true.parquet"]


def test_replaced_items_may_lack_hypotheses_and_are_embedded_anew(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full
) -> None:
    finish(small_set, tmp_path, full, calls)
    key = "items/detected/shard-00001.parquet"
    pq.write_table(without_last_box(pq.read_table(tmp_path / key)).drop_columns("hypotheses"), tmp_path / key)
    assert full(small_set, tmp_path, *ENOUGH) == 0
    assert [call[:2] for call in calls] == [("embed", "shard-00001")]
    rankings = pq.read_table(tmp_path / "rankings/detected.parquet")
    for category_id, found in zip(rankings["query_category_id"], rankings["query_hypotheses"], strict=True):
        assert found.as_py()[0]["category_id"] == category_id.as_py()


def test_the_same_bytes_at_another_time_are_the_same(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(small_set, tmp_path, full, calls)
    for path in [*tmp_path.glob("detections/*/*"), *tmp_path.glob("rankings/*.parquet")]:
        os.utime(path, (1, 1))
    capsys.readouterr()
    assert full(small_set, tmp_path, *ENOUGH) == 0
    said = capsys.readouterr().out
    assert todo(said) == {} and "another program" not in said


def test_a_run_of_an_earlier_release_has_no_stamps_and_gets_some(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(small_set, tmp_path, full, calls)
    marks = sorted((tmp_path / "done").rglob("*.json"))
    contents = {path: json.loads(path.read_text()) for path in marks}
    for path, content in contents.items():
        path.write_text(json.dumps({name: value for name, value in content.items() if name != "stamps"}))
    capsys.readouterr()
    assert full(small_set, tmp_path, *ENOUGH) == 0
    assert todo(capsys.readouterr().out) == {}
    assert {path: json.loads(path.read_text())["stamps"] for path in marks} == {
        path: content["stamps"] for path, content in contents.items()
    }


@pytest.mark.parametrize("data, reason", [
    (b"no table", "no Parquet table"),
    (pa.table({"image_id": [1]}), "without bbox"),
    (
        pa.table({"image_id": [1], "bbox": [[0.0, 0.0, 1.0, 1.0]], "score": [0.5], "category_id": [1], "mask": [None]}),
        "bbox is list<.*double>, want fixed_size_list",
    ),
])  # fmt: skip
def test_what_is_no_such_table_is_refused_in_one_line(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, data: Any, reason: str
) -> None:
    finish(small_set, tmp_path, full, calls)
    if isinstance(data, bytes):
        (tmp_path / DETECTIONS).write_bytes(data)
    else:
        pq.write_table(data, tmp_path / DETECTIONS)
    with pytest.raises(UserError, match=reason) as error:
        full(small_set, tmp_path, *ENOUGH)
    assert "\n" not in str(error.value) and DETECTIONS in str(error.value)
    (tmp_path / DETECTIONS).unlink()
    assert full(small_set, tmp_path, *ENOUGH) == 0
    assert calls[0] == ("detect", "shard-00000", ("near",))


@pytest.mark.slow
def test_a_bucket_tells_replaced_objects_by_their_etag(
    s3_bucket: str, s3_client: Any, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.imageset(tmp_path / "set", 8)
    output = f"{s3_bucket}/run"
    finish(tmp_path / "set", output, full, calls)
    store = open_store(output)
    sink = pa.BufferOutputStream()
    pq.write_table(without_last_box(pq.read_table(pa.BufferReader(store.read(DETECTIONS)))), sink)
    bucket = s3_bucket.removeprefix("s3://")
    s3_client.put_object(Bucket=bucket, Key=f"run/{DETECTIONS}", Body=sink.getvalue().to_pybytes())  # no metadata
    capsys.readouterr()
    assert full(tmp_path / "set", output, *ENOUGH) == 0
    assert todo(capsys.readouterr().out)["fuse"] == "1 input changed"
    assert calls == [] or calls[0][0] == "embed"
