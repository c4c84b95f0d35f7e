"""A gallery of a ViT of timm, a shipped CGD and a class of one's own side by side, from the command line alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.gallery import open_gallery

REPO = Path(__file__).resolve().parents[3]
VIT = "test_vit"  # timm's smallest
SAVE_VIT = (
    "import sys, timm, torch; torch.manual_seed(0); torch.save(timm.create_model('test_vit').state_dict(), sys.argv[1])"
)
# the rows of one photo's whole crop by each model alone, in a process without FAISS
ROWS_OF = """
import sys
from pathlib import Path
import numpy as np
from retrieval import embedder, models, timm_models, timm_networks
from retrieval.crops import crop
from store.decode import decode
from store.imageset import open_imageset

folder, image_id, vit_file, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
images = open_imageset(folder)
(shard,) = images.shards
(data,) = (row["image"] for row in images.read(shard.name).to_pylist() if row["image_id"] == image_id)
pixels = decode(data)
box = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], np.float32)
vit = timm_models.from_fields({"name": "vit", "timm": "test_vit", "weights": str(vit_file)})
rows = [
    timm_networks.load(vit, "cpu", weights=vit_file).embed(crop(pixels, box, vit.input_size)),
    embedder.load(models.LITE0_SG, "cpu", weights=Path("weights/tiny/lite0-sg.safetensors")).embed(
        crop(pixels, box, models.LITE0_SG.input_size)
    ),
]
np.savez(out, *rows)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_vit_and_a_shipped_cgd_make_one_row_and_a_new_version_of_a_class_a_first_night(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO / "tests" / "jobs")}  # stand_ins, own_models

    def carried_out(*line: object) -> str:
        command = [sys.executable, *map(str, line)]
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    vit, version, gallery = tmp_path / "vit.pth", tmp_path / "version.txt", tmp_path / "gallery"
    carried_out("-c", SAVE_VIT, vit)
    version.write_text("1")
    carried_out("jobs/ingest.py", "drawn", tmp_path / "set", "--users", 0, "--shops", 8, "--seed", 3)
    run_file = tmp_path / "RUN.yaml"
    run_file.write_text(
        "detectors: []\n"
        "device: cpu\n"
        "embedders:\n"
        f"  - {{name: vit, timm: {VIT}, weights: {vit}}}\n"
        "  - lite0-sg\n"
        f"  - {{name: own, call: 'own_models:Embedder', args: {{version_file: {version}}}}}\n"
        "gallery: {copies: 0}\n"
    )
    night = "jobs/reindex_gallery.py", "--imageset", tmp_path / "set", "--gallery", gallery, "--config", run_file
    said = carried_out(*night)
    assert "the first version" in said
    opened = open_gallery(gallery)
    widths = [model["dim"] for model in opened.record["models"]]
    items = opened.items.to_pylist()
    (row,) = opened.vectors(np.array([items[0]["id"]]))
    carried_out("-c", ROWS_OF, tmp_path / "set", items[0]["image_id"], vit, tmp_path / "rows.npz")
    with np.load(tmp_path / "rows.npz") as alone:
        for place, want in enumerate(alone.values()):
            part = row[sum(widths[:place]) : sum(widths[: place + 1])]
            np.testing.assert_allclose(part / np.linalg.norm(part), want[0], atol=2e-3)  # kept in half precision
    version.write_text("2")
    said = carried_out(*night)
    assert "models, weights or settings changed" in said
    assert open_gallery(gallery).record["name"] != opened.record["name"]
