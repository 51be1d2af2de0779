"""Access to Prefect's server: through a proxy that is not there, during an outage, and without any server."""

import http.server
import threading
import time

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import showing
from flows.reach import require_server
from flows.servers import answers
from flows.showing import show
from pipeline.errors import UserError
from pipeline.loopback import without_proxy
from tests.flows.conftest import free_port


@pytest.fixture(autouse=True)
def _no_outage(monkeypatch):
    monkeypatch.setattr(showing, "_quiet_until", 0.0)


def test_loopback_is_never_asked_of_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert answers(f"http://127.0.0.1:{server.server_address[1]}/")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "example.org"}, "example.org,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a, localhost", "no_proxy": "b"}, "b,a,localhost,127.0.0.1,::1"),
    ],
)
def test_hosts_that_are_reached_directly_stay(before, after):
    made = without_proxy({"http_proxy": "http://proxy:3128", **before})
    assert made == {"http_proxy": "http://proxy:3128", "no_proxy": after, "NO_PROXY": after}


def test_no_proxy_at_all_stays():
    assert without_proxy({"no_proxy": "*"}) == {"no_proxy": "*"}


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that refuses everybody."""

    def do_GET(self):
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_):
        """Log nothing."""


def test_a_server_that_refuses_is_not_one_that_is_away():
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(UserError) as caught:
            require_server()
        server.shutdown()
    assert str(caught.value) == (
        f"PREFECT_API_URL = {url}: the server refuses this client (HTTP status 401); set PREFECT_API_AUTH_STRING to the"
        " server's name:password"
    )


def test_a_server_that_is_not_there_is_one_line():
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(UserError) as caught:
        require_server()
    assert str(caught.value).startswith(f"PREFECT_API_URL = {url}: no Prefect server answers (ConnectError")
    assert "\n" not in str(caught.value)


def test_what_only_shows_fails_with_one_warning_for_an_outage(caplog):
    calls = []

    def refused():
        calls.append(1)
        raise httpx.ConnectError("refused")

    assert show(refused) is None
    assert show(refused) is None
    assert len(calls) == 1  # for a while, the server is not asked again
    assert [record.message for record in caplog.records] == [
        "Prefect does not accept this run's progress and artifacts (ConnectError: refused)"
    ]
    showing._quiet_until = time.monotonic() - 1
    assert show(lambda: 7) == 7
    assert show(lambda: 8) == 8


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        show(lambda: 1 / 0)
