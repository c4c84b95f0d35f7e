"""Versions and the pointer: listed, rolled back, pruned, swapped by two at once, read meanwhile."""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from handmade import rows, version

from jobs.gallery import versions
from jobs.runs.lock import Lock
from retrieval.gallery import open_gallery
from retrieval.gallery_files import GalleryError
from store.errors import UserError
from store.objects import ObjectStore, open_store

DAY = 86_400.0
REFUSED = {"gate": {"recall": {"value": 0.1, "good": False}}}


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "bucket":
        return open_store(f"{request.getfixturevalue('s3_bucket')}/gallery")
    return open_store(tmp_path / "gallery")


def name_of(number: int) -> str:
    """Long ago, so that its name alone is no reason to keep it."""
    return f"{number:06d}-20200101T000000Z"


def published(store: ObjectStore, *numbers: int, **how: Any) -> None:
    for number in numbers:
        version(store, name_of(number), [number, number + 1], **how)
        now = versions.pointer(store)
        versions.point_to(store, name_of(number), now[1] if now else None, why="published")


def states(store: ObjectStore) -> dict[int, str]:
    return {int(one.name[:6]): one.state for one in versions.version_rows(store)}


def current(store: ObjectStore) -> int:
    now = versions.pointer(store)
    assert now is not None
    return int(now[0][:6])


# ------------------------------------------------------------------------------------------------ listing


def test_every_version_is_listed_with_its_state(store: ObjectStore) -> None:
    published(store, 1, 2)
    version(store, name_of(3), [1])
    version(store, name_of(4), [1], **REFUSED)
    store.write(f"versions/{name_of(5)}/ids.npy", b"half")
    assert states(store) == {1: "earlier", 2: "current", 3: "ready", 4: "refused", 5: "broken"}
    lines = versions.table(store)
    assert [line.split()[1] for line in lines[1:]] == ["earlier", "current", "ready", "refused", "broken"]
    assert versions.next_name(store).startswith("000006-")
    store.write("CURRENT", b"spoiled")
    assert states(store) == {1: "ready", 2: "ready", 3: "ready", 4: "refused", 5: "broken"}


@pytest.mark.parametrize("content", [
    b"", b"{", b'{"schema": 2}', b"\xff", b'{"schema": 1, "name": "a", "index": {}, "rows": 1, "results": ""}',
], ids=str)  # fmt: skip
def test_an_unreadable_version_json_is_one_broken_version(content: bytes, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    published(store, 1, 2, 3)
    for number in (2, 3):
        store.write(f"versions/{name_of(number)}/version.json", content)
    assert states(store) == {1: "earlier", 2: "broken", 3: "broken"}
    assert [line.split()[1] for line in versions.table(store)[1:]] == ["earlier", "broken", "broken"]
    with pytest.raises(UserError, match=f"no earlier whole version to go back to named {name_of(2)}"):
        versions.roll_back(store, name_of(2))
    assert versions.roll_back(store) == (name_of(3), name_of(1))
    version(store, name_of(4), [4])
    version(store, name_of(5), [5])
    assert versions.prune(store, 1, grace_s=0) == [name_of(4)]
    assert states(store) == {1: "current", 2: "broken", 3: "broken", 5: "ready"}, "what nobody can read stays"


@pytest.mark.parametrize(
    "wrong", [{"gate": 3}, {"gate": {"a": 3}}, {"index": []}, {"rows": "x"}, {"files": None}, {"results": []}], ids=str
)
def test_a_version_json_of_another_shape_is_one_broken_version(wrong: dict[str, Any], tmp_path: Path) -> None:
    store = open_store(tmp_path)
    published(store, 1, 2)
    version(store, name_of(3), [3], **wrong)
    assert [line.split()[1] for line in versions.table(store)[1:]] == ["earlier", "current", "broken"]
    with pytest.raises(GalleryError, match=r"version.json: not readable: \w+ is "):
        versions.point_to(store, name_of(3), versions.pointer(store)[1], why="published")  # type: ignore[index]
    assert versions.prune(store, 1, grace_s=0) == [name_of(1)] and states(store) == {2: "current", 3: "broken"}


@pytest.mark.parametrize("history", [
    3, None, {"version": "a"}, [3], [{"at": 1.0}], [{"version": [], "at": 1.0}], [{"version": "a", "at": "x"}],
    [{"version": name_of(2), "at": 1e300}], [{"version": name_of(2), "at": float("nan")}],
], ids=str)  # fmt: skip
def test_a_history_of_another_shape_counts_as_none_and_nothing_is_pruned(history: Any, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    published(store, 1, 2)
    store.write("CURRENT", json.dumps({"version": name_of(2), "history": history}).encode())
    assert [line.split()[1] for line in versions.table(store)[1:]] == ["ready", "current"]
    with pytest.raises(GalleryError, match="its history has entries of another shape"):
        versions.prune(store, 1, grace_s=0)
    assert versions.roll_back(store) == (name_of(2), name_of(1))
    assert [entry["version"] for entry in json.loads(store.read("CURRENT"))["history"]] == [name_of(1)]
    assert versions.prune(store, 1, grace_s=0) == [], "the rollback wrote the history anew; 2 is the newest"


# ------------------------------------------------------------------------------------------------ rolling back


def test_a_rollback_goes_to_what_served_before(store: ObjectStore) -> None:
    published(store, 1, 2, 3)
    assert versions.roll_back(store) == (name_of(3), name_of(2))
    assert versions.roll_back(store) == (name_of(2), name_of(1))
    with pytest.raises(UserError, match="no earlier whole version to go back to;"):
        versions.roll_back(store)
    published(store, 4)  # over 1: neither 2 nor 3, which were given up, is what was before it
    assert versions.roll_back(store) == (name_of(4), name_of(1))
    assert versions.roll_back(store, name_of(3)) == (name_of(1), name_of(3))
    with pytest.raises(UserError, match="is current already"):
        versions.roll_back(store, name_of(3))
    why = [entry["why"] for entry in json.loads(store.read("CURRENT"))["history"]]
    assert [one[0] for one in why] == list("ppprrprr")


def test_what_the_gate_refused_is_never_gone_back_to(store: ObjectStore) -> None:
    published(store, 1)
    version(store, name_of(2), [5], **REFUSED)
    published(store, 3)
    assert versions.roll_back(store) == (name_of(3), name_of(1))
    with pytest.raises(UserError, match=f"the gate refused {name_of(2)}"):
        versions.roll_back(store, name_of(2))
    with pytest.raises(UserError, match=r"no earlier whole version to go back to named 000009-x"):
        versions.roll_back(store, "000009-x")
    assert current(store) == 1


def test_a_spoiled_pointer_is_mended_by_a_rollback(store: ObjectStore) -> None:
    published(store, 1, 2)
    store.write("CURRENT", b'{"history":' * 100_000)
    with pytest.raises(GalleryError, match="1100000 bytes that name no version"):
        open_gallery(store.uri)
    left, now = versions.roll_back(store)
    assert left == "nothing readable" and now in (name_of(1), name_of(2))
    assert open_gallery(store.uri).version == now


def test_half_a_version_is_not_pointed_to(store: ObjectStore) -> None:
    published(store, 1)
    store.write(f"versions/{name_of(2)}/ids.npy", b"half")
    with pytest.raises(GalleryError, match="no version 000002"):
        versions.point_to(store, name_of(2), versions.pointer(store)[1], why="published")  # type: ignore[index]
    assert current(store) == 1


# ------------------------------------------------------------------------------------------------ pruning


def test_prune_keeps_the_newest_the_current_and_what_was_superseded_lately(store: ObjectStore) -> None:
    published(store, 1, 2, 3, 4)
    versions.roll_back(store, name_of(1))
    assert versions.prune(store, 2) == []  # 2 was superseded this minute
    assert versions.prune(store, 2, now=time.time() + DAY - 60) == []
    assert versions.prune(store, 2, now=time.time() + DAY + 60) == [name_of(2)]
    assert versions.prune(store, 1, grace_s=0) == [name_of(3)]
    assert states(store) == {1: "current", 4: "earlier"}
    assert open_gallery(store.uri).version == name_of(1)


def test_refused_versions_do_not_push_good_ones_out(store: ObjectStore) -> None:
    published(store, 1, 2)
    for number in range(3, 9):
        version(store, name_of(number), [1], **REFUSED)
    assert versions.prune(store, 2, grace_s=0) == [name_of(number) for number in range(3, 9)]
    assert states(store) == {1: "earlier", 2: "current"}


def test_what_has_no_version_json_goes_at_once(store: ObjectStore) -> None:
    published(store, 1)
    store.write(f"versions/{versions.next_name(store)}/ids.npy", b"half")  # written now: it has no time of grace
    assert len(versions.prune(store, 7)) == 1
    assert states(store) == {1: "current"}


def test_prune_leaves_the_current_version_even_when_it_is_broken(store: ObjectStore) -> None:
    """Its other files are what it could be mended from."""
    published(store, 1, 2)
    store.delete(f"versions/{name_of(2)}/version.json")
    assert versions.prune(store, 1, grace_s=0) == []
    assert states(store) == {1: "earlier", 2: "broken"} and store.exists(f"versions/{name_of(2)}/vectors.npy")


def test_prune_stops_where_nobody_knows_what_serves(store: ObjectStore) -> None:
    published(store, 1, 2)
    store.write("CURRENT", b"spoiled")
    with pytest.raises(GalleryError, match="name no version"):
        versions.prune(store, 1, grace_s=0)
    assert len(states(store)) == 2


def test_prune_stops_when_the_lock_is_anothers(store: ObjectStore) -> None:
    """Broken versions go at once only because nobody else can be writing one: no longer so once another took over."""
    published(store, 1)
    store.write(f"versions/{name_of(2)}/ids.npy", b"another's, by now")
    lock = Lock(store)
    lock.take()
    store.write("lock.json", b'{"token": "another"}')
    with pytest.raises(UserError, match="another run took over meanwhile"):
        versions.prune(store, 1, lock=lock, grace_s=0)
    assert states(store) == {1: "current", 2: "broken"}
    store.delete("lock.json")
    with pytest.raises(UserError, match="another run took over meanwhile"):
        versions.prune(store, 1, lock=lock, grace_s=0)
    lock.release()


def test_a_version_listed_late_is_not_taken_for_broken(s3_bucket: str, s3_proxy: Any) -> None:
    store = open_store(f"{s3_bucket}/gallery")
    published(store, 1, 2)
    list_of = type(store).list
    hidden = [info for info in list_of(store, "versions/") if not info.key.endswith(f"{name_of(1)}/version.json")]
    assert len(hidden) == len(list_of(store, "versions/")) - 1
    store.list = lambda prefix="": hidden  # type: ignore[method-assign,assignment,misc]
    assert versions.prune(store, 7) == []
    assert store.exists(f"versions/{name_of(1)}/vectors.npy")


def test_a_version_is_gone_before_its_files_are(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store, 1, 2)
    gone: list[str] = []
    delete = type(store).delete
    monkeypatch.setattr(type(store), "delete", lambda self, key: (gone.append(key), delete(self, key))[1])
    versions.prune(store, 1, grace_s=0)
    assert gone[0] == f"versions/{name_of(1)}/version.json" and len(gone) == 4


def test_half_written_files_are_swept_up_and_waiting_places_are_not(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    published(store, 1)
    published(store, 2)  # by a swap: its lock file stays
    for path in (
        ".tmp-building-a/versions/x/vectors.npy",
        "versions/000001-20200101T000000Z/.tmp-12",
        "work/.tmp-building-b/x",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"half")
    assert versions.prune(store, 7) == [".tmp-building-a", f"versions/{name_of(1)}/.tmp-12", "work/.tmp-building-b"]
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == [".tmp-swap-CURRENT"]


# ------------------------------------------------------------------------------------------------ two at once


def test_what_was_built_for_a_bucket_is_swept_from_this_machine_once_nobody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store: Any = SimpleNamespace(local_path=None, list=lambda prefix: [])
    with versions.passing(store) as held:
        killed, new = tmp_path / f"{versions.BUILD_PREFIX}killed", tmp_path / f"{versions.BUILD_PREFIX}new"
        for folder in (killed / "versions", new, tmp_path / ".tmp-anothers"):
            folder.mkdir(parents=True)
        for folder in (held, killed, tmp_path / ".tmp-anothers"):
            os.utime(folder, (0, 0))
        assert held.parent == tmp_path and versions.sweep(store) == []
        assert set(tmp_path.iterdir()) == {held, new, tmp_path / ".tmp-anothers"}
    assert not held.exists()
    (tmp_path / "gallery").mkdir()
    with versions.passing(open_store(tmp_path / "gallery")) as held:
        assert held.parent == tmp_path / "gallery"


def test_of_eight_who_publish_at_once_one_wins_and_all_versions_stay(store: ObjectStore) -> None:
    """First where there is no CURRENT yet, then from the same one."""
    for first in (1, 9):
        for number in range(first, first + 8):
            version(store, name_of(number), [number])
        seen = versions.pointer(store)
        barrier = threading.Barrier(8)

        def race(number: int, seen: Any = seen, barrier: Any = barrier) -> str:
            barrier.wait()
            try:
                versions.point_to(store, name_of(number), seen[1] if seen else None, why="published")
            except UserError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(race, range(first, first + 8)))
        assert said.count("") == 1 and current(store) == first + said.index("")
        assert all("was published meanwhile; 0000" in line for line in said if line)
    assert len(states(store)) == 16 and "broken" not in states(store).values()


def test_a_lost_answer_to_the_swap_is_not_a_lost_race(
    s3_bucket: str, s3_proxy: Any, impatient: None, tmp_path: Path
) -> None:
    store = open_store(f"{s3_bucket}/gallery")
    published(store, 1)
    s3_proxy.cause("lose", "PUT", "/CURRENT", first=1)
    published(store, 2)
    assert s3_proxy.caused["lose"] == 1 and current(store) == 2
    s3_proxy.cause("503 SlowDown", "PUT|GET", "/CURRENT", first=3)
    published(store, 3)
    assert current(store) == 3 and len(json.loads(store.read("CURRENT"))["history"]) == 3


# ------------------------------------------------------------------------------------------------ readers


def _read(uri: str, ends: Any, turns: Any, latest: Any, told: Any) -> None:
    """Search in a loop, refreshing and opening again in turn; tells the versions seen, and what went wrong.

    `turns` counts the searches; `latest` is the number of the version last searched.
    """
    seen: dict[str, int] = {}
    wrong = ""
    try:
        gallery = open_gallery(uri)
        while not ends.is_set():
            if (turns.value + 1) % 3:
                gallery.refresh()
            else:
                gallery = open_gallery(uri)
            number = int(gallery.version[:6])
            ids = sorted(gallery.search(rows([number], seed=8), 5)[1][0].tolist(), reverse=True)
            images = sorted((row["image_id"] for row in gallery.lookup(ids) if row), reverse=True)
            if images != [number + 1, number]:  # exactly what this version holds
                wrong = wrong or f"{gallery.version}: {ids}, {images}"
            seen[gallery.version] = seen.get(gallery.version, 0) + 1
            latest.value, turns.value = number, turns.value + 1
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    turns.value, latest.value = -1, -1
    told.put((seen, wrong))


def _wait_for(condition: Callable[[], bool], turns: Any) -> None:
    """Until the reader has come so far, or has ended; two minutes are a guard against hanging."""
    end = time.monotonic() + 120
    while not condition() and turns.value >= 0:
        assert time.monotonic() < end, "the reader stands still"
        time.sleep(0.005)


@pytest.mark.slow
def test_readers_see_whole_versions_through_publications_and_rollbacks(store: ObjectStore) -> None:
    """Another process searches through ten publications, two rollbacks and prunes; then it is where the pointer is."""
    spawn = multiprocessing.get_context("spawn")
    ends, turns, latest, told = spawn.Event(), spawn.Value("q", 0), spawn.Value("q", 0), spawn.Queue()
    published(store, 1)
    reader = spawn.Process(target=_read, args=(store.uri, ends, turns, latest, told))
    reader.start()
    _wait_for(lambda: turns.value > 0, turns)
    for number in range(2, 12):
        published(store, number)
        if number in (5, 9):
            versions.roll_back(store)
        versions.prune(store, 3)  # the time of grace keeps what it may be opening
        before = turns.value
        _wait_for(lambda before=before: turns.value > before + 1, turns)
    _wait_for(lambda: latest.value == 11, turns)
    ends.set()
    seen, wrong = told.get(timeout=60)
    reader.join()
    assert wrong == "" and name_of(11) in seen and len(seen) > 3
