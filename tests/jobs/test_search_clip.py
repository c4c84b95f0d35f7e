"""A gallery of a small random CLIP model out of a cache of the hub, asked in words, from the command line alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.gallery import open_gallery
from store.files import file_sha256
from tests.retrieval import tiny_clip

REPO = Path(__file__).resolve().parents[2]
TEXTS = ["red midi skirt", "blue jeans"]


def rows_of(texts: list[str], weights: Path) -> np.ndarray:
    """(T, D) float32: the texts' rows, in a process without FAISS."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from retrieval.clip_embedder import load\n"
        "from retrieval.clip_models import from_fields\n"
        "spec = from_fields({'name': 'clip', 'open_clip': f'local-dir:{sys.argv[1]}'})\n"
        "rows = load(spec, 'cpu', weights=pathlib.Path(spec.weights)).embed_text(sys.argv[3:])\n"
        "np.save(sys.argv[2], rows)"
    )
    out = weights.parent / "texts.npy"
    subprocess.run([sys.executable, "-c", code, weights, out, *texts], cwd=REPO, check=True, timeout=300)
    return np.load(out)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_words_find_in_a_gallery_what_their_rows_are_nearest_to(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    made = "import sys, pathlib; from tests.retrieval import tiny_clip; tiny_clip.folder(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", made, folder], cwd=REPO, check=True, timeout=300)
    tiny_clip.in_hub(tmp_path / "hf" / "hub", folder)
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    def carried_out(*line: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, line)]
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == status, done.stderr + done.stdout
        return done

    carried_out("jobs/ingest.py", "drawn", tmp_path / "set", "--users", 1, "--shops", 12, "--seed", 3)
    run_file = tmp_path / "RUN.yaml"
    run_file.write_text(
        "detectors: [atss-tiny]\n"
        f'embedders: [{{name: clip, open_clip: "hf-hub:{tiny_clip.REPOSITORY}"}}, clip@flip]\n'
        "search: {steps: [{step: views}]}\n"
        "gallery: {copies: 0}\n"
    )
    gallery = tmp_path / "gallery"
    carried_out("jobs/reindex_gallery.py", "--imageset", tmp_path / "set", "--gallery", gallery, "--config", run_file)
    asked = [word for text in TEXTS for word in ("--text", text)]
    said = carried_out("jobs/search.py", *asked, "--gallery", gallery, "--top", 5, "--all").stdout
    opened = open_gallery(gallery)
    assert [model["weights"] for model in opened.record["models"]] == [file_sha256(tiny_clip.weights_of(folder))] * 2
    items = opened.items.to_pylist()
    cosines = rows_of(TEXTS, folder) @ opened.vectors(np.array([item["id"] for item in items])).T
    for text, row in zip(TEXTS, cosines, strict=True):
        table = said.partition(f'"{text}": 5 shop items found\n')[2]
        found = re.findall(r"(?m)^ +\d+ +(-?\d\.\d+) ", table)[:5]
        np.testing.assert_allclose([float(value) for value in found], np.sort(row)[::-1][:5], atol=2e-3)
    env["HF_HOME"] = str(tmp_path / "elsewhere")  # another machine, without the cache and without a network
    told = carried_out("jobs/search.py", *asked, "--gallery", gallery, status=2).stderr
    assert len(told.splitlines()) == 1 and "open_clip_config.json of shop/tiny-clip is not in" in told
