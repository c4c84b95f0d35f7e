"""Nights of a gallery in this process, with stand-in models: counts, work done, files written, how a night ends."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stand_ins
from galleries import (
    Goods,
    blank,
    content,
    house,
    line,
    listing,
    night,
    on_disk,
    opened,
    queries,
    shop,
    stock,
)

from jobs import ingest, reindex_gallery
from jobs.gallery import build, gate, versions
from jobs.gallery import night as nights
from jobs.runs import shards, tables
from retrieval.gallery_files import GalleryError
from store.errors import UserError
from store.objects import StorageError, open_store

Calls = list[tuple[str, str, Any]]


@pytest.fixture
def where(tmp_path: Path, calls: Calls) -> tuple[Path, Path]:
    """Image set and gallery; models work in this process."""
    return tmp_path / "set", tmp_path / "gallery"


def photos_through(calls: Calls, imageset: Path) -> int:
    """Detect jobs so far; each is a shard's share of the night."""
    return sum(stage == "detect" for stage, _, _ in calls)


# ------------------------------------------------------------------------------------------------ what is counted


def test_a_folder_name_need_not_be_utf8(tmp_path: Path, calls: Calls) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    stock(shop(range(10)), folder / "set")
    assert night(folder / "set", folder / "gallery")["status"] == "published"
    assert len(content(opened(folder / "gallery"))) == 10


def test_the_nights_counts_are_those_of_a_comparison_by_hand(where: tuple[Path, Path]) -> None:
    stock(shop(range(10)), where[0])
    first = night(*where)
    assert [first[name] for name in ("added", "changed", "removed", "unchanged", "detected")] == [10, 0, 0, 0, 10]
    assert (first["rows"], first["garments_added"], first["before"], first["status"]) == (10, 10, None, "published")
    kept = {number: one for number, one in content(opened(where[1])).items()}
    # 0 and 1 go, 2 shows another garment, 20 comes, 3 has another product: 7 stay as they are
    goods = [Goods(2, 99, "sku-2"), Goods(3, 3, "sku-33"), *shop(range(4, 10)), *shop([20])]
    stock(goods, where[0])
    second = night(*where)
    assert [second[name] for name in ("added", "changed", "removed", "unchanged", "detected")] == [1, 1, 2, 7, 2]
    assert (second["rows"], second["garments_added"], second["garments_removed"]) == (9, 2, 3)
    now = opened(where[1])
    assert {row["image_id"]: row["product_id"] for row in now.items.to_pylist()} == {
        one.number: one.product for one in goods
    }
    same = [number for number, row in content(now).items() if number in kept and row == kept[number]]
    assert len(same) == 6  # ids and vectors of 4 to 9; 3 has the same id and another product


def test_a_photo_that_moves_within_its_shard_is_the_same_garment(where: tuple[Path, Path]) -> None:
    stock(shop(range(8)), where[0])
    night(*where)
    before = content(opened(where[1]))
    stock(shop(reversed(range(8))), where[0], max_images=3)  # other shards, other order
    assert night(*where)["status"] == "unchanged"
    assert content(opened(where[1])) == before


def test_another_product_follows_without_the_models(where: tuple[Path, Path], calls: Calls) -> None:
    stock(shop(range(8)), where[0])
    night(*where)
    before, n = opened(where[1]), len(calls)
    stock([Goods(number, number, "other") for number in range(8)], where[0])
    found = night(*where)
    assert (found["status"], found["unchanged"], found["garments_added"]) == ("published", 8, 0) and len(calls) == n
    now = opened(where[1])
    assert set(now.items["product_id"].to_pylist()) == {"other"}
    assert np.array_equal(now.index.ids, before.index.ids)


def test_a_night_without_changes_writes_nothing(where: tuple[Path, Path], calls: Calls) -> None:
    stock(shop(range(8)), where[0])
    night(*where)
    before, n = on_disk(where[1]), len(calls)
    assert night(*where)["status"] == "unchanged"
    assert on_disk(where[1]) == before and len(calls) == n


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    where: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stock(shop(range(8)), where[0])
    assert reindex_gallery.main(line(*where, "--dry-run"), stand_ins.CATALOGUE) == 0
    assert "added 8, changed 0, removed 0, unchanged 0; 8 to detect and embed" in capsys.readouterr().out
    assert not where[1].exists()
    night(*where)
    stock(shop(range(1, 10)), where[0])
    before = on_disk(where[1])
    assert reindex_gallery.main(line(*where, "--dry-run"), stand_ins.CATALOGUE) == 0
    assert "added 2, changed 0, removed 1, unchanged 7; 2 to detect and embed" in capsys.readouterr().out
    assert on_disk(where[1]) == before


def test_the_same_bytes_under_several_names_are_looked_at_once_and_found_under_each(
    where: tuple[Path, Path], calls: Calls
) -> None:
    twins = [Goods(number, 1, f"sku-{number}", same_bytes=1) for number in range(15)]
    stock([*twins, *shop(range(20, 24))], where[0])
    found = night(*where)
    assert (found["added"], found["detected"], found["rows"]) == (19, 5, 19)
    now = opened(where[1])
    seen = now.vectors(now.items["id"].to_numpy()[:1]) * np.float32(np.sqrt(2))  # two unit rows side by side
    ids = now.search(seen, 15)[1][0]
    assert {row["image_id"] for row in now.lookup(ids)} == set(range(15))
    assert ids.tolist() == sorted(ids.tolist())  # equal similarities by lower id
    stock([*twins[3:], *shop(range(20, 24))], where[0])  # three of the twins go, their bytes stay
    n = len(calls)
    assert (night(*where)["rows"], len(calls)) == (16, n)


def test_boxes_that_are_the_same_in_whole_pixels_are_one_garment(where: tuple[Path, Path]) -> None:
    """Two categories seen in one place: the surer one stays."""
    stock(shop(range(2)), where[0])
    night(*where)
    results = open_store(where[1]).sub("results").list()
    part = next(info.key for info in results if info.key.endswith("items.parquet"))
    store = open_store(where[1]).sub("results")
    table = tables.read(store, part)
    double = table.take([0, 0, 1]).to_pylist()
    double[1] |= {"bbox": [round(edge) for edge in double[1]["bbox"]], "score": 0.1, "category_id": 13}
    tables.write(store, part, table.schema.empty_table().from_pylist(double, table.schema))
    found = night(*where, "--retrain", "now")
    assert (found["rows"], found["gate"]["counts"]) == (2, 1.0)
    assert 13 not in opened(where[1]).items["category_id"].to_pylist()


# ------------------------------------------------------------------------------------------------ what is done again


def test_a_photo_put_in_by_an_update_moves_no_other_through_the_models(
    tmp_path: Path, where: tuple[Path, Path], calls: Calls
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for one in shop(range(10, 20)):
        (photos / f"{one.number}.png").write_bytes(one.photo().image)
    argv = ["folder", str(photos), str(where[0]), "--source", "shop", "--shard-images", "4", "--update"]
    assert ingest.main(argv) == 0
    assert night(*where)["detected"] == 10
    (photos / "005.png").write_bytes(Goods(5, 5).photo().image)  # the first name of all: it would move every shard
    (photos / "14.png").unlink()
    assert ingest.main(argv) == 0
    found = night(*where)
    assert [found[name] for name in ("added", "removed", "unchanged", "detected", "rows")] == [1, 1, 9, 1, 10]


def test_what_is_removed_leaves_index_and_memory(where: tuple[Path, Path]) -> None:
    stock(shop(range(12)), where[0])
    night(*where)
    stock(shop(range(4)), where[0])
    assert night(*where, "--set", "gallery.most_gone=1")["garments_removed"] == 8
    now = opened(where[1])
    assert (len(now), len(now.index.vectors), now.record["dead_share"]) == (4, 4, 0.0)
    assert {row["image_id"] for row in now.lookup(now.search(queries(now), 12)[1].reshape(-1)) if row} == set(range(4))
    stock(shop(range(12)), where[0])  # they come back, and their bytes are known
    assert night(*where)["detected"] == 0 and len(opened(where[1])) == 12


def test_learning_again_is_asked_for(where: tuple[Path, Path], calls: Calls) -> None:
    steps = ["--set", "search.steps=[{step: concat}, {step: whiten, dim: 6}]"]
    stock(shop(range(20)), where[0])
    night(*where, *steps)
    first = opened(where[1])
    stock(shop(range(10, 40)), where[0])
    assert night(*where, *steps)["rebuilt"] == ""
    second = opened(where[1])
    assert second.record["files"]["steps.safetensors"] == first.record["files"]["steps.safetensors"]
    assert second.record["trained_in"] == first.version
    n = len(calls)
    assert night(*where, *steps, "--retrain", "now")["rebuilt"] == "asked to train again"
    third = opened(where[1])
    assert third.record["files"]["steps.safetensors"] != first.record["files"]["steps.safetensors"]
    assert (third.record["trained_in"], len(calls)) == (third.version, n)


@pytest.mark.parametrize("more, why, detected", [
    (["search.pool=50"], "the search's steps changed", 0),
    (["gallery.memory_mb=100"], "another kind of index or budget", 0),
    (["gallery.index=hnsw"], "another kind of index or budget", 0),
    (["fusion.iou_threshold=0.7"], "models, weights or settings changed", 12),
    (["embedders=[coarse, finest]"], "models, weights or settings changed", 12),
])  # fmt: skip
def test_other_settings_build_anew_and_only_models_cost_models(
    where: tuple[Path, Path], more: list[str], why: str, detected: int
) -> None:
    stock(shop(range(12)), where[0])
    night(*where)
    changed = [word for one in more for word in ("--set", one)]
    found = night(*where, *changed)
    assert (found["status"], found["rebuilt"], found["detected"], found["rows"]) == ("published", why, detected, 12)
    assert night(*where, *changed)["status"] == "unchanged"
    back = night(*where)  # the results of the other models are still there
    assert (back["rebuilt"], back["detected"]) == (why, 0)


def test_weights_that_were_trained_again_start_another_folder_of_results(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(6)), where[0])
    night(*where)
    other = stand_ins.EmbedderSpec("coarse", input_size=8)
    monkeypatch.setitem(stand_ins.EMBEDDERS, "coarse", other)
    found = night(*where)
    assert (found["rebuilt"], found["detected"]) == ("models, weights or settings changed", 6)
    assert len({info.key.split("/")[0] for info in open_store(where[1]).sub("results").list()}) == 2


def test_an_index_that_was_outgrown_is_planned_anew(where: tuple[Path, Path]) -> None:
    hnsw = ["--set", "gallery.index=hnsw"]
    stock(shop(range(10)), where[0])
    night(*where, *hnsw)
    stock(shop(range(19)), where[0])
    assert night(*where, *hnsw)["rebuilt"] == ""
    stock(shop(range(21)), where[0])
    assert night(*where, *hnsw)["rebuilt"] == ""  # 19 are there, and the index was planned for 10
    stock(shop(range(22)), where[0])
    assert night(*where, *hnsw)["rebuilt"] == "the gallery outgrew its index"


# ------------------------------------------------------------------------------------------------ failures


def test_photos_that_fail_are_counted_and_too_many_keep_the_version_before(where: tuple[Path, Path]) -> None:
    stock(shop(range(10)), where[0])
    first = night(*where)["version"]
    goods = [*shop(range(10)), Goods(10, 10, broken=True), Goods(11, 11, corner=stand_ins.STUMBLER)]
    stock(goods, where[0])
    found = night(*where, status=3)
    assert (found["status"], found["failed"], found["version"], found["refused"]) == ("failed", 2, first, ["failed"])
    assert found["gate"]["failed"] == round(2 / 12, 6)
    assert opened(where[1]).version == first
    found = night(*where, "--set", "max_failed_share=0.2")  # nothing is tried again, and it is good enough now
    assert (found["status"], found["failed"], found["detected"], found["rows"]) == ("published", 2, 0, 10)
    assert (night(*where, "--set", "max_failed_share=0.2"))["failed"] == 2


def test_failed_photos_are_tried_again_when_that_is_asked_for(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    goods = [*shop(range(10)), Goods(11, 11, corner=stand_ins.STUMBLER), Goods(12, 12, broken=True)]
    stock(goods, where[0])
    loose = ["--set", "max_failed_share=0.5"]
    assert night(*where, *loose)["rows"] == 10
    monkeypatch.setattr(stand_ins, "STUMBLER", (1, 2, 3))  # mended
    assert night(*where, *loose)["status"] == "unchanged"
    found = night(*where, *loose, "--retry-failed")
    assert (found["detected"], found["failed"], found["rows"], found["garments_added"]) == (2, 1, 11, 1)
    assert night(*where, *loose)["status"] == "unchanged"


# ------------------------------------------------------------------------------------------------ the gate


def _bad_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "recall", lambda *_: 0.5)


def _lost_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def extended(*args: Any) -> build.Built:
        built = whole(*args)
        return replace(built, items=built.items.slice(1))

    whole = nights.build
    monkeypatch.setattr(nights, "build", extended)


def _long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the index let through: what the gate looks at is what is stored."""

    def with_long_rows(built: build.Built) -> build.Built:
        index = SimpleNamespace(living=built.index.living, vectors=np.asarray(built.index.vectors) * 2)
        return replace(built, index=index)  # type: ignore[arg-type]

    of_rows = gate.of_rows
    monkeypatch.setattr(gate, "of_rows", lambda built: of_rows(with_long_rows(built)))


def _another_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row belongs to the garment beside it."""
    search = build.AnnIndex.search
    writing = nights.build

    def built(*args: Any) -> build.Built:
        made = writing(*args)
        ids = np.roll(np.asarray(made.index.ids), 1)
        made.index.search = lambda queries, k: (lambda s, i: (s, ids[np.searchsorted(np.sort(ids), i, sorter=None)]))(
            *search(made.index, queries, k)
        )  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(nights, "build", built)


@pytest.mark.parametrize("figure, spoil", [
    ("recall", _bad_recall), ("counts", _lost_item), ("rows", _long_rows), ("canaries", _another_world),
])  # fmt: skip
def test_a_figure_that_misses_keeps_the_version_before(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, figure: str, spoil: Any
) -> None:
    stock(shop(range(30)), where[0])
    first = night(*where)["version"]
    pointer = (where[1] / "CURRENT").read_bytes()
    stock(shop(range(1, 32)), where[0])
    with monkeypatch.context() as patch:
        spoil(patch)
        found = night(*where, status=4)
    assert (found["status"], found["version"]) == ("refused", first) and figure in found["refused"]
    assert (where[1] / "CURRENT").read_bytes() == pointer
    assert [row.split()[1] for row in house(where[1], "--list").splitlines()[1:]] == ["current", "refused"]
    again = night(*where)  # the next night starts from what serves, and no photo is looked at twice
    assert (again["status"], again["before"], again["added"], again["detected"]) == ("published", first, 2, 0)


def test_copies_are_looked_for_among_what_serves_next(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(40)), where[0])
    some = ["--set", "gallery.copies=8", "--set"]
    found = night(*where, *some, "gallery.least_copies=1", status=4)
    assert found["refused"] == ["copies"] and 0 < found["gate"]["copies"] < 1 and found["version"] is None
    assert not (where[1] / "CURRENT").exists()
    found = night(*where, *some, "gallery.least_copies=0.1")
    assert (found["status"], found["detected"]) == ("published", 0)


def test_a_gallery_without_garments_is_published_first_but_never_over_a_full_one(where: tuple[Path, Path]) -> None:
    steps = [
        "--set",
        "search.steps=[{step: concat}, {step: whiten, dim: 6}, {step: alpha_qe}]",
        "--set",
        "gallery.most_gone=1",
    ]
    stock([blank(number) for number in range(4)], where[0])
    found = night(*where, *steps)
    assert (found["status"], found["rows"], found["gate"]["recall"]) == ("published", 0, None)
    empty = opened(where[1])
    similarity, ids = empty.search(queries(empty, 3), 5)
    assert ids.tolist() == [[-1] * 5] * 3 and np.isneginf(similarity).all() and empty.lookup(ids[0]) == [{}] * 5
    stock([blank(0), *shop(range(10, 30))], where[0])
    found = night(*where, *steps)
    assert (found["rows"], found["rebuilt"]) == (20, "there were no garments to go on from")
    stock([blank(number) for number in range(4)], where[0])
    found = night(*where, *steps, status=4)
    assert found["refused"] == ["counts"] and len(opened(where[1])) == 20


def test_half_a_shop_is_not_published_over_a_whole_one(where: tuple[Path, Path]) -> None:
    stock(shop(range(10)), where[0])
    assert night(*where)["gate"]["gone"] is None
    stock(shop(range(5, 10)), where[0])  # five of ten went: the limit itself
    assert night(*where)["gate"]["gone"] == 0.5
    stock(shop(range(8, 20)), where[0])  # three of five: many came, yet most of what was there is gone
    found = night(*where, status=4)
    assert (found["refused"], found["gate"]["gone"], found["rows"]) == (["gone"], 0.6, 5), "rows that serve"
    assert len(opened(where[1])) == 5
    assert night(*where, "--set", "gallery.most_gone=1")["status"] == "published"


def test_a_night_that_lost_its_products_is_not_published(where: tuple[Path, Path]) -> None:
    """As after a CSV with empty cells: the photos are the same, and none says which product it shows."""
    stock(shop(range(10)), where[0])
    assert night(*where)["gate"]["products_lost"] is None
    stock([replace(goods, product="") if goods.number < 2 else goods for goods in shop(range(10))], where[0])
    assert night(*where)["gate"]["products_lost"] == 0.2  # two of ten: the limit itself
    stock([replace(goods, product="") for goods in shop(range(10))], where[0])
    found = night(*where, status=4)
    assert (found["refused"], found["gate"]["products_lost"]) == (["products_lost"], 1.0)
    assert sum(bool(row["product_id"]) for row in opened(where[1]).items.to_pylist()) == 8
    assert night(*where, "--set", "gallery.most_lost=1")["status"] == "published"


def test_a_night_of_placeholders_is_not_published(where: tuple[Path, Path]) -> None:
    """A picture host that is down answers with one grey picture for every photo."""
    stock(shop(range(20)), where[0])
    night(*where)
    placeholder = blank(128).image
    stock([replace(goods.photo(), image=placeholder) if goods.number else goods for goods in shop(range(20))], where[0])
    found = night(*where, status=4)
    assert (found["refused"], found["gate"]["garments_lost"]) == (["garments_lost"], 0.95)
    assert found["gate"]["gone"] == 0 and len(opened(where[1])) == 20
    stock(shop(range(20)), where[0])
    assert night(*where)["status"] in ("published", "unchanged")


def test_a_set_without_shop_photos_is_refused(where: tuple[Path, Path]) -> None:
    stock([stand_ins.photo(1, "user", 1)], where[0])
    with pytest.raises(UserError, match=r"no shop photos; a gallery is made of those"):
        night(*where)
    assert not (where[1] / "lock.json").exists()


# ------------------------------------------------------------------------------------------------ versions


def test_version_json_is_written_once_and_last_and_names_every_file(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    kind = type(open_store(where[1]))
    for name in ("write", "write_file"):
        real = getattr(kind, name)

        def noted(store: Any, key: str, data: Any, real: Any = real) -> None:
            if store.local_path == where[1] and key.startswith("versions/"):
                written.append(key.rpartition("/")[2])
            real(store, key, data)

        monkeypatch.setattr(kind, name, noted)
    stock(shop(range(6)), where[0])
    name = night(*where, "--set", "gallery.copies=4", "--set", "gallery.least_copies=0")["version"]
    record = json.loads((where[1] / "versions" / name / "version.json").read_text())
    assert written == [*record["files"], "version.json"] and "photos.parquet" in record["files"]
    assert set(record["gate"]) == {
        "recall",
        "copies",
        "counts",
        "rows",
        "canaries",
        "gone",
        "failed",
        "products_lost",
        "garments_lost",
    }


def test_a_night_after_a_rollback_starts_from_what_serves(where: tuple[Path, Path], calls: Calls) -> None:
    stock(shop(range(6)), where[0])
    first = night(*where)["version"]
    stock(shop(range(2, 10)), where[0])
    second = night(*where)["version"]
    assert f"{first} is current again, {second} is not" in house(where[1], "--rollback")
    n = len(calls)
    third = night(*where)
    assert (third["before"], third["added"], third["removed"], third["detected"]) == (first, 4, 2, 0)
    assert third["version"] > second and len(calls) == n
    assert opened(where[1]).record["before"] == first
    house(where[1], "--rollback", second)
    assert night(*where)["status"] == "unchanged"  # what serves is what the set holds


def test_pruned_versions_take_their_results_along_when_no_other_needs_them(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(6)), where[0])
    night(*where)
    stock(shop(range(7)), where[0])
    night(*where)
    finest = ["--set", "embedders=[finest]"]
    night(*where, *finest)
    store = open_store(where[1])
    assert versions.prune(store, 1) == []  # within a day of their time
    assert len(versions.prune(store, 1, grace_s=0)) == 2
    assert {info.key.split("/")[1] for info in store.list("results/")} == {opened(where[1]).record["results"]}
    assert night(*where, *finest)["status"] == "unchanged"


def test_a_dry_run_names_what_would_go_and_come_back_and_changes_nothing(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for n in (6, 7, 8):
        stock(shop(range(n)), where[0])
        names.append(night(*where)["version"])
    monkeypatch.setitem(versions.prune.__kwdefaults__, "grace_s", 0)
    before = on_disk(where[1])
    assert house(where[1], "--prune", "--keep", "1", "--dry-run") == f"would remove 2: {names[0]}, {names[1]}\n"
    told = house(where[1], "--rollback", "--dry-run")
    assert told == f"{names[1]} would be current again, {names[2]} would not\n"
    assert on_disk(where[1]) == before


def test_a_prune_before_the_first_night_finds_nothing(where: tuple[Path, Path]) -> None:
    assert house(where[1], "--prune") == "nothing to remove\n"
    stock(shop(range(6)), where[0])
    assert night(*where)["status"] == "published"


def test_what_lies_damaged_stops_a_night_with_the_place(where: tuple[Path, Path]) -> None:
    stock(shop(range(6)), where[0])
    name = night(*where)["version"]
    path = where[1] / "versions" / name / "photos.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GalleryError, match=r"photos.parquet: \w+, published as \w+; `--rollback`"):
        night(*where)


def test_metrics_are_what_the_summary_says(tmp_path: Path, where: tuple[Path, Path]) -> None:
    stock(shop(range(6)), where[0])
    night(*where, "--metrics", str(tmp_path / "gallery.prom"))
    wanted = {"clothes_gallery_rows": 6, "clothes_gallery_published": 1, 'clothes_gallery_gate{figure="counts"}': 1.0}
    assert wanted.items() <= metrics_in(tmp_path / "gallery.prom").items()
    stock(shop(range(5, 12)), where[0])
    night(*where, "--metrics", str(tmp_path / "gallery.prom"), status=4)
    wanted = {"clothes_gallery_rows": 6, "clothes_gallery_photos": 7, "clothes_gallery_published": 0}
    assert wanted.items() <= metrics_in(tmp_path / "gallery.prom").items()
    assert [path.name for path in tmp_path.glob("gallery.prom*")] == ["gallery.prom"]


def metrics_in(path: Path) -> dict[str, float]:
    """Name and labels of each metric -> value."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.parametrize("file", ["nowhere/gallery.prom", "a file/gallery.prom", "a folder"])
def test_metrics_that_cannot_be_written_end_a_night_before_it_begins(
    file: str, tmp_path: Path, where: tuple[Path, Path]
) -> None:
    (tmp_path / "a file").write_bytes(b"")
    (tmp_path / "a folder").mkdir()
    stock(shop(range(6)), where[0])
    with pytest.raises(UserError, match=f"--metrics .*/{file}: want a file in a folder that exists"):
        night(*where, "--metrics", str(tmp_path / file))
    assert not where[1].exists()


def test_what_cannot_be_written_after_the_publication_is_told_and_no_more(
    tmp_path: Path, where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stock(shop(range(6)), where[0])
    metrics = tmp_path / "metrics" / "gallery.prom"
    metrics.parent.mkdir()
    kind = type(open_store(where[1]))
    real = kind.write

    def write(store: Any, key: str, data: Any) -> None:
        if key.startswith("nights/"):
            metrics.parent.rmdir()
            raise StorageError("the disk is\nfull")
        real(store, key, data)

    monkeypatch.setattr(kind, "write", write)
    found = night(*where, "--metrics", str(metrics))  # the JSON line is there, and the status is 0
    assert found["status"] == "published" and opened(where[1]).version == found["version"]
    told = [one for one in capfd.readouterr().err.splitlines() if one.startswith("reindex_gallery.py: ")]
    assert len(told) == 2 and told[0].endswith(f"/nights/{found['version']}.json is not written: the disk is full")
    assert f"--metrics {metrics} is not written: " in told[1]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=str)
def test_an_index_that_does_not_fit_is_a_mistake_in_the_line(dry: tuple[str, ...], where: tuple[Path, Path]) -> None:
    stock(shop(range(6)), where[0])
    with pytest.raises(UserError, match=r"gallery.index, gallery.memory_mb: plan: ivf_flat .*; what fits .*: flat"):
        night(*where, "--set", "gallery.index=ivf_flat", *dry)


# ------------------------------------------------------------------------------------------------ taking over


def killed(where: tuple[Path, Path], calls: Calls, monkeypatch: pytest.MonkeyPatch, after: int, *more: str) -> None:
    """A night that ends as by kill -9 after so many jobs of models: nothing is tidied up behind it."""
    real, n = shards.write_marks, len(calls)

    def write_marks(*args: Any) -> None:
        real(*args)
        if len(calls) - n >= after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_marks", write_marks)
        with pytest.raises(KeyboardInterrupt):
            night(*where, *more)


@pytest.mark.parametrize("what", ["nothing", "the set", "the settings"])
def test_what_a_killed_night_finished_is_not_done_again(
    where: tuple[Path, Path], calls: Calls, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """18 photos in 3 shards: all detected, two embedded. Then the night goes on, with other photos or models."""
    stock(shop(range(18)), where[0], max_images=6)
    killed(where, calls, monkeypatch, after=5)
    del calls[:]
    more = ["--set", "embedders=[coarse]"] if what == "the settings" else []
    if what == "the set":
        stock(shop(range(3, 20)), where[0], max_images=6)  # 0 to 11 were finished, 3 to 11 are still there
    found = night(*where, *more)
    stages = [stage for stage, _, _ in calls]
    want = {
        "nothing": (18, 18, {"detect": 0, "embed": 1}),  # the third shard's rows alone
        "the set": (17, 17, {"detect": 2, "embed": 2}),  # 12 to 19, in two shards of three
        "the settings": (18, 18, {"detect": 3, "embed": 3}),
    }[what]
    assert (found["rows"], found["photos"]) == want[:2]
    assert {stage: stages.count(stage) for stage in ("detect", "embed")} == want[2]
    assert not (where[1] / "work").exists()
    straight = where[1].with_name("straight")
    night(where[0], straight, *more)
    assert content(opened(where[1])) == content(opened(straight))


def test_a_killed_night_leaves_nothing_behind_the_next(
    where: tuple[Path, Path], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(6)), where[0])
    (where[1] / ".tmp-building-killed" / "versions").mkdir(parents=True)
    (where[1] / ".tmp-building-killed" / "vectors.npy").write_bytes(b"half")
    (where[1] / "work").mkdir()
    (where[1] / "work" / "photos.parquet").write_bytes(b"what it was about was not written yet")
    assert night(*where)["status"] == "published"
    assert not [path for path in on_disk(where[1]) if ".tmp-" in path.replace(".tmp-swap", "")]
    assert listing(open_store(where[1]).sub("work")) == {}
