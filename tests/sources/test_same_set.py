"""The same photos give the same image set, in whatever form they come."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset as webdataset_writer

from jobs.ingest import main
from sources import coco, folder, parquet, webdataset
from sources.folder import image_id
from sources.reading import Reading
from store.errors import UserError
from store.imageset import Item, Photo, open_imageset
from tests.sources import four_forms


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, list[str]]:
    """Arguments of `jobs/ingest.py` between the adapter's name and the image set."""
    pictures = four_forms.pictures(tmp_path / "photos")
    return {
        "folder": [str(pictures), "--metadata", str(four_forms.table(tmp_path / "products.csv"))],
        "coco": [str(pictures), str(four_forms.coco(tmp_path / "instances.json"))],
        "parquet": [str(four_forms.parquet(tmp_path / "photos.parquet"))],
        "webdataset": [str(four_forms.tar(tmp_path / "photos.tar"))],
    }


def test_what_the_photos_are(forms: dict[str, list[str]]) -> None:
    rows = by_name(coco.read(*forms["coco"], "user"))
    assert [*rows] == ["a/1.png", "a/2.png", "b.png", "c/d/1.png"]
    first = four_forms.SAMPLES[0].png
    scarf = Item(1, 0, (1.0, 2.0, 11.0, 22.5))
    attributes = {"price": "19.5", "sale": "true"}
    known = {"items": (scarf,), "attributes": attributes}
    assert rows["a/1.png"] == Photo(image_id("user/a/1.png"), first, 24, 32, "user", 7, "P1", "a/1.png", **known)
    assert rows["b.png"].attributes == {"title": "Übergröße \u2028 neu", "sale": "true"}
    assert [item.category_id for item in rows["c/d/1.png"].items] == [2, 1]
    assert rows["c/d/1.png"].pair_id == 2**62 and rows["c/d/1.png"].product_id == "12"


def test_equal_rows_from_every_form(forms: dict[str, list[str]]) -> None:
    want = by_name(coco.read(*forms["coco"], "shop"))
    pictures, _, products = forms["folder"]
    # A row without a category does not say that the photo shows nothing, as an image without annotations does.
    unstated = {name: replace(row, weak_box=not row.items) for name, row in want.items()}
    assert by_name(folder.read(pictures, "shop", products)) == unstated
    assert by_name(parquet.read(forms["parquet"], "shop")) == want
    assert by_name(webdataset.read(forms["webdataset"], "shop")) == want


def test_equal_image_sets_from_the_command_line(forms: dict[str, list[str]], tmp_path: Path) -> None:
    tables = []
    for adapter, arguments in forms.items():
        place = tmp_path / "sets" / adapter
        assert main([adapter, "--source", "shop", *arguments, str(place)]) == 0
        images = open_imageset(place)
        assert images.categories == ("scarf", "long sleeve top") and images.manifest.failures == 0
        rows = images.truth().sort_by("file_name").to_pylist()
        same = {"weak_box": None}  # differs where there is no item, see above
        tables.append([row | {"attributes": dict(row["attributes"])} | same for row in rows])
    assert all(table == tables[0] for table in tables)


def test_a_prefix_is_part_of_the_id_in_every_form(forms: dict[str, list[str]], tmp_path: Path) -> None:
    for adapter, arguments in forms.items():
        place = tmp_path / "sets" / adapter
        assert main([adapter, "--source", "shop", "--prefix", "north", *arguments, str(place)]) == 0
        images = open_imageset(place)
        ids = {row["file_name"]: row["image_id"] for row in images.truth().to_pylist()}
        assert ids == {sample.file_name: image_id(f"shop/north/{sample.file_name}") for sample in four_forms.SAMPLES}
        assert images.manifest.source["arguments"]["prefix"] == "north"


def test_shares_of_the_sides_are_no_boxes(forms: dict[str, list[str]], tmp_path: Path) -> None:
    """Of COCO known before a photo is read; of parquet and webdataset item by item, and at the end."""
    content = json.loads(Path(forms["coco"][1]).read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.6]
    Path(forms["coco"][1]).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"all 3 boxes end within 1.5 x 1.5 pixels; want pixels, not shares"):
        coco.read(*forms["coco"], "user")

    with webdataset_writer.TarWriter(forms["webdataset"][0]) as writer:
        items = [{"category": "cape", "bbox": [0.1, 0.2, 0.5, 0.6]}] * 2
        writer.write({"__key__": "1", "png": four_forms.png(1), "json": {"items": items}})
    with pytest.raises(
        UserError, match=r"not one of the items .*: item 1 is left out: box 0.1, .* ends within .*\(2\)"
    ):
        main(["webdataset", "--source", "shop", *forms["webdataset"], str(tmp_path / "set")])


def by_name(reading: Reading) -> dict[str, Photo]:
    return {row.file_name: row for row in sorted(reading, key=lambda row: row.file_name)}  # type: ignore[misc]
