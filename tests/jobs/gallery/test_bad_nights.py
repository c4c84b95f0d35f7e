"""Nights that go wrong in rare ways, with stand-in models: killed while cleaning up, refused, overtaken."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from galleries import Goods, line, night, opened, shop, stock

from jobs import reindex_gallery
from jobs.gallery import gate, versions
from jobs.gallery import night as nights
from jobs.runs import lock
from jobs.runs.lock import KEY, Lock
from store.errors import UserError
from store.imageset import ImageSetError
from store.objects import LocalStore, open_store

LOOSE = ["--set", "max_failed_share=0.5"]


@pytest.fixture
def where(tmp_path: Path, calls: Any) -> tuple[Path, Path]:
    """Image set and gallery; models work in this process."""
    return tmp_path / "set", tmp_path / "gallery"


def killed(where: tuple[Path, Path], *more: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        reindex_gallery.main(line(*where, *more), stand_ins.CATALOGUE)


def test_copies_lie_where_every_node_can_read_them(
    where: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(40)), where[0])
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "of this machine alone")
    )  # not there: nothing can be put in it
    found = night(*where, "--set", "gallery.copies=8", "--set", "gallery.least_copies=0.1")
    assert found["gate"]["copies"] > 0
    assert not (where[1] / "copies").exists()


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_copies_are_found_under_a_category_rule(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setattr(gate, "copy_of", lambda data, *_: data)  # in a JPEG the stand-ins see other categories
    stock(shop(range(40)), where[0])
    steps = f"search.steps=[{{step: concat}}, {{step: category, rule: {rule}}}]"
    assert night(*where, "--set", "gallery.copies=8", "--set", steps)["gate"]["copies"] == 1


@pytest.mark.parametrize("removed", [0, 1, 8, 12, 14, 16, 20])
def test_killed_while_it_clears_up_a_night_forgets_no_failure(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    stock([*shop(range(6)), Goods(11, 11, corner=stand_ins.STUMBLER)], where[0], max_images=3)
    left, delete = [removed], LocalStore.delete

    def until(store: LocalStore, key: str) -> None:
        if store.uri.endswith("/work") and key != KEY:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        delete(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", until)
        killed(where, *LOOSE)
    found = night(*where, *LOOSE)
    assert (found["status"], found["failed"], found["rows"]) == ("published", 1, 6)


def test_what_a_killed_night_won_back_is_published_by_the_next(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock([*shop(range(10)), Goods(11, 11, corner=stand_ins.STUMBLER)], where[0])
    night(*where, *LOOSE)
    monkeypatch.setattr(stand_ins, "STUMBLER", (1, 2, 3))  # mended
    with monkeypatch.context() as patch:
        patch.setattr(versions, "point_to", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        killed(where, *LOOSE, "--retry-failed")
    assert reindex_gallery.main(line(*where, *LOOSE, "--dry-run"), stand_ins.CATALOGUE) == 0
    assert "unchanged 11; 1 known from a night that did not end; 0 to detect" in capsys.readouterr().out
    found = night(*where, *LOOSE)
    assert (found["status"], found["detected"], found["garments_added"], found["rows"]) == ("published", 0, 1, 11)
    assert night(*where, *LOOSE)["status"] == "unchanged"


def test_advice_of_a_refused_version_is_followed(where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    some = ["--set", "gallery.index=hnsw", "--retrain", "auto"]
    stock(shop(range(30)), where[0])
    night(*where, *some)
    stock(shop(range(32)), where[0])
    with monkeypatch.context() as patch:
        patch.setattr(gate, "recall", lambda *_: 0.5)
        refused = night(*where, *some, status=4)
    assert (refused["rebuilt"], refused["advice"]) == ("", "recall 0.500, under 0.95")
    found = night(*where, *some)
    assert (found["status"], found["rebuilt"]) == ("published", "trained again: recall 0.500, under 0.95")
    stock(shop(range(33)), where[0])
    assert night(*where, *some)["rebuilt"] == ""


def test_a_gallery_outgrows_exact_search(where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    some = ["--set", "gallery.index=auto"]
    stock(shop(range(30)), where[0])
    assert night(*where, *some)["index"] == "flat"
    monkeypatch.setattr("retrieval.ann_plan.EXACT_UNTIL", 20)
    stock(shop(range(31)), where[0])
    found = night(*where, *some)
    assert (found["rebuilt"], found["index"]) == ("the gallery outgrew exact search: hnsw", "hnsw")
    stock(shop(range(32)), where[0])
    assert night(*where, *some)["rebuilt"] == ""


def test_another_recall_is_tuned_to(where: tuple[Path, Path]) -> None:
    some = ["--set", "gallery.index=hnsw", "--set"]
    stock(shop(range(30)), where[0])
    night(*where, *some, "gallery.recall=0.95")
    assert night(*where, *some, "gallery.recall=0.99")["rebuilt"] == "another recall to tune to"
    assert night(*where, *some, "gallery.recall=0.99")["status"] == "unchanged"


def test_a_set_that_changes_under_a_night_is_not_mixed_into_it(
    where: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(shop(range(10)), where[0])
    run_models = nights.run_models

    def after_a_change(*args: Any) -> None:
        stock(shop(range(100, 110)), where[0])
        run_models(*args)

    with monkeypatch.context() as patch:
        patch.setattr(nights, "run_models", after_a_change)
        with pytest.raises((ImageSetError, UserError)):
            night(*where)
    found = night(*where)
    assert (found["status"], found["detected"], found["rows"], found["failed"]) == ("published", 10, 10, 0)
    assert {row["image_id"] for row in opened(where[1]).items.to_pylist()} == set(range(100, 110))


# ------------------------------------------------------------------------------------------------ overtaken


def test_a_lock_that_is_gone_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    store = open_store(tmp_path)
    mine = Lock(store)
    mine.take()
    store.delete(KEY)  # a prune on another host took it over while we were frozen, and ended
    mine.thread.join(timeout=120)  # it ends once it has seen the loss
    assert not mine.thread.is_alive()
    with pytest.raises(UserError, match="took over while storage was out of reach"):
        mine.check()
    assert not store.exists(KEY)
    mine.release()


def test_a_version_whose_files_were_pruned_is_not_published(where: tuple[Path, Path]) -> None:
    stock(shop(range(10)), where[0])
    first = night(*where)["version"]
    stock(shop(range(11)), where[0])
    second = night(*where)["version"]
    (where[1] / "versions" / first / "vectors.npy").unlink()
    with pytest.raises(UserError, match=rf"{first} lacks vectors.npy, removed since"):
        reindex_gallery.main(["--gallery", str(where[1]), "--rollback"])
    assert opened(where[1]).version == second


def test_why_anew_looks_at_kind_before_dba(where: tuple[Path, Path]) -> None:
    steps = ["--set", "search.steps=[{step: concat}, {step: dba, k: 2}]", "--set"]
    stock(shop(range(10)), where[0])
    night(*where, *steps, "gallery.index=flat")
    found = night(*where, *steps, "gallery.index=hnsw")
    assert (found["status"], found["rebuilt"], found["index"]) == (
        "published",
        "another kind of index or budget",
        "hnsw",
    )
    assert night(*where, *steps, "gallery.index=hnsw")["status"] == "unchanged"
