"""docs/recipes.md, "Results in other software": its code runs as it is written, on a run and a gallery of stand-ins."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "jobs"))  # stand_ins, small_gallery

import small_gallery  # noqa: E402
import stand_ins  # noqa: E402

from jobs import export, full_eval  # noqa: E402
from jobs.runs import shards  # noqa: E402

NOT_RUN = "FiftyOne"  # its package cannot be installed beside ours
SAYS = {  # what each block's output has in it
    "pycocotools": [r"Average Precision .*maxDets=100 \] = 0\.\d+"],
    "ranx": [r"'map': .*'hit_rate@10': "],
    "DuckDB": [r"query_file_name.*first_right(?s:.*)\d\.png", r"surest(?s:.*)25\.png +│ +0 │ +NULL"],
    "Hugging Face `datasets`": [r"image_id +item .*embedding"],
    "Qdrant": [r"1\.0 \d+\.png"],
    "LanceDB": [r"file_name +product_id +_distance(?s:.*)\d\.png"],
}


def recipes() -> dict[str, list[str]]:
    """Heading -> its blocks of Python."""
    text = (REPO / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.partition("\n## Results in other software\n")[2].partition("\n## ")[0]
    return {
        part.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        for part in section.split("\n### ")[1:]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of the recipes: runs/annotated, first, first-csv, first-coco, first-trec, gallery."""
    folder = tmp_path_factory.mktemp("recipes")
    annotated, first = folder / "runs" / "annotated", folder / "runs" / "first"
    stand_ins.imageset(annotated)
    line = [*stand_ins.SETTINGS, "--imageset", str(annotated), "--output", str(first), "--set", "max_failed_share=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, []))
        assert full_eval.main(line, stand_ins.CATALOGUE) == 0
        small_gallery.publish(annotated, folder / "runs" / "gallery")
    for to in ("csv", "coco", "trec"):
        assert export.main([str(first), "--to", to, f"{first}-{to}"]) == 0
    yield folder


def test_every_recipe_is_run_or_said_not_to_be() -> None:
    assert set(recipes()) == {*SAYS, NOT_RUN}
    (code,) = recipes()[NOT_RUN]
    compile(code, NOT_RUN, "exec")


@pytest.mark.parametrize("name, place", [
    pytest.param(name, place, marks=[pytest.mark.slow] * (name == "ranx"))  # it compiles for half a minute
    for name, says in SAYS.items() for place in range(len(says))
])  # fmt: skip
def test_recipe(name: str, place: int, folder: Path) -> None:
    code = recipes()[name][place].replace("/lite0-sg/", "/fine/")  # a stand-in's name
    apart = {"PYTHONPATH": str(REPO), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **apart},
        timeout=600,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert re.search(SAYS[name][place], done.stdout), done.stdout
    assert len(recipes()[name]) == len(SAYS[name])
