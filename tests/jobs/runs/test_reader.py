"""A run's tables read back as arrays: order, padding, and items that not every model has embedded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runs import reader, tables
from jobs.runs.selection import ShardTaken
from store.errors import UserError
from store.imageset import open_imageset
from store.objects import ObjectStore, open_store

SHARDS = ("shard-00000", "shard-00001")
BOX = [1.0, 2.0, 3.5, 4.0]


def write(store: ObjectStore, key: str, schema: pa.Schema, **columns: list) -> None:
    tables.write(store, f"{key}.parquet", tables.table(schema, columns))


@pytest.fixture
def run(tmp_path: Path) -> ObjectStore:
    """Photo 7 with two items, 5 with one, 9 with one; model b lacks photo 5 and has its rows in reverse."""
    store = open_store(tmp_path / "run")
    items = ([7, 7, 5], [0, 1, 0], [1, 2, 3]), ([9], [0], [2])
    rows = {"a": (items[0][:2], items[1][:2]), "b": (([7, 7], [1, 0]), ([9], [0]))}
    for n, (shard, (ids, numbers, labels)) in enumerate(zip(SHARDS, items, strict=True)):
        write(store, f"items/detected/{shard}", tables.ITEMS, image_id=ids, item=numbers, bbox=[BOX] * len(ids),
              score=[0.5] * len(ids), category_id=labels, votes=[1] * len(ids))  # fmt: skip
        for model, dim in (("a", 2), ("b", 3)):
            ids, numbers = rows[model][n]
            vectors = np.array([[image_id, number, 1][:dim] for image_id, number in zip(ids, numbers, strict=True)])
            key = f"embeddings/detected/{model}/{shard}"
            write(store, key, tables.embeddings_schema(dim, "float16"), image_id=ids, item=numbers, embedding=vectors)
    return store


def test_items_that_every_model_has_in_the_order_of_their_table(run: ObjectStore) -> None:
    items = reader.read_items(run, "detected", SHARDS, ("a", "b"))
    assert items.image_id.tolist() == [7, 7, 9] and items.item.tolist() == [0, 1, 0]
    assert items.category_id.tolist() == [1, 2, 2]
    assert items.embeddings["a"].tolist() == [[7, 0], [7, 1], [9, 0]]
    assert items.embeddings["b"].tolist() == [[7, 0, 1], [7, 1, 1], [9, 0, 1]]
    assert items.embeddings["a"].dtype == np.float32
    assert items.bbox.tolist() == [BOX] * 3


def test_one_model_keeps_what_another_lacks(run: ObjectStore) -> None:
    assert reader.read_items(run, "detected", SHARDS, ("a",)).image_id.tolist() == [7, 7, 5, 9]


def test_a_table_that_is_missing_is_named(run: ObjectStore) -> None:
    with pytest.raises(UserError, match=r"items/detected/shard-00007.parquet does not exist; finish the run"):
        reader.read_table(run, "items/detected", (*SHARDS, "shard-00007"))


def test_sides_are_the_consumers_items_and_the_shops(run: ObjectStore) -> None:
    photos = pa.table({"image_id": [5, 7, 9], "source": ["user", "user", "shop"]})
    assert reader.consumers(photos).tolist() == [5, 7]
    queries, gallery = reader.read_sides(run, "detected", SHARDS, ("a", "b"), photos)
    assert (queries.image_id.tolist(), gallery.image_id.tolist()) == ([7, 7], [9])
    assert gallery.embeddings["b"].tolist() == [[9, 0, 1]]


def test_facts_number_photos_and_products(run: ObjectStore) -> None:
    photos = pa.table({"image_id": [9, 5, 7], "product_id": ["shoe", "", "coat"]})
    facts = reader.facts_of(reader.read_items(run, "detected", SHARDS, ("a",)), photos)
    assert facts.photo.tolist() == [2, 2, 1, 0]  # row of the photo in `photos`
    assert facts.product.tolist() == [1, 1, -1, 2]  # "" < "coat" < "shoe"; photo 5 has no product


def test_boxes_of_all_shards(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for shard, ids in zip(SHARDS, ([4, 4], []), strict=True):
        write(store, f"fused/{shard}", tables.FUSED, image_id=ids, bbox=np.array([BOX] * len(ids)).reshape(-1, 4),
              score=[0.25] * len(ids), category_id=[13] * len(ids), votes=[2] * len(ids))  # fmt: skip
    boxes = reader.read_boxes(store, "fused", SHARDS)
    assert {name: values.tolist() for name, values in boxes.items()} == {
        "image_id": [4, 4], "bbox": [BOX, BOX], "score": [0.25, 0.25], "category_id": [13, 13],
    }  # fmt: skip
    assert boxes["bbox"].dtype == np.float64


@pytest.mark.parametrize("length, counts, image_ids", [
    (None, [2, 0, 1], [[8, 9], [0, 0], [6, 0]]),  # the longest list gives the width
    (1, [1, 0, 1], [[8], [0], [6]]),
    (3, [2, 0, 1], [[8, 9, 0], [0, 0, 0], [6, 0, 0]]),
])  # fmt: skip
def test_rankings_are_padded(tmp_path: Path, length: int | None, counts: list, image_ids: list) -> None:
    store, lists = open_store(tmp_path), [[8, 9], [], [6]]
    write(
        store, "rankings/detected", tables.RANKINGS,
        query_image_id=[1, 2, 3], query_item=[0, 0, 1], query_bbox=[BOX] * 3, query_score=[0.5] * 3,
        query_category_id=[1, 1, 2], gallery_image_id=lists, gallery_item=[[n % 2 for n in ids] for ids in lists],
        gallery_bbox=[[BOX] * len(ids) for ids in lists], similarity=[[0.75] * len(ids) for ids in lists],
    )  # fmt: skip
    rankings = reader.read_rankings(store, "detected", length)
    assert rankings.results.gallery_count.tolist() == counts
    assert rankings.results.gallery_image_id.tolist() == image_ids
    assert rankings.results.gallery_bbox[0, 0].tolist() == BOX
    filled = np.array(image_ids) > 0
    assert rankings.gallery_item[filled].tolist() == [n % 2 for n in np.array(image_ids)[filled]]
    assert (rankings.similarity[filled] == 0.75).all() and not rankings.similarity[~filled].any()


def test_rankings_of_an_earlier_release_have_the_own_category_alone(tmp_path: Path) -> None:
    store, hypotheses = (
        open_store(tmp_path),
        [[], [{"category_id": 2, "score": 0.5}, {"category_id": 9, "score": 0.25}]],
    )
    columns = {"query_image_id": [1, 2], "query_item": [0, 0], "query_bbox": [BOX] * 2, "query_score": [0.75, 0.5]}
    columns |= {"query_category_id": [0, 2], "query_hypotheses": hypotheses}
    columns |= {name: [[], []] for name in ("gallery_image_id", "gallery_item", "gallery_bbox", "similarity")}
    table = tables.table(tables.RANKINGS, columns)
    tables.write(store, "rankings/new.parquet", table)
    tables.write(store, "rankings/old.parquet", table.drop_columns("query_hypotheses"))
    new, old = (reader.read_rankings(store, name).results.hypotheses for name in ("new", "old"))
    assert new is not None and new.category_id.tolist() == [[0, 0], [2, 9]]
    assert new.score.tolist() == [[0, 0], [0.5, 0.25]]
    assert old is not None and old.category_id.tolist() == [[0], [2]] and old.score.tolist() == [[0], [0.5]]
    blocks = [block.results.hypotheses for block in reader.ranking_blocks(store, "old", 1)]
    assert [block.category_id.tolist() for block in blocks if block is not None] == [[[0]], [[2]]]


@pytest.mark.parametrize("n_queries", [1, 2, 3, 100])
def test_rankings_in_blocks(tmp_path: Path, n_queries: int) -> None:
    """A block ends where a photo ends: queries of photos 5, 5, 5, 7, 8 with lists of 1, 0, 2, 3, 0 results."""
    store, lengths = open_store(tmp_path), [1, 0, 2, 3, 0]
    write(
        store, "rankings/detected", tables.RANKINGS,
        query_image_id=[5, 5, 5, 7, 8], query_item=[0, 1, 2, 0, 0], query_bbox=[[0, 0, 1, 1]] * 5,
        query_score=[0.5] * 5, query_category_id=[1] * 5,
        gallery_image_id=[list(range(10 * row, 10 * row + n)) for row, n in enumerate(lengths)],
        gallery_item=[[row] * n for row, n in enumerate(lengths)],
        gallery_bbox=[[[row, 0, row + 1, 1]] * n for row, n in enumerate(lengths)],
        similarity=[[0.25] * n for n in lengths],
    )  # fmt: skip
    whole = reader.read_rankings(store, "detected")
    blocks = list(reader.ranking_blocks(store, "detected", n_queries))
    photos = [block.results.query_image_id.tolist() for block in blocks]
    assert [photo for block in photos for photo in block] == [5, 5, 5, 7, 8]
    assert sum(5 in block for block in photos) == 1
    rows = iter(range(5))
    for block in blocks:
        for i, count in enumerate(block.results.gallery_count.tolist()):
            row = next(rows)
            assert count == lengths[row]
            for name in ("gallery_image_id", "gallery_bbox"):
                ours, theirs = getattr(block.results, name)[i, :count], getattr(whole.results, name)[row, :count]
                np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(block.gallery_item[i, :count], whole.gallery_item[row, :count])


def test_rankings_without_any_query(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    columns = {name: [] for name in tables.RANKINGS.names}
    write(store, "rankings/detected", tables.RANKINGS, **columns | {"query_bbox": np.zeros((0, 4))})
    assert reader.read_rankings(store, "detected").results.gallery_image_id.shape == (0, 1)


def test_photos_are_those_that_the_run_takes(small_set: Path) -> None:
    images = open_imageset(small_set)
    first, second = images.shards[:2]
    taken = [
        ShardTaken(first.name, first.digest, 2, (1, 4), first.bytes),
        ShardTaken(second.name, second.digest, second.rows, None, second.bytes),
    ]
    ids = [images.read(shard.name, columns=["image_id"]).column("image_id").to_pylist() for shard in (first, second)]
    photos = reader.read_photos(images, taken, ("image_id",))
    assert photos.column("image_id").to_pylist() == [ids[0][1], ids[0][4], *ids[1]]


PLACES = st.lists(st.tuples(st.sampled_from([-(2**63), -1, 0, 3, 2**63 - 1]), st.integers(0, 3)), unique=True)


@given(items=PLACES, embedded=PLACES)
def test_rows_match_by_photo_and_item(items: list, embedded: list) -> None:
    def places(pairs: list) -> pa.Table:
        ids, numbers = zip(*pairs, strict=True) if pairs else ((), ())
        return pa.table({"image_id": pa.array(ids, pa.int64()), "item": pa.array(numbers, pa.int32())})

    held = {pair: row for row, pair in enumerate(embedded)}
    assert reader.matching_rows(places(items), places(embedded)).tolist() == [held.get(pair, -1) for pair in items]
