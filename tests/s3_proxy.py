"""An HTTP proxy before an S3 server, which misbehaves as a test asks.

A `Fault` names the requests and what is done to them.

In: the address of a server. Out: `url`, at which the same buckets answer, but for the faults switched on with `cause`.
Requests pass unchanged, Host included, so that signatures stay what they were. Every answer is held in memory whole.
"""

import contextlib
import http.client
import http.server
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
Sent = tuple[str, str]  # method, path with its query


@dataclass
class Fault:
    """What happens to some requests.

    Attributes:
        how: a name in FAULTS, or "STATUS CODE" of S3's error answer: "503 SlowDown".
        method: regular expression that matches the whole method.
        key: regular expression found in the unquoted path and query: "/BUCKET/KEY?…".
        share: of the requests that fit, by chance.
        first: so many at most.
        after: so many that fit pass before it begins.
    """

    how: str
    method: str
    key: str
    share: float
    first: float
    after: int


class Proxy:
    """A context manager. `cause` switches a fault on, `heal` ends all faults and `caused` counts them.

    `sent` lists the requests.
    """

    def __init__(self, server: str, *, seed: int = 0) -> None:
        self.host = urlsplit(server).netloc
        self.faults: list[Fault] = []
        self.caused: Counter[str] = Counter()
        self.sent: list[Sent] = []
        self.written: dict[str, float] = {}  # /BUCKET/KEY -> when
        self.late_s, self.stall_s = 0.0, 5.0
        self.chance, self.lock = random.Random(seed), threading.Lock()

    def __enter__(self) -> "Proxy":
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def cause(
        self,
        how: str,
        method: str = ".*",
        key: str = "",
        *,
        share: float = 1.0,
        first: float = float("inf"),
        after: int = 0,
    ) -> None:
        self.faults.append(Fault(how, method, key, share, first, after))

    def heal(self) -> None:
        self.faults.clear()
        self.late_s = 0.0

    def verdict(self, method: str, path: str) -> str | None:
        """The fault this request meets: of those that fit, the first whose turn it is."""
        with self.lock:
            self.sent.append((method, path))
            for fault in self.faults:
                if not (re.fullmatch(fault.method, method) and re.search(fault.key, path)):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.first > 0 and self.chance.random() < fault.share:
                    fault.first -= 1
                    self.caused[fault.how] += 1
                    return fault.how
        return None

    def without_the_newest(self, bucket: str, listing: bytes) -> bytes:
        """A listing as it was `late_s` ago, but for what was deleted since."""
        since = time.monotonic() - self.late_s

        def kept(entry: re.Match[bytes]) -> bytes:
            found = re.search(rb"<Key>(.*?)</Key>", entry[0])
            assert found is not None
            key = unquote(found[1].decode())
            if self.written.get(f"{bucket}/{key}", 0.0) < since:
                return entry[0]
            self.caused["late"] += 1
            return b""

        return re.sub(rb"<Contents>.*?</Contents>", kept, listing, flags=re.DOTALL)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients leave in the middle; that is what this is about


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        self.length = int(self.headers.get("Content-Length", 0))
        self.key = unquote(self.path)
        how = self.proxy.verdict(self.command, self.key)
        if how is None:
            self.give(*self.ask(self.rfile.read(self.length)))
        elif how in FAULTS:
            FAULTS[how](self)
        else:
            status, code = how.split()
            self.rfile.read(self.length)
            body = f"<Error><Code>{code}</Code><Message>said the proxy</Message></Error>".encode()
            self.give(int(status), {"Content-Type": "application/xml"}, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's own answer."""
        upstream = http.client.HTTPConnection(self.proxy.host, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            reply = upstream.getresponse()
            data = reply.read()
        except OSError:  # the server is down: so are we
            self.hang_up()
            raise
        finally:
            upstream.close()
        path, _, query = self.key.partition("?")
        if self.command in ("PUT", "POST") and reply.status == 200:
            self.proxy.written[path] = time.monotonic()
        if self.command == "GET" and "list-type=2" in query and self.proxy.late_s:
            data = self.proxy.without_the_newest(path.rstrip("/"), data)
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in OF_THE_CONNECTION}
        if self.command == "HEAD":
            headers["Content-Length"] = reply.getheader("Content-Length", "0")
        return reply.status, headers, data

    def give(self, status: int, headers: dict[str, str], body: bytes, missing: int = 0) -> None:
        """Send an answer whose length says `missing` bytes more than come."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _stall(request: _Handler) -> None:
    """No answer until the client has given up."""
    request.rfile.read(request.length)
    time.sleep(request.proxy.stall_s)
    request.hang_up()


def _drop(request: _Handler) -> None:
    """The connection ends in the middle of the body: of the request where it has one, else of the answer."""
    if request.length:
        request.rfile.read(request.length // 2)
    elif request.command == "GET":
        status, headers, body = request.ask(b"")
        half = body[: len(body) // 2]
        request.give(status, headers, half, missing=len(body) - len(half))
    request.hang_up()


def _lose(request: _Handler) -> None:
    """The server does what is asked, and its answer never arrives."""
    request.ask(request.rfile.read(request.length))
    request.hang_up()


def _truncate(request: _Handler) -> None:
    """Half of an object, with a length that says it is whole."""
    status, headers, body = request.ask(request.rfile.read(request.length))
    request.give(status, headers, body[: len(body) // 2] if status < 300 else body)


FAULTS: dict[str, Callable[[_Handler], None]] = {"stall": _stall, "drop": _drop, "lose": _lose, "truncate": _truncate}
