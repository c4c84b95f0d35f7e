"""The README's commands run as they are written; the other documents' are run by tests/docs/test_commands.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sources.drawn import source
from store.imageset import Photo

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))]
SHORTER = {"--steps 1000": "--steps 2", "--steps 600": "--steps 2"}  # a training of minutes becomes one of seconds


def blocks(document: str, language: str = "") -> list[str]:
    """The fenced blocks of one language."""
    fences = re.findall(
        r"^```(\w*)\n(.*?)^```$", (REPO / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [text for of, text in fences if of == language]


def commands(document: str) -> list[str]:
    """Every `python jobs/…` line, continued lines joined, comments and what surrounds it in a loop left out."""
    lines = "\n".join(blocks(document)).replace("\\\n", " ").splitlines()
    found = [match[0] for line in lines if (match := re.search(r"(?:python |ray submit \S+ )jobs/[^#;]*", line))]
    return [" ".join(command.split()) for command in found]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    places = [place for place in re.findall(r"\]\(([^)#]+)", text) if "://" not in place]
    assert not [place for place in places if not ((REPO / document).parent / place).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_accuracy_has_one_spelling(document: str) -> None:
    """Acc@10; `acc@10_detected` and the like are keys of files."""
    text = re.sub(r"`[^`]*`", "", (REPO / document).read_text(encoding="utf-8"))
    assert not re.findall(r"(?i)\btop-\d+|\bacc@(?<!Acc@)", text)


def test_readme_is_short_and_shows_the_way() -> None:
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("![") for line in lines[:10]) and "## Your own photos" in lines[:50]
    tree = next(block for block in blocks("README.md") if block.startswith("jobs/ "))
    named = {word.rstrip("/") for line in tree.splitlines() for word in re.findall(r"[\w.]+/", line.partition("  ")[0])}
    missing = [name for name in named if not (REPO / name).is_dir() and not (REPO / "jobs" / name).is_dir()]
    assert not missing


def test_continuous_integration_runs_the_tests_of_the_readme() -> None:
    assert "make test-all" in (REPO / ".ci" / "run").read_text()
    assert "make test " in "\n".join(blocks("README.md"))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_commands_of_the_readme_run(tmp_path: Path) -> None:
    """One after the other, on synthetic images laid out as the README assumes."""
    photos(tmp_path / "PHOTOS")
    annotated(tmp_path / "DEEPFASHION2" / "validation")
    (run_file,) = blocks("README.md", "yaml")
    weights = tmp_path / "weights"
    shutil.copytree(REPO / "weights" / "tiny", weights)
    shutil.copy(weights / "atss-tiny.safetensors", weights / "mine.safetensors")
    (tmp_path / "RUN.yaml").write_text(run_file.replace("s3://BUCKET/weights", str(weights)))
    (tmp_path / "runs").mkdir()
    ran = commands("README.md")
    assert len(ran) >= 10
    for command in ran:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        words = [re.sub(r"^(?=PHOTOS|DEEPFASHION2|runs/|RUN\.yaml)", f"{tmp_path}/", word) for word in command.split()]
        done = subprocess.run([sys.executable, *words[1:]], cwd=REPO, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()
    assert "<img" in (tmp_path / "runs" / "found.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_runs(tmp_path: Path) -> None:
    command = ["make", "demo", f"DEMO={tmp_path / 'demo'}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=dict(os.environ), timeout=2000)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "report: " in done.stdout and (tmp_path / "demo" / "run" / "report" / "index.html").is_file()


def synthetic(users: int, shops: int) -> Iterator[Photo]:
    yield from source.read(users=users, shops=shops, seed=7, size_px=240)


def photos(folder: Path) -> None:
    """shop/ and street/ with products.csv and bought.csv, and street.jpg."""
    lists = {"shop": ["file_name,product_id"], "street": ["file_name,product_id"]}
    for photo in synthetic(4, 24):
        side = "shop" if photo.source == "shop" else "street"
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / photo.file_name).write_bytes(photo.image)
        lists[side].append(f"{photo.file_name},sku-{photo.pair_id}")
    shutil.copy(folder / "street" / "000001.jpg", folder / "street.jpg")
    (folder / "products.csv").write_text("\n".join(lists["shop"]) + "\n")
    (folder / "bought.csv").write_text("\n".join(lists["street"]) + "\n")


def annotated(folder: Path) -> None:
    """image/ and annos/ as DeepFashion2 has them."""
    for name in ("image", "annos"):
        (folder / name).mkdir(parents=True)
    for photo in synthetic(24, 32):
        (folder / "image" / f"{photo.image_id:06d}.jpg").write_bytes(photo.image)
        items = {
            f"item{number}": {
                "category_id": item.category_id, "category_name": "", "style": item.style,
                "bounding_box": list(item.bbox),
                "segmentation": [list(polygon) for polygon in item.segmentation], "scale": item.scale,
                "occlusion": item.occlusion, "zoom_in": item.zoom_in, "viewpoint": item.viewpoint,
            }
            for number, item in enumerate(photo.items, start=1)
        }  # fmt: skip
        notes = {"source": photo.source, "pair_id": photo.pair_id} | items
        (folder / "annos" / f"{photo.image_id:06d}.json").write_text(json.dumps(notes))
