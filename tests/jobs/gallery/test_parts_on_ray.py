"""A gallery of four parts on three Ray nodes: one is killed while it is built, one while it serves."""

import functools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import own_ray
import part_results
import pytest
import stand_ins
from galleries import content, night, opened, shop, stock
from part_results import DIM, HeldStore, node_of, publish, published, results_in, rows_of, wanted

from jobs.gallery.built_parts import PublishedParts
from jobs.gallery.serving import PartsMissing, ServedGallery, serve_gallery
from jobs.runs import cluster, shards
from retrieval.gallery import Gallery, open_gallery
from store.files import file_digest
from store.local import LocalStore

IDS = np.arange(4_000)
WAIT_S = 300.0  # for Ray, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """The gallery as one process builds it."""
    store = LocalStore(tmp_path_factory.mktemp("here"))
    return published(wanted(4), results_in(store, IDS), IDS, None, store, "000001-x")[0]


@pytest.fixture(scope="module")
def nodes(here: Gallery) -> Iterator[own_ray.Nodes]:
    """A head of one core and two nodes of two cores each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own_ray.QUIET.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(part_results.__file__).parent))
        with own_ray.Nodes() as nodes:
            patch.setenv("RAY_ADDRESS", nodes.address)
            nodes.add(2)
            nodes.add(2)
            cluster.join_ray()
            yield nodes
            cluster.leave_ray()


@pytest.fixture(scope="module")
def built(here: Gallery, nodes: own_ray.Nodes, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """The same gallery built on the nodes, one of which is killed while its parts are half written."""
    store = HeldStore(tmp_path_factory.mktemp("ray"))
    results = results_in(store, IDS)
    (store.local_path / "hold").touch()
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(published, wanted(4), results, IDS, None, store, "000001-x")
        until = time.monotonic() + WAIT_S
        while not (at_work := {path.name for path in store.local_path.glob("held/*")} & set(nodes.others)):
            assert time.monotonic() < until and not building.done()
            time.sleep(0.1)
        nodes.kill(at_work.pop())
        (store.local_path / "hold").unlink()
        building.result(timeout=WAIT_S)
    nodes.add(2)
    publish(store, "000001-x")
    return LocalStore(store.local_path)


def test_a_node_that_dies_while_building_changes_no_byte(here: Gallery, built: LocalStore) -> None:
    assert open_gallery(built.uri).record["files"] == here.record["files"]
    folder = built.local_path / "versions" / "000001-x"
    for file, digest in here.record["files"].items():
        assert file_digest(folder / file) == digest


def test_a_night_on_the_nodes_carries_unchanged_parts_over(here: Gallery, built: LocalStore) -> None:
    before = PublishedParts(built, open_gallery(built.uri).record)
    results = part_results.PhotoResults(built.sub("results/hand"), {"m": DIM})
    now, made = published(wanted(4), results, IDS[1:], before, built, "000002-x")
    assert (len(now), made.added, made.removed, made.rebuilt) == (3_999, 0, 1, "")
    same = [part for part in range(4) if now.record["parts"][part] == here.record["parts"][part]]
    assert len(same) == 3


def test_a_night_on_the_nodes_publishes_what_a_night_here_does(
    nodes: own_ray.Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts and the gate's figures of them come from the nodes; the models, stand-ins, are in this process."""
    monkeypatch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, []))
    for goods in (shop(range(30)), shop(range(1, 32))):
        stock(goods, tmp_path / "set")
        alone = night(tmp_path / "set", tmp_path / "one")
        parted = night(tmp_path / "set", tmp_path / "four", "--set", "gallery.parts=4")
        assert parted["gate"] == alone["gate"] and parted["garments_added"] == alone["garments_added"]
        assert content(opened(tmp_path / "four")) == content(opened(tmp_path / "one"))


def test_the_page_on_nights_serves_a_gallery_as_it_says(
    built: LocalStore, nodes: own_ray.Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "nightly.md").read_text(encoding="utf-8")
    some, served = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {"vectors": rows_of(np.arange(3), seed=7)}
    for code in (some, served.replace("deadline_s=2", f"deadline_s={WAIT_S}")):  # nodes of a test are slow
        exec(code.replace("s3://BUCKET/gallery", built.uri), names)
    gallery = open_gallery(built.uri)
    np.testing.assert_array_equal(names["ids"], gallery.search(names["vectors"], 10)[1])
    assert names["garments"] == gallery.lookup(names["ids"][0]) and names["some"].parts == (0, 2)


def homes_of(gallery: ServedGallery) -> list[str]:
    """The node of each part; its first answer takes as long as importing what is asked."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return gallery.ask(node_of)
        except PartsMissing:
            assert time.monotonic() < until


def asked(gallery: ServedGallery, queries: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """The parts that were missing, and the answer."""
    try:
        return (), *gallery.search(queries, 10)
    except PartsMissing as late:
        assert str(late).startswith(f"gallery: part{'s' * (len(late.missing) > 1)} {late.missing[0]}")
        return late.missing, *late.answer


def test_of_parts_whose_node_died_the_answer_says_which_until_they_are_back(
    here: Gallery, built: LocalStore, nodes: own_ray.Nodes
) -> None:
    queries = rows_of(np.arange(50), seed=7)
    with serve_gallery(built.uri, version="000001-x", deadline_s=10) as served:
        homes = homes_of(served)
        missing, similarity, ids = asked(served, queries)
        for got, want in zip((similarity, ids), here.search(queries, 10), strict=True):
            np.testing.assert_array_equal(got, want)
        assert not missing and len(set(homes)) == 3
        busiest = max(nodes.others, key=homes.count)
        nodes.kill(busiest)  # of five cores two are lost: three are left for four parts
        until = time.monotonic() + WAIT_S
        while len(missing) != 1:  # a second one finds the core that is left
            assert time.monotonic() < until
            missing, similarity, ids = asked(served, queries)
        assert homes[missing[0]] == busiest
        others = open_gallery(built.uri, version="000001-x", parts=set(range(4)) - set(missing))
        for got, want in zip((similarity, ids), others.search(queries, 10), strict=True):
            np.testing.assert_array_equal(got, want)
        nodes.add(2)
        while missing:
            assert time.monotonic() < until
            missing, similarity, ids = asked(served, queries)
        np.testing.assert_array_equal(ids, here.search(queries, 10)[1])
