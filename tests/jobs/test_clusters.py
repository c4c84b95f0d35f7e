"""The same evaluation gives the same answer, however its Ray is found.

It may be one of the run's own, a head's, a submitted job's or one of several nodes. Real processes, real Ray, stand-in
models. `ray up` and `ray submit` are tried in tests/cluster.
"""

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import own_ray
import pytest
from agreement import contract

from retrieval.gallery import open_gallery

REPO = Path(__file__).resolve().parents[2]
SCRIPT = "tests/jobs/run_with_stand_ins.py"
PATHS = os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")])  # where workers find the stand-ins

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def carried_out(*line: str | Path, cwd: Path = REPO, env: dict[str, str] | None = None) -> tuple[int, str]:
    """A command's exit status and what it said."""
    environment = own_ray.environment({"PYTHONPATH": PATHS} | (env or {}))
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 900}
    done = subprocess.run([str(word) for word in line], cwd=cwd, env=environment, **told)
    return done.returncode, done.stdout


def evaluation(imageset: Path, output: Path) -> list[str | Path]:
    return ["python", SCRIPT, "--imageset", imageset, "--output", output]


ALL_COUNTS = ("--set", "max_failed_share=1")  # one photo of the set is cut off


@pytest.fixture(scope="module")
def alone(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the line leaves that starts a Ray of its own."""
    output = tmp_path_factory.mktemp("alone") / "run"
    status, said = carried_out(*evaluation(small_set, output), *ALL_COUNTS)
    assert status == 0, said
    return contract(output)


def test_on_a_head_by_its_address(alone: dict[str, bytes], small_set: Path, tmp_path: Path) -> None:
    env = own_ray.environment({})
    with own_ray.head("--num-cpus=2", "--include-dashboard=false", env=env) as address:
        line = [*evaluation(small_set, tmp_path / "run"), *ALL_COUNTS]
        status, said = carried_out(*line, env={"RAY_ADDRESS": address})
    assert status == 0 and "detect: 5 shards on 2 actors, 1 CPU each" in said, said
    assert contract(tmp_path / "run") == alone


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository as a user has it: with an environment and runs that are larger than what Ray takes (512 MiB)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / name, tmp_path / "clone" / name)
    for folder in (".venv", "runs"):
        (tmp_path / folder).mkdir()
        os.truncate(os.open(tmp_path / folder / "large", os.O_CREAT | os.O_WRONLY), 2**30)  # takes no room on the disk
    (tmp_path / "clone" / "runs").symlink_to(tmp_path / "runs")
    shutil.move(tmp_path / ".venv", tmp_path / "clone")
    return tmp_path / "clone"


def test_a_job_submitted_to_a_head_that_asks_for_a_token(
    alone: dict[str, bytes], small_set: Path, tmp_path: Path, clone: Path
) -> None:
    token, other, port = tmp_path / "token", tmp_path / "other", own_ray.free_port()
    for file in (token, other):
        file.write_text(secrets.token_hex(32))
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    submit = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", "."]
    submit += ["--runtime-env-json", '{"env_vars": {"PYTHONPATH": "tests/jobs"}}', "--"]
    line = [*submit, *evaluation(small_set, tmp_path / "run")]
    dashboard = ("--include-dashboard=true", f"--dashboard-port={port}")
    with own_ray.head("--num-cpus=2", *dashboard, env=own_ray.environment(env)):
        status, said = carried_out(*line, cwd=clone, env=env | {"RAY_AUTH_TOKEN_PATH": str(other)})
        assert status != 0 and not (tmp_path / "run").exists(), said
        status, said = carried_out(*line, *ALL_COUNTS, cwd=clone, env=env)
        assert status == 0 and "succeeded" in said, said
        assert contract(tmp_path / "run") == alone
        status, said = carried_out(*line, cwd=clone, env=env)  # the same run, judged: exit status 3
    assert status == 1 and "1 of 25 images failed (4.0%), more than max_failed_share 1.0% allows" in said, said
    assert "exit code 3" in said, said


def test_a_submitted_night_publishes_what_a_night_at_home_does(small_set: Path, tmp_path: Path, clone: Path) -> None:
    port = own_ray.free_port()
    night = ["python", "tests/jobs/reindex_with_stand_ins.py", "--imageset", small_set, *ALL_COUNTS, "--gallery"]
    submit = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", "."]
    submit += ["--runtime-env-json", '{"env_vars": {"PYTHONPATH": "tests/jobs"}}', "--"]
    status, said = carried_out(*night, tmp_path / "home")
    assert status == 0, said
    dashboard = ("--include-dashboard=true", f"--dashboard-port={port}")
    with own_ray.head("--num-cpus=2", *dashboard, env=own_ray.environment({})):
        status, said = carried_out(*submit, *night, tmp_path / "away", cwd=clone)
        assert status == 0 and '"status": "published"' in said, said
        status, said = carried_out(*submit, *night, tmp_path / "away", cwd=clone)
        assert status == 0 and '"status": "unchanged"' in said, said
        status, said = carried_out(*submit, *night, "runs/away", cwd=clone)
        assert status == 1 and "give an absolute path or a bucket" in said, said
    home, away = (open_gallery(tmp_path / name) for name in ("home", "away"))
    assert len(home) == 12 and home.items.equals(away.items)
    assert home.record["results"] == away.record["results"] and home.record["gate"].keys() == away.record["gate"].keys()
    assert home.record["files"]["vectors.npy"] == away.record["files"]["vectors.npy"]


def test_the_dashboard_says_what_jobs_and_actors_are(small_set: Path, tmp_path: Path, clone: Path) -> None:
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_actors

    port = own_ray.free_port()
    dashboard = f"http://127.0.0.1:{port}"
    line = [*evaluation(small_set, tmp_path / "run"), *ALL_COUNTS]
    submit = ["ray", "job", "submit", "--address", dashboard, "--working-dir", "."]
    submit += ["--runtime-env-json", '{"env_vars": {"PYTHONPATH": "tests/jobs"}}', "--"]
    options = ("--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={port}")
    with own_ray.head(*options, env=own_ray.environment({})) as address:
        status, said = carried_out(*submit, *line, cwd=clone)
        assert status == 0, said
        status, said = carried_out(*line, "--set", "detect.score_threshold=0.5", env={"RAY_ADDRESS": address})
        assert status == 0, said
        jobs = JobSubmissionClient(dashboard).list_jobs()
        actors = list_actors(address=dashboard, detail=True)
    assert {(job.type.value, (job.metadata or {}).get("output")) for job in jobs} == {
        ("SUBMISSION", str(tmp_path / "run")),
        ("DRIVER", str(tmp_path / "run")),
    }
    assert {actor.repr_name for actor in actors} >= {f"detect near far {i}" for i in range(2)}, actors


@pytest.fixture
def three_nodes() -> Iterator[str]:
    env = own_ray.environment({})
    with own_ray.head("--num-cpus=1", "--include-dashboard=false", env=env) as address:
        for _ in range(2):
            own_ray.start(f"--address={address}", "--num-cpus=1", env=env)
        yield address


def test_on_three_nodes(alone: dict[str, bytes], small_set: Path, tmp_path: Path, three_nodes: str) -> None:
    line = [*evaluation(small_set, tmp_path / "run"), *ALL_COUNTS]
    status, said = carried_out(*line, env={"RAY_ADDRESS": three_nodes})
    assert status == 0 and "detect: 5 shards on 3 actors, 1 CPU each" in said, said
    assert contract(tmp_path / "run") == alone


def test_a_node_that_has_another_copy_of_the_code_is_refused(small_set: Path, tmp_path: Path) -> None:
    """The node sees other files where ours are: a mount that only its processes have."""
    before = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("`unshare --mount` is not allowed here: wants root")
    shutil.copytree(REPO / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "jobs" / "fuse.py", "a") as file:
        file.write("# a hand's change\n")
    mounted = (*before, "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', tmp_path / "jobs", REPO / "jobs")
    env = own_ray.environment({})
    with own_ray.head("--num-cpus=1", "--include-dashboard=false", env=env) as address:
        own_ray.start(f"--address={address}", "--num-cpus=1", env=env, before=tuple(map(str, mounted)))
        line = evaluation(small_set, tmp_path / "run")
        status, said = carried_out(*line, env={"RAY_ADDRESS": address})
    assert status == 2 and "Traceback" not in said, said
    differs = r"error: node \S+ has source \w{12} \(here \w{12}\); .* copy the same code on every node"
    assert re.search(differs, said), said
    assert "detect: 5 shards on" not in said


def test_an_address_that_a_killed_head_left_is_passed_by(small_set: Path, tmp_path: Path) -> None:
    """Ray itself would ask it for minutes, and then complain in other words than those of the refused connection."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie in it
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{own_ray.free_port()}")
    env = {"RAY_TMPDIR": str(folder)}
    line = evaluation(small_set, tmp_path / "run")
    status, said = carried_out(*line, "--check", env=env)
    assert status == 0 and re.search(
        r"Ray: 127.0.0.1:\d+, left here by `ray start`, does not answer \(.*refused\)", said
    ), said
    status, said = carried_out(*line, "--check", env={"RAY_ADDRESS": f"127.0.0.1:{own_ray.free_port()}"})
    assert status == 0 and "refused): a run would end here" in said, said
    status, said = carried_out(*line, *ALL_COUNTS, env={"RAY_ADDRESS": f"127.0.0.1:{own_ray.free_port()}"})
    assert status == 2 and re.search(r"no Ray cluster answers \(.*refused\); is it up", said), said
