"""Galleries in several parts beside the same garments in one: built, extended, judged, searched whole and in part."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import part_results
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_gallery
import stand_ins
from galleries import Goods, content, house, line, night, on_disk, opened, queries, shop, stock
from part_results import in_one, photos_of, publish, published, results_in, rows_of, wanted

from jobs import reindex_gallery, status
from jobs.gallery import parts, versions
from jobs.gallery.build import refusal
from jobs.gallery.built_parts import PublishedParts, part_of
from jobs.gallery.part_servers import InProcess
from jobs.gallery.parts import PartJob
from jobs.gallery.served import PartsMissing, ServedGallery
from postproc.hypotheses import Hypotheses
from retrieval.gallery import Gallery, open_gallery
from retrieval.gallery_files import GalleryError
from store.errors import UserError
from store.local import LocalStore
from store.objects import open_store

FOUR = ("--set", "gallery.parts=4")


def equal(got: Any, want: Any) -> None:
    """Similarities and ids, to the last bit."""
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------------------------------------ which part


@pytest.mark.parametrize("step", [1, 2, 4, 1_000, 2**40])
def test_about_as_many_photos_are_in_each_part(step: int) -> None:
    """Numbers in a row, even ones alone, thousands: as crawlers number them."""
    counts = np.bincount(part_of(np.arange(10_000) * step, 4), minlength=4)
    assert counts.sum() == 10_000 and counts.min() > 2_300


def test_a_photo_is_in_the_same_part_every_night() -> None:
    ids = np.array([0, 1, 2, 3, 2**62, 2**63 - 1])
    assert part_of(ids, 1).tolist() == [0] * 6
    assert part_of(ids, 3).tolist() == part_of(ids[::-1], 3)[::-1].tolist() == [0, 1, 0, 2, 0, 2]


# ------------------------------------------------------------------------------------------------ built and searched


STEPS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "learned": [{"step": "whiten", "dim": 6}],
    "expanded": [{"step": "concat"}, {"step": "alpha_qe", "k": 3}],
    "lists": [{"step": "pca", "dim": 7}, {"step": "concat"}, {"step": "average_qe", "k": 2},
              {"step": "detector_score", "weight": 0.2}, {"step": "category"}, {"step": "group", "by": "product"}],
}  # fmt: skip


@pytest.mark.parametrize("n", [2_500, 5])  # of 5 photos some parts are empty
@pytest.mark.parametrize("steps", STEPS)
def test_parts_answer_as_one_index(tmp_path: Path, steps: str, n: int) -> None:
    """In this process and served apart; 1,000 different rows, so that many similarities tie."""
    store, ids = LocalStore(tmp_path), np.arange(n)
    results = results_in(store, ids)
    whole = in_one(wanted(1, STEPS[steps]), results, ids, store, "000001-x")
    four, _ = published(wanted(4, STEPS[steps]), results, ids, None, store, "000002-x")
    assert len(four) == len(whole) == n and four.parts == (0, 1, 2, 3)
    asked, own = rows_of(np.arange(20), seed=3), np.arange(20) % 13
    # 0 of nothing known; of the others the second category is half as probable as the own
    category = Hypotheses(np.stack([own, np.where(own, 1 + own % 13, 0)], 1), np.array([[1, 0.5]]) * (own > 0)[:, None])
    served = ServedGallery(store, "000002-x", InProcess(store))
    for k in (1, 10, 700):
        want = whole.search(asked, k, category=category)
        for gallery in (four, served):
            got = gallery.search(asked, k, category=category)
            np.testing.assert_allclose(got[0], want[0], atol=1e-6 if steps == "lists" else 0)
            if steps != "lists":  # where equal scores come in the order of the rows
                equal(got, want)
    found = want[1][0]
    for gallery in (four, served):
        assert gallery.lookup(found) == whole.lookup(found)
        assert gallery.table([3, -1, 1]).equals(whole.table([3, -1, 1]))
        own = four.items["id"].to_numpy()[:5]
        np.testing.assert_array_equal(gallery.vectors(own), whole.vectors(own))
        with pytest.raises(GalleryError, match="no garment 5;"):
            gallery.vectors(np.array([own[0], 5]))


def test_a_graph_a_part_finds_what_a_graph_finds(tmp_path: Path) -> None:
    store, ids = LocalStore(tmp_path), np.arange(1_000)
    four, _ = published(wanted(4, index="hnsw"), results_in(store, ids), ids, None, store, "000001-x")
    products = rows_of(np.arange(1_000)) @ rows_of(np.arange(50), seed=3).T
    similarity, _ = four.search(rows_of(np.arange(50), seed=3), 10)
    assert (similarity[:, -1] >= np.sort(products, axis=0)[-10] - 1e-6).mean() > 0.95
    assert [part["index"]["kind"] for part in four.record["parts"]] == ["hnsw"] * 4


@pytest.fixture
def four(tmp_path: Path) -> Gallery:
    store, ids = LocalStore(tmp_path / "four"), np.arange(400)
    gallery, _ = published(wanted(4), results_in(store, ids), ids, None, store, "000001-x")
    publish(store, "000001-x")
    return gallery


def test_some_parts_are_the_garments_of_their_photos(four: Gallery, tmp_path: Path) -> None:
    some = open_gallery(tmp_path / "four", parts=[2, 0])
    images = four.items["image_id"].to_numpy()
    mine = np.isin(part_of(images, 4), [0, 2])
    assert some.parts == (0, 2) and sorted(some.items["image_id"].to_pylist()) == sorted(images[mine].tolist())
    found = some.search(rows_of(np.arange(5), seed=3), len(some))[1]
    assert set(found[0].tolist()) == set(four.items["id"].to_numpy()[mine].tolist()) and not some.refresh()


@pytest.mark.parametrize("wish", [[4], [-1], [], [0, 9]])
def test_parts_that_are_not_there_are_refused(four: Gallery, tmp_path: Path, wish: list[int]) -> None:
    with pytest.raises(GalleryError, match=r"000001-x: parts \[.*\]; want some of its 4, 0 to 3"):
        open_gallery(tmp_path / "four", parts=wish)


def test_a_reader_of_some_parts_does_not_follow_to_another_number_of_them(four: Gallery, tmp_path: Path) -> None:
    store, ids = LocalStore(tmp_path / "four"), np.arange(400)
    some, every = open_gallery(store.uri, parts=[1]), open_gallery(store.uri)
    results = part_results.PhotoResults(store.sub("results/hand"), {"m": part_results.DIM})
    published(wanted(2), results, ids, None, store, "000002-x")
    publish(store, "000002-x")
    with pytest.raises(GalleryError, match="000002-x has 2 parts, 000001-x has 4; open the new ones"):
        some.refresh()
    assert some.version == "000001-x" and every.refresh() and every.parts == (0, 1)
    equal(every.search(rows_of(ids[:9]), 5), four.search(rows_of(ids[:9]), 5))


def test_served_parts_follow_and_name_what_is_missing(four: Gallery, tmp_path: Path) -> None:
    class Without2(InProcess):
        """Part 2 does not answer in time."""

        late = False

        def ask(self, parts: Any, wait_s: float | None, version: str, function: Any, *args: Any) -> dict[int, Any]:
            return super().ask(
                [part for part in parts if not (self.late and part == 2)], wait_s, version, function, *args
            )

    store, asked = LocalStore(tmp_path / "four"), rows_of(np.arange(9), seed=3)
    servers = Without2(store)
    with ServedGallery(store, "000001-x", servers, deadline_s=0.5) as served:
        assert len(served) == 400 and not served.refresh()
        servers.late = True
        with pytest.raises(
            PartsMissing, match=r"gallery: part 2 of 4 did not answer within 0\.5 s; what the others"
        ) as got:
            served.search(asked, 10)
        late = pickle.loads(pickle.dumps(got.value))
        assert late.missing == (2,) and str(late) == str(got.value)
        equal(late.answer, open_gallery(store.uri, parts=[0, 1, 3]).search(asked, 10))
        gone = four.items["id"].to_numpy()[part_of(four.items["image_id"].to_numpy(), 4) == 2]
        with pytest.raises(PartsMissing) as got:
            served.lookup(gone[:1])
        assert got.value.answer == [{}]
        servers.late = False
        results = part_results.PhotoResults(store.sub("results/hand"), {"m": part_results.DIM})
        published(wanted(2), results, np.arange(400), None, store, "000002-x")
        publish(store, "000002-x")
        assert served.refresh() and served.version == "000002-x"
        equal(served.search(asked, 10), four.search(asked, 10))


# ------------------------------------------------------------------------------------------------ the next version


def test_only_parts_whose_photos_changed_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ids = LocalStore(tmp_path), np.arange(400)
    results = results_in(store, ids)
    first, _ = published(wanted(4), results, ids[:-1], None, store, "000001-x")
    ran: list[int] = []
    run = PartJob.run
    monkeypatch.setattr(PartJob, "run", lambda job, *how: (ran.append(job.part), run(job, *how))[1])
    before = PublishedParts(store, first.record)
    now, built = published(wanted(4), results, ids[1:], before, store, "000002-x")
    assert ran == sorted({part_of(ids[:1], 4)[0], part_of(ids[-1:], 4)[0]}) and len(ran) == 2
    assert (built.added, built.removed, built.rebuilt) == (1, 1, "")
    for file, digest in first.record["files"].items():
        if file.startswith("part-") and int(file[5]) not in ran:
            assert now.record["files"][file] == digest == store.digest(f"versions/000002-x/{file}")
    assert content(now) == content(in_one(wanted(1), results, ids[1:], store, "000003-x"))
    ran.clear()
    renamed, _ = published(wanted(4), results, ids[1:], PublishedParts(store, now.record), store, "000004-x", "other")
    assert ran == [0, 1, 2, 3] and set(renamed.items["product_id"].to_pylist()) == {f"other{i // 3}" for i in ids[1:]}


def test_what_the_steps_learned_stays(tmp_path: Path) -> None:
    """Learned once of all photos, by all parts, and the next night from the version before."""
    store, ids, wish = LocalStore(tmp_path), np.arange(900), wanted(4, STEPS["learned"])
    results = results_in(store, ids)
    first, _ = published(wish, results, ids[:800], None, store, "000001-x")
    now, built = published(wish, results, ids, PublishedParts(store, first.record), store, "000002-x")
    key = "steps.safetensors"
    assert built.rebuilt == "" and now.record["files"][key] == first.record["files"][key]
    asked = rows_of(np.arange(9), seed=3)
    old = set(first.items["id"].to_pylist())
    similarity, found = now.search(asked, 900)
    kept = [[(s, i) for s, i in zip(*line, strict=True) if i in old] for line in zip(similarity, found, strict=True)]
    assert kept == [list(zip(*line, strict=True)) for line in zip(*first.search(asked, 800), strict=True)]


def test_of_many_photos_some_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photos_of(np.arange(50))
    assert parts.fitting_photos(photos) is photos
    monkeypatch.setattr(parts, "FIT_PHOTOS", 20)
    drawn = parts.fitting_photos(photos).column("image_id").to_pylist()
    assert len(drawn) == 20 and drawn == sorted(set(drawn)) and max(drawn) > 30


# ------------------------------------------------------------------------------------------------ nights


@pytest.fixture
def where(tmp_path: Path, calls: list) -> tuple[Path, Path, Path]:
    """An image set, a gallery of one part and one of four."""
    return tmp_path / "set", tmp_path / "one", tmp_path / "four"


def test_nights_of_four_parts_publish_what_nights_of_one_do(where: tuple[Path, Path, Path]) -> None:
    imageset, one, four = where
    goods = shop(range(40))
    for change in (
        goods,
        [*goods[3:], *shop(range(40, 45))],  # gone and new
        [Goods(10, 99, "sku-10"), *goods[11:], *shop(range(40, 45))],  # another garment on the photo
        [Goods(10, 99, "other"), *goods[11:], *shop(range(40, 45))],  # of another product
        shop([7]),  # three parts are empty
        goods[:20],
    ):
        stock(change, imageset)
        alone, parted = (
            night(imageset, gallery, "--set", "gallery.most_gone=1", *more)
            for gallery, more in ((one, ()), (four, FOUR))
        )
        passing = {"seconds", "age_s", "photos_per_s", "version", "before"}
        assert {n: v for n, v in parted.items() if n not in passing} == {
            n: v for n, v in alone.items() if n not in passing
        }
        got, want = opened(four), opened(one)
        assert content(got) == content(want) and (got.record["schema"], want.record["schema"]) == (2, 1)
        asked = queries(want)
        for k in (1, 30, 100):
            equal(got.search(asked, k), want.search(asked, k))
    assert night(imageset, four, *FOUR)["status"] == "unchanged"


def test_a_change_of_their_number_rebuilds_the_parts(where: tuple[Path, Path, Path]) -> None:
    imageset, _, gallery = where
    stock(shop(range(12)), imageset)
    want = None
    for more, reason in (
        (FOUR, "the first version"),
        ((), "another number of parts"),
        (FOUR, "another number of parts"),
    ):
        assert night(imageset, gallery, *more)["rebuilt"] == reason
        want = want or content(opened(gallery))
        assert content(opened(gallery)) == want
    assert "parts" not in json.loads((gallery / "versions" / versions_of(gallery)[1] / "version.json").read_text())


def versions_of(gallery: Path) -> list[str]:
    return sorted(path.name for path in (gallery / "versions").iterdir())


def test_a_night_killed_between_parts_leaves_what_serves(
    where: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    imageset, one, gallery = where
    stock(shop(range(20)), imageset)
    first = night(imageset, gallery, *FOUR)["version"]
    stock(shop(range(1, 30)), imageset)
    run = PartJob.run

    def killed(job: PartJob, *how: Any) -> Any:
        if job.part == 2:
            raise KeyboardInterrupt
        return run(job, *how)

    with monkeypatch.context() as patch:
        patch.setattr(PartJob, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            night(imageset, gallery, *FOUR)
    assert opened(gallery).version == first and len(versions_of(gallery)) == 2
    done = night(imageset, gallery, *FOUR)
    assert done["detected"] == 0 and versions_of(gallery) == [first, done["version"]], "the half version is swept"
    night(imageset, one)
    assert content(opened(gallery)) == content(opened(one))


@pytest.mark.parametrize("figure", ["rows", "counts", "canaries", "recall"])
def test_the_gate_looks_at_every_part(
    where: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    """One part of four is spoiled after it was built, as its files are stored."""
    imageset, _, gallery = where
    stock(shop(range(60)), imageset)
    first = night(imageset, gallery, *FOUR)["version"]
    stock(shop(range(1, 61)), imageset)
    extend, told = parts.extend, []

    def spoiled(results: Any, photos: Any, before: Gallery, folder: Path) -> Any:
        built = extend(results, photos, before, folder)
        if not told:
            told.append(before.parts)
            vectors, items = np.load(folder / "vectors.npy"), built.items
            if figure == "rows":
                vectors[0] *= 2
            elif figure == "counts":  # a garment that is in no photo of the part
                images = pa.array(np.r_[10**6, items["image_id"].to_numpy()[1:]])
                pq.write_table(items.set_column(1, "image_id", images), folder / "items.parquet")
            else:
                vectors = np.roll(vectors, 1, axis=0)
            np.save(folder / "vectors.npy", vectors)
        return built

    monkeypatch.setattr(parts, "extend", spoiled)
    if figure == "recall":
        monkeypatch.setattr("jobs.gallery.parts_gate.recall", lambda *_: 0.5)
    found = night(imageset, gallery, *FOUR, status=4)
    assert figure in found["refused"] and opened(gallery).version == first


def test_copies_are_searched_in_all_parts(where: tuple[Path, Path, Path]) -> None:
    imageset, one, four = where
    stock(shop(range(30)), imageset)
    more = ("--set", "gallery.copies=12", "--set", "gallery.least_copies=0")
    alone, parted = night(imageset, one, *more), night(imageset, four, *more, *FOUR)
    assert alone["gate"]["copies"] is not None and parted["gate"]["copies"] is not None
    record = opened(four).record["gate"]["copies"]
    assert record["note"] == "12 photos" and record["value"] > 0


def test_versions_in_parts_are_listed_rolled_back_and_pruned(
    where: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    imageset, _, gallery = where
    for last in (20, 21, 22):
        stock(shop(range(last)), imageset)
        night(imageset, gallery, *FOUR)
    names = versions_of(gallery)
    states = [row.split()[:3] for row in house(gallery, "--list").splitlines()[1:]]
    assert states == [[names[0], "earlier", "20"], [names[1], "earlier", "21"], [names[2], "current", "22"]]
    house(gallery, "--rollback")
    assert len(opened(gallery)) == 21
    capsys.readouterr()
    assert status.main([str(gallery)]) == 0
    assert "21 garments of 21 photos, index flat in 4 parts, written" in capsys.readouterr().out
    assert versions.prune(open_store(gallery), 1, grace_s=0) == names[:1]
    assert versions_of(gallery) == names[1:], "the folders of its parts are gone too"


def test_a_forecast_says_what_a_part_takes(where: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    imageset, _, gallery = where
    stock(shop(range(40)), imageset)
    night(imageset, gallery, *FOUR)
    before = on_disk(gallery)
    stock(shop(range(50)), imageset)
    capsys.readouterr()
    assert reindex_gallery.main([*line(imageset, gallery, *FOUR), "--dry-run"], stand_ins.CATALOGUE) == 0
    said = capsys.readouterr().out
    assert "index: flat of about 50 garments in 4 parts, each " in said and on_disk(gallery) == before


def test_a_photo_finds_the_same_in_four_parts(
    where: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imageset, one, four = where
    goods = shop(range(30))
    stock(goods, imageset)
    night(imageset, one)
    night(imageset, four, *FOUR)
    (tmp_path / "7.png").write_bytes(goods[7].photo().image)
    said = []
    for gallery in (one, four):
        capsys.readouterr()
        assert small_gallery.ask(gallery, tmp_path / "7.png", "--json") == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1] and "7.png" in json.dumps(said[1])


@pytest.mark.parametrize("steps, parts_, want", [
    ([{"step": "concat"}, {"step": "dba"}], 4, "dba compares each garment with all others, which 4 parts cannot"),
    ([{"step": "concat"}, {"step": "k_reciprocal"}], 2, "k_reciprocal compares"),
    ([{"step": "concat"}, {"step": "diffusion"}], 2, "diffusion compares"),
    ([{"step": "concat"}, {"step": "dba"}, {"step": "k_reciprocal"}], 1, ""),
    ([{"step": "concat"}, {"step": "alpha_qe"}, {"step": "category"}, {"step": "group"}], 4, ""),
])  # fmt: skip
def test_steps_that_want_all_garments_at_once_are_refused(steps: list, parts_: int, want: str) -> None:
    reason = refusal(wanted(parts_, steps).steps, parts_)
    assert reason.startswith(want) and bool(reason) == bool(want)


def test_a_night_refuses_them_in_one_line(where: tuple[Path, Path, Path]) -> None:
    stock(shop(range(4)), where[0])
    with pytest.raises(UserError, match=r"^search\.steps: dba compares .*; set gallery\.parts to 1$"):
        night(where[0], where[2], *FOUR, "--set", "search.steps=[{step: concat}, {step: dba}]")


# ------------------------------------------------------------------------------------------------ in a bucket


def test_of_a_bucket_only_the_parts_asked_for_are_fetched(
    s3_bucket: str, s3_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, ids, wish = open_store(f"{s3_bucket}/gallery"), np.arange(300), wanted(4, STEPS["learned"])
    results = results_in(store, ids)
    first, _ = published(wish, results, ids[1:], None, store, "000001-x")
    for path in (tmp_path / "cache").rglob("part-*/*"):
        path.unlink()
    del s3_proxy.sent[:]
    some = Gallery(store, "000001-x", parts=[1, 3])
    got = {path.rpartition("000001-x/")[2].partition("?")[0] for method, path in s3_proxy.sent if method == "GET"}
    names = {"vectors.npy", "ids.npy", "items.parquet"}
    assert got - {"version.json"} <= {f"part-{part}/{name}" for part in (1, 3) for name in names} | {
        "steps.safetensors"
    }
    assert {name for name in got if name.startswith("part-")} == {
        f"part-{part}/{name}" for part in (1, 3) for name in names
    }
    asked = rows_of(ids[:5], seed=3)
    shared = set(some.items["id"].to_pylist())
    assert set(some.search(asked, 300)[1][0].tolist()) - {-1} == shared < set(first.items["id"].to_pylist())
    now, _ = published(wish, results, ids, PublishedParts(store, first.record), store, "000002-x")
    assert (
        content(now) == content(published(wish, results, ids, None, store, "000003-x")[0]) or now.record["rows"] == 300
    )
    kept = [part for part in range(4) if part != part_of(ids[:1], 4)[0]]
    for file in (f"part-{part}/vectors.npy" for part in kept):
        assert store.digest(f"versions/000002-x/{file}") == first.record["files"][file]


def test_nights_of_a_bucket_publish_what_nights_of_a_folder_do(
    s3_bucket: str, where: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    imageset, one, _ = where
    for goods in (shop(range(20)), shop(range(1, 21))):
        stock(goods, imageset)
        alone, parted = night(imageset, one), night(imageset, f"{s3_bucket}/gallery", *FOUR)
        assert parted["gate"] == alone["gate"] and parted["status"] == "published"
        assert content(opened(f"{s3_bucket}/gallery")) == content(opened(one))
