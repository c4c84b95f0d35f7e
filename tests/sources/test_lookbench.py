"""LookBench in miniature, written by `datasets` as the published files are."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from jobs.ingest import main
from sources import lookbench
from sources.folder import image_id
from store.formats import NO_PICTURE
from store.imageset import Failure, Photo, open_imageset
from tests.sources.four_forms import png

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "item_ID": datasets.Value("string"),
        "category": datasets.Value("string"),
        "main_attribute": datasets.Value("string"),
        "other_attributes": datasets.List(datasets.Value("string")),
        "task": datasets.Value("string"),
        "difficulty": datasets.Value("string"),
    }
)


def write(folder: Path, subset: str, side: str, items: list[str | None]) -> None:
    (folder / subset).mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "image": {"bytes": png(n), "path": f"{n}.png"},
            "item_ID": item,
            "category": "dress",
            "main_attribute": "maxi",
            "other_attributes": ["red", "silk"][: n + 1],
            "task": "single item",
            "difficulty": "easy",
        }
        for n, item in enumerate(items)
    ]
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(folder / subset / f"{side}.parquet")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "v20251201"
    write(folder, "real_studio_flat", "query", ["7"])
    write(folder, "real_studio_flat", "gallery", ["7", "8"])
    write(folder, "aigen_studio", "query", ["7", None])
    write(folder, "aigen_studio", "gallery", ["7"])
    write(folder, "noise", "gallery", ["7"])
    return folder


def test_who_is_right_for_whom(published: Path, tmp_path: Path) -> None:
    assert main(["lookbench", str(published), str(tmp_path / "set")]) == 0
    images = open_imageset(tmp_path / "set")
    rows = images.truth().select(["file_name", "source", "product_id"]).to_pylist()
    assert [(*row.values(),) for row in rows] == [
        ("aigen_studio/query/00000000", "user", "aigen_studio/7"),
        ("aigen_studio/query/00000001", "user", ""),
        ("aigen_studio/gallery/00000000", "shop", "aigen_studio/7"),
        ("noise/gallery/00000000", "shop", "noise/7"),
        ("real_studio_flat/query/00000000", "user", "real_studio_flat/7"),
        ("real_studio_flat/gallery/00000000", "shop", "real_studio_flat/7"),
        ("real_studio_flat/gallery/00000001", "shop", "real_studio_flat/8"),
    ]
    assert images.categories == () and images.manifest.failures == 0


def test_attributes_keep_their_columns_names(published: Path) -> None:
    photo = list(lookbench.read(published))[-1]
    assert isinstance(photo, Photo) and photo.items == ()
    assert photo.image_id == image_id("shop/real_studio_flat/gallery/00000001")
    assert dict(photo.attributes) == {
        lookbench.SUBSET: "real_studio_flat",
        lookbench.ITEM: "8",
        lookbench.CATEGORY: "dress",
        lookbench.MAIN: "maxi",
        lookbench.OTHERS: '["red", "silk"]',
        "task": "single item",
        "difficulty": "easy",
    }
    assert json.loads(photo.attributes[lookbench.OTHERS]) == ["red", "silk"]


def test_layouts_that_are_not_lookbench(published: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"no SUBSET/query\.parquet"):
            lookbench.read(folder)
    (published / "aigen_studio" / "gallery.parquet").unlink()
    with pytest.raises(ValueError, match=r"aigen_studio has query\.parquet and no gallery"):
        lookbench.read(published)
    datasets.Dataset.from_dict({"url": ["x"]}).to_parquet(published / "aigen_studio" / "gallery.parquet")
    with pytest.raises(ValueError, match="has no column 'image'; it has url"):
        lookbench.read(published)


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    row: dict[str, Any] = dict.fromkeys(FEATURES) | {"image": {"bytes": b"no", "path": None}, "item_ID": "1"}
    for side in ("query", "gallery"):
        (tmp_path / "x").mkdir(exist_ok=True)
        datasets.Dataset.from_list([row], features=FEATURES).to_parquet(tmp_path / "x" / f"{side}.parquet")
    name = "x/query/00000000"
    first = Failure(image_id(f"user/{name}"), name, NO_PICTURE)
    assert next(iter(lookbench.read(tmp_path))) == first
