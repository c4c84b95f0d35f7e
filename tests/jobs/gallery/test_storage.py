"""Nights on a bucket that misbehaves: they end as on a folder, or stop with one line and can be continued.

Faults come from `s3_proxy`; SeaweedFS is killed for real.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from galleries import Goods, content, house, line, night, opened, shop, stock
from s3_proxy import Proxy
from seaweed import Seaweed

from jobs.gallery import versions
from store.objects import StorageError, open_store

REPO = Path(__file__).resolve().parents[3]
NO_TRIAL = r"^(?!.*(max-keys=1|\.tmp-probe))"  # the trial before a night gives up after two attempts: that is its trade
TODAY = [*shop(range(4, 16)), Goods(16, 99)]


@pytest.fixture
def want(tmp_path: Path, calls: Any, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """What the second night leaves on a folder; the sets of both nights are at tmp_path/first and /second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stock(shop(range(12)), tmp_path / "first", max_images=5)
    stock(TODAY, tmp_path / "second", max_images=5)
    night(tmp_path / "first", tmp_path / "straight")
    night(tmp_path / "second", tmp_path / "straight")
    return content(opened(tmp_path / "straight"))


@pytest.mark.slow
@pytest.mark.parametrize("faults", [
    {"503 SlowDown": 0.2}, {"drop": 0.1, "lose": 0.1}, {"stall": 0.02}, {"truncate": 0.1},
], ids=lambda faults: "+".join(faults))  # fmt: skip
def test_nights_through_trouble_end_as_without(
    want: Any, tmp_path: Path, s3_bucket: str, s3_proxy: Proxy, impatient: None, faults: dict[str, float]
) -> None:
    s3_proxy.stall_s = 1.5
    for how, share in faults.items():
        s3_proxy.cause(how, key=NO_TRIAL, share=share)
    gallery = f"{s3_bucket}/gallery"
    night(tmp_path / "first", gallery)
    assert night(tmp_path / "second", gallery)["garments_removed"] == 4
    house(gallery, "--rollback")
    house(gallery, "--rollback", versions.names(open_store(gallery))[-1])
    assert content(opened(gallery)) == want
    assert set(s3_proxy.caused) == set(faults)
    s3_proxy.heal()
    assert [one.state for one in versions.version_rows(open_store(gallery))] == ["earlier", "current"]
    assert not open_store(gallery).exists("lock.json") and not open_store(gallery).list("work/")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["/results/", "/versions/.*/items.parquet", "/versions/.*/version.json", "/CURRENT"])
def test_a_night_that_cannot_write_keeps_the_version_before(
    want: Any, tmp_path: Path, s3_bucket: str, s3_proxy: Proxy, impatient: None, key: str
) -> None:
    gallery = f"{s3_bucket}/gallery"
    first = night(tmp_path / "first", gallery)["version"]
    s3_proxy.cause("507 XMinioStorageFull", "PUT|POST", key)
    with pytest.raises(StorageError, match="the storage is full"):
        night(tmp_path / "second", gallery)
    assert opened(gallery).version == first and len(opened(gallery)) == 12
    s3_proxy.heal()
    assert night(tmp_path / "second", gallery)["detected"] == (5 if key == "/results/" else 0)
    assert content(opened(gallery)) == want


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("down_s", [3.0, None])
def test_a_server_killed_in_the_middle_of_a_publication(
    want: Any, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, down_s: float | None
) -> None:
    """Back soon, or gone until the night has stopped."""
    (tmp_path / "weed").mkdir()
    with Seaweed(tmp_path / "weed") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="tests")
        gallery, log = "s3://tests/gallery", tmp_path / "log"
        first = night(tmp_path / "first", gallery)["version"]
        env = {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests" / "jobs")]), "FILE_PAUSE_S": "1"}
        argv = [
            sys.executable,
            str(REPO / "tests" / "jobs" / "gallery_with_stand_ins.py"),
            *line(tmp_path / "second", gallery),
        ]
        with open(log, "wb") as file:
            process = subprocess.Popen(argv, env=os.environ | env, stdout=file, stderr=file)
        end = time.monotonic() + 200
        while len(versions.names(open_store(gallery))) < 2:  # the first file of the second version is there
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        server.kill()
        if down_s is not None:
            time.sleep(down_s)
            server.start()
        status = process.wait(timeout=400)
        assert status == 2 if down_s is None else status in (0, 2), log.read_text()
        if status:
            assert "Traceback" not in log.read_text()
            assert re.search(r"error: .* in s3://tests/\S+: .*\(\d attempts?\)", log.read_text())
        if down_s is None:
            server.start()
        server.wait()
        assert opened(gallery).version >= first
        night(tmp_path / "second", gallery)
        assert content(opened(gallery)) == want
        versions.prune(open_store(gallery), 1, grace_s=0)
        assert len(versions.names(open_store(gallery))) == 1 and content(opened(gallery)) == want
