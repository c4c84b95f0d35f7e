"""Asking a gallery by hand, with stand-in models in a real process of their own; once with the real tiny ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_ins
from small_gallery import ask, publish

from store.categories import DEEPFASHION2
from store.errors import UserError
from store.formats import NO_PICTURE
from store.imageset import open_imageset

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def gallery(small_set: Path, tmp_path: Path, calls: list) -> Path:
    publish(small_set, tmp_path / "gallery")
    return tmp_path / "gallery"


def saved(folder: Path, number: int, source: str, **how: object) -> Path:
    """Photo `number` of the small set as a file: consumers' are 0 to 11, shops' 12 to 23, garment 1 + number % 12."""
    path = folder / f"asked-{number}.png"
    path.write_bytes(stand_ins.photo(number, source, 1 + number % 12, **how).image)  # type: ignore[arg-type]
    return path


def first_lines(said: str) -> list[list[str]]:
    """similarity and file name of each table's first row."""
    return [line.split()[1:3] for line in said.splitlines() if re.match(r" +1  ", line)]


def version_file(gallery: Path) -> Path:
    return gallery / "versions" / json.loads((gallery / "CURRENT").read_bytes())["version"] / "version.json"


def change(gallery: Path, **more: object) -> None:
    """Other values in version.json; None takes one away."""
    path = version_file(gallery)
    record = json.loads(path.read_bytes()) | more
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def test_a_photo_of_the_gallery_finds_itself_and_a_consumers_its_garment(gallery, tmp_path, capsys):
    photos = [saved(tmp_path, 13, "shop"), saved(tmp_path, 3, "user")]
    assert ask(gallery, *photos, "--top", "2") == 0
    said = capsys.readouterr().out
    (itself, its_name), (_, name) = first_lines(said)
    assert (itself, its_name, name) == ("1.0000", "13.png", "15.png")  # consumer 3 and shop photo 15 show garment 4
    assert [line for line in said.splitlines() if line.endswith(" found")] == [
        f"{photo}: 1 garment found" for photo in photos
    ]
    assert len(re.findall(r"(?m)^ +2  ", said)) == 2 and not re.findall(r"(?m)^ +3  ", said), "--top"


def test_the_models_are_never_where_the_index_is(gallery, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import small_gallery; status = small_gallery.ask(*sys.argv[2:])\n"
    )
    code += "print(status, 'faiss' in sys.modules, 'torch' in sys.modules, 'ray' in sys.modules)"
    line = [sys.executable, "-c", code, str(Path(__file__).parent), str(gallery), str(saved(tmp_path, 13, "shop"))]
    done = subprocess.run(
        line, cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "0 True False False", done.stderr


def test_bad_photos_are_a_line_each_and_the_others_go_on(gallery, tmp_path, capsys):
    good = saved(tmp_path, 13, "shop")
    reasons = {
        "gone\x1b[2J.png": "No such file or directory",
        "none.png": "empty file",
        "other.png": NO_PICTURE,
        "folder.png": "no picture in this folder",
        "pipe.png": "not a plain file",
        "half.png": "cannot be decoded",
    }
    (tmp_path / "none.png").touch()
    (tmp_path / "other.png").write_bytes(b"GIF89a, they say")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:80])
    bad = [tmp_path / name for name in reasons]
    assert ask(gallery, *bad[:3], good, *bad[3:]) == 0
    told = capsys.readouterr()
    assert first_lines(told.out)[0][1] == "13.png" and "\x1b" not in told.out + told.err
    assert len(told.err.splitlines()) == len(bad) and r"gone\x1b[2J.png" in told.err
    assert all(reason in line for reason, line in zip(reasons.values(), told.err.splitlines(), strict=True)), told.err
    assert ask(gallery, *bad) == 2
    assert capsys.readouterr().out == ""


def test_a_photo_the_models_die_of_costs_itself_alone(gallery, tmp_path, capsys):
    odd = {7: stand_ins.KILLER, 8: stand_ins.STUMBLER}
    bad = [saved(tmp_path, number, "user", corner=corner) for number, corner in odd.items()]
    assert ask(gallery, bad[0], saved(tmp_path, 13, "shop"), bad[1]) == 0
    told = capsys.readouterr()
    assert first_lines(told.out)[0][1] == "13.png" and told.out.count("found") == 1
    killed, stumbled = sorted(told.err.splitlines())
    assert killed.startswith(f"search.py: {bad[0]}: the models' process ended with -9")
    assert stumbled.startswith(f"search.py: {bad[1]}: ") and "ValueError: stumbled" in stumbled


def test_a_photo_without_a_garment_is_an_answer(gallery, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (40, 40), stand_ins.BACKDROP).save(tmp_path / "empty.png")
    assert ask(gallery, tmp_path / "empty.png") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'empty.png'}: no garments found\n"


def test_a_photo_in_a_bucket(gallery, tmp_path, capsys, s3_bucket, s3_client):
    data = saved(tmp_path, 13, "shop").read_bytes()
    s3_client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="a/b.png", Body=data)
    names = [f"{s3_bucket}/a/b.png", f"{s3_bucket}/a/none.png", f"{s3_bucket}/a/..", "s3://no-such-bucket-here/b.png"]
    assert ask(gallery, *names) == 0
    told = capsys.readouterr()
    assert first_lines(told.out)[0] == ["1.0000", "13.png"]
    assert [line.split(": ")[1] for line in told.err.splitlines()] == names[1:]


def test_a_folder_is_all_pictures_in_it_by_name(gallery, tmp_path, capsys):
    folder = tmp_path / "street"
    (folder / "more").mkdir(parents=True)
    for name, number in (("b.png", 14), ("a.png", 13), ("more/c.png", 15)):
        (folder / name).write_bytes(stand_ins.photo(number, "shop", 1 + number % 12).image)
    (folder / "notes.txt").touch()
    assert ask(gallery, folder, "--json", "--top", "1") == 0
    told = capsys.readouterr()
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert [answer["photo"] for answer in answers] == [f"{folder}/{name}" for name in ("a.png", "b.png", "more/c.png")]
    assert [answer["garments"][0]["items"][0]["file_name"] for answer in answers] == ["13.png", "14.png", "15.png"]
    assert told.err == f"search.py: {folder}: 3 pictures; left out: 1 .txt\n"


def test_json_has_what_the_table_has_and_a_reason_for_a_bad_photo(gallery, tmp_path, capsys):
    photo = saved(tmp_path, 13, "shop")
    assert ask(gallery, photo, tmp_path / "gone.png", "--json", "--top", "2") == 0
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    (garment,) = good["garments"]
    assert garment["category"] == DEEPFASHION2[category_of(13) - 1] and len(garment["bbox"]) == 4
    first = garment["items"][0]
    assert (first["rank"], first["file_name"], round(first["similarity"], 4)) == (1, "13.png", 1.0)
    assert "digest" not in first and len(garment["items"]) == 2 and good["reason"] == ""
    assert (bad["garments"], bad["reason"]) == ([], "No such file or directory")


def test_garments_of_a_low_score_are_left_out(gallery, tmp_path, capsys):
    photo = saved(tmp_path, 13, "shop")
    ask(gallery, photo, "--json")
    score = json.loads(capsys.readouterr().out)["garments"][0]["score"]
    for least, n in ((score - 0.01, 1), (min(score + 0.01, 1), 0)):
        ask(gallery, photo, "--json", "--min-score", str(least))
        assert len(json.loads(capsys.readouterr().out)["garments"]) == n


def test_the_old_spelling_of_a_version_goes_on_working_and_says_so(gallery, tmp_path, capsys):
    name = version_file(gallery).parent.name
    photo = saved(tmp_path, 13, "shop")
    for line in (["--version", name], [f"--version={name}"], ["--gallery-version", name]):
        assert ask(gallery, photo, *line) == 0
        told = capsys.readouterr()
        assert "13.png" in told.out and ("is now --gallery-version" in told.err) is ("--version" in line[0][:9])
    with pytest.raises(ValueError, match="no version 000009"):
        ask(gallery, photo, "--gallery-version", "000009")


def category_of(number: int) -> int:
    return stand_ins.photo(number, "shop", 1 + number % 12).items[0].category_id


def test_only_garments_of_a_category(gallery, tmp_path, capsys):
    photo = saved(tmp_path, 13, "shop")
    mine = DEEPFASHION2[category_of(13) - 1]
    other = DEEPFASHION2[category_of(13) % 13]
    assert ask(gallery, photo, "--category", mine.upper().replace(" ", "-")) == 0
    assert "1 garment found" in capsys.readouterr().out
    assert ask(gallery, photo, "--category", other) == 0
    assert "no garments found" in capsys.readouterr().out
    with pytest.raises(UserError, match="--category: the gallery has none named 'skrit'; did you mean 'skirt'"):
        ask(gallery, photo, "--category", "skrit")


def test_a_category_rule_is_told_the_category_found(small_set, tmp_path, calls, capsys):
    steps = "search.steps=[{step: concat}, {step: category, rule: hard}]"
    publish(small_set, tmp_path / "gallery", "--set", steps)
    assert ask(tmp_path / "gallery", saved(tmp_path, 13, "shop"), "--top", "20") == 0
    said = capsys.readouterr().out
    mine = DEEPFASHION2[category_of(13) - 1]
    rows = [line for line in said.splitlines() if re.match(r" +\d+  ", line)]
    assert first_lines(said)[0][1] == "13.png" and rows and all(f"  {mine}  " in row for row in rows), said


def test_a_version_made_by_other_models_is_refused_in_a_line(gallery, tmp_path):
    record = json.loads(version_file(gallery).read_bytes())
    photo = saved(tmp_path, 13, "shop")
    detectors, models = record["detectors"], record["models"]
    wrong = [
        (
            {"detectors": [detectors[0], detectors[1] | {"weights": "c0ffee"}]},
            r"far here has weights published, the version was made with c0ffee",
        ),
        (
            {"models": [models[0] | {"basis": models[0]["basis"] | {"spec": "other"}}, models[1]]},
            "coarse here is another model",
        ),
        ({"results": "0" * 32}, "photos are processed differently here than on the night it was made"),
        ({"settings": None}, "--retrain now"),
        ({"settings": record["settings"] | {"detectors": ["gone", "far"]}}, "gone"),
    ]  # fmt: skip
    for more, message in wrong:
        change(gallery, **(record | more))
        with pytest.raises(UserError, match=message):
            ask(gallery, photo)
    version_file(gallery).write_text(json.dumps(record))
    assert ask(gallery, photo) == 0


def test_nothing_published_there(tmp_path):
    with pytest.raises(ValueError, match="no gallery is published"):
        ask(tmp_path, "photo.png")


@pytest.mark.parametrize("line", [["--top", "0"], ["--top", "1001"], ["--device", "tpu"], ["--html", "/none/x.html"]])
def test_a_mistake_in_the_line(line, tmp_path):
    with pytest.raises(SystemExit) as ended:
        ask(tmp_path, "photo.png", *line)
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_the_tiny_models_a_photo_of_the_gallery_finds_itself_first(tmp_path):
    def carried_out(*line: object) -> str:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, line)]
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    carried_out("jobs/ingest.py", "drawn", tmp_path / "set", "--users", 2, "--shops", 12, "--seed", 3)
    models = ("--set", "detectors=[atss-tiny]", "--set", "embedders=[lite0-sg]", "--set", "gallery.copies=0")
    carried_out("jobs/reindex_gallery.py", "--imageset", tmp_path / "set", "--gallery", tmp_path / "gallery", *models)
    images = open_imageset(tmp_path / "set")
    table = images.read(images.shards[0].name, columns=["source", "file_name", "image"]).to_pylist()
    shops = [row for row in table if row["source"] == "shop"][:3]
    photos = [tmp_path / f"{i}.jpg" for i in range(len(shops))]
    for path, row in zip(photos, shops, strict=True):
        path.write_bytes(row["image"])
    said = carried_out("jobs/search.py", *photos, "--gallery", tmp_path / "gallery", "--html", tmp_path / "found.html")
    for path, row in zip(photos, shops, strict=True):
        mine = said.partition(f"{path}: ")[2].partition("found\n")[2].partition(" found\n")[0]
        assert first_lines(mine), said
        for similarity, *_ in first_lines(mine):
            np.testing.assert_allclose(float(similarity), 1, atol=1e-3)
        assert all(row["file_name"] in line for line in mine.splitlines() if re.match(r" +1  ", line)), said
    page = (tmp_path / "found.html").read_text()
    assert page.count("data:image/jpeg") > len(photos) and "no pictures of shop items" not in page
