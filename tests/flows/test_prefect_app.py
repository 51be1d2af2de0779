"""Prefect's server answers programs of this machine and its own pages, and no page of another site."""

import asyncio
import http.client
import json
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.prefect_app import only_from_here
from flows.servers import prefect_server
from tests.flows.conftest import free_port


def status(headers, kind="http"):
    """Return the status of the answer; for a WebSocket, its first event."""
    sent = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]}
    asyncio.run(only_from_here(application)(scope, None, send))
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:4200", "localhost", "[::1]:4200", "127.0.0.2"])
def test_this_machine_is_answered(host):
    assert status({"host": host}) == 200
    assert status({"host": host, "origin": f"http://{host}"}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:4200",
        "",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "[::2]",
        "[",
    ],
)
def test_other_hosts_are_refused(host):
    assert status({"host": host}) == 403
    assert status({"host": host}, "websocket") == "websocket.close"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:5000", "http://localhost:4200"]
)
def test_pages_of_others_are_refused(origin):
    assert status({"host": "127.0.0.1:4200", "origin": origin}) == 403


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_any_header_is_answered_or_refused(host, origin):
    assert status({"host": host, "origin": origin}) in (200, 403)


@pytest.mark.slow
def test_the_real_server(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    port = free_port()
    with prefect_server(port) as url:
        answered, settings = ask(url, "GET", "/ui-settings")
        assert answered == 200
        assert json.loads(settings)["api_url"] == f"http://127.0.0.1:{port}/api"
        work = json.dumps({"name": "of-a-foreign-page"})
        assert ask(url, "POST", "/api/flows/", work, Origin="http://evil.example")[0] == 403
        assert ask(url, "POST", "/api/flows/", work, Host=f"evil.example:{port}")[0] == 403
        assert json.loads(ask(url, "POST", "/api/flows/filter", "{}")[1]) == []
        assert ask(url, "POST", "/api/flows/", work, Origin=url)[0] == 201


def ask(url, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
