"""MLflow stores that are made once, and a proxy before them that fails on request."""

import http.server
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import mlflow
import pytest


@pytest.fixture(autouse=True)
def _made_store(mlflow_store):
    """Copy a finished store, so that no test here waits until the tables are made."""


@pytest.fixture
def client(tmp_path):
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


class FaultyProxy(http.server.ThreadingHTTPServer):
    """A proxy that passes requests on; those that match ``pattern`` fail ``times`` times, as ``kind`` says."""

    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.clear()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def clear(self):
        self.pattern, self.kind, self.times, self.hits = None, "", 0, 0

    def fail(self, pattern, kind, times=10**6):
        self.pattern, self.kind, self.times, self.hits = re.compile(pattern), kind, times, 0

    def handle_error(self, request, client_address):
        """Report nothing: a client that has gone is no fault."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultyProxy

    def _pass(self):
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        failing = proxy.times and proxy.pattern.search(f"{self.command} {self.path} {(body or b'')[:300]!r}")
        kind = proxy.kind if failing else ""
        if failing:
            proxy.times -= 1
            proxy.hits += 1
        if kind == "cut off":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if kind == "slow":
            time.sleep(3)
        if kind.isdigit():
            self._answer(int(kind), {}, b"")
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
        request = urllib.request.Request(proxy.upstream + self.path, body, headers, method=self.command)
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        content = answer.read()
        passed = {key: value for key, value in answer.headers.items() if key.lower() == "content-type"}
        self._answer(answer.status, passed, *_damaged(content, kind))

    def _answer(self, status, headers, content, length=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

    def log_message(self, *_):
        """Log nothing."""


def _damaged(content, kind):
    """Return the part of an answer that arrives, and the length that the answer states."""
    if kind == "empty":
        return b"", 0
    if kind == "half":
        return content[: len(content) // 2], len(content) // 2
    if kind == "truncated":
        return content[: len(content) // 2], len(content)
    return content, len(content)


@pytest.fixture
def make_proxy():
    """Put a `FaultyProxy` before a server."""
    made = []

    def make(upstream):
        proxy = FaultyProxy(upstream)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.shutdown()
        proxy.server_close()
