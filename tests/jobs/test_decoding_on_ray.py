"""A make-believe GPU on a node of one core is fed by a node without a GPU, which may die meanwhile.

Real nodes, each with processes of its own, real Ray, the whole evaluation with stand-in models.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import own_ray
import pytest
import stand_ins
from agreement import contract

REPO = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def evaluation(imageset: Path, output: Path, *settings: str, **env: str) -> "subprocess.Popen[str]":
    line = ["tests/jobs/run_with_stand_ins.py", "--imageset", str(imageset), "--output", str(output)]
    line += [word for setting in ("max_failed_share=1", *settings) for word in ("--set", setting)]
    environment = own_ray.environment({"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])} | env)
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *line], cwd=REPO, env=environment, **told)


def said(run: "subprocess.Popen[str]") -> str:
    text = run.communicate(timeout=600)[0]
    assert run.returncode == 0, text
    return text


def events(output: Path) -> list[dict]:
    """Of the detect stage's shards."""
    lines = [line for path in sorted((output / "logs").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if (event["event"], event["stage"]) == ("shard", "detect")]


def test_a_node_without_a_gpu_feeds_one_with_a_gpu_until_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are those of a run alone. Four of the seven shards are done when the feeding node is killed."""
    stand_ins.imageset(tmp_path / "set", 120, max_images=20)
    said(evaluation(tmp_path / "set", tmp_path / "alone"))
    monkeypatch.setenv("STAND_IN_PAUSE_S", "0.2")  # of a detector for a photo, on all nodes: decoders start meanwhile
    with own_ray.Nodes() as nodes:
        gpu, cores = nodes.add(n_cpus=1, n_gpus=1), nodes.add(n_cpus=2)
        on_gpu = ("device=cuda", "actors=1", "decoders=2")
        run = evaluation(tmp_path / "set", tmp_path / "fed", *on_gpu, RAY_ADDRESS=nodes.address)
        marks = tmp_path / "fed" / "done" / "detect"
        until = time.monotonic() + 300
        while len(list(marks.rglob("*.json"))) < 2 * 4 and time.monotonic() < until:  # of two detectors
            time.sleep(0.1)
        nodes.kill(cores)
        text = said(run)
        assert "detect: 7 shards on 1 actors, 1 GPU each" in text, text
        assert gpu in nodes.others
    assert sum(event["decoded_elsewhere"] for event in events(tmp_path / "fed")) > 0
    assert contract(tmp_path / "fed") == contract(tmp_path / "alone")
