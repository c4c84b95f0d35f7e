"""Asking a gallery in words, with stand-in embedders that read colours: "200 0 0"."""

import re
from pathlib import Path

import numpy as np
import pytest
import stand_ins
from small_gallery import ask, publish

from jobs.gallery.answers import Answer, Hit, lines
from jobs.gallery.questions import NOTHING, PhotoGarments, mixed
from retrieval.gallery import Gallery, open_gallery
from store.categories import DEEPFASHION2
from store.errors import UserError

READERS = ("--set", "embedders=[read, read-fine]")
TEXTS = ["200 10 30", "0 0 120"]


@pytest.fixture
def gallery(small_set: Path, tmp_path: Path, calls: list) -> Path:
    publish(small_set, tmp_path / "gallery", *READERS)
    return tmp_path / "gallery"


def saved(folder: Path, number: int) -> Path:
    path = folder / f"asked-{number}.png"
    path.write_bytes(stand_ins.photo(number, "user", 1 + number).image)
    return path


def row_of(text: str) -> np.ndarray:
    """Of both models joined: the colour less grey in each of 2 x 2 and of 4 x 4 cells, each part at unit length."""
    colour = np.array(text.split(), np.float32) - 127.5
    unit = colour / np.linalg.norm(colour)
    return np.concatenate([np.tile(unit, 4) / 2, np.tile(unit, 16) / 4]) / np.sqrt(2)


def by_similarity(gallery: Gallery, row: np.ndarray) -> list[tuple[str, str]]:
    """Similarity and file name of all shop items, best first, by comparing every row."""
    items = gallery.items.to_pylist()
    cosines = gallery.vectors(np.array([item["id"] for item in items])) @ row
    return [(f"{cosines[i]:.3f}", items[i]["file_name"]) for i in np.argsort(-cosines, kind="stable")]


def tables(said: str) -> list[list[tuple[str, str]]]:
    """Similarity, to three digits, and file name of each table's rows."""
    parts = re.split(r"(?m)^.* found$", said)[1:]
    found = [re.findall(r"(?m)^ +\d+ +(-?\d\.\d+) .*?(\d+\.png)", part) for part in parts]
    return [[(f"{float(similarity):.3f}", name) for similarity, name in rows] for rows in found]


def test_texts_find_what_is_nearest_to_their_rows(gallery, capsys):
    assert ask(gallery, "--text", TEXTS[0], "--text", TEXTS[1], "--top", "5") == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith("found")] == [
        f'"{text}": 5 shop items found' for text in TEXTS
    ]
    opened = open_gallery(gallery)
    for text, found in zip(TEXTS, tables(said), strict=True):
        want = by_similarity(opened, row_of(text))[:5]
        np.testing.assert_allclose([float(s) for s, _ in found], [float(s) for s, _ in want], atol=2e-3)
        assert {name for _, name in found[:3]} == {name for _, name in want[:3]}


def test_texts_with_a_category_find_its_items_alone(gallery, capsys):
    opened = open_gallery(gallery)
    category_id = opened.items["category_id"].to_pylist()[3]
    mine = {item["file_name"] for item in opened.items.to_pylist() if item["category_id"] == category_id}
    line = ("--text", TEXTS[0], "--top", "2", "--category", DEEPFASHION2[category_id - 1])
    assert ask(gallery, *line) == 0
    (found,) = tables(capsys.readouterr().out)
    want = [name for _, name in by_similarity(opened, row_of(TEXTS[0])) if name in mine]
    assert [name for _, name in found] == want[:2]
    absent = next(n for n, name in enumerate(DEEPFASHION2, 1) if n not in opened.items["category_id"].to_pylist())
    assert ask(gallery, *line[:-1], DEEPFASHION2[absent - 1]) == 0
    assert capsys.readouterr().out == f'"{TEXTS[0]}": no shop items found\n'


def test_a_category_rule_judges_only_texts_with_a_category(small_set, tmp_path, calls, capsys):
    steps = "search.steps=[{step: concat}, {step: category, rule: hard}]"
    publish(small_set, tmp_path / "gallery", *READERS, "--set", steps)
    assert ask(tmp_path / "gallery", "--text", TEXTS[0], "--top", "20") == 0
    (everything,) = tables(capsys.readouterr().out)
    opened = open_gallery(tmp_path / "gallery")
    assert len(everything) == len(opened)
    category_id = opened.items["category_id"].to_pylist()[0]
    n = opened.items["category_id"].to_pylist().count(category_id)
    assert ask(tmp_path / "gallery", "--text", TEXTS[0], "--category", DEEPFASHION2[category_id - 1]) == 0
    (found,) = tables(capsys.readouterr().out)
    assert len(found) == n < len(everything)


def test_a_text_beside_a_photo_is_averaged_with_its_garment(gallery, tmp_path, capsys):
    photo, found = saved(tmp_path, 3), {}
    for name, more in {
        "photo": [photo], "none": [photo, "--text", TEXTS[1], "--text-weight", "0"],
        "half": [photo, "--text", TEXTS[1]], "all": [photo, "--text", TEXTS[1], "--text-weight", "1"],
        "text": ["--text", TEXTS[1]],
    }.items():  # fmt: skip
        assert ask(gallery, *more, "--top", "4") == 0
        said = capsys.readouterr().out
        (found[name],) = tables(said)
    assert found["none"] == found["photo"] and found["all"] == found["text"]
    assert found["half"] not in (found["photo"], found["text"])
    assert ask(gallery, photo, "--text", TEXTS[1]) == 0
    assert capsys.readouterr().out.startswith(f'{photo}, "{TEXTS[1]}": 1 garment found\n')


def test_the_average_is_of_each_models_part_and_of_unit_length():
    vectors = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], np.float32)  # two models of two numbers each
    texts = np.array([[0, 1, 0, 1]], np.float32)
    columns = NOTHING | dict.fromkeys(("photo", "score", "category_id"), np.zeros(2)) | {"bbox": np.zeros((2, 4))}
    garments = PhotoGarments(**columns | {"vectors": vectors}, failed={}, texts=texts)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(mixed(garments, [2, 2], 0.5).vectors, [[half, half, 0, 1], [0, 1, 0, 1]], atol=1e-6)
    # a quarter: (3/4, 1/4), of length sqrt(10)/4
    np.testing.assert_allclose(mixed(garments, [2, 2], 0.25).vectors[0, :2], np.array([3, 1]) / 10**0.5, atol=1e-6)


def test_a_photo_that_cannot_be_read_is_a_line(gallery, tmp_path, capsys):
    (tmp_path / "none.png").touch()
    assert ask(gallery, tmp_path / "none.png", saved(tmp_path, 3), "--text", TEXTS[0]) == 0
    told = capsys.readouterr()
    assert "none.png: empty file" in told.err and told.out.count("found") == 1
    assert ask(gallery, tmp_path / "none.png", "--text", TEXTS[0]) == 2


def test_embedders_without_a_text_tower_are_named(small_set, tmp_path, calls):
    publish(small_set, tmp_path / "gallery", "--set", "embedders=[read, coarse, fine]")
    with pytest.raises(UserError, match=r"--text: coarse, fine have no text tower; a gallery whose embedders are all"):
        ask(tmp_path / "gallery", "--text", TEXTS[0])


def test_a_text_that_an_embedder_refuses(gallery):
    with pytest.raises(UserError, match=r"--text: .*invalid literal"):
        ask(gallery, "--text", "crimson")


@pytest.mark.parametrize(
    "line, message",
    [
        ([], "want a PHOTO, --text WORDS, or both"),
        (["a.png", "--text", "a", "--text", "b"], "--text may be given once beside photos"),
        (["--text", " "], "--text wants words"),
        (["--text", "a", "--text-weight", "2"], "want a number from 0 to 1, got 2"),
    ],
)
def test_a_mistake_in_the_line(line, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        ask(tmp_path, *line)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_page_shows_the_text_and_what_was_found(gallery, tmp_path, capsys):
    assert ask(gallery, "--text", TEXTS[0], "--top", "3", "--html", tmp_path / "found.html") == 0
    page = (tmp_path / "found.html").read_text()
    assert f"<h1><bdi>Shop items for “{TEXTS[0]}”</bdi></h1>" in page
    assert page.count("data:image/jpeg") == 3 and "No garment found" not in page and "numbered garments" not in page


def test_words_are_never_more_than_a_part_of_their_line():
    item = {"product_id": "p", "file_name": "a.jpg", "category_id": 8, "bbox": [1, 2, 3, 4]}
    said = lines(Answer("", b"", [], text="a\x1b[2J\nb", hits=[Hit(1, 0.5, item)]), DEEPFASHION2)
    assert said[0] == r'"a\x1b[2J b": 1 shop item found' and len(said) == 3
