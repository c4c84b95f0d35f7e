"""The two shipped profiles through the whole job, as a user starts it: real models, real Ray, a child process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]


def run(*words: str, timeout: int = 1500) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, timeout=timeout, env=env)


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    done = run("jobs/ingest.py", "drawn", str(folder), "--users", "12", "--shops", "24", "--seed", "11")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_tiny_sees_drawn_garments_and_says_so_twice_alike(drawn_set: Path, tmp_path: Path) -> None:
    line = ("jobs/full_eval.py", "--imageset", str(drawn_set), "--output", str(tmp_path / "run"), "--profile", "tiny")
    done = run(*line)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["detection"]["fused"]["AP50"] >= 0.3
    concat = metrics["retrieval"]["true"]["concat"]
    n_shop_items = len(pq.read_table(tmp_path / "run" / "index" / "true" / "ids.parquet"))
    assert (
        concat["top"]["10"] > 2 * 10 / n_shop_items
    )  # a random order has about 10 / n; tiny sets allow no more than this
    assert (tmp_path / "run" / "report" / "index.html").is_file() and "report: " in done.stdout

    ranking = (tmp_path / "run" / "rankings" / "detected.parquet").read_bytes()
    again = run(*line)
    assert again.returncode == 0 and "to do" not in again.stdout
    assert (tmp_path / "run" / "rankings" / "detected.parquet").read_bytes() == ranking


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_tiny_on_real_photos(ccp_df2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # actors compile their networks, as on their first night
    done = run("jobs/ingest.py", "deepfashion2", str(ccp_df2 / "val"), str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr
    line = "--imageset", str(tmp_path / "set"), "--output", str(tmp_path / "run"), "--limit", "80"
    done = run("jobs/full_eval.py", *line, "--set", "actors=2")  # one process would do both stages
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    fused = metrics["detection"]["fused"]
    assert fused["AP10_50"] > 0.35 and fused["images"] <= 80
    assert metrics["images"] == {"total": 80, "done": 80, "failed": 0}
    estimates_hold(tmp_path)


def estimates_hold(folder: Path) -> None:
    """--check's estimates beside what the run's log says was taken at most, in GB."""
    line = (
        "jobs/full_eval.py",
        "--imageset",
        str(folder / "set"),
        "--output",
        str(folder / "run"),
        "--limit",
        "80",
        "--check",
    )
    told = re.search(r"a detect actor (\S+) GB, an embed actor (\S+) GB, this process (\S+) GB", run(*line).stdout)
    assert told is not None
    (log,) = (folder / "run" / "logs").iterdir()
    events = [json.loads(text) for text in log.read_text().splitlines()]
    most = {
        stage: max(e["peak_mb"] for e in events if e["stage"] == stage and "actor" in e) / 1e3
        for stage in ("detect", "embed")
    }
    driver = max(event["peak_mb"] for event in events if event["event"] == "stage") / 1e3
    for gigabytes, taken in zip(map(float, told.groups()), (most["detect"], most["embed"], driver), strict=True):
        assert 2 / 3 < gigabytes / taken < 3 / 2, (told[0], most, driver)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_paper_runs_from_photo_to_ranking_when_random_weights_are_allowed(drawn_set: Path, tmp_path: Path) -> None:
    line = [
        "jobs/full_eval.py",
        "--imageset",
        str(drawn_set),
        "--output",
        str(tmp_path / "run"),
        "--profile",
        "paper",
        "--limit",
        "4",
    ]
    refused = run(*line)
    assert (
        refused.returncode == 2 and "allow_random_weights" in refused.stderr and len(refused.stderr.splitlines()) == 1
    )

    cuts = (
        "detect.score_threshold=0",
        "fusion.skip_box_threshold=0",
        "fusion.score_threshold=0",
        "items.score_threshold=0",
    )
    kept = ("detect.max_per_image=20", "fusion.max_per_image=20", "items.max_per_image=20")
    settings = ("allow_random_weights=true", "actors=1", "threads_per_actor=2", *cuts, *kept)
    done = run(*line, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stdout + done.stderr
    rankings = pq.read_table(tmp_path / "run" / "rankings" / "detected.parquet")
    assert len(rankings) > 0 and all(len(row) > 0 for row in rankings.column("gallery_image_id").to_pylist())
