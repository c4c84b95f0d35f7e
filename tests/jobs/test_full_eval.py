"""The whole job with stand-in models, in one process: what a run leaves, what it repeats, how it ends."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins
from agreement import contract
from plain_rules import plain, shares

from detection.detections import Detections
from jobs.stages.evaluate import as_ranked
from store.errors import UserError
from store.imageset import open_imageset
from store.imageset_write import write_imageset

REPO = Path(__file__).resolve().parents[2]
Full = Callable[..., int]
Calls = list[tuple[str, str, Any]]


def read(output: Path, name: str) -> Any:
    return pq.read_table(output / name) if name.endswith(".parquet") else json.loads((output / name).read_text())


def test_a_run_leaves_the_files_of_the_contract(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    assert full(small_set, tmp_path, "--set", "max_failed_share=0.1") == 0
    shards = [f"shard-{i:05d}" for i in range(5)]
    want = {"run.json", "metrics.json", "submission.json", "failures.parquet", "report/index.html"}
    want |= {f"detections/{name}/{shard}.parquet" for name in ("near", "far") for shard in shards}
    want |= {f"fused/{shard}.parquet" for shard in shards}
    for boxes in ("detected", "true"):
        want |= {f"items/{boxes}/{shard}.parquet" for shard in shards}
        want |= {f"embeddings/{boxes}/{name}/{shard}.parquet" for name in ("coarse", "fine") for shard in shards}
        want |= {f"rankings/{boxes}.parquet", *(f"rankings/{boxes}/{name}.parquet" for name in ("coarse", "fine"))}
        want |= {f"index/{boxes}/{name}" for name in ("index.faiss", "ids.parquet", "index.json")}
        want |= {f"done/embed/{boxes}/{name}/{shard}.json" for name in ("coarse", "fine") for shard in shards}
        want |= {f"done/rank/{boxes}/shard-00000.json"}
    want |= {f"done/detect/{name}/{shard}.json" for name in ("near", "far") for shard in shards}
    want |= {f"done/fuse/{shard}.json" for shard in shards}
    want |= {f"done/{stage}/shard-00000.json" for stage in ("evaluate", "report")}
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    (log,) = {name for name in found if name.startswith("logs/")}  # beside the contract: one a start that did something
    want |= {log}
    assert {name for name in found if not name.startswith("report/") or name == "report/index.html"} == want

    assert [len(read(tmp_path, f"detections/near/{shard}.parquet")) for shard in shards] == [12, 12, 12, 12, 0]
    fused = read(tmp_path, "fused/shard-00000.parquet").to_pylist()
    assert {row["votes"] for row in fused} == {2} and all(row["mask"] is None for row in fused)
    rankings = read(tmp_path, "rankings/detected.parquet").to_pylist()
    assert [row["query_image_id"] for row in rankings] == list(range(12))
    assert [row["gallery_image_id"][0] for row in rankings] == list(
        range(12, 24)
    )  # photo i + 12 shows garment i as well
    assert all(len(row["similarity"]) == 12 for row in rankings)  # twelve shop items, fewer than top_k
    metrics = read(tmp_path, "metrics.json")
    assert metrics["images"] == {"total": 25, "done": 24, "failed": 1}
    assert metrics["retrieval"]["detected"]["concat"]["top"]["1"] == 1.0 and metrics["queries_per_photo"] == 1.0
    failures = read(tmp_path, "failures.parquet").to_pylist()
    assert [(row["image_id"], row["shard"], row["stage"]) for row in failures] == [(25, "shard-00004", "detect")]
    submission = read(tmp_path, "submission.json")
    assert set(submission[0]) == {
        "query_image_id", "query_bbox", "query_cls", "query_score", "gallery_image_id", "gallery_bbox",
    }  # fmt: skip


def test_the_submission_is_what_the_figures_count(
    tmp_path: Path, calls: Calls, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the official rules as loops, `submission.json` gives `top`; each box's first entry, `top_one_category`.

    The detectors give a third of the photos the right category, a third a wrong one first, a third none that is right.
    Half of the shop photos have the garment of another pair, whose right one comes further down the list.
    """
    find = stand_ins.Finder._one

    def confused(self: stand_ins.Finder, image: np.ndarray) -> Detections:
        found = find(self, image)
        right = found.categories[0]
        first, second = [(right, right), (right % 13 + 1, right), (right % 13 + 1, (right + 1) % 13 + 1)][right % 3]
        return replace(found, categories=np.array([first, second], np.int16))

    monkeypatch.setattr(stand_ins.Finder, "_one", confused)
    photos = [stand_ins.photo(i, "user" if i < 12 else "shop", 1 + i % 12) for i in range(24)]
    photos[12:18] = [replace(one, pair_id=1 + (one.pair_id + 2) % 6) for one in photos[12:18]]
    write_imageset(photos, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    assert full(tmp_path / "set", tmp_path / "run") == 0
    query_gt, gallery_gt = (
        [
            {f"{side}_image_id": one.image_id, "pair_id": one.pair_id}
            | {"style": item.style, "cls": item.category_id, "bbox": list(item.bbox)}
            for one in photos
            for item in one.items
            if one.source == source
        ]
        for side, source in (("query", "user"), ("gallery", "shop"))
    )
    submission = read(tmp_path / "run", "submission.json")
    figures = read(tmp_path / "run", "metrics.json")["retrieval"]["detected"]["concat"]
    answers = plain(submission, query_gt, gallery_gt, 0.5)
    assert figures["top"] == shares(answers)
    assert figures["missed"] == sum(not stands for stands, _ in answers)
    boxes = {(one["query_image_id"], *one["query_bbox"]): one for one in reversed(submission)}  # first entries
    first = shares(plain(list(boxes.values()), query_gt, gallery_gt, 0.5))
    assert figures["top_one_category"] == first
    top = figures["top"]
    assert 0 < first["1"] < first["10"] < top["10"] < top["20"] < 1 and top["1"] < top["5"]  # the case tells them apart


def test_too_many_failed_images_end_as_3(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    assert full(small_set, tmp_path) == 3  # 1 of 25 is more than 1 %
    assert full(small_set, tmp_path) == 3  # and again, with nothing to do
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.slow
def test_what_is_repeated_follows_from_what_changed(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    full(small_set, tmp_path)
    straight = contract(tmp_path)
    assert calls == [("detect", f"shard-{i:05d}", ("near", "far")) for i in range(5)] + [
        ("embed", f"shard-{i:05d}", tuple((kind, name) for kind in ("detected", "true") for name in ("coarse", "fine")))
        for i in range(5)
    ]
    calls.clear()

    full(small_set, tmp_path)
    assert calls == [] and "to do" not in capsys.readouterr().out.rpartition("true items")[2]

    full(small_set, tmp_path, "--set", "search.top_k=5")  # rank and after
    assert calls == [] and "2 settings changed: search.top_k" in capsys.readouterr().out

    full(small_set, tmp_path, "--set", "items.hypotheses=1")  # other items, but nothing that is embedded
    assert calls == [] and "5 settings changed: items.hypotheses" in capsys.readouterr().out

    full(small_set, tmp_path, "--set", "embedders=[coarse, fine, finest]")  # a model added costs only that model
    assert calls == [("embed", f"shard-{i:05d}", (("detected", "finest"), ("true", "finest"))) for i in range(5)]
    calls.clear()

    full(small_set, tmp_path, "--set", "detectors=[near, far, third]")
    assert [call for call in calls if call[0] == "detect"] == [
        ("detect", f"shard-{i:05d}", ("third",)) for i in range(5)
    ]
    calls.clear()

    full(small_set, tmp_path, "--set", "items.score_threshold=0.11")  # other settings, but the same items come out
    assert calls == [] or {kind for _, _, work in calls for kind, _ in work} == {"detected"}
    full(small_set, tmp_path)
    capsys.readouterr()
    calls.clear()

    (tmp_path / "embeddings/true/fine/shard-00002.parquet").unlink()
    full(small_set, tmp_path)
    assert ("embed", "shard-00002", (("true", "fine"),)) in calls
    assert "1 output gone: embeddings/true/fine/shard-00002.parquet" in capsys.readouterr().out
    assert contract(tmp_path).items() >= straight.items()  # back where the first run was
    calls.clear()

    full(small_set, tmp_path, "--retry-failed")
    assert [call[:2] for call in calls] == [
        ("detect", "shard-00004"),
        ("embed", "shard-00004"),
    ]  # its true box has no crop


def test_another_image_set_is_refused(small_set: Path, tmp_path: Path, calls: Calls, full: Full) -> None:
    full(small_set, tmp_path / "run")
    stand_ins.imageset(tmp_path / "other", 8)
    for more in ([], ["--check"]):  # a check that says yes where the run says no is worth nothing
        with pytest.raises(UserError, match="holds a run over another image set"):
            full(tmp_path / "other", tmp_path / "run", *more)
    full(tmp_path / "other", tmp_path / "run2")
    shutil.rmtree(tmp_path / "other")
    stand_ins.imageset(tmp_path / "other", 10)
    with pytest.raises(UserError, match=r"a run over .*/other as it was before an update; choose another --output"):
        full(tmp_path / "other", tmp_path / "run2")


@pytest.mark.parametrize("limit, users, shops", [(4, 2, 2), (5, 3, 2), (24, 12, 12), (25, 12, 13), (99, 12, 13)])
def test_a_limit_takes_half_from_either_side(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, limit: int, users: int, shops: int
) -> None:
    full(small_set, tmp_path, "--limit", str(limit), "--set", "report.queries=0", "--set", "max_failed_share=1")
    selected = read(tmp_path, "run.json")["selected"]
    assert (selected["users"], selected["shops"]) == (users, shops)
    assert read(tmp_path, "metrics.json")["images"]["total"] == users + shops
    assert len(read(tmp_path, "rankings/detected.parquet")) == users


@pytest.mark.parametrize("photos, note", [
    (range(6), "no shop photos"), (range(12, 18), "no consumer photos"),
])  # fmt: skip
def test_a_set_without_a_side_does_what_is_possible(
    tmp_path: Path, calls: Calls, full: Full, photos: range, note: str
) -> None:
    from store.imageset_write import write_imageset

    rows = [stand_ins.photo(i, "user" if i < 12 else "shop", 1 + i % 12) for i in photos]
    write_imageset(rows, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    assert full(tmp_path / "set", tmp_path / "run") == 0
    metrics = read(tmp_path / "run", "metrics.json")
    assert any(note in line for line in metrics["summary"]["notes"])
    assert metrics["detection"]["fused"]["AP"] is not None
    assert read(tmp_path / "run", "submission.json") == [] or not any(
        entry["gallery_image_id"] for entry in read(tmp_path / "run", "submission.json")
    )


def test_a_set_without_truth_has_no_true_boxes(tmp_path: Path, calls: Calls, full: Full) -> None:
    rows = [stand_ins.photo(i, "user" if i < 3 else "shop", 1 + i % 3) for i in range(6)]
    rows = [replace(row, items=(), pair_id=0) for row in rows]
    write_imageset(rows, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    assert full(tmp_path / "set", tmp_path / "run") == 0
    metrics = read(tmp_path / "run", "metrics.json")
    assert metrics["retrieval"]["detected"]["concat"]["truth"] is None
    assert list(metrics["retrieval"]) == ["detected"] and not (tmp_path / "run" / "items" / "true").exists()
    assert (
        metrics["detection"]["fused"]["AP"] is None and metrics["retrieval"]["detected"]["concat"]["top"]["10"] is None
    )
    assert any("no ground truth" in line for line in metrics["summary"]["notes"])
    assert len(read(tmp_path / "run", "rankings/detected.parquet")) == 3


def test_photos_without_true_boxes_are_judged_by_photo(
    tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos 0 to 3 are consumers'; 4 to 7 show their garments again, and 8 is another shop photo of photo 0's product.

    Photo 2 has a pair that no shop photo has, and photo 3 nothing that joins it to another: it asks nothing.
    """
    rows = [stand_ins.photo(i, "user" if i < 4 else "shop", 1 + i % 4) for i in range(9)]
    pairs, products = (7, 0, 9, 0, 7, 0, 0, 0, 0), ("a", "b", "", "", "x", "b", "", "", "a")
    known = zip(rows, pairs, products, strict=True)
    rows = [replace(row, items=(), pair_id=pair, product_id=product) for row, pair, product in known]
    graded = {"subset": "flat", "category": "skirt", "main_attribute": "pleated"}
    rows = [replace(row, attributes=graded) if row.image_id in (1, 5) else row for row in rows]
    write_imageset(rows, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    assert full(tmp_path / "set", tmp_path / "run") == 0
    metrics = read(tmp_path / "run", "metrics.json")
    figures = metrics["retrieval"]["detected"]["concat"]
    assert figures["truth"] == "photo" and (figures["queries"], figures["missed"]) == (3, 0)
    assert figures["top"]["1"] == 2 / 3  # photos 0 and 1 find their own garment first; photo 2 has no answer
    # photos 4, 7 and 8 are all that have the garment's colours or less; where 8 stands follows from the stand-ins
    rankings = pq.read_table(tmp_path / "run" / "rankings" / "detected.parquet").to_pylist()
    listed = list(dict.fromkeys(rankings[0]["gallery_image_id"]))
    second = sorted(listed.index(shop) + 1 for shop in (4, 8))
    assert figures["map"] == pytest.approx(((1 / second[0] + 2 / second[1]) / 2 + 1 + 0) / 3)
    assert figures["mrr"] == pytest.approx(2 / 3) and figures["per_category"] == {}
    assert figures["fine"]["flat"]["queries"] == 1 and figures["coarse"]["flat"]["recall"]["20"] == 1
    notes = metrics["summary"]["notes"]
    assert any("judged by photo" in note for note in notes) and any("no true boxes" in note for note in notes)
    said = capsys.readouterr().out
    assert "retrieval by photo" in said and "no ground truth" not in said
    assert "AP50" not in said
    page = (tmp_path / "run" / "report" / "retrieval.html").read_text()
    assert "mAP" in page and "LookBench" in page and "Per category" not in page
    first = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "No detection figures: no photo has true boxes to judge by." in first
    assert "AP50" not in first and "true boxes</dt>" not in first  # no card without a figure


def test_figures_end_where_the_lists_do(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists of 5 results say nothing of Acc@10, Acc@20 and nDCG@10."""
    five = ("--set", "search.top_k=5", "--set", "max_failed_share=1")
    assert full(small_set, tmp_path, *five) == 0
    said = capsys.readouterr().out
    assert "Acc@5     mAP" in said and "Acc@10 " not in said and "lists end at place 5 (search.top_k)" in said
    metrics = read(tmp_path, "metrics.json")
    figures = metrics["retrieval"]["detected"]["concat"]
    category = next(part for part in figures["per_category"].values() if part["queries"])
    for top in (figures["top"], figures["top_any_category"], category["top"]):
        assert top["5"] == 1 and (top["10"], top["15"], top["20"]) == (None, None, None)
    assert figures["ndcg"]["5"] is not None and figures["ndcg"]["10"] is None
    assert metrics["summary"]["acc@10_detected"] is None and figures["map"] is not None
    pages = {name: (tmp_path / "report" / f"{name}.html").read_text() for name in ("index", "retrieval")}
    assert all("Acc@5" in page and "Acc@10<" not in page and "Acc@20<" not in page for page in pages.values())
    assert "<dt>Acc@5, detected boxes</dt>" in pages["index"] and "Acc@5 of the final list" in pages["retrieval"]
    chart = json.loads((tmp_path / "report/data/charts-retrieval.js").read_text().partition("] = ")[2].rstrip(";\n"))
    assert len(chart[0]["choices"][0]["series"][0]["x"]) == 5


def test_a_category_may_be_called_like_a_figure() -> None:
    part = {"top": {"1": 0.5, "10": 0.7}, "missed": 0, "queries": 2}
    cut = part | {"top": {"1": 0.5, "10": None}}
    assert as_ranked(part | {"per_category": {"top": part}}, 5) == cut | {"per_category": {"top": cut}}


def test_a_photo_a_detector_stumbles_over_is_its_failure_alone(tmp_path: Path, calls: Calls, full: Full) -> None:
    stand_ins.imageset(tmp_path / "set", 12, {3: stand_ins.STUMBLER})
    full(tmp_path / "set", tmp_path / "run")
    failures = read(tmp_path / "run", "failures.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in failures] == [
        (3, "far: ValueError: stumbled"),
        (3, "near: ValueError: stumbled"),
        (13, "cannot be decoded: image file is truncated"),
    ]
    assert read(tmp_path / "run", "metrics.json")["images"] == {"total": 13, "done": 11, "failed": 2}


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    assert full(small_set, tmp_path / "run", "--dry-run") == 0
    assert "detect        0 of 10 done, to do: 10 first time" in capsys.readouterr().out
    assert not (tmp_path / "run").exists() and not calls
    assert full(small_set, tmp_path / "run", "--set", "max_failed_share=0.1") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    os.utime(tmp_path / "run" / "fused" / "shard-00000.parquet")  # a stamp that a run would write into the mark
    before[tmp_path / "run" / "fused" / "shard-00000.parquet"] = 0
    assert full(small_set, tmp_path / "run", "--dry-run", "--set", "fusion.method=nms") == 0
    told = capsys.readouterr().out
    assert "detect       10 of 10 done" in told and "fuse          0 of 5 done, to do: 5 " in told
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    after[tmp_path / "run" / "fused" / "shard-00000.parquet"] = 0
    assert after == before


def test_a_stage_alone_wants_what_comes_before(small_set: Path, tmp_path: Path, calls: Calls) -> None:
    from jobs.stages import order

    argv = [*stand_ins.SETTINGS, "--imageset", str(small_set), "--output", str(tmp_path)]
    with pytest.raises(UserError, match=r"rank: detect is not finished.*run jobs/detect.py"):
        order.main(["rank"], argv, None, stand_ins.CATALOGUE)
    for stage in order.IN_ORDER:
        order.main([stage], argv, None, stand_ins.CATALOGUE)
    assert (tmp_path / "report" / "index.html").exists()


def test_check_starts_nothing(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    assert full(small_set, tmp_path, "--check") == 0
    assert "a run could start" in capsys.readouterr().out and calls == [] and not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_a_comparison_with_no_run_is_refused_before_any_work(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, more: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=r"--compare .*nosuch: no metrics.json there; want the --output of a finished"):
        full(small_set, tmp_path / "run", "--compare", str(tmp_path / "nosuch"), *more)
    assert calls == [] and not (tmp_path / "run").exists()


def test_missing_weights_are_refused_before_any_work(small_set: Path, tmp_path: Path) -> None:
    from jobs import full_eval

    argv = ["--imageset", str(small_set), "--output", str(tmp_path / "run"), "--set", f"weights_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"no weights atss-tiny.safetensors in .*allow_random_weights=true"):
        full_eval.main(argv)


def test_an_identical_second_run_imports_nothing_heavy(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full
) -> None:
    full(small_set, tmp_path)
    code = (
        "import sys; import run_with_stand_ins as r; status = r.main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'faiss', 'boto3', 'cv2', 'mmdet'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy)); sys.exit(status)"
    )
    argv = ["--imageset", str(small_set), "--output", str(tmp_path)]
    start = time.perf_counter()
    paths = f"{REPO}:{REPO / 'tests' / 'jobs'}"
    again = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": paths, "PATH": ""},
        check=False,
    )
    assert again.returncode == 3, again.stderr
    assert "HEAVY []" in again.stdout
    print(f"identical second run: {time.perf_counter() - start:.1f} s")


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # file names are ASCII, or bytes


@pytest.mark.parametrize("name, locale", [(b"caf\xe9", {}), (b"caf\xe9", C_LOCALE), ("grün".encode(), C_LOCALE)])
def test_a_folder_name_need_not_be_utf8(small_set: Path, tmp_path: Path, name: bytes, locale: dict[str, str]) -> None:
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(small_set, folder / "set")
    argv = ["--imageset", str(folder / "set"), "--output", str(folder / "run"), "--set", "max_failed_share=1"]
    command = [sys.executable, REPO / "tests" / "jobs" / "run_here.py", *argv]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read(folder / "run", "metrics.json")["images"] == {"total": 25, "done": 24, "failed": 1}


def test_run_json_tells_the_run_and_no_secret(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    full(small_set, tmp_path)
    run = read(tmp_path, "run.json")
    digest = open_imageset(small_set).digest
    assert run["imagesets"] == [{"uri": str(small_set), "digest": digest, "images": 25, "shards": 5}]
    assert [model["name"] for model in run["detectors"]] == ["near", "far"] and "driver" in run["versions"]
    assert all(b"hunter2" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_folder_and_a_bucket_end_alike(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, s3_bucket: str
) -> None:
    from store.objects import open_store

    full(small_set, tmp_path)
    remote = open_store(f"{s3_bucket}/set")
    for path in small_set.iterdir():
        remote.write_file(path.name, path)
    full(f"{s3_bucket}/set", f"{s3_bucket}/run")
    output = open_store(f"{s3_bucket}/run")
    for name, data in contract(tmp_path).items():
        if name != "metrics.json":
            assert output.read(name) == data, name
    calls.clear()
    full(f"{s3_bucket}/set", f"{s3_bucket}/run")
    assert calls == [] and not output.exists("lock.json")


def test_true_boxes_of_a_set_that_has_none_are_refused(tmp_path: Path, calls: Calls, full: Full) -> None:
    rows = [replace(stand_ins.photo(i, "user" if i < 3 else "shop", 1 + i % 3), items=()) for i in range(6)]
    write_imageset(rows, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    for more in ((), ("--check",)):
        with pytest.raises(UserError, match="boxes: true, and no photo that the run takes has true boxes"):
            full(tmp_path / "set", tmp_path / "run", "--set", "boxes=[true]", *more)
    assert calls == []


@pytest.mark.parametrize("taken, limit, told", [(90, 100, False), (100, 100, False), (101, 100, True)])
def test_a_lower_limit_of_pixels_than_the_sets_is_told(
    tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str], taken: int, limit: int, told: bool
) -> None:
    rows = [stand_ins.photo(i, "user" if i < 1 else "shop", 1) for i in range(2)]
    source = {"adapter": "folder", "arguments": {"max_pixels": 1000 * taken}}
    write_imageset(rows, tmp_path / "set", source=source)
    for more in ((), ("--check",)):
        full(tmp_path / "set", tmp_path / "run", "--set", f"max_pixels={1000 * limit}", *more)
        line = "the image set took photos of up to 101,000 pixels, this run refuses photos of more than 100,000"
        assert (line in capsys.readouterr().out) is told


def test_results_of_another_decoder_are_made_again(
    small_set: Path, tmp_path: Path, calls: Calls, full: Full, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as earlier:
        earlier.setattr("jobs.stages.detect.DECODER", 1)
        earlier.setattr("jobs.stages.embed.DECODER", 1)
        full(small_set, tmp_path, "--set", "max_failed_share=1")
    capsys.readouterr()
    full(small_set, tmp_path, "--set", "max_failed_share=1")
    assert "to do: 10 decoder of photos changed" in capsys.readouterr().out
