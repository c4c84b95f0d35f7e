"""Runs and nights over several image sets, with stand-in models: as over one set, and an added set costs its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from agreement import contract
from galleries import content, night, opened

from jobs import ablate, full_eval, status
from jobs.gallery import page
from jobs.gallery.infer import settings_of
from jobs.runs.finished import open_finished
from store.errors import UserError
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.manifest import ImageSetError

Full = Callable[..., int]
Calls = list[tuple[str, str, Any]]
STREET, SHOP, MORE = range(8), range(100, 108), range(200, 204)


def photo(number: int) -> Photo:
    """Photo 0, 100 and 200 show one garment, all named 0000.png, and so on."""
    place = number % 100
    made = stand_ins.photo(number, "user" if number < 100 else "shop", 1 + place)
    return replace(made, file_name=f"{place:04d}.png", product_id=f"sku-{place}")


def write(folder: Path | str, *numbers: range, max_images: int = 4) -> str:
    rows = (photo(number) for part in numbers for number in part)
    write_imageset(rows, folder, source={"adapter": "stand-in", "arguments": {}}, max_images=max_images)
    return str(folder)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Street, shop and a second shop; two shards, two, one."""
    return [write(tmp_path / name, numbers) for name, numbers in (("street", STREET), ("shop", SHOP), ("more", MORE))]


def flags(sets: list[str]) -> list[str]:
    return [word for uri in sets for word in ("--imageset", uri)]


def run(sets: list[str], output: Path | str, *more: str) -> int:
    argv = [*stand_ins.SETTINGS, *flags(sets), "--output", str(output), *more]
    return full_eval.main(argv, stand_ins.CATALOGUE)


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def marks(output: Path) -> dict[str, bytes]:
    """Marks of the stages that work shard by shard."""
    paths = [path for stage in ("detect", "fuse", "embed") for path in (output / "done" / stage).rglob("*.json")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def test_two_sets_give_the_figures_of_one_with_all_their_photos(sets: list[str], tmp_path: Path, calls: Calls) -> None:
    assert run(sets[:2], tmp_path / "joined") == 0
    one = [write(tmp_path / "both", STREET, SHOP)]  # the same shards under other names: street 0 and 1, shop 2 and 3
    assert run(one, tmp_path / "straight") == 0
    renamed = {"shard-00002": "set1-shard-00000", "shard-00003": "set1-shard-00001"}
    joined, straight = contract(tmp_path / "joined"), contract(tmp_path / "straight")
    for name, data in straight.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        assert joined.pop(name) == data, name
    assert not joined
    assert read(tmp_path / "joined", "metrics.json")["retrieval"]["detected"]["concat"]["top"]["1"] == 1.0
    record = read(tmp_path / "joined", "run.json")
    digests = [open_imageset(uri).digest for uri in sets[:2]]
    assert record["imagesets"] == [
        {"uri": uri, "digest": digest, "images": 8, "shards": 2} for uri, digest in zip(sets, digests, strict=False)
    ]


def test_an_added_set_costs_its_own_photos(
    sets: list[str], tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    run(sets[:2], tmp_path / "run")
    before = marks(tmp_path / "run")
    calls.clear()
    capsys.readouterr()
    run(sets, tmp_path / "run")
    assert {shard for _, shard, _ in calls} == {"set2-shard-00000"}
    assert "8 of 10 done, to do: 2 first time" in capsys.readouterr().out  # shards of both detectors
    after = marks(tmp_path / "run")
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    run(sets, tmp_path / "straight")
    assert contract(tmp_path / "run") == contract(tmp_path / "straight")
    calls.clear()
    run(sets, tmp_path / "run")
    assert calls == [] and "to do" not in capsys.readouterr().out.rpartition("true items")[2]


def test_a_run_may_gain_sets_and_nothing_else(sets: list[str], tmp_path: Path, calls: Calls) -> None:
    street, shop, more = sets
    run([street, shop], tmp_path / "run")
    changed = write(tmp_path / "changed", range(100, 107))
    for given in ([street], [shop, street], [street, more], [street, changed], [more, street, shop]):
        for check in ([], ["--check"]):
            with pytest.raises(UserError, match=r"a run over other image sets .*/street, digest .*new sets after"):
                run(given, tmp_path / "run", *check)
    calls.clear()
    run([street, shop], tmp_path / "run")
    assert calls == []


def test_an_id_in_two_sets_is_refused(sets: list[str], tmp_path: Path, calls: Calls) -> None:
    again = write(tmp_path / "again", range(105, 109))
    with pytest.raises(ImageSetError, match=r"id 105 is in two image sets.*'0005\.png' of .*shop and '0005\.png' of"):
        run([*sets, again], tmp_path / "run")
    run(sets, tmp_path / "run")
    for more in ([], ["--check"]):
        with pytest.raises(ImageSetError, match="image_id 105 is in two image sets"):
            run([*sets, again], tmp_path / "run", *more)
    with pytest.raises(UserError, match="imageset: want each one once"):
        run([sets[0], sets[0]], tmp_path / "twice")
    with pytest.raises(ImageSetError, match="is given twice"):
        run([sets[0], f"{sets[0]}/"], tmp_path / "twice")
    with pytest.raises(ImageSetError, match="image_id 100 is in two image sets"):
        night(sets[1], tmp_path / "gallery", "--imageset", f"{tmp_path}/more/../shop")


def test_a_run_file_names_one_set_or_several(sets: list[str], tmp_path: Path, calls: Calls) -> None:
    config = tmp_path / "run.yaml"
    for imageset, want in ((sets[0], sets[:1]), (sets, sets)):
        config.write_text(json.dumps({"imageset": imageset}))
        argv = [*stand_ins.SETTINGS, "--output", str(tmp_path / f"run{len(want)}"), "--config", str(config)]
        full_eval.main(argv, stand_ins.CATALOGUE)
        record = read(tmp_path / f"run{len(want)}", "run.json")
        assert record["settings"]["imageset"] == want == [part["uri"] for part in record["imagesets"]]
    with pytest.raises(UserError, match="no image set: give --imageset, once or several times, or `imageset`"):
        full_eval.main([*stand_ins.SETTINGS, "--output", str(tmp_path / "none")], stand_ins.CATALOGUE)


def test_a_run_of_an_earlier_program_continues_and_gains_a_set(
    sets: list[str], tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [write(tmp_path / "both", STREET, SHOP)]
    output = tmp_path / "run"
    run(whole, output)
    record = read(output, "run.json")
    (part,) = record.pop("imagesets")
    selected = record.pop("selected")
    del selected["unjudged"]  # schema 1 knew none
    older = record | {"schema": 1, "imageset": part | {"selected": selected}}
    older["settings"] |= {"imageset": whole[0]}
    (output / "run.json").write_text(json.dumps(older))
    calls.clear()
    capsys.readouterr()
    assert status.main([str(output)]) == 0
    said = capsys.readouterr().out
    assert f"16 images of {whole[0]} in 4 shards" in said and "8 of 8 done" in said
    assert open_finished(str(output)).selected.images == 16
    (output / "run.json").write_text(json.dumps(older))
    run(whole, output)
    assert calls == [] and read(output, "run.json")["imagesets"] == [part]
    (output / "run.json").write_text(json.dumps(older))
    run([*whole, sets[2]], output)
    assert {shard for _, shard, _ in calls} == {"set1-shard-00000"}


def test_other_commands_read_several_sets(
    sets: list[str], tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    assert run(sets, output, "--check") == 0
    assert "image set: 20 images, 5 shards" in capsys.readouterr().out
    run(sets, output)
    status.main([str(output)])
    assert f"8 images of {sets[0]}, 8 images of {sets[1]}, 4 images of {sets[2]} in 5 shards" in capsys.readouterr().out
    assert "street + " in (output / "report" / "index.html").read_text()

    moved = [str(Path(uri).rename(tmp_path / f"moved-{i}")) for i, uri in enumerate(sets)]
    monkeypatch.setattr(ablate, "judge_everything", lambda bench, args: [])
    for given in (moved[:2], moved[::-1]):
        with pytest.raises(UserError, match="say with --imageset, once for each and in this order"):
            ablate.main([str(output), *flags(given)])
    found = open_finished(str(output), moved)
    assert found.selected.images == 20 and found.truth()["image_id"].to_pylist() == [*STREET, *SHOP, *MORE]
    with pytest.raises(UserError, match="nothing to judge"):  # by the stand-in: the sets were accepted
        ablate.main([str(output), *flags(moved)])


def test_a_set_in_a_bucket_joins_one_on_disk(sets: list[str], tmp_path: Path, calls: Calls, s3_bucket: str) -> None:
    remote = [sets[0], write(f"{s3_bucket}/shop", SHOP)]
    run(remote, f"{s3_bucket}/run")
    run(sets[:2], tmp_path / "run")
    assert contract(f"{s3_bucket}/run") == contract(tmp_path / "run")


@pytest.mark.parametrize("limit, queries", [(6, 3), (5, 2)])  # an odd one asks for a third consumer's photo
def test_a_limited_run_judges_what_it_can_find(
    sets: list[str], tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str], limit: int, queries: int
) -> None:
    turned = [sets[0], write(tmp_path / "turned", range(107, 99, -1))]  # the answers stand last
    run(turned, tmp_path / "run", "--limit", str(limit))
    for start in range(2):
        metrics = read(tmp_path / "run", "metrics.json")
        for kind in ("detected", "true"):
            figures = metrics["retrieval"][kind]["concat"]
            assert (figures["top"]["1"], figures["queries"], figures["missed"]) == (1.0, queries, 0)
        note = "not judged, because --limit 5 left out their right shop photos: 1 queries"
        assert (note in metrics["summary"]["notes"]) == (queries == 2) == (f"note: {note}" in capsys.readouterr().out)
        assert read(tmp_path / "run", "run.json")["selected"]["users"] == 3
        if start == 0:  # what was chosen is kept in run.json
            (tmp_path / "run" / "done" / "evaluate" / "shard-00000.json").unlink()
            run(turned, tmp_path / "run", "--limit", str(limit))
    data = open_finished(str(tmp_path / "run")).search_data("true")
    assert len(data.truth.queries) == queries


def test_a_night_over_two_shops_and_a_third(sets: list[str], tmp_path: Path, calls: Calls) -> None:
    shop, more = sets[1:]
    gallery = tmp_path / "gallery"
    first = night(shop, gallery)
    assert (first["photos"], first["rows"]) == (8, 8)
    kept = content(opened(gallery))
    calls.clear()
    second = night(shop, gallery, "--imageset", more)
    assert (second["added"], second["unchanged"], second["detected"], second["rows"]) == (4, 8, 4, 12)
    assert {shard for _, shard, _ in calls} == {"set1-shard-00000"}
    both = content(opened(gallery))
    assert both.items() >= kept.items() and len(both) == 12
    record = opened(gallery).record
    assert [part["uri"] for part in record["imagesets"]] == [shop, more]
    assert night(shop, gallery, "--imageset", more)["status"] == "unchanged"

    settings = settings_of(record, stand_ins.CATALOGUE)
    items = opened(gallery).lookup(opened(gallery).index.ids)
    told = page.shop_items(record, items, settings, pictures=True)
    assert told.reason == "" and len(told.crops) == 12
    assert not any(isinstance(crop, str) for crop in told.crops.values())
    older = {name: value for name, value in record.items() if name != "imagesets"} | {"imageset": {"uri": shop}}
    told = page.shop_items(older, items, settings, pictures=True)  # a version of an earlier program
    assert told.reason == ""
    assert sorted(isinstance(crop, str) for crop in told.crops.values()) == [False] * 8 + [True] * 4


def undrawn(folder: Path, numbers: range) -> str:
    """Photos that nobody drew boxes on, in shards of their own."""
    rows = (replace(photo(number), items=(), weak_box=True, pair_id=0) for number in numbers)
    write_imageset(rows, folder, source={"adapter": "stand-in", "arguments": {}}, max_images=4, categories=())
    return str(folder)


def test_photos_that_nobody_drew_boxes_on_judge_no_detector(tmp_path: Path, calls: Calls) -> None:
    """Shop photos have boxes, street photos products alone: figures of detection are those of the shop photos."""
    shop, street = write(tmp_path / "shop", SHOP), undrawn(tmp_path / "street", STREET)
    assert run([street, shop], tmp_path / "both") == 0 and run([shop], tmp_path / "alone") == 0
    both, alone = (read(tmp_path / name, "metrics.json") for name in ("both", "alone"))
    assert both["detection"]["fused"]["AP"] == alone["detection"]["fused"]["AP"] is not None
    assert list(both["retrieval"]) == ["detected"], "true boxes are on one side only"
    figures = both["retrieval"]["detected"]["concat"]
    assert (figures["truth"], figures["queries"], figures["unanswered"]) == ("photo", 8, 0)
    assert "true boxes are searched with only where" in " ".join(both["summary"]["notes"])
    assert (tmp_path / "both" / "report" / "detection.html").exists()
    with pytest.raises(UserError, match="not both consumers' and shops' photos have true boxes; use detected"):
        run([street, shop], tmp_path / "true", "--set", "boxes=[true]")


def test_queries_without_any_answer_are_told(tmp_path: Path, calls: Calls) -> None:
    """pandas writes 1.0 for the product 1 where a row has none."""
    rows = [replace(photo(n), items=(), weak_box=True, pair_id=0, product_id=f"{n % 100}") for n in STREET]
    rows += [replace(photo(n), items=(), weak_box=True, pair_id=0, product_id=f"{n % 100}.0") for n in SHOP]
    write_imageset(rows, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}}, categories=())
    assert run([str(tmp_path / "set")], tmp_path / "run") == 0
    notes = " ".join(read(tmp_path / "run", "metrics.json")["summary"]["notes"])
    assert "8 of 8 queries have no right answer among the shop photos; do ids of both sides agree" in notes


def test_photos_that_another_sets_boxes_leave_without_a_question_are_told(
    sets: list[str], tmp_path: Path, calls: Calls
) -> None:
    street = undrawn(tmp_path / "others", range(20, 23))
    assert run([*sets[:2], street], tmp_path / "run") == 0
    notes = " ".join(read(tmp_path / "run", "metrics.json")["summary"]["notes"])
    assert "3 consumers' photos with a pair_id or a product_id ask nothing: they have no true box" in notes
