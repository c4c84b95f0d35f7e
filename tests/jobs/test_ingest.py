"""The ingest command as people run it: a child process, its lines, its exit status, what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import UserError
from jobs.ingest import main
from store.imageset import ImageSetError, open_imageset
from store.objects import StorageError
from tests.retrieval.datasets import miniatures

REPO = Path(__file__).resolve().parents[2]
NOTES = {"source": "user", "pair_id": 1, "item1": {"category_id": 9, "style": 1, "bounding_box": [1, 1, 5, 5]}}


def ingest(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/ingest.py", *map(str, arguments)], cwd=REPO, capture_output=True, text=True
    )


@pytest.fixture
def tiny_split(tmp_path: Path) -> Path:
    """Five photos: four good, the fifth with a category there is none of."""
    for part in ("image", "annos"):
        (tmp_path / "split" / part).mkdir(parents=True)
    for number in range(1, 6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "split" / "image" / f"{number:06}.jpg")
        notes = NOTES | ({"item1": NOTES["item1"] | {"category_id": 99}} if number == 5 else {})
        (tmp_path / "split" / "annos" / f"{number:06}.json").write_text(json.dumps(notes))
    return tmp_path / "split"


def test_deepfashion2(tiny_split, tmp_path):
    done = ingest("deepfashion2", tiny_split, tmp_path / "set", "--shard-images", 3)
    assert done.returncode == 0, done.stderr
    assert "4 images in 2 shards" in done.stdout and "1 failures" in done.stdout
    images = open_imageset(tmp_path / "set")
    assert images.digest in done.stdout
    assert images.truth()["image_id"].to_pylist() == [1, 2, 3, 4]
    assert images.manifest.source["adapter"] == "deepfashion2"
    [failure] = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert failure["image_id"] == 5 and "category_id 99" in failure["reason"]

    again = ["deepfashion2", str(tiny_split), str(tmp_path / "set"), "--limit", "2"]
    with pytest.raises(ImageSetError, match="already holds an image set"):
        main(again)
    assert main([*again, "--overwrite"]) == 0
    assert open_imageset(tmp_path / "set").manifest.images == 2


def test_folder_into_a_bucket(tiny_split, tmp_path, s3_bucket):
    (tmp_path / "m.csv").write_text("file_name,product_id\n000002.jpg,SKU\n")
    done = ingest(
        "folder", tiny_split / "image", f"{s3_bucket}/set", "--source", "shop", "--metadata", tmp_path / "m.csv"
    )
    assert done.returncode == 0, done.stderr
    truth = open_imageset(f"{s3_bucket}/set").truth()
    assert dict(zip(truth["file_name"].to_pylist(), truth["product_id"].to_pylist(), strict=True)) == {
        f"{n:06}.jpg": "SKU" if n == 2 else "" for n in range(1, 6)
    }


@pytest.mark.parametrize(
    "name, arguments, users, shops",
    [
        ("street2shop", (), 8, 16),
        ("street2shop", ("--split", "test"), 3, 17),
        ("darn", (), 16, 8),
        ("mvc", (), 0, 32),
        ("mpv", (), 16, 8),
        ("mpv", ("--split", "test"), 6, 3),
        ("deepfashion2", (), 16, 8),
    ],
)
def test_every_published_set(tmp_path, capsys, name, arguments, users, shops):
    tree = getattr(miniatures, name)(tmp_path / name)
    command = [name, str(tree), str(tmp_path / "set"), *arguments]
    assert main([*command, "--check"]) == 0
    assert f"{tree}: complete; " in capsys.readouterr().out and not (tmp_path / "set").exists()
    assert main(command) == 0
    truth = open_imageset(tmp_path / "set").truth()
    sources = truth["source"].to_pylist()
    assert (sources.count("user"), sources.count("shop")) == (users, shops)
    assert min(truth["pair_id"].to_pylist()) > 0
    assert truth["weak_box"].to_pylist() == [name != "deepfashion2"] * (users + shops)


def test_what_is_skipped_is_counted_and_what_is_missing_a_failure(tmp_path, capsys):
    tree = miniatures.street2shop(tmp_path / "tree")
    (tree / "images" / "000000003.jpeg").unlink()
    command = ["street2shop", str(tree), str(tmp_path / "set")]
    assert main([*command, "--check"]) == 2
    skipped = "2 entries of bags, 1 shop photos of products without a street photo"
    assert capsys.readouterr().out.splitlines() == [
        "1 of 24 pictures are missing: images/000000003.jpg",
        f"{tree}: incomplete; 24 photos listed for train, skipped: {skipped}",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"skipped: {skipped}"
    source = open_imageset(tmp_path / "set").manifest.source
    assert (
        source["arguments"] == {"directory": str(tree), "split": "train"} and source["skipped"]["entries of bags"] == 2
    )
    [failure] = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert (failure["image_id"], failure["file_name"]) == (3, "images/000000003.jpg")


def test_check_of_deepfashion2(tiny_split, tmp_path, capsys):
    (tiny_split / "annos" / "000002.json").unlink()
    (tiny_split / "image" / "000003.jpg").rename(tiny_split / "image" / "cover.jpg")
    assert main(["deepfashion2", str(tiny_split), str(tmp_path / "set"), "--check"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "image/cover.jpg: the file name is not a number",
        "image/000002.jpg: no annos/000002.json",
        "annos/000003.json: an annotation without a picture",
        f"{tiny_split}: incomplete; 3 files without their other half",
    ]
    assert not (tmp_path / "set").exists()


def test_drawn_pictures_are_the_same_for_a_seed(tmp_path):
    for name in ("one", "two"):
        assert main(["drawn", str(tmp_path / name), "--users", "2", "--shops", "3", "--seed", "7"]) == 0
    assert open_imageset(tmp_path / "one").manifest == open_imageset(tmp_path / "two").manifest
    assert open_imageset(tmp_path / "one").truth()["source"].to_pylist().count("user") == 2


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = ingest("deepfashion2", tmp_path, tmp_path / "set")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ingest.py: error: ") and len(done.stderr.splitlines()) == 1


def test_every_mistake_says_what_is_wrong(tiny_split, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no picture")
    for arguments, want in [
        (("deepfashion2", tmp_path, tmp_path / "set"), "no image/ folder"),
        (("deepfashion2", tiny_split, "s3://"), "no bucket"),
        (("deepfashion2", tiny_split, tiny_split), "is not empty and no image set"),
        (("folder", tmp_path / "empty", tmp_path / "set", "--source", "user"), "no JPEG, PNG or WebP file in"),
        (("folder", tmp_path / "broken", tmp_path / "set", "--source", "user"), "not one photo could be taken"),
        (("street2shop", tmp_path, tmp_path / "set"), "no meta/json/ folder"),
        (("mvc", tmp_path, tmp_path / "set", "--check"), "cannot read"),
        (("darn", tmp_path, tmp_path / "set", "--split", "train"), "want all"),
        (("folder", tmp_path / "nowhere", tmp_path / "set", "--source", "user"), "no folder"),
    ]:
        with pytest.raises((UserError, StorageError, ImageSetError), match=want):
            main([str(argument) for argument in arguments])
    for arguments, want in [
        (("folder", tmp_path, tmp_path / "set"), "--source"),
        (("deepfashion2", tiny_split, tmp_path / "set", "--limit", "0"), "above 0"),
        (("drawn", tmp_path / "set", "--users", "many", "--shops", "1", "--seed", "1"), "--users"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        assert want in capsys.readouterr().err


def test_real_photos(ccp_df2, tmp_path):
    assert main(["deepfashion2", str(ccp_df2 / "val"), str(tmp_path / "set"), "--limit", "20"]) == 0
    images = open_imageset(tmp_path / "set")
    table = images.read("shard-00000")
    assert images.manifest.images == 20 and images.manifest.failures == 0
    for image_id, image in zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True):
        assert image == (ccp_df2 / "val" / "image" / f"{image_id:06}.jpg").read_bytes()
