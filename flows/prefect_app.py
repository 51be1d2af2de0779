"""Prefect's server as an ASGI application that answers only programs of this machine, and its own pages.

Prefect has no accounts here: without this, a web page of any site that is open in a browser of this machine could
start runs, directly or through a host name that it has pointed to this machine (DNS rebinding).
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> Application:
    """Return Prefect's application behind `only_from_here`; uvicorn calls this."""
    from prefect.server.api.server import create_app as create_prefect

    return only_from_here(create_prefect())


def only_from_here(application: Application) -> Application:
    """Wrap an application: a request that names another host than this machine, or comes from a foreign page, gets 403.

    A browser sends the header ``Origin`` with each request that a page makes to another site; other programs have no
    reason to.
    """

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := _refusal(dict(scope["headers"]))):
            await _refuse(scope, send, reason)
            return
        await application(scope, receive, send)

    return guarded


def _refusal(headers: dict[bytes, bytes]) -> str:
    """Return why a request is refused; an empty string if it is not."""
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
    if not _is_loopback(host):
        return "the header Host names another machine than this one"
    if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
        return "the header Origin names a page of another server"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _refuse(scope: Message, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"refused: {reason}\n".encode()})
