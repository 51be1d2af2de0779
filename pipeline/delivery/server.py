"""``pneumoflow serve``: MLflow's scoring protocol over HTTP, for requests that may be hostile.

MLflow's own scoring server reads a body of any size, and answers a bad one with its content and a stack trace; nothing
in a model can change that. This server has the same addresses and the same formats, JSON and CSV.
"""

import asyncio
import contextlib
import json
import logging
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.delivery.request_body import parse_body
from pipeline.delivery.served import RequestError, ServedModel

logger = logging.getLogger(__name__)

_CODES = {404: "ENDPOINT_NOT_FOUND", 503: "TEMPORARILY_UNAVAILABLE", 500: "INTERNAL_ERROR"}
_UNREAD = (413, 503)  # with these, the body is not read, or not to its end
_CONNECTIONS = 128
_DRAIN_SECONDS = 10


def serve(model: ServedModel, host: str, port: int) -> None:
    """Answer requests until a signal comes."""
    config = uvicorn.Config(
        make_app(model),
        host=host,
        port=port,
        access_log=False,  # requested addresses are text from clients
        log_level="warning",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run()


def make_app(model: ServedModel) -> Starlette:
    """Make the application: /ping, /health, /version and /invocations."""
    limits = model.limits
    turns = asyncio.Semaphore(limits.max_requests)
    threads = ThreadPoolExecutor(limits.max_requests, thread_name_prefix="request")
    waiting = 0

    async def ping(_: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def mlflow_version(_: Request) -> Response:
        return Response(version("mlflow"), media_type="application/json")

    async def answer(request: Request) -> str:
        """Wait for a turn, and only then read the body."""
        nonlocal waiting
        if turns.locked() and waiting >= limits.max_waiting:
            raise RequestError(503, "busy: too many requests wait already")
        waiting += 1
        try:
            await turns.acquire()
        finally:
            waiting -= 1
        try:
            body = await _body(request, limits.max_body_bytes, limits.request_seconds)
            kind = request.headers.get("content-type", "")
            return await asyncio.get_running_loop().run_in_executor(threads, _answer, model, body, kind)
        finally:
            turns.release()

    async def invocations(request: Request) -> Response:
        try:
            return Response(await answer(request), media_type="application/json")
        except RequestError as error:
            if error.status in _UNREAD:
                await _drain(request)
            return _refusal(error.status, error.message)

    routes = [Route("/ping", ping), Route("/health", ping), Route("/version", mlflow_version)]
    routes.append(Route("/invocations", invocations, methods=["POST"]))
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_such_place})  # type: ignore[dict-item]


async def _body(request: Request, limit: int, seconds: float) -> bytes:
    """Read the body; never more of it than is allowed is in memory."""
    too_large = RequestError(413, f"the body is too large; at most {limit} bytes are accepted")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 15 or int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {seconds:g} s") from None
    except ClientDisconnect:
        raise RequestError(400, "the body ended early") from None
    return bytes(body)


async def _drain(request: Request) -> None:
    """Let a refused client send the rest of its body for a moment: otherwise it may not see the answer."""
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: all of it was read before
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in request.stream():
                pass


def _answer(model: ServedModel, body: bytes, content_type: str) -> str:
    try:
        return json.dumps({"predictions": model.answer(parse_body(body, content_type))}, allow_nan=False)
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a request does, the next one is answered
        frames = traceback.extract_tb(error.__traceback__)
        # The error's message is left out, because it may quote a study.
        logger.error("a request failed: %s in line %d of %s", type(error).__name__, frames[-1].lineno, frames[-1].name)
        raise RequestError(500, "the request could not be answered") from None


def _refusal(status: int, message: str) -> Response:
    content = {"error_code": _CODES.get(status, "BAD_REQUEST"), "message": message}
    headers = {"connection": "close"} | ({"retry-after": "1"} if status == 503 else {})
    return Response(json.dumps(content), status, headers, "application/json")


async def _no_such_place(_: Request, error: HTTPException) -> Response:
    return _refusal(error.status_code, "POST to /invocations; GET /ping, /health or /version")
