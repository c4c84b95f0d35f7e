"""A place of one kind is never taken for one of another: told by its files, refused before anything is written."""

import contextlib
import importlib
from pathlib import Path

import pytest
import stand_ins

from jobs import compare, full_eval, ingest, reindex_gallery
from jobs.runs import places
from jobs.runs.places import nothing_left, refuse_other_kinds
from jobs.training import crops_cache
from jobs.training.run import TrainingRun
from store.errors import UserError
from store.objects import open_store

HOLDS = [  # a file that tells the kind of its place, and that kind
    ("manifest.json", "an image set"),
    ("shard-00000.arrow", "an image set"),  # its ingestion did not finish
    ("run.json", "a run"),
    ("CURRENT", "a gallery"),
    ("versions/000001-x/items.parquet", "a gallery"),  # nothing is published yet
    ("results/abc/part-00000.items.parquet", "a gallery"),  # no version is built yet
    ("log.jsonl", "a training"),
    ("compare.json", "a comparison"),
]
KINDS = sorted({kind for _, kind in HOLDS})


def put(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("name, kind", HOLDS)
def test_only_its_own_kind_may_be_there(tmp_path: Path, name: str, kind: str, own: str) -> None:
    store = open_store(put(tmp_path, name))
    if kind == own:
        refuse_other_kinds(store, own)
    else:
        with pytest.raises(UserError, match=rf"holds {kind} \(.*\), want {own} or an empty place"):
            refuse_other_kinds(store, own)
    assert tree(tmp_path) == {name: b"{}"}


@pytest.mark.parametrize(
    "name", ["imageset/manifest.json", "work/run.json", "x/CURRENT", "notes.txt", "old-versions/a"]
)
def test_only_the_place_itself_counts(tmp_path: Path, name: str) -> None:
    for own in KINDS:
        refuse_other_kinds(open_store(put(tmp_path, name)), own)
        refuse_other_kinds(open_store(tmp_path / "not there yet"), own)
    assert not (tmp_path / "not there yet").exists()


@pytest.mark.parametrize("left", [False, True])
def test_a_folder_made_in_vain_is_removed_unless_it_holds_something(tmp_path: Path, left: bool) -> None:
    (tmp_path / "there").mkdir()
    for place in ("there", "there/not/yet"):
        store = open_store(tmp_path / place)
        with pytest.raises(UserError, match="refused"), nothing_left(store):
            store.probe(write=True)
            if left:
                store.write("kept", b"")
            raise UserError("refused")
        assert (tmp_path / place / "kept").exists() is left
    assert (tmp_path / "there").is_dir() and (tmp_path / "there/not").exists() is left


REFUSED = [
    ("full_eval", ["--imageset", "SET", "--output", "HERE", "--set", "detectors=[{name: far, classes: {no: null}}]"]),
    ("reindex_gallery", ["--imageset", "SET", "--gallery", "HERE", "--set", "search.steps=[{step: k_reciprocal}]"]),
    ("reindex_gallery", ["--imageset", "SET", "--gallery", "HERE", "--weights-dir", "/no/weights"]),
    ("reindex_gallery", ["--imageset", "NONE", "--gallery", "HERE"]),
    ("reindex_gallery", ["--gallery", "HERE", "--rollback"]),
    ("reindex_gallery", ["--gallery", "HERE", "--prune"]),  # nothing to remove
]


@pytest.mark.parametrize("job, line", REFUSED)
def test_a_refused_start_leaves_no_folder(small_set: Path, tmp_path: Path, job: str, line: list[str]) -> None:
    places_of = {"SET": str(small_set), "NONE": str(tmp_path / "none"), "HERE": str(tmp_path / "new" / "here")}
    with contextlib.suppress(UserError, ValueError):
        importlib.import_module(f"jobs.{job}").main([places_of.get(word, word) for word in line])
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_asked_too(s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/place")
    refuse_other_kinds(store, "a run")
    store.write("versions/000001-x/version.json", b"{}")
    with pytest.raises(UserError, match=r"holds a gallery \(versions/\)"):
        refuse_other_kinds(store, "a run")


@pytest.mark.parametrize("written", ["{place}", "{place}/", "place", "./place/", "x/../place", "file://{place}"])
def test_the_same_place_written_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "place", "run.json")
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="holds a run"):
        refuse_other_kinds(open_store(written.format(place=tmp_path / "place")), "a gallery")


def test_kinds_are_told_by_the_files_that_commands_write() -> None:
    from jobs.training.run import LOG

    assert {kind for kind in places.KINDS} == set(KINDS) and places.KINDS["a training"] == (LOG,)


# ------------------------------------------------------------------------------------------------ the commands


def full(imageset: Path, place: str, *more: str) -> int:
    line = [*stand_ins.SETTINGS, "--imageset", str(imageset), "--output", place, *more]
    return full_eval.main(line, stand_ins.CATALOGUE)


def reindex(imageset: Path, place: str, *more: str) -> int:
    line = [*stand_ins.SETTINGS, "--imageset", str(imageset), "--gallery", place, *more]
    return reindex_gallery.main(line, stand_ins.CATALOGUE)


def variants(folder: Path) -> str:
    (folder / "variants.yaml").write_text("base: {model: lite0-sg, imageset: [x]}\nvariants: {a: {}}")
    return str(folder / "variants.yaml")


def folder_of_photos(folder: Path, place: str, *more: str) -> int:
    return ingest.main(["folder", str(folder), place, "--source", "shop", *more])


COMMANDS = {
    "full_eval": lambda small, here, place: full(small, place),
    "full_eval --check": lambda small, here, place: full(small, place, "--check"),
    "reindex_gallery": lambda small, here, place: reindex(small, place),
    "reindex_gallery --dry-run": lambda small, here, place: reindex(small, place, "--dry-run"),
    "reindex_gallery --prune": lambda small, here, place: reindex(small, place, "--prune"),
    "reindex_gallery --rollback": lambda small, here, place: reindex(small, place, "--rollback"),
    "compare": lambda small, here, place: compare.main([variants(here), "--output", place]),
    "training": lambda small, here, place: TrainingRun(place, {}),
    "--crops": lambda small, here, place: crops_cache.pieces([], 32, False, place),
    "ingest": lambda small, here, place: ingest.main(["drawn", place, "--users", "1", "--shops", "1", "--seed", "1"]),
    "ingest folder --update": lambda small, here, place: folder_of_photos(here, place, "--update"),
    "ingest folder --dry-run": lambda small, here, place: folder_of_photos(here, place, "--update", "--dry-run"),
}
OWN = {"full_eval": "a run", "reindex_gallery": "a gallery", "compare": "a comparison", "training": "a training"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_before_it_writes(small_set: Path, tmp_path: Path, calls: list, command: str) -> None:
    own = "an image set" if command.startswith("ingest") else OWN.get(command.split()[0], "cropped garments")
    for number, (name, kind) in enumerate(HOLDS):
        place = put(tmp_path / str(number), name)
        if kind != own:
            with pytest.raises(UserError, match=f"holds {kind}"):
                COMMANDS[command](small_set, tmp_path, str(place))
            assert tree(place) == {name: b"{}"}
    assert calls == []


def test_an_image_set_survives_a_run_that_names_it_as_its_output(small_set: Path, tmp_path: Path, calls: list) -> None:
    line = ["drawn", str(tmp_path / "set"), "--users", "1", "--shops", "1", "--seed", "1"]
    assert ingest.main(line) == 0
    before = tree(tmp_path / "set")
    with pytest.raises(UserError, match=r"holds an image set \(manifest.json\), want a run"):
        full(tmp_path / "set", f"file://{tmp_path}/set/")
    assert tree(tmp_path / "set") == before
    assert ingest.main([*line, "--overwrite"]) == 0


def test_a_run_goes_on_beside_its_image_set(tmp_path: Path, calls: list) -> None:
    stand_ins.imageset(tmp_path / "demo" / "imageset", 8)
    for _ in range(2):
        assert full(tmp_path / "demo" / "imageset", str(tmp_path / "demo"), "--set", "max_failed_share=0.5") == 0
    assert (tmp_path / "demo" / "run.json").exists() and (tmp_path / "demo" / "imageset" / "manifest.json").exists()
