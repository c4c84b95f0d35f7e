"""The cluster files, by Ray's own validator and by what they promise: no machine is asked for anything."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.__main__ import JOBS

REPO = Path(__file__).parents[1]
VALIDATE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(config)
print(config["cluster_name"])
"""


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPO / name).read_text())


def validated(path: Path) -> subprocess.CompletedProcess:
    """In a process of its own: the validator leaves loggers and a provider's caches behind."""
    return subprocess.run([sys.executable, "-c", VALIDATE, str(path)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_rays_own_validator_takes_it(name):
    done = validated(REPO / name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == read(name)["cluster_name"]


@pytest.mark.parametrize("change, message", [
    ({"idle_timeout": 5}, "idle_timeout"),
    ({"max_workers": "many"}, "max_workers"),
    ({"head_node_type": "cpu"}, "head_node_type"),
])  # fmt: skip
def test_the_validator_would_have_said_so(change, message, tmp_path):
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text(yaml.safe_dump(read("cluster.yaml") | change))
    done = validated(wrong)
    assert done.returncode != 0 and message in done.stderr


def test_on_aws_the_head_has_no_gpu_and_workers_are_spot():
    config = read("cluster.yaml")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head" and head["resources"]["GPU"] == 0 and head["max_workers"] == 0
    assert gpu["min_workers"] == 0 and gpu["max_workers"] == config["max_workers"] > 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("IamInstanceProfile" in node["node_config"] for node in (head, gpu))  # S3 by role, no key in any file


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_the_dashboard_stays_on_the_head_and_runs_are_not_copied(name):
    config = read(name)
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    # A leading slash: runs/ of the repository stays home, jobs/runs/ goes along.
    assert config["rsync_exclude"] == [".git", ".venv", "/runs"] and config["rsync_filter"] == [".gitignore"]
    assert config["file_mounts"] == {"~/clothes-retrieval": "."}


def test_no_file_of_the_repository_is_ignored():
    """Ray leaves out of a job's copy what .gitignore names, whether git has the file or not."""
    if not (REPO / ".git").exists():
        pytest.skip("a copy without its history")
    listing = ["git", "ls-files", "--ignored", "--cached", "--exclude-standard"]
    assert subprocess.run(listing, cwd=REPO, capture_output=True, text=True, check=True).stdout == ""


def test_the_kubernetes_job_asks_for_our_ray_and_one_gpu_a_worker():
    from importlib.metadata import version

    spec = read("deploy/kuberay.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    command, job = spec["entrypoint"].split()[:2]
    assert command == "clothes" and job in JOBS
