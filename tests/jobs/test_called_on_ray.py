"""A class beside the run file, found by workers, on Ray or in one process, and by the process that asks its version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import stand_ins

REPO = Path(__file__).resolve().parents[2]
MODULE = """
import numpy as np


class Corners:
    input_size, version = 8, "1"

    def embed(self, crops):
        return crops[:, ::7, ::7].reshape(len(crops), -1) + 1.0
"""

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize("actors", [1, 2])  # one process, Ray
def test_workers_find_the_class_in_the_folder_of_the_command(tmp_path: Path, actors: int) -> None:
    stand_ins.imageset(tmp_path / "set", 8)
    (tmp_path / "shop_models").mkdir()
    (tmp_path / "shop_models" / "embed.py").write_text(MODULE)
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the folder hides the library')")
    embedder = {"name": "corners", "call": "shop_models.embed:Corners"}
    settings = {"detectors": [], "embedders": [embedder], "device": "cpu", "max_failed_share": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    command = [sys.executable, str(REPO / "jobs/full_eval.py"), "--imageset", "set", "--output", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--config", "run.yaml", "--set", f"actors={actors}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "run/embeddings/detected/corners/shard-00000.parquet")
    assert len(rows) == 6 and rows.schema.field("embedding").type.list_size == 12
