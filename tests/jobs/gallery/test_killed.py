"""A night killed at a random moment, two nights at once, a night that lost its lock: the end is the same.

Stand-in models, real processes, folder and bucket in turn, every kind of index. `GALLERY_KILLS=30` for more kills of
each; `GALLERY_KILL_SEED` repeats one that failed.
"""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from galleries import Goods, content, house, line, night, on_disk, opened, shop, stock

from jobs.gallery import night as nights
from jobs.gallery import versions
from jobs.runs.lock import Lock
from retrieval.ann_plan import KINDS
from retrieval.gallery import Gallery
from retrieval.gallery_files import read_record
from store.errors import UserError
from store.objects import ObjectStore, open_store

REPO = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("GALLERY_KILLS", "2"))
SLOWLY = {
    "STAND_IN_PAUSE_S": "0.01",
    "FILE_PAUSE_S": "0.3",
}  # kills meet a publication and not only the start of Python
OTHERS = 1_000  # more photos for the kinds that learn clusters of at least so many garments


def shops(others: int = 0) -> tuple[list[Goods], list[Goods]]:
    """Yesterday's and today's photos: some are gone, some show something else, some are new."""
    fresh = [Goods(number, 5_000 + number, "new") for number in range(50, 60)]
    stay = shop(range(100, 100 + others))
    return [*shop(range(60)), *stay], [*shop(range(10, 50)), *fresh, *shop(range(60, 90)), *stay]


def start(imageset: Path, gallery: str, log: Path, *more: str, **env: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])
    argv = [sys.executable, str(REPO / "tests" / "jobs" / "gallery_with_stand_ins.py"), *line(imageset, gallery, *more)]
    with open(log, "ab") as file:
        return subprocess.Popen(
            argv, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | env, stdout=file, stderr=file
        )


def copied(source: ObjectStore, target: ObjectStore) -> None:
    for info in source.list():
        target.write(info.key, source.read(info.key))


Straight = tuple[Path, Path, dict[int, Any], float]


@pytest.fixture(scope="module")
def straight_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Straight]:
    """For each kind of index today's set, a gallery of yesterday's photos, what an undisturbed night makes of it, and
    its seconds."""

    @functools.cache
    def made(kind: str) -> Straight:
        folder, index = tmp_path_factory.mktemp(kind), index_of(kind)
        yesterday, today = shops(OTHERS if kind.startswith("ivf") else 0)
        stock(yesterday, folder / "set", max_images=20)
        assert start(folder / "set", str(folder / "yesterday"), folder / "log", *index).wait(timeout=300) == 0
        stock(today, folder / "set", max_images=20)
        copied(open_store(folder / "yesterday"), open_store(folder / "today"))
        began = time.monotonic()
        process = start(folder / "set", str(folder / "today"), folder / "log", *index, **SLOWLY)
        assert process.wait(timeout=300) == 0, (folder / "log").read_text()
        seconds = time.monotonic() - began
        assert versions.version_rows(open_store(folder / "today"))[-1].kind == kind
        return folder / "set", folder / "yesterday", content(opened(folder / "today")), seconds

    return made


@pytest.fixture(scope="module")
def straight(straight_of: Callable[[str], Straight]) -> Straight:
    return straight_of("flat")


def index_of(kind: str) -> Sequence[str]:
    return ("--set", f"gallery.index={kind}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_night_leaves_what_serves_whole_and_the_next_ends_the_same(
    straight_of: Callable[[str], Straight],
    tmp_path: Path,
    calls: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
) -> None:
    imageset, yesterday, want, seconds = straight_of(kind)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gallery = f"{request.getfixturevalue('s3_bucket')}/gallery" if number % 2 else str(tmp_path / "gallery")
    store = open_store(gallery)
    copied(open_store(yesterday), store)
    old = content(opened(gallery))
    seed = int(os.environ.get("GALLERY_KILL_SEED", random.randrange(10**6)))
    moment = random.Random(seed).uniform(0.10, 0.95) * seconds
    process = start(imageset, gallery, tmp_path / "log", *index_of(kind), **SLOWLY)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    print(f"round {number}, {kind}, {gallery}: seed {seed}, kill -9 after {moment:.1f} of {seconds:.1f} s, left: "
          f"{[row.state for row in versions.version_rows(store)]}, "
          f"{len(store.list('work/'))} files of work")  # fmt: skip
    assert content(opened(gallery)) in (old, want)
    night(imageset, gallery, *index_of(kind))
    assert content(opened(gallery)) == want
    _finds_what_it_has(opened(gallery), kind)
    lock = Lock(store)
    lock.take()
    versions.prune(store, 1, lock=lock, grace_s=0)
    lock.release()
    assert content(opened(gallery)) == want
    _only_what_is_wanted(store)


def _finds_what_it_has(gallery: Gallery, kind: str) -> None:
    """The index, and not only the tables beside it, has every garment."""
    assert gallery.record["index"]["kind"] == kind
    ids = gallery.items["id"].to_numpy()
    similarity = gallery.index.search(gallery.vectors(ids), 10)[0][:, 0]
    assert (similarity > 1 - 1e-5).mean() >= (1.0 if kind == "flat" else 0.95)


def _only_what_is_wanted(store: ObjectStore) -> None:
    """Not a file that no later night would read."""
    (name,) = versions.names(store)
    record = read_record(store, name)
    wanted = {"CURRENT", f"versions/{name}/version.json", *(f"versions/{name}/{file}" for file in record["files"])}
    found = {info.key for info in store.list()} if store.local_path is None else set(on_disk(store.local_path))
    left = {key for key in found - wanted - {".tmp-swap-CURRENT"} if not key.startswith("nights/")}
    parts = {f"results/{record['results']}/part-{part:05d}" for part in range(len(left) // 2)}
    assert left == {f"{part}.{kind}.parquet" for part in parts for kind in ("items", "photos")}


@pytest.mark.slow
def test_of_two_nights_at_once_one_works_and_the_other_says_so(straight: Any, tmp_path: Path) -> None:
    imageset, yesterday, want, _ = straight
    copied(open_store(yesterday), open_store(tmp_path / "gallery"))
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    both = [start(imageset, str(tmp_path / "gallery"), log, STAND_IN_PAUSE_S="0.05") for log in logs]
    status = [process.wait(timeout=300) for process in both]
    assert sorted(status) in ([0, 2], [0, 0]), [
        log.read_text() for log in logs
    ]  # 0, 0: the second came after the first
    for code, log in zip(status, logs, strict=True):
        if code:
            (said,) = [line for line in log.read_text().splitlines() if ": error: " in line]
            assert "is at work here; wait for it" in said and "Traceback" not in log.read_text()
    assert content(opened(tmp_path / "gallery")) == want
    assert len(versions.version_rows(open_store(tmp_path / "gallery"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_night_that_lost_its_lock_does_not_publish_over_the_other(
    tmp_path: Path, calls: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, place: str
) -> None:
    """A minute without storage: another night takes the lock, and publishes. The first one's results are reused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gallery = f"{request.getfixturevalue('s3_bucket')}/gallery" if place == "bucket" else str(tmp_path / "gallery")
    monkeypatch.setattr("jobs.runs.lock.BEAT_S", 3600.0)  # the first is out of reach: it neither beats nor hears
    store, imageset = open_store(gallery), tmp_path / "set"
    stock(shop(range(10)), imageset)
    night(imageset, gallery)
    stock(shop(range(14)), imageset)
    real, second = nights.gate_figures, []

    def gate_figures(*args: Any) -> Any:
        if not second:
            second.append(True)
            time.sleep(1.1)  # a lock is taken over after minutes; two nights of one second name their versions alike
            store.delete("lock.json")  # as who takes a silent lock over
            second.append(night(imageset, gallery))
        return real(*args)

    monkeypatch.setattr(nights, "gate_figures", gate_figures)
    said = r"was published meanwhile; 0000\d+-\S+ is whole and stays|took over meanwhile; wait for it"
    with pytest.raises(UserError, match=said):
        night(imageset, gallery)
    assert second[1]["status"] == "published" and second[1]["detected"] == 0  # the first had kept its results already
    assert opened(gallery).version == second[1]["version"] and len(opened(gallery)) == 14
    assert night(imageset, gallery)["status"] == "unchanged"
    assert not store.exists("lock.json")
    if place == "bucket":  # in a folder the other swept up what it was building
        assert "ready" in house(gallery, "--list")


@pytest.mark.parametrize("step", ["work", "results", "version", "record", "pointer"])
def test_a_night_that_ends_at_a_step_is_gone_on_with(
    straight: Any, tmp_path: Path, calls: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Each step is the writing of one key, before and after it; the moments that a random kill seldom meets."""
    imageset, yesterday, want, _ = straight
    key = {
        "work": "night.json",
        "results": "part-00001.items.parquet",
        "version": "ids.npy",
        "record": "version.json",
        "pointer": "CURRENT",
    }[step]
    kind = type(open_store(tmp_path))
    for after in (False, True):
        gallery = tmp_path / f"gallery-{after}"
        copied(open_store(yesterday), open_store(gallery))

        def ending(name: str, after: bool = after, gallery: Path = gallery) -> Any:
            real = getattr(kind, name)

            def write(store: Any, written: str, *args: Any) -> Any:
                mine = written.rpartition("/")[2] == key and str(store.local_path).startswith(str(gallery))
                mine = mine and ".tmp-" not in str(store.local_path)
                if mine and not after:
                    raise KeyboardInterrupt
                found = real(store, written, *args)
                if mine:
                    raise KeyboardInterrupt
                return found

            return write

        with monkeypatch.context() as patch:
            for name in ("write", "write_file", "swap"):
                patch.setattr(kind, name, ending(name))
            with pytest.raises(KeyboardInterrupt):
                night(imageset, gallery)
        night(imageset, gallery)
        assert content(opened(gallery)) == want
        versions.prune(open_store(gallery), 1, grace_s=0)
        _only_what_is_wanted(open_store(gallery))
