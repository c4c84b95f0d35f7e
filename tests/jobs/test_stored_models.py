"""Detections and embeddings that another program computed: `from`, from the run file to the figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from jobs import full_eval, reindex_gallery, search
from store.categories import DEEPFASHION2
from store.errors import UserError

Calls = list[tuple[str, str, Any]]
Full = Callable[..., int]
QUIET = ("--set", "max_failed_share=1", "--set", "report.queries=0", "--set", "device=cpu")


@pytest.fixture
def usual(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> Path:
    """OUTPUT of a run with one detector and one embedder of the stand-ins."""
    assert full(small_set, tmp_path / "usual", "--set", "detectors=[near]", "--set", "embedders=[coarse]", *QUIET) == 0
    calls.clear()
    return tmp_path / "usual"


def tables_of(usual: Path, folder: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((usual / folder).glob("*.parquet"))])


def start(
    imageset: Path, output: Path, detectors: list[dict[str, Any]], embedders: list[dict[str, Any]], *more: str
) -> int:
    config = output.parent / f"{output.name}.yaml"
    config.write_text(json.dumps({"detectors": detectors, "embedders": embedders}))
    return full_eval.main(
        ["--imageset", str(imageset), "--output", str(output), "--config", str(config), *QUIET, *more]
    )


def results(usual: Path) -> list[dict[str, Any]]:
    """The usual run's detections as COCO results."""
    rows = tables_of(usual, "detections/near").to_pylist()
    boxes = [row["bbox"] for row in rows]
    return [
        {
            "image_id": row["image_id"], "category_id": row["category_id"], "score": row["score"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        for row, (x1, y1, x2, y2) in zip(rows, boxes, strict=True)
    ]  # fmt: skip


def named(usual: Path, folder: Path) -> dict[str, Any]:
    table = tables_of(usual, "detections/near")
    names = [DEEPFASHION2[i - 1] for i in table["category_id"].to_pylist()]
    pq.write_table(table.drop_columns(["category_id"]).append_column("category", pa.array(names)), folder / "b.parquet")
    return {"from": str(folder / "b.parquet")}


def in_parts(usual: Path, folder: Path) -> dict[str, Any]:
    return {"from": f"{usual}/detections/near/*.parquet"}


def as_json(usual: Path, folder: Path) -> dict[str, Any]:
    (folder / "boxes.json").write_text(json.dumps(results(usual)))
    return {"from": str(folder / "boxes.json")}


def by_truth(usual: Path, folder: Path) -> dict[str, Any]:
    """Image ids and category ids of a ground truth of their own: photo i is 1000 + i, category n is 50 - n."""
    own = [row | {"image_id": 1000 + row["image_id"], "category_id": 50 - row["category_id"]} for row in results(usual)]
    truth = {
        "images": [{"id": 1000 + i, "file_name": f"somewhere/{i}.png"} for i in range(24)],
        "categories": [{"id": 50 - i, "name": name} for i, name in enumerate(DEEPFASHION2, 1)],
    }
    (folder / "boxes.json").write_text(json.dumps(own))
    (folder / "truth.json").write_text(json.dumps(truth))
    return {"from": str(folder / "boxes.json"), "images": str(folder / "truth.json")}


@pytest.mark.parametrize("written", [as_json, by_truth, named, in_parts])
def test_stored_results_give_what_the_models_gave(
    small_set: Path, tmp_path: Path, usual: Path, calls: Calls, written: Callable[[Path, Path], dict[str, Any]]
) -> None:
    embedder = {"name": "rows", "from": [f"{usual}/embeddings/detected/coarse/*.parquet"]}
    detector = {"name": "boxes"} | written(usual, tmp_path)
    assert start(small_set, tmp_path / "run", [detector], [embedder], "--set", "boxes=[detected]") == 0
    assert calls == []  # neither Ray nor a photo was needed
    for name in ("fused/shard-00001.parquet", "rankings/detected.parquet"):
        assert pq.read_table(tmp_path / "run" / name) == pq.read_table(usual / name)


def test_what_does_not_meet_is_counted_and_said(
    small_set: Path, tmp_path: Path, usual: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos 0 and 1 have no boxes; two boxes are of a photo that nobody has; photo 2 has wrong rows."""
    rows = [row for row in results(usual) if row["image_id"] > 1]
    rows += [rows[0] | {"image_id": 777}, rows[0] | {"image_id": "x"}]
    rows += [{"image_id": 2} | wrong for wrong in (
        {"bbox": [1, 2, 3, float("nan")], "score": 0.5, "category_id": 1},
        {"bbox": [1, 2, 3], "score": 0.5, "category_id": 1},
        {"bbox": [1, 2, 3, 4], "score": 7, "category_id": 1},
        {"bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 14},
        {"bbox": [1, 2, 3, 4], "score": 0.5},
    )]  # fmt: skip
    rows += [rows[0] | {"image_id": 3, "bbox": [60, 70, 5, 5]}]  # outside its photo of 48 x 64
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    embeddings = tables_of(usual, "embeddings/detected/coarse")
    embedding = embeddings["embedding"].to_pylist()
    embedding[5], embedding[6], embedding[7] = [float("nan")] * 12, [0.0] * 12, [1.0] * 11
    changed = pa.table({"image_id": embeddings["image_id"], "item": embeddings["item"], "embedding": embedding})
    pq.write_table(changed.slice(4), tmp_path / "rows.parquet")
    detector = {"name": "boxes", "from": str(tmp_path / "boxes.json")}
    embedder = {"name": "rows", "from": str(tmp_path / "rows.parquet")}
    assert start(small_set, tmp_path / "run", [detector], [embedder], "--set", "boxes=[detected]") == 0
    said = capsys.readouterr().out
    assert "boxes: 3 of 25 photos have no boxes in" in said  # 0, 1 and 25, which is broken
    assert "boxes: 2 boxes are of photos that the image set lacks" in said
    assert "rows: 2 of 22 garments (detected boxes) have no embedding in" in said
    failures = pq.read_table(tmp_path / "run/failures.parquet").to_pylist()
    assert [row["image_id"] for row in failures if row["stage"] == "detect"] == [2] * 5
    told = {row["image_id"]: row["reason"] for row in failures if row["stage"] == "embed"}
    assert {image_id: reason.partition(": ")[2] for image_id, reason in told.items()} == {
        5: "its embedding is not finite",
        6: "its embedding is all zeros",
        7: "its embedding has another length than 12",
    }  # fmt: skip
    notes = json.loads((tmp_path / "run/done/detect/boxes/shard-00000.json").read_text())["notes"]["notes"]
    assert notes == ["boxes: 1 boxes without area in their photo left out"]


def test_masks_come_along(small_set: Path, tmp_path: Path, usual: Path, calls: Calls) -> None:
    import numpy as np

    inside = np.zeros((64, 48), np.uint8, order="F")
    inside[10:30, 8:20] = 1
    mask = coco.encode(inside)
    rows = [row | {"segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}} for row in results(usual)]
    rows[0]["segmentation"] = {"size": [9, 9], "counts": mask["counts"].decode()}
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    detector = {"name": "boxes", "from": str(tmp_path / "boxes.json")}
    embedder = {"name": "rows", "from": f"{usual}/embeddings/detected/coarse/*.parquet"}
    assert start(small_set, tmp_path / "run", [detector], [embedder], "--set", "boxes=[detected]") == 0
    fused = pq.read_table(tmp_path / "run/fused/shard-00001.parquet").to_pylist()
    assert all((coco.decode(row["mask"]) == inside).all() for row in fused)
    (failure,) = [row for row in pq.read_table(tmp_path / "run/failures.parquet").to_pylist() if row["image_id"] == 0]
    assert "a mask is [9, 9], its photo [64, 48]" in failure["reason"]


def test_other_files_are_another_model(
    small_set: Path, tmp_path: Path, usual: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = {"name": "boxes"} | as_json(usual, tmp_path)
    embedder = {"name": "rows", "from": f"{usual}/embeddings/detected/coarse/*.parquet"}
    arguments = small_set, tmp_path / "run", [detector], [embedder], "--set", "boxes=[detected]"
    assert start(*arguments) == 0
    capsys.readouterr()
    assert start(*arguments) == 0 and ", to do: " not in capsys.readouterr().out
    moved = tmp_path / "moved.json"
    (tmp_path / "boxes.json").rename(moved)
    detector["from"] = str(moved)
    assert start(*arguments) == 0 and ", to do: " not in capsys.readouterr().out  # the same bytes elsewhere
    moved.write_text(json.dumps(results(usual)[1:]))
    assert start(*arguments) == 0
    assert "5 weights changed" in capsys.readouterr().out


def test_one_row_a_photo_serves_all_its_garments(small_set: Path, tmp_path: Path, usual: Path, calls: Calls) -> None:
    ids = list(range(24))
    table = pa.table({"image_id": ids, "embedding": [[float(i % 12 == k) for k in range(12)] for i in ids]})
    pq.write_table(table, tmp_path / "rows.parquet")
    embedder = {"name": "rows", "from": str(tmp_path / "rows.parquet")}
    assert start(small_set, tmp_path / "run", [], [embedder]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["retrieval"]["detected"]["rows"]["top"]["1"] == 1.0  # photo i + 12 shows garment i as well
    assert metrics["retrieval"]["true"]["rows"]["top"]["1"] == 1.0


@pytest.mark.parametrize("entry, reason", [
    ({"from": "nothing-*.parquet"}, "no file nothing-*.parquet"),
    ({"from": []}, "from wants a file"),
    ({"from": "{}/text.json"}, "no JSON"),
    ({"from": "{}/list.json", "images": "{}/list.json"}, "no COCO ground truth: `images`"),
    ({"from": "{}/list.json", "categories": ["a", "a"]}, "named twice"),
    ({"from": "{}/list.json", "file": 3}, "unknown field 'file'"),
    ({"from": "{}/other.parquet"}, "no column image_id; it has x"),
    ({"from": "{}/text.parquet"}, "no Parquet table"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(
    small_set: Path, tmp_path: Path, calls: Calls, entry: dict[str, Any], reason: str
) -> None:
    (tmp_path / "text.json").write_text("no")
    (tmp_path / "text.parquet").write_text("no")
    (tmp_path / "list.json").write_text('[{"image_id": 0, "bbox": [1, 2, 3, 4], "score": 1, "category_id": 1}]')
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    entry = {
        key: value.replace("{}", str(tmp_path)) if isinstance(value, str) else value for key, value in entry.items()
    }
    with pytest.raises(UserError) as error:
        start(small_set, tmp_path / "run", [{"name": "boxes"} | entry], ["lite0-sg"])  # type: ignore[list-item]
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_boxes_of_other_photos_alone_are_refused(small_set: Path, tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "b.json").write_text('[{"image_id": 99, "bbox": [1, 2, 3, 4], "score": 1, "category_id": 1}]')
    with pytest.raises(UserError, match="none of its 1 boxes is of a photo of the image set; name their ground truth"):
        start(small_set, tmp_path / "run", [{"name": "b", "from": str(tmp_path / "b.json")}], ["lite0-sg"])  # type: ignore[list-item]


def test_a_gallery_of_stored_rows_is_searched_by_rows_alone(
    small_set: Path, tmp_path: Path, usual: Path, calls: Calls
) -> None:
    """The night needs no model; a new photo would, and the search says which it lacks."""
    config = tmp_path / "night.yaml"
    detector = {"name": "boxes", "from": f"{usual}/detections/near/*.parquet"}
    embedder = {"name": "rows", "from": [f"{usual}/embeddings/detected/coarse/*.parquet"]}
    config.write_text(json.dumps({"detectors": [detector], "embedders": [embedder], "gallery": {"copies": 0}}))
    gallery = str(tmp_path / "gallery")
    line = ["--imageset", str(small_set), "--gallery", gallery, "--config", str(config)]
    assert reindex_gallery.main([*line, "--set", "max_failed_share=1", "--set", "device=cpu"]) == 0
    assert calls == []
    (photo := tmp_path / "photo.png").write_bytes(pictures.png(90, 48, 64))
    with pytest.raises(UserError, match=r"boxes: its results were computed elsewhere .*cannot look at another photo"):
        search.main([str(photo), "--gallery", gallery, "--device", "cpu"])
