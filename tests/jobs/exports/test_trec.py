"""TREC's files: ranx loads them and gives the project's own figures, whatever the block they were written in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranx

from jobs.exports import trec
from jobs.exports.files import publish_text
from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import read_rankings
from retrieval.truth import truth_of
from store.errors import UserError
from store.imageset import Item, Photo
from store.objects import open_store

BOXES = [(0.0, 0.0, 20.0, 20.0), (30.0, 30.0, 60.0, 60.0), (100.0, 100.0, 120.0, 130.0)]
RECORD: dict[str, Any] = {
    "settings": {"limit": None, "search": {"steps": [{"step": "concat"}]}},
    "embedders": [{"name": "lite"}],
    "boxes": ["detected"],
}
KS = (1, 5, 10, 20)


def photos(with_items: bool, rng: np.random.Generator) -> list[Photo]:
    """12 consumers' and 20 shops' of four pairs; some have no pair and no product, one garment no style."""
    found = []
    for number in range(32):
        pair, source = int(rng.integers(0, 5)), "user" if number < 12 else "shop"
        chosen = rng.choice(3, rng.integers(1, 3), replace=False).tolist() if with_items else []
        items = tuple(Item(8, 1 + i % 2 if number else 0, BOXES[i]) for i in chosen)
        product = "" if number % 5 == 0 else f"sku-{pair}"
        more = {"product_id": product, "items": items, "file_name": f"{number}.png"}
        found.append(Photo(2**61 + number, b"", 200, 200, source, pair * int(number % 3 > 0), **more))
    return found


def write_rankings(run: FinishedRun, rng: np.random.Generator) -> None:
    """Two or three queries a consumer photo but the last one's, lists with equal similarities, some of them empty."""
    table = run.truth()
    shops = [(row["image_id"], i) for row in table.to_pylist() if row["source"] == "shop" for i in range(3)]
    rows = []
    for row in table.to_pylist()[:11]:
        for item in range(int(rng.integers(2, 4))):
            picked = rng.permutation(len(shops))[: rng.choice([0, 7, 25])].tolist()
            similarity = sorted(rng.choice([0.9, 0.8, 0.7], len(picked)).tolist(), reverse=True)
            rows.append({
                "query_image_id": row["image_id"], "query_item": item, "query_bbox": BOXES[item],
                "query_score": rng.choice([0.5, 0.9]), "query_category_id": 8, "query_hypotheses": None,
                "gallery_image_id": [shops[i][0] for i in picked], "gallery_item": [shops[i][1] for i in picked],
                "gallery_bbox": [BOXES[shops[i][1]] for i in picked], "similarity": similarity,
            })  # fmt: skip
    columns = {name: [row[name] for row in rows] for name in tables.RANKINGS.names}
    tables.write(run.store, "rankings/detected/lite.parquet", tables.table(tables.RANKINGS, columns))


def written(run: FinishedRun, folder: Path) -> dict[str, str]:
    for name, writer in trec.files(run).items():
        with publish_text(open_store(folder), name) as file:
            n_lines = writer(file)
        assert n_lines == (folder / name).read_text().count("\n") > 0
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("with_items, kind", [(True, "item"), (False, "photo")])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_ranx_gives_our_figures(
    with_items: bool, kind: str, block: int, tmp_path: Path,
    make_run: Callable[..., FinishedRun], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rng = np.random.default_rng(4)
    run = make_run(tmp_path, photos(with_items, rng), RECORD)
    write_rankings(run, rng)
    monkeypatch.setattr(trec, "BLOCK", block)
    assert written(run, tmp_path / "trec").keys() == {"detected-lite.run", "detected.qrels"}

    truth = truth_of(run.truth())
    ours = truth.figures(read_rankings(run.store, "detected/lite"), run.categories)
    assert ours["truth"] == kind and 0 < ours["map"] < 1 and ours["missed"] > 0
    qrels = ranx.Qrels.from_file(str(tmp_path / "trec" / "detected.qrels"), kind="trec")
    lists = ranx.Run.from_file(str(tmp_path / "trec" / "detected-lite.run"), kind="trec")
    names = ["map", "mrr", *(f"ndcg@{k}" for k in (5, 10, 20)), *(f"hit_rate@{k}" for k in KS)]
    theirs = ranx.evaluate(qrels, lists, names, make_comparable=True)
    want = [ours["map"], ours["mrr"], *ours["ndcg"].values(), *(ours["top"][str(k)] for k in KS)]
    assert len(qrels) == ours["queries"] and lists.name == "lite"
    assert [theirs[name] for name in names] == pytest.approx(want, abs=1e-12)


def test_a_run_of_which_nothing_is_known_is_refused(tmp_path: Path, make_run: Callable[..., FinishedRun]) -> None:
    run = make_run(tmp_path, [Photo(1, b"", 8, 8, "user"), Photo(2, b"", 8, 8, "shop")], RECORD)
    with pytest.raises(UserError, match="nothing says which results are right; TREC's files need consumer photos"):
        trec.files(run)
