"""The ingest command as people run it: a child process, its lines, its exit status, what it leaves."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.ingest import main
from store.decode import decode
from store.errors import UserError
from store.imageset import ImageSetError, open_imageset
from store.objects import StorageError, open_store
from tests.sources import miniatures

REPO = Path(__file__).resolve().parents[2]
NOTES = {"source": "user", "pair_id": 1, "item1": {"category_id": 9, "style": 1, "bounding_box": [1, 1, 5, 5]}}


def ingest(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/ingest.py", *map(str, arguments)], cwd=REPO, capture_output=True, text=True
    )


@pytest.mark.parametrize("files, kind", [
    ([], "folder"),
    (["a.jpg", "list.json"], "folder"),
    (["image/1.jpg", "annos/1.json"], "deepfashion2"),
    (["image/1.jpg"], "folder"),
    (["flat/query.parquet"], "lookbench"),
    (["meta/json/x.json", "images/1.jpg"], "street2shop"),
    (["image.txt", "pic/1.jpg"], "darn"),
    (["mvc_info.json"], "mvc"),
    (["all_poseA_poseB_clothes.txt"], "mpv"),
    (["train-0.parquet"], "parquet"),
    (["0001.tar"], "webdataset"),
])  # fmt: skip
def test_a_place_without_its_kind_in_front_is_told_which_it_looks_like(tmp_path, capsys, files, kind):
    for name in files:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos").mkdir(exist_ok=True)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "photos"), str(tmp_path / "set")])
    assert "photos is no KIND of source, which comes first" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith(f": ingest.py {kind} {tmp_path / 'photos'} …?")


@pytest.mark.parametrize(
    "place, kind", [("a/b/train-0.parquet", "parquet"), ("s3://b/0001.tar", "webdataset"), ("s3://b/p", "folder")]
)
def test_a_file_or_an_address_is_told_too(place, kind, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([place, "set"])
    assert f"ingest.py {kind} {place} …?" in capsys.readouterr().err


@pytest.fixture
def tiny_split(tmp_path: Path) -> Path:
    """Five photos, the fifth with a category there is none of."""
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
    assert "5 images in 2 shards" in done.stdout and "1 failures" in done.stdout
    images = open_imageset(tmp_path / "set")
    assert images.digest in done.stdout
    truth = images.truth()
    assert truth["image_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert [len(items) for items in truth["items"].to_pylist()] == [1, 1, 1, 1, 0]
    assert images.manifest.source["adapter"] == "deepfashion2"
    [failure] = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert failure["image_id"] == 5 and "category_id 99" in failure["reason"]

    again = ["deepfashion2", str(tiny_split), str(tmp_path / "set"), "--limit", "2"]
    with pytest.raises(ImageSetError, match="already holds an image set"):
        main(again)
    assert main([*again, "--overwrite"]) == 0
    assert open_imageset(tmp_path / "set").manifest.images == 2


def test_a_folder_name_need_not_be_utf8(tiny_split, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    tiny_split.rename(folder)
    done = ingest("deepfashion2", folder, folder / "set")
    assert (done.returncode, done.stderr) == (0, "")
    images = open_imageset(folder / "set")
    assert images.read("shard-00000")["image_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert images.read("shard-00000")["image"][0].as_py() == (folder / "image" / "000001.jpg").read_bytes()


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


@pytest.mark.parametrize("in_bucket", [False, True])
def test_every_format_is_taken(tmp_path, s3_bucket, in_bucket):
    pillow_heif.register_heif_opener()  # to write the HEIC
    photo = Image.new("RGB", (48, 32), (200, 30, 30))
    kinds = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".avif": "AVIF", ".tiff": "TIFF", ".bmp": "BMP",
             ".gif": "GIF", ".HEIC": "HEIF"}  # fmt: skip
    place = f"{s3_bucket}/in" if in_bucket else str(tmp_path / "in")
    for ending, kind in kinds.items():
        encoded = io.BytesIO()
        photo.save(encoded, kind, quality=95)
        open_store(place).write(f"{kind}{ending}", encoded.getvalue())
    assert main(["folder", place, str(tmp_path / "set"), "--source", "shop"]) == 0
    images = open_imageset(tmp_path / "set")
    assert sorted(images.truth()["file_name"].to_pylist()) == sorted(kind + ending for ending, kind in kinds.items())
    for row in images.read("shard-00000").to_pylist():
        pixels = decode(row["image"])
        assert pixels.shape == (row["height"], row["width"], 3) == (32, 48, 3)
        assert np.abs(pixels.astype(int) - (200, 30, 30)).max() <= 6, row["file_name"]


def test_colour_profiles_that_cannot_be_used_are_counted(tmp_path, capsys):
    for number, profile in enumerate((b"garbage " * 30, b"garbage " * 30, b"")):
        encoded = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(encoded, "PNG", **({"icc_profile": profile} if profile else {}))
        (tmp_path / f"{number}.png").write_bytes(encoded.getvalue())
    for more in ([], ["--update"]):
        assert main(["folder", str(tmp_path), str(tmp_path / f"set{len(more)}"), "--source", "shop", *more]) == 0
        said = capsys.readouterr().err
        assert said == "ingest: 2 photos have a colour profile that cannot be used; it is ignored\n"


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
    *_, said, lost = capsys.readouterr().out.splitlines()
    assert said == f"skipped: {skipped}" and lost.startswith("1 photo could not be taken, see ")
    manifest = open_imageset(tmp_path / "set").manifest
    assert manifest.source["arguments"] == {"directory": str(tree), "split": "train"}
    assert manifest.skipped["entries of bags"] == 2
    [failure] = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert (failure["image_id"], failure["file_name"]) == (3, "images/000000003.jpg")


def test_check_of_deepfashion2(tiny_split, tmp_path, capsys):
    (tiny_split / "annos" / "000002.json").unlink()
    (tiny_split / "image" / "000003.jpg").rename(tiny_split / "image" / "cover.jpg")
    assert main(["deepfashion2", str(tiny_split), str(tmp_path / "set"), "--check"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "image/cover.jpg: the file name is not a number below 2^63",
        "image/000002.jpg: no annos/000002.json",
        "annos/000003.json: an annotation without a picture",
        f"{tiny_split}: incomplete; 3 files that cannot be taken",
    ]
    assert not (tmp_path / "set").exists()


def test_check_finds_what_an_ingestion_refuses(tiny_split, tmp_path, capsys):
    """Two names of one number end an ingestion, and so does a split without a picture."""
    for part, ending in (("image", "jpg"), ("annos", "json")):
        shutil.copy(tiny_split / part / f"000002.{ending}", tiny_split / part / f"2.{ending}")
    command = ["deepfashion2", str(tiny_split), str(tmp_path / "set")]
    assert main([*command, "--check"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "image/2.jpg: image/000002.jpg has the image_id 2 too; rename one",
        f"{tiny_split}: incomplete; 1 files that cannot be taken",
    ]
    with pytest.raises(ImageSetError, match=r"image_id 2 occurs more than once \(000002.jpg, 2.jpg\)"):
        main(command)
    (tiny_split / "image" / "2.jpg").unlink()
    (tiny_split / "annos" / "2.json").unlink()
    assert main([*command, "--check"]) == 0
    for part in ("image", "annos"):
        (tmp_path / "bare" / part).mkdir(parents=True)
    assert main(["deepfashion2", str(tmp_path / "bare"), str(tmp_path / "other"), "--check"]) == 2


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
        (("folder", tmp_path / "empty", tmp_path / "set", "--source", "user"), "no picture in"),
        (("folder", tmp_path / "broken", tmp_path / "set", "--source", "user"), "not one photo could be taken"),
        (("street2shop", tmp_path, tmp_path / "set"), "no meta/json/ folder"),
        (("mvc", tmp_path, tmp_path / "set", "--check"), "cannot read"),
        (("darn", tmp_path, tmp_path / "set", "--split", "train"), "want all"),
        (("folder", tmp_path / "nowhere", tmp_path / "set", "--source", "user"), "no folder"),
        (("folder", "s3:/bucket/photos", tmp_path / "set", "--source", "user"), "a mistyped address"),
        (("drawn", "s3:/bucket/set", "--users", "1", "--shops", "1", "--seed", "1"), "a mistyped address"),
    ]:
        with pytest.raises((UserError, StorageError, ImageSetError), match=want):
            main([str(argument) for argument in arguments])
    for arguments, want in [
        (("folder", tmp_path, tmp_path / "set"), "--source"),
        (
            ("deepfashion2", tiny_split, tmp_path / "set", "--limit", "0"),
            "argument --limit: want a whole number from 1",
        ),
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


def test_losses_are_told(tiny_split, tmp_path, capsys):
    """Of five photos one is no picture, and an item of another has a category that there is none of."""
    (tiny_split / "image" / "000001.jpg").write_bytes(b"no")
    assert main(["deepfashion2", str(tiny_split), str(tmp_path / "set")]) == 0
    line = f"1 photo and 1 item could not be taken, see {tmp_path}/set/failures.parquet; most often: "
    assert line in capsys.readouterr().out


def test_a_set_all_of_whose_items_are_lost_ends_with_2(tmp_path):
    """Two items of another size's picture: the photo is taken, and neither item."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "1.png")
    (tmp_path / "items.csv").write_text("file_name,category,x1,y1,x2,y2\n1.png,cape,10,10,20,20\n1.png,hat,9,9,20,20\n")
    done = ingest("folder", tmp_path / "in", tmp_path / "set", "--source", "shop", "--metadata", tmp_path / "items.csv")
    assert done.returncode == 2 and open_imageset(tmp_path / "set").manifest.images == 1
    assert "not one of the items could be taken; most often: item 1 is left out: box" in done.stderr
    assert "lies outside the 8 x 8 picture (2)" in done.stderr and done.stderr.count("\n") == 1
