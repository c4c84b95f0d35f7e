"""Nights of changes: an updated set holds what a fresh ingestion would, and only changed photos were read."""

import contextlib
import csv
import io
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.ingest import main
from jobs.ingestion import update
from jobs.runs.lock import KEY, Lock
from sources import folder as photo_folder
from store.errors import UserError
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store
from tests.jobs.pictures import png

REPO = Path(__file__).resolve().parents[3]
FEW = ("--shard-images", "4")


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here survives a power cut, and on a busy disk flushing is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Ten pictures of an hour ago."""
    for number in range(10):
        put(tmp_path / "in" / f"{number}.png", png(number))
    return tmp_path / "in"


def put(path: Path, data: bytes, age_s: float = 3600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)


def night(folder: Path | str, place: Path | str, *more: str, source: str = "shop") -> str:
    """An update, in this process; returns the lines it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["folder", str(folder), str(place), "--source", source, "--update", *FEW, *more]) == 0
    return out.getvalue()


def holds(place: Path | str) -> tuple[list[Any], list[Any]]:
    """Every photo of a set, by id, and its failures: the order of neither says anything."""
    images = open_imageset(place)
    rows = [row for shard in images.shards for row in images.read(shard.name).to_pylist()]
    failures = images.failures().to_pylist()
    return sorted(rows, key=lambda row: row["image_id"]), sorted(failures, key=lambda row: row["image_id"])


def fresh(folder: Path | str, place: Path | str, *more: str) -> tuple[list[Any], list[Any]]:
    assert main(["folder", str(folder), str(place), "--source", "shop", "--overwrite", *more]) == 0
    return holds(place)


def tree(place: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.iterdir()}


def test_the_nights_of_a_shop(shop, tmp_path):
    place = tmp_path / "set"
    assert night(shop, place).startswith("added 10, changed 0, removed 0, unchanged 0\n")
    assert "up to date, nothing is written" in night(shop, place)
    first = tree(place)

    put(shop / "new" / "a.png", png(50))
    put(shop / "3.png", png(51))
    (shop / "7.png").unlink()
    (shop / "8.png").rename(shop / "renamed.png")
    assert night(shop, place).startswith("added 2, changed 1, removed 2, unchanged 7\n")
    assert holds(place) == fresh(shop, tmp_path / "fresh")
    assert {name: tree(place)[name] for name in first if name.endswith(".arrow")} == {
        name: entry for name, entry in first.items() if name.endswith(".arrow")
    }
    assert sorted(set(tree(place)) - set(first)) == ["shard-00003.arrow"]


def test_a_shard_with_most_rows_removed_is_rewritten(shop, tmp_path):
    night(shop, tmp_path / "set")
    names = {row["shard"]: row["file_name"] for row in open_imageset(tmp_path / "set").photos().to_pylist()[::-1]}
    for name in sorted(path.name for path in shop.iterdir())[:3]:  # of shard-00000: 0 1 2 3
        (shop / name).unlink()
    assert names["shard-00000"] == "0.png"
    said = night(shop, tmp_path / "set")
    assert said.startswith(
        "added 0, changed 0, removed 3, unchanged 7; shards rewritten, more than half of whose rows are removed: 1\n"
    )
    assert [shard.name for shard in open_imageset(tmp_path / "set").shards] == [
        "shard-00001",
        "shard-00002",
        "shard-00003",
    ]
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")


def test_unchanged_photos_are_not_read(shop, tmp_path, monkeypatch):
    night(shop, tmp_path / "set")
    put(shop / "new.png", png(50))
    read: list[str] = []
    plain = photo_folder.read_photo
    monkeypatch.setattr(photo_folder, "read_photo", lambda path: read.append(path.name) or plain(path))
    assert night(shop, tmp_path / "set").startswith("added 1, changed 0, removed 0, unchanged 10\n")
    assert read == ["new.png"], "read once: it was held until it was written"
    read.clear()
    night(shop, tmp_path / "set")
    assert read == []


def test_a_touched_file_is_the_same_photo(shop, tmp_path):
    night(shop, tmp_path / "set")
    digest = open_imageset(tmp_path / "set").digest
    os.utime(shop / "2.png", (5, 5))
    said = night(shop, tmp_path / "set")
    assert said.startswith("added 0, changed 0, removed 0, unchanged 10\n") and "another list of files" in said
    assert open_imageset(tmp_path / "set").digest == digest
    assert "nothing is written" in night(shop, tmp_path / "set")


def test_a_file_written_during_the_update_is_read_again(shop, tmp_path):
    """Its clock may not tick between two writings: size and time alone would hide the second."""
    put(shop / "young.png", png(50), age_s=0)
    info = (shop / "young.png").stat()
    night(shop, tmp_path / "set")
    put(shop / "young.png", png(51))
    assert (shop / "young.png").stat().st_size == info.st_size
    os.utime(shop / "young.png", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert night(shop, tmp_path / "set").startswith("added 0, changed 1, removed 0, unchanged 10\n")
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")


def test_changed_metadata_changes_the_row(shop, tmp_path):
    products = tmp_path / "products.csv"
    lists = ["2.png,SKU 2,5\n", "2.png,SKU 3,5\n4.png,SKU 4,\n", "4.png,SKU 4,\nlost.png,SKU 9,\n"]
    counts = ["added 0, changed 1", "added 0, changed 2", "added 0, changed 1"]
    assert night(shop, tmp_path / "set").startswith("added 10, changed 0")
    for text, want in zip(lists, counts, strict=True):
        products.write_text("file_name,product_id,pair_id\n" + text)
        how = ("--metadata", str(products), *(["--allow-missing"] if "lost" in text else []))
        assert night(shop, tmp_path / "set", *how).startswith(want)
        assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh", *how)
    assert [row["file_name"] for row in holds(tmp_path / "set")[1]] == ["lost.png"]


def test_failures_stay_until_the_photo_is_repaired(shop, tmp_path):
    (shop / "broken.png").write_text("no picture")
    (shop / "late.png").write_text("no picture")
    assert night(shop, tmp_path / "set").startswith("added 10,")
    assert "nothing is written" in night(shop, tmp_path / "set")
    put(shop / "late.png", png(60))
    put(shop / "1.png", b"no longer a picture")
    assert night(shop, tmp_path / "set").startswith("added 1, changed 0, removed 1, unchanged 9\n")
    assert sorted(row["file_name"] for row in holds(tmp_path / "set")[1]) == ["1.png", "broken.png"]
    (shop / "broken.png").unlink()
    said = night(shop, tmp_path / "set")
    assert said.startswith("added 0, changed 0, removed 0, unchanged 10\n") and "other failures" in said
    assert [row["file_name"] for row in holds(tmp_path / "set")[1]] == ["1.png"]


def test_another_pixel_limit_checks_every_photo_again(shop, tmp_path):
    put(shop / "large.png", png(1, 20, 20))  # 400 pixels, the others have 6 x 8
    night(shop, tmp_path / "set", "--max-pixels", "100")
    assert open_imageset(tmp_path / "set").manifest.failures == 1
    assert night(shop, tmp_path / "set").startswith("added 1, changed 0, removed 0, unchanged 10\n")
    assert night(shop, tmp_path / "set", "--max-pixels", "100").startswith(
        "added 0, changed 0, removed 1, unchanged 10;"
    )


def test_a_set_without_sources_parquet(shop, tmp_path):
    """Older programs wrote such sets, and a killed update may leave one: photos are compared by digest."""
    fresh(shop, tmp_path / "set")
    shards = {name: entry for name, entry in tree(tmp_path / "set").items() if name.endswith(".arrow")}
    said = night(shop, tmp_path / "set")
    assert said.startswith("added 0, changed 0, removed 0, unchanged 10\n") and "another list of files" in said
    assert {name: entry for name, entry in tree(tmp_path / "set").items() if name.endswith(".arrow")} == shards
    assert open_imageset(tmp_path / "set").manifest.sources
    names = pq.read_table(tmp_path / "set" / "sources.parquet")["name"].to_pylist()
    assert sorted(names) == sorted(os.listdir(shop))
    (tmp_path / "set" / "sources.parquet").write_bytes(b"another night's")
    assert night(shop, tmp_path / "set").startswith("added 0, changed 0, removed 0, unchanged 10\n")


def test_a_dry_run_writes_nothing(shop, tmp_path):
    assert "nothing is written" in night(shop, tmp_path / "none", "--dry-run")
    assert not (tmp_path / "none").exists()
    night(shop, tmp_path / "set")
    put(shop / "new.png", png(50))
    (shop / "1.png").unlink()
    before = tree(tmp_path / "set")
    for _ in range(2):
        assert night(shop, tmp_path / "set", "--dry-run") == (
            f"added 1, changed 0, removed 1, unchanged 9\n{tmp_path / 'set'}: nothing is written\n"
        )
    assert tree(tmp_path / "set") == before


def test_no_change_writes_nothing(shop, tmp_path):
    night(shop, tmp_path / "set")
    before, folder = tree(tmp_path / "set"), (tmp_path / "set").stat().st_mtime_ns
    night(shop, tmp_path / "set")
    assert tree(tmp_path / "set") == before and (tmp_path / "set").stat().st_mtime_ns == folder


def test_photos_that_do_not_fit_in_memory_are_read_again(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "HELD_BYTES", len(png(1)) * 3)
    plain, calls = photo_folder.PhotoFolder.rows, []

    def rows(self, listed):
        calls.append(1)
        if len(calls) == 2:  # between the look and the writing one is broken, one is another, both are as they are now
            put(shop / "7.png", b"no picture")
            put(shop / "8.png", png(99))
        return plain(self, listed)

    monkeypatch.setattr(photo_folder.PhotoFolder, "rows", rows)
    assert night(shop, tmp_path / "set").startswith("added 10,")
    assert len(calls) == 2 and open_imageset(tmp_path / "set").manifest.images == 9
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")
    assert "unchanged 9\n" in night(shop, tmp_path / "set"), (
        "8.png is another than was listed, and the same as was read"
    )


def test_what_is_refused(shop, tmp_path):
    night(shop, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_text("no picture")
    before = tree(tmp_path / "set")
    for folder, more, want in [
        (shop, ("--overwrite",), "--update keeps what is there"),
        (tmp_path / "empty", (), r"not one photo in .* \(no picture\)"),
        (tmp_path / "broken", (), r"not one photo in .* \(x.png: not a JPEG"),
        (tmp_path / "nowhere", (), "no folder"),
    ]:
        with pytest.raises(UserError, match=want):
            night(folder, tmp_path / "set", *more)
    with pytest.raises(UserError, match="made with --source shop, this line says user"):
        night(shop, tmp_path / "set", source="user")
    with pytest.raises(UserError, match="add --update"):
        main(["folder", str(shop), str(tmp_path / "set"), "--source", "shop", "--dry-run"])
    assert tree(tmp_path / "set") == before
    assert main(["drawn", str(tmp_path / "drawn"), "--users", "1", "--shops", "1", "--seed", "1"]) == 0
    with pytest.raises(UserError, match="made with `drawn`"):
        night(shop, tmp_path / "drawn")


def test_a_dry_run_refuses_the_place_that_a_night_would_refuse(shop, tmp_path):
    put(tmp_path / "set" / "notes.txt", b"mine")
    for more in ((), ("--dry-run",)):
        with pytest.raises(ValueError, match=r"is not empty and no image set \(it has notes.txt\)"):
            night(shop, tmp_path / "set", *more)
    assert tree(tmp_path / "set").keys() == {"notes.txt"}


def test_two_names_with_one_id_are_refused(shop, tmp_path, monkeypatch):
    night(shop, tmp_path / "set")
    monkeypatch.setattr(photo_folder, "image_id", lambda name: len(name) - len("shop/"))
    with pytest.raises(ValueError, match=r"image_id 5 stands for 0\.png and 1\.png"):
        night(shop, tmp_path / "set")


HEADER = "file_name,product_id,category,x1,y1,x2,y2,price\n"


def test_nights_of_garments_and_attributes(shop, tmp_path):
    """A changed price or box replaces its photo alone; new categories come last; failures of items stay told."""
    table, more = tmp_path / "products.csv", ("--metadata", str(tmp_path / "products.csv"))
    rows = ["0.png,P0,cape,0,0,4,4,5", "1.png,P1,hat,900,900,910,910,6", "2.png,P2,hat,1,1,3,3,7"]
    table.write_text(HEADER + "\n".join(rows) + "\n")
    assert night(shop, tmp_path / "set", *more).startswith("added 10,")
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh", *more)
    assert [row["reason"][:16] for row in holds(tmp_path / "set")[1]] == ["item 1 is left o"]
    assert "nothing is written" in night(shop, tmp_path / "set", *more)

    table.write_text(HEADER + "\n".join(["2.png,P2,abaya,1,1,3,3,7", rows[0], rows[1]]) + "\n")
    assert night(shop, tmp_path / "set", *more).startswith("added 0, changed 1, removed 0, unchanged 9\n")
    images = open_imageset(tmp_path / "set")
    assert images.categories == ("cape", "hat", "abaya")
    by_name = {row["file_name"]: row for row in holds(tmp_path / "set")[0]}
    assert [item["category_id"] for item in by_name["2.png"]["items"]] == [3]
    assert [row["image_id"] for row in holds(tmp_path / "set")[1]] == [by_name["1.png"]["image_id"]]

    table.write_text(table.read_text().replace(",5\n", ",4\n"))
    assert night(shop, tmp_path / "set", *more).startswith("added 0, changed 1, removed 0, unchanged 9\n")
    assert ("price", "4") in {row["file_name"]: row for row in holds(tmp_path / "set")[0]}["0.png"]["attributes"]
    (tmp_path / "set" / "sources.parquet").unlink()  # all are read, and compared with what the set holds
    said = night(shop, tmp_path / "set", *more)
    assert said.startswith("added 0, changed 1, removed 0, unchanged 9")  # 1.png: its box is not in the set
    assert "nothing is written" in night(shop, tmp_path / "set", *more)


def test_a_set_whose_ids_hash_the_path_alone_keeps_them(shop, tmp_path):
    night(shop, tmp_path / "set")
    rows = [replace(row, image_id=photo_folder.image_id(row.file_name)) for row in photo_folder.read(shop, "shop")]
    source = open_imageset(tmp_path / "set").manifest.source
    older = {name: value for name, value in source.items() if name != "ids"}
    write_imageset(rows, tmp_path / "set", source=older, overwrite=True)
    put(shop / "new.png", png(50))
    assert night(shop, tmp_path / "set").startswith("added 1, changed 0, removed 0, unchanged 10\n")
    names = {row["file_name"]: row["image_id"] for row in holds(tmp_path / "set")[0]}
    assert names == {name: photo_folder.image_id(name) for name in names} and "new.png" in names


# ------------------------------------------------------------------------------------------------ at once, and killed


def test_two_updates_at_once(shop, tmp_path, monkeypatch):
    night(shop, tmp_path / "set")
    put(shop / "new.png", png(50))
    before = holds(tmp_path / "set")
    lock = Lock(open_store(tmp_path / "set"))
    lock.take()
    with pytest.raises(UserError, match="is at work here"):
        night(shop, tmp_path / "set")
    lock.release()
    assert holds(tmp_path / "set") == before

    take = Lock.take

    def after_another(self: Lock) -> None:
        monkeypatch.setattr(Lock, "take", take)
        night(shop, tmp_path / "set")
        take(self)

    monkeypatch.setattr(Lock, "take", after_another)
    with pytest.raises(UserError, match="another update finished meanwhile"):
        night(shop, tmp_path / "set")
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")
    assert "nothing is written" in night(shop, tmp_path / "set")


def test_an_update_that_lost_its_lock_writes_no_manifest(shop, tmp_path, monkeypatch):
    night(shop, tmp_path / "set")
    put(shop / "new.png", png(50))
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    sources = update._sources

    def taken_over(*arguments: Any) -> Any:
        open_store(tmp_path / "set").write(KEY, b'{"token": "of another"}')
        return sources(*arguments)

    monkeypatch.setattr(update, "_sources", taken_over)
    with pytest.raises(UserError, match="took over"):
        night(shop, tmp_path / "set")
    assert (tmp_path / "set" / "manifest.json").read_bytes() == before
    (tmp_path / "set" / KEY).unlink()
    monkeypatch.undo()
    night(shop, tmp_path / "set")
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")


@pytest.mark.slow
def test_after_a_kill_at_any_moment_the_next_update_is_right(tmp_path):
    """SIGKILL at random moments of a night that adds, changes, removes and rewrites; then the same line again."""
    rng = random.Random(5)
    for number in range(300):
        put(tmp_path / "in" / f"{number:03}.png", png(number % 250, 40, 40))
    line = [sys.executable, "jobs/ingest.py", "folder", str(tmp_path / "in"), str(tmp_path / "set"), "--source", "shop"]
    line += ["--update", "--shard-images", "10"]

    def run(kill_after_s: float | None) -> int:
        """The exit status; what a run that was not killed says is shown where it fails."""
        with open(tmp_path / "said", "w+b") as said:
            child = subprocess.Popen(line, cwd=REPO, stdout=said, stderr=said)
            try:
                status = child.wait(timeout=kill_after_s)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                status = child.wait()
            said.seek(0)
            print(status, said.read().decode())
            return status

    started = time.monotonic()
    assert run(None) == 0
    usual_s, killed = time.monotonic() - started, 0
    for round_ in range(4):
        before = holds(tmp_path / "set")
        for number in range(round_ * 15, round_ * 15 + 8):
            (tmp_path / "in" / f"{number:03}.png").unlink()
        for number in range(30):
            put(tmp_path / "in" / f"new-{round_}-{number}.png", png(number, 40, 40))
        put(tmp_path / "in" / "299.png", png(round_, 30, 30))
        for _ in range(3):
            started = time.monotonic()
            if run(rng.uniform(0.3, 1.0) * usual_s) == -signal.SIGKILL:
                killed += 1
            else:  # the machine is less busy than before: aim earlier
                usual_s = time.monotonic() - started
            assert holds(tmp_path / "set")[0] in (before[0], fresh(tmp_path / "in", tmp_path / "fresh")[0])
        assert run(None) == 0
        assert holds(tmp_path / "set") == fresh(tmp_path / "in", tmp_path / "fresh")
        named = {f"{shard.name}.arrow" for shard in open_imageset(tmp_path / "set").shards}
        there = {path.name for path in (tmp_path / "set").glob("shard-*.arrow")}
        assert named <= there
    assert killed


# ------------------------------------------------------------------------------------------------ in a bucket


@pytest.mark.slow
def test_from_a_bucket_into_a_bucket(shop, tmp_path, s3_bucket):
    store = open_store(f"{s3_bucket}/in")
    for path in shop.iterdir():
        store.write(path.name, path.read_bytes())
    store.write("deep/er/x.PNG", png(40))
    store.write(".hidden/y.png", png(41))
    store.write("notes.txt", b"")
    place = f"{s3_bucket}/set"
    assert night(f"{s3_bucket}/in", place).startswith("added 11, changed 0, removed 0, unchanged 0\n")
    assert "nothing is written" in night(f"{s3_bucket}/in", place)
    store.write("3.png", png(51))
    store.write("4.png", png(4))  # the same bytes again, the same ETag
    store.write("broken.png", b"no picture")
    store.delete("deep/er/x.PNG")
    assert night(f"{s3_bucket}/in", place, "--dry-run").startswith("added 0, changed 1, removed 1, unchanged 9\n")
    assert night(f"{s3_bucket}/in", place).startswith("added 0, changed 1, removed 1, unchanged 9\n")
    assert holds(place) == fresh(f"{s3_bucket}/in", tmp_path / "fresh")
    assert [info.key for info in open_store(place).list() if "shard" not in info.key] == [
        "failures.parquet", "manifest.json", "sources.parquet",
    ]  # fmt: skip


def test_a_bucket_is_read_like_a_folder(shop, tmp_path, s3_bucket):
    """The same photos in the same order: the shards are the same, byte for byte."""
    put(shop / "b" / "c" / "x.png", png(42))
    put(shop / "b" / "z.png", png(43))
    put(shop / "b.png", png(44))
    put(shop / "b-c" / "x.png", png(45))
    store = open_store(f"{s3_bucket}/in")
    for path in shop.rglob("*.png"):
        store.write(path.relative_to(shop).as_posix(), path.read_bytes())
    for directory, place in ((shop, "one"), (f"{s3_bucket}/in", "two")):
        assert main(["folder", str(directory), str(tmp_path / place), "--source", "shop", *FEW]) == 0
    one, two = (open_imageset(tmp_path / place) for place in ("one", "two"))
    assert one.shards == two.shards and one.manifest.images == 14


# ------------------------------------------------------------------------------------------------ any nights


NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.png", "é\n.png", "\udcff.png", "-rf.png", "衣.png"]
CHANGES = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 5)),
    st.tuples(st.just("break"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.integers(0, len(NAMES) - 1)),
    st.tuples(st.just("touch"), st.sampled_from(NAMES), st.integers(10, 10**6)),
    st.tuples(st.just("product"), st.sampled_from(NAMES), st.integers(0, 3)),
)


def change(folder: Path, products: dict[str, str], what: str, name: str, number: int) -> None:
    path = folder / name
    if what == "write":
        put(path, png(number), age_s=number)
    elif what == "product":
        products[name] = f"SKU {number}"
    elif path.exists():
        if what == "break":
            put(path, b"no picture")
        elif what == "remove":
            path.unlink()
        elif what == "touch":
            os.utime(path, (number, number))
        elif what == "rename":
            (folder / NAMES[number]).parent.mkdir(exist_ok=True)
            path.rename(folder / NAMES[number])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights=st.lists(st.lists(CHANGES, max_size=5), min_size=1, max_size=4))
def test_any_sequence_of_nights_equals_a_fresh_ingestion(nights, tmp_path_factory):
    box = tmp_path_factory.mktemp("nights")
    products: dict[str, str] = {}
    for number in range(5):
        put(box / "in" / f"{number}.png", png(number))
    before: dict[int, bytes] = {}
    for changes in ([], *nights):
        for one in changes:
            change(box / "in", products, *one)
        with open(box / "m.csv", "w", newline="", encoding="utf-8") as file:
            named = {name: product for name, product in products.items() if name.isprintable()}
            csv.writer(file).writerows([("file_name", "product_id"), *named.items()])
        how = ["--metadata", str(box / "m.csv"), "--allow-missing"] if named else []
        said = night(box / "in", box / "set", *how, "--shard-images", "2")
        now = holds(box / "set")
        assert now == fresh(box / "in", box / "fresh", *how)
        after = {row["image_id"]: (row["image"], row["product_id"]) for row in now[0]}
        both = before.keys() & after.keys()
        same = sum(before[number] == after[number] for number in both)
        counts = len(after) - len(both), len(both) - same, len(before) - len(both), same
        assert said.startswith("added {}, changed {}, removed {}, unchanged {}".format(*counts))
        assert "nothing is written" in night(box / "in", box / "set", *how)
        before = after


# ------------------------------------------------------------------------------------------------ what reads the set


def garment(number: int) -> bytes:
    """One rectangle in a colour of its own, as the stand-in models see them."""
    pixels = np.full((64, 48, 3), 250, np.uint8)
    pixels[10:50, 8:40] = np.random.default_rng(number).integers(0, 200, 3)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_a_full_evaluation_reads_only_present_photos(tmp_path, calls, full):
    for number in range(12):
        put(tmp_path / "in" / f"{number:02}.png", garment(number))
    night(tmp_path / "in", tmp_path / "set")
    (tmp_path / "in" / "05.png").unlink()
    put(tmp_path / "in" / "06.png", garment(60))
    put(tmp_path / "in" / "20.png", garment(20))
    night(tmp_path / "in", tmp_path / "set")
    images = open_imageset(tmp_path / "set")
    assert [(shard.rows, shard.removed) for shard in images.shards] == [(4, ()), (2, (1, 2)), (4, ()), (2, ())]
    assert full(tmp_path / "set", tmp_path / "run") == 0
    present = images.photos(["image_id"])["image_id"].to_pylist()
    for shard in images.shards:
        found = pq.read_table(tmp_path / "run" / "items" / "detected" / f"{shard.name}.parquet")["image_id"].to_pylist()
        assert set(found) == set(images.read(shard.name, ["image_id"])["image_id"].to_pylist())
    assert photo_folder.image_id("shop/05.png") not in present and len(present) == 12
    assert full(tmp_path / "set", tmp_path / "few", "--limit", "5") == 0


def test_rewritten_shards_keep_photos_as_they_were(shop, tmp_path):
    """The rows of a rewritten shard went through `Photo` once more."""
    night(shop, tmp_path / "set")
    want = {row.image_id: row.image for row in photo_folder.read(shop, "shop") if isinstance(row, Photo)}
    for number in (0, 1, 2):
        (shop / f"{number}.png").unlink()
        want.pop(photo_folder.image_id(f"shop/{number}.png"))
    night(shop, tmp_path / "set")
    assert {row["image_id"]: row["image"] for row in holds(tmp_path / "set")[0]} == want


@pytest.mark.parametrize("first, then, says", [
    (("--prefix", "north"), (), "was made with --prefix north, this line says none"),
    ((), ("--prefix", "north"), "was made with no --prefix, this line says north"),
    (("--prefix", "north"), ("--prefix", "south"), "was made with --prefix north, this line says south"),
    (("--metadata", "CSV"), (), r"was made with --metadata .*shop.csv; give it again, or --metadata none to drop"),
])  # fmt: skip
def test_what_changes_every_photo_is_refused(shop, tmp_path, first, then, says):
    (tmp_path / "shop.csv").write_text("file_name,product_id\n1.png,P\n")
    csv_path = str(tmp_path / "shop.csv")
    night(shop, tmp_path / "set", *(csv_path if word == "CSV" else word for word in first))
    before = tree(tmp_path / "set")
    with pytest.raises(UserError, match=says):
        night(shop, tmp_path / "set", *then)
    assert tree(tmp_path / "set") == before


def test_a_csv_is_dropped_when_the_line_says_so(shop, tmp_path):
    (tmp_path / "shop.csv").write_text("file_name,product_id\n1.png,P\n")
    night(shop, tmp_path / "set", "--metadata", str(tmp_path / "shop.csv"))
    assert "changed 1," in night(shop, tmp_path / "set", "--metadata", "none")
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh")
    assert "nothing is written" in night(shop, tmp_path / "set", "--metadata", "none")


def test_a_prefix_is_kept_night_after_night(shop, tmp_path):
    night(shop, tmp_path / "set", "--prefix", "north")
    put(shop / "new.png", png(60))
    assert night(shop, tmp_path / "set", "--prefix", "north").startswith(
        "added 1, changed 0, removed 0, unchanged 10\n"
    )
    assert holds(tmp_path / "set") == fresh(shop, tmp_path / "fresh", "--prefix", "north")


def test_a_night_whose_items_are_all_lost_says_so(shop, tmp_path):
    (tmp_path / "shop.csv").write_text("file_name,category,x1,y1,x2,y2\n1.png,cape,900,900,950,950\n")
    with pytest.raises(UserError, match=r"not one of the items could be taken; .*: item 1 is left out: box .*\(1\)"):
        night(shop, tmp_path / "set", "--metadata", str(tmp_path / "shop.csv"))
    assert open_imageset(tmp_path / "set").manifest.images == 10
