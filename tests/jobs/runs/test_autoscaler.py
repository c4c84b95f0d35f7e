"""What an autoscaler could still start, from its configuration and the nodes that are there."""

import datetime
import http.server
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.runs import autoscaler

HEAD, GPU, CPU = {"CPU": 8, "GPU": 0}, {"CPU": 8, "GPU": 1}, {"CPU": 32}
TYPES = {
    "head": {"resources": HEAD, "max_workers": 0},
    "gpu": {"resources": GPU, "max_workers": 3},
    "cpu": {"resources": CPU},
}
CONFIG: dict[str, Any] = {"max_workers": 4, "head_node_type": "head", "available_node_types": TYPES}


@pytest.mark.parametrize("alive, want", [
    ([HEAD], [GPU, GPU, GPU, CPU]),                    # four in all, those with a GPU first
    ([HEAD, GPU | {"memory": 1e9}], [GPU, GPU, CPU]),  # one of the four is there, and it is one of the three
    ([HEAD, GPU, GPU, GPU], [CPU]),
    ([HEAD, CPU, CPU, CPU, CPU], []),                  # all four are there, and none has a GPU
    ([HEAD] + [GPU] * 9, []),                          # nodes may also have joined by hand
])  # fmt: skip
def test_a_type_has_so_many_nodes_left_and_the_cluster_too(alive: list[dict], want: list[dict]) -> None:
    assert autoscaler.nodes_left(CONFIG, alive) == want


def test_a_head_is_not_started_twice() -> None:
    types = {"head": {"resources": GPU}, "other": {"resources": GPU}}
    assert autoscaler.nodes_left(CONFIG | {"available_node_types": types}, [GPU]) == [GPU] * 3


def test_without_an_autoscaler_there_is_nothing_to_start() -> None:
    assert autoscaler.nodes_left({}, [HEAD]) == []


def test_our_cluster_file_starts_eight_nodes_of_a_gpu() -> None:
    config = yaml.safe_load((Path(__file__).resolve().parents[3] / "cluster.yaml").read_text())
    assert autoscaler.nodes_left(config, [HEAD]) == [GPU] * 8


@pytest.mark.parametrize("words, found", [
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379", "--autoscaling-config={file}"], True),
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379"], False),  # a cluster of a fixed size
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.2:6379", "--autoscaling-config={file}"], False),
    (["vi", "--autoscaling-config={file}", "10.0.0.1:6379"], False),
    (["python", "/ray/monitor.py", "--gcs-address=10.0.0.1:6379", "--autoscaling-config={file}-gone"], False),
])  # fmt: skip
def test_the_monitor_of_this_cluster_names_the_file(
    words: list[str], found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    lines = [[sys.executable], [word.format(file=file) for word in words]]
    monkeypatch.setattr(autoscaler, "_command_lines", lambda: iter(lines))
    assert autoscaler._config("10.0.0.1:6379") == (CONFIG if found else {})


REPO = Path(__file__).resolve().parents[3]
ASK = """
import json
from jobs.runs import autoscaler
autoscaler.PAUSES_S = (0.1, 0.1)
for _ in range(2):
    left = autoscaler.startable([{"CPU": 0}, {"CPU": 7, "GPU": 1}])
print(json.dumps(left))
"""


def certificate(folder: Path) -> Path:
    """A file with a key and its own certificate, for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    signed = made.add_extension(address, critical=True).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    plain = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "kubernetes.pem").write_bytes(plain + signed.public_bytes(encoding))
    return folder / "kubernetes.pem"


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """RayClusters by path, which a test fills, and the environment of a pod that may read them over HTTPS."""
    clusters: dict[str, Any] = {}
    failures = [True, True]  # the first two requests

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = clusters.get(self.path)
            self.send_response(503 if failures and failures.pop() else 200 if found else 403)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

    pem = certificate(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ("RAY_KUBERAY_CA_CERT_PATH", "RAY_KUBERAY_CLIENT_CERT_PATH", "RAY_KUBERAY_CLIENT_KEY_PATH")
    place = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port)}
    names_of_it = {"RAY_CLUSTER_NAMESPACE": "shops", "RAY_CLUSTER_NAME": "full-eval-x"}
    yield clusters, os.environ | place | dict.fromkeys(names, str(pem)) | names_of_it
    server.shutdown()
    server.server_close()


def asked(env: dict[str, str]) -> tuple[list[dict[str, float]], str]:
    """In a process of its own, as Ray reads the environment when it is imported: the nodes left, and what was said."""
    done = subprocess.run([sys.executable, "-c", ASK], env=env, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize("file", ["kuberay.yaml", "kuberay-nightly.yaml"])
def test_on_kuberay_the_ray_cluster_of_our_job_says_what_may_be_started(kubernetes: Any, file: str) -> None:
    clusters, env = kubernetes
    (job,) = (
        job
        for text in yaml.safe_load_all((REPO / "deploy" / file).read_text())
        for job in (yaml.safe_load(text["data"]["rayjob.yaml"]) if text["kind"] == "ConfigMap" else text,)
        if job["kind"] == "RayJob"
    )
    spec = job["spec"]["rayClusterSpec"]
    about = {"metadata": {"name": "full-eval-x", "namespace": "shops"}, "spec": spec}
    clusters["/apis/ray.io/v1/namespaces/shops/rayclusters/full-eval-x"] = about
    left, said = asked(env)
    assert [(node["CPU"], node["GPU"]) for node in left] == [(7, 1)] * 7  # one of the eight is there
    assert "cannot be read" not in said
    spec["enableInTreeAutoscaling"] = False
    assert asked(env)[0] == []


def test_a_ray_cluster_that_may_not_be_read_is_named_with_what_to_say_instead(kubernetes: Any) -> None:
    left, said = asked(kubernetes[1])
    assert left == []
    assert said.count("RayCluster full-eval-x cannot be read (HTTPError: 403") == 1 and "--set device=cuda" in said


def test_outside_of_kubernetes_there_is_no_token(kubernetes: Any) -> None:
    env = {name: value for name, value in kubernetes[1].items() if not name.startswith("RAY_KUBERAY_")}
    left, said = asked(env)
    assert left == [] and "serviceaccount" in said
