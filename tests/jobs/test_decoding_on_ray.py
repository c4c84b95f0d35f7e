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


def test_a_node_without_a_gpu_feeds_one_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same tables as of a run alone: with both nodes, and with the feeding node killed half-way."""
    stand_ins.imageset(tmp_path / "set", 40, max_images=8)
    said(evaluation(tmp_path / "set", tmp_path / "alone"))
    want = contract(tmp_path / "alone")
    on_gpu = ("device=cuda", "actors=1", "decoders=2")
    monkeypatch.setenv("STAND_IN_PAUSE_S", "0.3")  # of a detector for a photo, on all nodes: decoders start meanwhile
    with own_ray.Nodes() as nodes:
        gpu, cores = nodes.add(n_cpus=1, n_gpus=1), nodes.add(n_cpus=2)
        env = {"RAY_ADDRESS": nodes.address}
        text = said(evaluation(tmp_path / "set", tmp_path / "fed", *on_gpu, **env))
        assert "detect: 6 shards on 1 actors, 1 GPU each" in text, text
        assert contract(tmp_path / "fed") == want
        assert sum(event["decoded_elsewhere"] for event in events(tmp_path / "fed")) > 0

        run = evaluation(tmp_path / "set", tmp_path / "hurt", *on_gpu, **env)
        log = tmp_path / "hurt" / "done" / "detect"
        until = time.monotonic() + 300
        while not (log.is_dir() and any(log.rglob("*.json"))) and time.monotonic() < until:
            time.sleep(0.1)  # the first shard's mark
        nodes.kill(cores)
        said(run)
        assert gpu in nodes.others
    assert contract(tmp_path / "hurt") == want
