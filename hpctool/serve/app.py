"""The web application: routes of the Open Inference Protocol v2, the token, the limits, and every error as JSON."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hpctool
from hpctool.serve import protocol
from hpctool.serve.batcher import Answer, Batcher
from hpctool.serve.log import say_error
from hpctool.serve.metrics import Metrics
from hpctool.serve.protocol import Refused
from hpctool.serve.runtime import Runtime, Served, unknown_version

#: After this time we look whether the client of an unanswered request is still there.
PATIENCE_S = 1.0

#: Whoever looks whether a server lives has no token.
OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")


@dataclass
class Service:
    """What the routes need."""

    runtime: Runtime
    batcher: Batcher
    metrics: Metrics
    #: empty: everybody may ask
    token: str
    max_body_bytes: int
    max_backlog_rows: int

    async def infer(self, request: Request) -> Response:
        """POST …/infer: validate, queue, wait, answer."""
        served = self._served(request)
        if self.runtime.backlog_rows > self.max_backlog_rows:
            raise Refused(503, "The journal cannot be written, so nothing is answered.", {"Retry-After": "5"})
        version = served.bundle.version if "version" in request.path_params else ""
        query = protocol.parse(await self._body(request), served.signature, version)
        answer = await self._answer(self.batcher.submit(query), request)
        by = answer.model
        assert isinstance(by, Served)
        version_of = (by.bundle.name, by.bundle.version)
        return _json(protocol.encode(query, version_of, by.writer.writer, answer.first, answer.outputs))

    async def server(self, _request: Request) -> Response:
        """GET /v2."""
        return _json({"name": "hpctool", "version": hpctool.__version__, "extensions": []})

    async def live(self, _request: Request) -> Response:
        """GET /v2/health/live."""
        return _json({"live": True})

    async def ready(self, _request: Request) -> Response:
        """GET /v2/health/ready: whether requests would be answered."""
        ready = self.runtime.backlog_rows <= self.max_backlog_rows
        return _json({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        """GET /v2/models/{name}: the signature, and what is in service."""
        served = self._served(request)
        parameters = {
            "content": served.manifest["content"],
            "bundle": served.manifest["digest"],
            "refused": self.runtime.refused,
        }
        return _json(protocol.metadata(served.bundle.name, served.bundle.version, served.signature, parameters))

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}/ready."""
        served = self._served(request)
        names = {"name": served.bundle.name, "version": served.bundle.version}
        return _json({**names, "ready": True, "refused": self.runtime.refused})

    async def metrics_page(self, _request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.page(), media_type="text/plain; version=1.0.0")

    def _served(self, request: Request) -> Served:
        served, asked = self.runtime.current, request.path_params
        if asked["name"] != served.bundle.name:
            raise Refused(404, f"There is no model '{asked['name']}' here; there is: {served.bundle.name}.")
        version = asked.get("version", "")
        if version and version.lstrip("0") != served.bundle.version.lstrip("0"):
            raise unknown_version(served, version)
        return served

    async def _body(self, request: Request) -> bytes:
        """The body, unless it is too large: that is known from its length, or as soon as too much has come."""
        limit = self.max_body_bytes
        said = request.headers.get("content-length", "0")
        parts, size_bytes = [], int(said) if said.isdecimal() else 0
        if size_bytes <= limit:
            size_bytes = 0
            try:
                async for part in request.stream():
                    size_bytes += len(part)
                    if size_bytes > limit:
                        break
                    parts.append(part)
            except ClientDisconnect:
                raise _gone() from None
        if size_bytes > limit:
            sentence = f"The body has more than {limit} bytes. Send it in parts, or raise serve.max_body_mb."
            raise Refused(413, sentence, {"Connection": "close"})
        return b"".join(parts)

    async def _answer(self, future: asyncio.Future[Answer], request: Request) -> Answer:
        """Wait for the answer; a client that leaves meanwhile is not computed for."""
        watches: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        timer = loop.call_later(PATIENCE_S, lambda: watches.append(loop.create_task(_give_up(request, future))))
        try:
            return await future
        except asyncio.CancelledError:
            if watches and watches[0].done():
                raise _gone() from None
            raise
        finally:
            timer.cancel()
            for watch in watches:
                watch.cancel()


def make_app(service: Service) -> ASGIApp:
    """The application; `Guard` stands in front of it."""
    model = "/v2/models/{name}"
    routes: list[tuple[str, Callable[[Request], Awaitable[Response]], str]] = [
        (f"{model}/infer", service.infer, "POST"),
        (f"{model}/versions/{{version}}/infer", service.infer, "POST"),
        ("/v2", service.server, "GET"),
        ("/v2/health/live", service.live, "GET"),
        ("/v2/health/ready", service.ready, "GET"),
        (model, service.model, "GET"),
        (f"{model}/versions/{{version}}", service.model, "GET"),
        (f"{model}/ready", service.model_ready, "GET"),
        (f"{model}/versions/{{version}}/ready", service.model_ready, "GET"),
        ("/metrics", service.metrics_page, "GET"),
    ]
    handlers: Any = {Refused: _refused, HTTPException: _not_found, Exception: _failed}
    starlette = Starlette(routes=[Route(p, f, methods=[m]) for p, f, m in routes], exception_handlers=handlers)
    return Guard(starlette, service.token, service.metrics)


class Guard:
    """Before everything else: the token is compared, and every answer is counted."""

    def __init__(self, app: ASGIApp, token: str, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics
        self._expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(str(message["status"])).inc()
                self.metrics.request_s.observe(time.perf_counter() - began)
            await send(message)

        if scope["path"] in OPEN_PATHS or self._is_known(scope):
            await self.app(scope, receive, counted)
        else:
            sentence = "The token is missing or wrong; send 'Authorization: Bearer …' with the content of token_file."
            await _error(401, sentence, {"WWW-Authenticate": "Bearer"})(scope, receive, counted)

    def _is_known(self, scope: Scope) -> bool:
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return not self._expected or secrets.compare_digest(said, self._expected)


async def _give_up(request: Request, future: asyncio.Future[Answer]) -> None:
    """Cancel a request whose client has left."""
    if await request.is_disconnected() or (await request.receive())["type"] == "http.disconnect":
        future.cancel()


def _gone() -> Refused:
    """Nobody reads it; it is counted."""
    return Refused(499, "The client has gone.")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, str(error), error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}. POST /v2/models/<name>/infer asks a model."
    return _error(error.status_code, sentence, dict(error.headers or {}))


async def _failed(_request: Request, error: Exception) -> Response:
    say_error("".join(traceback.format_exception(error)))
    return _error(500, f"The server failed: {type(error).__name__}: {error}", {})


def _error(status: int, sentence: str, headers: dict[str, str]) -> Response:
    response = _json({"error": sentence}, status)
    response.headers.update(headers)
    return response


def _json(value: Any, status: int = 200) -> Response:
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    return Response(body, status, media_type="application/json")
