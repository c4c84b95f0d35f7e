"""Fixtures for all tests: real photos where there are any, an S3 server, and Rays apart from the machine's own.

Also the last lines of a run: what tests recorded with `record_property`, and how many inputs the fuzz tests tried, in
all processes of pytest-xdist.
"""

import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # s3_proxy, seaweed, racing

from s3_proxy import Proxy
from seaweed import Seaweed

from jobs.runs import cluster, one_process

# Ray silently ends a process that has joined it when the head does not answer for this long. On a busy machine the head
# may need longer than the default.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")

# ranx, an oracle of small tables, would spend minutes compiling its functions and milliseconds in them.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

# How long an example takes says how busy the machine is, and nothing about the code. The examples are the same each
# time, so that a failure can be seen again; `make soak` looks for others.
RANDOM = os.environ.get("EXAMPLES") == "random"
hypothesis.settings.register_profile("ours", deadline=None, derandomize=not RANDOM)
hypothesis.settings.load_profile("ours")

REPO = Path(__file__).resolve().parents[1]
fuzzed: dict[int, Counter[str]] = {}  # seed -> kind -> inputs


def pytest_sessionfinish(session: pytest.Session) -> None:
    if guard := sys.modules.get("tests.fuzz.guard"):
        fuzzed[guard.SEED] = guard.inputs
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one prints
        session.config.workeroutput["fuzzed"] = [(seed, dict(inputs)) for seed, inputs in fuzzed.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for seed, inputs in getattr(node, "workeroutput", {}).get("fuzzed", ()):
        fuzzed.setdefault(seed, Counter()).update(inputs)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.location[2]}: {name}: {value}")
    for seed, inputs in fuzzed.items():
        told = ", ".join(f"{n:,} of {kind.removeprefix('test_')}" for kind, n in sorted(inputs.items()))
        terminalreporter.write_line(f"fuzzed inputs: {told}; FUZZ_SEED={seed} repeats them")


@pytest.fixture(scope="session", autouse=True)
def rays_apart() -> Iterator[None]:
    """A folder of our own for Ray: we never join a cluster that others started on this machine, nor they ours."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def ray_ends_with_its_file() -> Iterator[None]:
    """What a file's tests joined or started in this process is not there for the next file's, whichever that is."""
    yield
    one_process.end()
    cluster.leave_ray()


@pytest.fixture(scope="session")
def ccp_df2() -> Path:
    """The folder of ccp_df2, real photos in DeepFashion2's layout; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CCP_DF2", REPO.parent / "shared" / "data" / "ccp_df2"))
    if not (folder / "val" / "image").is_dir():
        pytest.skip(f"no ccp_df2 at {folder}; set CCP_DF2 to its folder to run this test")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a moto server on a free port; credentials and region are set for this process and its children."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        _one_request_at_a_time(server)
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


def _one_request_at_a_time(server: Any) -> None:
    """Make moto's requests atomic, as S3's are.

    Between its look at If-None-Match and its write, and between an object and its metadata, moto lets others in.
    """
    app, turn = server._server.app, threading.Lock()

    def serve(environ: Any, start_response: Any) -> list[bytes]:
        with turn:
            return list(app(environ, start_response))

    server._server.app = serve


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Any:
    """The SDK's own client of that server; making one takes a third of a second."""
    import boto3

    return boto3.client("s3", endpoint_url=s3_endpoint)


@pytest.fixture
def s3_bucket(s3_endpoint: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket, "s3://NAME"; AWS_ENDPOINT_URL leads to its server, here and in child processes."""
    name = f"bucket-{secrets.token_hex(6)}"
    s3_client.create_bucket(Bucket=name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return f"s3://{name}"


@pytest.fixture
def s3_proxy(s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server of `s3_bucket`, which misbehaves on demand; AWS_ENDPOINT_URL leads to it."""
    with Proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(scope="session")
def seaweed(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A SeaweedFS server with the bucket "tests"; it takes the same credentials, or any."""
    import boto3

    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="tests")
        yield server


@pytest.fixture
def seaweed_prefix(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh "s3://tests/PREFIX" on it; AWS_ENDPOINT_URL leads there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed.url)
    return f"s3://tests/{secrets.token_hex(6)}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    """No waiting between attempts, and little for an answer."""
    from store import s3

    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "_pause_s", lambda _: 0.0)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
