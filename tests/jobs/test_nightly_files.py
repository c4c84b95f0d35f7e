"""What starts a gallery every night: cron, systemd, Kubernetes, alerts. The commands' own parsers read their lines."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_ins
import yaml

from jobs import ingest, reindex_gallery, search
from jobs.runs.settings import load

REPO = Path(__file__).resolve().parents[2]
DEPLOY = REPO / "deploy"
PARSERS = {
    "jobs/ingest.py": ingest.parse,
    "jobs/reindex_gallery.py": reindex_gallery.parse,
    "jobs/search.py": search.parse,
}


def parsed(words: list[str]) -> Any:
    """The arguments of a command line `…python jobs/NAME.py …`, or `clothes NAME …` as in the image."""
    if words[0] == "clothes":
        return PARSERS[f"jobs/{words[1].replace('-', '_')}.py"](words[2:])
    assert Path(words[0]).name == "python", words
    return PARSERS[words[1]](words[2:])


def commands(text: str) -> list[list[str]]:
    """Every `python jobs/NAME.py …` of the three in a shell line or a page, up to what ends it."""
    text = text.replace("\\\n", " ")
    return [
        shlex.split(found)
        for found in re.findall(r"python jobs/(?:ingest|reindex_gallery|search)\.py[^;|&>`#\n]*", text)
    ]


# ------------------------------------------------------------------------------------------------ cron


def cron_lines() -> list[tuple[list[str], str, str]]:
    """Five fields, user and command of each line of the cron file that starts something."""
    lines = (DEPLOY / "nightly.cron").read_text().splitlines()
    started = [line for line in lines if line and not re.match(r"#|[A-Z_]+=", line)]
    return [(line.split(None, 6)[:5], line.split(None, 6)[5], line.split(None, 6)[6]) for line in started]


def test_cron_fields_are_times_and_commands_parse():
    (nightly, prune) = cron_lines()
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    for fields, user, command in (nightly, prune):
        for field, (low, high) in zip(fields, limits, strict=True):
            assert field == "*" or low <= int(field) <= high
        assert user == "clothes" and "%" not in command, "cron takes % for a line's end"
        assert subprocess.run(["sh", "-n", "-c", command], capture_output=True).returncode == 0
    taken, gallery = (parsed(words) for words in commands(nightly[2]))
    assert taken.update and taken.source == "shop" and [taken.imageset] == gallery.imageset
    (pruned,) = (parsed(words) for words in commands(prune[2]))
    assert pruned.prune and pruned.gallery == gallery.gallery


@pytest.mark.parametrize(
    "statuses, said", [((0, 0), ""), ((2, 0), "exit status 2;"), ((0, 4), "exit status 4;")], ids=str
)
def test_cron_says_something_on_a_bad_night_alone(statuses, said, tmp_path):
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$1"\ncase $1 in *ingest*) exit {statuses[0]};; *) exit {statuses[1]};; esac\n')
    fake.chmod(0o755)
    command = cron_lines()[0][2].replace("/var/log", str(tmp_path)).replace("/opt/clothes-retrieval", str(tmp_path))
    env = os.environ | {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
    assert done.stderr == "" and (said in done.stdout if said else done.stdout == "")
    started = (tmp_path / "clothes-gallery.log").read_text().split()
    assert started == ["jobs/ingest.py", *([] if statuses[0] else ["jobs/reindex_gallery.py"])], (
        "a set that failed ends it"
    )


# ------------------------------------------------------------------------------------------------ systemd


def unit(name: str) -> configparser.ConfigParser:
    """A key that is given again has its last value."""
    file = configparser.ConfigParser(interpolation=None, comment_prefixes="#", delimiters="=", strict=False)
    file.optionxform = str  # type: ignore[assignment, method-assign]
    file.read_string((DEPLOY / name).read_text())
    return file


def test_systemd_carries_out_a_night_and_tries_again_what_may_be_mended():
    service = unit("clothes-gallery.service")["Service"]
    started = re.findall(r"(?m)^(ExecStart\w*)=(.*)", (DEPLOY / "clothes-gallery.service").read_text())
    assert [key for key, _ in started] == ["ExecStartPre", "ExecStartPre", "ExecStart"]
    taken, pruned, gallery = (parsed(shlex.split(command)) for _, command in started)
    assert taken.update and [taken.imageset] == gallery.imageset and gallery.metrics
    assert pruned.prune and pruned.gallery == gallery.gallery
    assert service["Type"] == "oneshot" and service["Restart"] == "on-failure"
    final = {int(word) for word in service["RestartPreventExitStatus"].split()}
    assert final == {reindex_gallery.FAILED, reindex_gallery.REFUSED}
    page = unit("clothes-gallery.service")["Unit"]["Documentation"].removeprefix(f"file:{service['WorkingDirectory']}/")
    assert (REPO / page).is_file()


def test_systemd_starts_it_every_night():
    timer = unit("clothes-gallery.timer")
    assert re.fullmatch(r"\*-\*-\* [0-2]\d:[0-5]\d:00", timer["Timer"]["OnCalendar"])
    assert timer["Timer"]["Persistent"] == "true" and timer["Install"]["WantedBy"] == "timers.target"


def test_systemds_own_verifier_takes_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no systemd-analyze: apt-get install systemd")
    for name in ("clothes-gallery.service", "clothes-gallery.timer"):
        text = (DEPLOY / name).read_text().replace("/opt/clothes-retrieval/.venv/bin/python", "/bin/true")
        (tmp_path / name).write_text(text.replace("file:/opt/clothes-retrieval", f"file:{REPO}"))
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "clothes-gallery" in line]
    assert not ours, done.stderr


# ------------------------------------------------------------------------------------------------ Kubernetes


def documents() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kuberay-nightly.yaml").read_text())}


def test_kubernetes_brings_the_set_up_to_date_and_creates_a_ray_job():
    files = documents()
    cron = files["CronJob"]["spec"]
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    (first, between), (second,) = pod["initContainers"], pod["containers"]
    night = yaml.safe_load(files["ConfigMap"]["data"]["rayjob.yaml"])
    taken, gallery = parsed(first["command"]), parsed(shlex.split(night["spec"]["entrypoint"]))
    assert taken.update and [taken.imageset] == gallery.imageset and gallery.profile == "paper"
    pruned = parsed(between["command"])
    assert pruned.prune and pruned.gallery == gallery.gallery
    assert (load(gallery).device, load(gallery).actors) == (
        "cuda",
        "auto",
    )  # as many GPUs as may be started, or none and an end
    assert len(cron["schedule"].split()) == 5 and cron["concurrencyPolicy"] == "Forbid"
    mount = second["volumeMounts"][0]
    assert second["command"] == ["kubectl", "create", "-f", f"{mount['mountPath']}/rayjob.yaml"]
    assert pod["volumes"] == [{"name": mount["name"], "configMap": {"name": files["ConfigMap"]["metadata"]["name"]}}]


def test_kubernetes_may_create_ray_jobs_and_nothing_else():
    files = documents()
    assert files["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    account = files["ServiceAccount"]["metadata"]["name"]
    assert files["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert files["RoleBinding"]["roleRef"]["name"] == files["Role"]["metadata"]["name"]
    assert files["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_the_nightly_cluster_is_that_of_the_other_ray_job():
    night = yaml.safe_load(documents()["ConfigMap"]["data"]["rayjob.yaml"])
    other = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    assert night["spec"]["rayClusterSpec"] == other["spec"]["rayClusterSpec"]
    assert (night["apiVersion"], night["kind"]) == (other["apiVersion"], other["kind"])
    assert "name" not in night["metadata"] and night["metadata"]["generateName"].endswith("-"), "each night its own"


# ------------------------------------------------------------------------------------------------ alerts


def test_alerts_look_at_what_a_night_leaves(small_set, tmp_path, calls):
    line = ["--imageset", str(small_set), "--gallery", str(tmp_path / "gallery"), *stand_ins.SETTINGS]
    more = ["--metrics", str(tmp_path / "night.prom"), "--set", "max_failed_share=1", "--set", "gallery.copies=0"]
    assert reindex_gallery.main([*line, *more], stand_ins.CATALOGUE) == 0
    text = (tmp_path / "night.prom").read_text()
    left = set(re.findall(r'(?m)^(clothes_\w+(?:\{figure="\w+"\})?) [-+.\de]+$', text))
    (group,) = yaml.safe_load((DEPLOY / "gallery-alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "labels", "annotations"} and rule["annotations"]["summary"]
        asked = set(re.findall(r'clothes_\w+(?:\{figure="\w+"\})?', rule["expr"]))
        assert asked and asked - {"clothes_gallery_photos_per_s"} <= left, (rule["alert"], left)
    (late,) = (rule["expr"] for rule in group["rules"] if rule["alert"] == "GalleryLate")
    assert re.search(r" or absent\w*\(clothes_gallery_finished_timestamp_seconds\b", late), "no night ever left a file"


# ------------------------------------------------------------------------------------------------ the pages


@pytest.mark.parametrize("page", ["README.md", "docs/nightly.md"])
def test_every_line_of_the_pages_parses(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()  # as the commands before have left it
    monkeypatch.chdir(tmp_path)
    found = [words for words in commands((REPO / page).read_text()) if "…" not in words]
    assert {words[1] for words in found} >= {"jobs/ingest.py", "jobs/reindex_gallery.py", "jobs/search.py"}
    for words in found:
        parsed([word.strip("[]") for word in words])


def test_the_pages_table_of_exit_statuses_is_the_jobs():
    said = re.findall(r"(?m)^\| (\d) \|", (REPO / "docs" / "nightly.md").read_text())
    promised = re.findall(r"(\d) [a-z]", reindex_gallery.__doc__.partition("Exit status:")[2])  # type: ignore[union-attr]
    assert sorted(said) == sorted(dict.fromkeys(promised)) == ["0", "1", "2", "3", "4"]
    assert sys.modules["jobs.reindex_gallery"].FAILED == 3 and reindex_gallery.REFUSED == 4
