"""The review page as a web application: static files, the queue as JSON, images, and answers that are durable."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hpctool.errors import HpctoolError, InputError
from hpctool.review.answers import check_person
from hpctool.review.keys import class_keys
from hpctool.review.picture import is_image, png, text, values
from hpctool.review.queue import Queue

_PAGE = Path(__file__).parent / "page"
_MAX_BODY_BYTES = 16_384
_MAX_SHOWN = 10  # of the model's probabilities for one item
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NO_TOKEN = "This page needs its token. Open the whole URL that `hpctool review serve` printed.\n"  # noqa: S105


def make_app(queue: Queue, token: str) -> Starlette:
    """The application; whoever comes without the token gets 401 and sees nothing."""
    page = _Page(queue)
    routes = [
        Route("/", page.index),
        Route("/page.css", page.css),
        Route("/page.js", page.js),
        Route("/queue", page.queue_json),
        Route("/image/{place:int}.png", page.image),
        Route("/answers", page.take, methods=["POST"]),
    ]
    handlers: Any = {HpctoolError: _refused, OSError: _failed}
    guard = Middleware(_Guard, token=token, cookie=f"hpctool-{queue.id}")
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


class _Guard(BaseHTTPMiddleware):
    """The token once in the URL, then in a cookie that scripts cannot read; or as `Authorization: Bearer`."""

    def __init__(self, app: Any, token: str, cookie: str) -> None:
        super().__init__(app)
        self._token = token
        # Browsers send a cookie to all ports of a host: each review has a name of its own.
        self._cookie = cookie

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        asked = request.query_params.get("token", "")
        shown = [asked, request.cookies.get(self._cookie, ""), _bearer(request)]
        if not any(hmac.compare_digest(one.encode(), self._token.encode()) for one in shown):
            return PlainTextResponse(
                _NO_TOKEN, HTTPStatus.UNAUTHORIZED, headers={**_HEADERS, "Cache-Control": "no-store"}
            )
        response = await call_next(request)
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        if hmac.compare_digest(asked.encode(), self._token.encode()):
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", max_age=30 * 86_400)
        return response


class _Page:
    """The routes of one queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def index(self, request: Request) -> Response:
        return FileResponse(_PAGE / "page.html")

    def css(self, request: Request) -> Response:
        return FileResponse(_PAGE / "page.css")

    def js(self, request: Request) -> Response:
        return FileResponse(_PAGE / "page.js")

    def queue_json(self, request: Request) -> Response:
        """Everything that the page shows to one person (`who`; nobody's answers without)."""
        queue, person = self.queue, request.query_params.get("who", "")
        mine = queue.history(check_person(person)) if person else []
        return JSONResponse({
            "id": queue.id,
            "subject": queue.subject,
            "of_rows": queue.of_rows,
            "dataset": queue.dataset,
            "classes": queue.classes,
            "keys": class_keys(queue.classes),
            "items": [self._item(place) for place in range(len(queue.items))],
            "answers": [{"item": a.item, "label": a.label, "client": a.client} for a in mine],
        })  # fmt: skip

    def image(self, request: Request) -> Response:
        place = int(request.path_params["place"])
        if place >= len(self.queue.items) or not is_image(self.queue):
            return PlainTextResponse("There is no such image.\n", HTTPStatus.NOT_FOUND)
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(png(self.queue, place), media_type="image/png", headers=headers)

    async def take(self, request: Request) -> Response:
        """One answer or undo; "saved" is said when it is on disk."""
        if int(request.headers.get("content-length", _MAX_BODY_BYTES + 1)) > _MAX_BODY_BYTES:
            return _error("An answer is shorter than that.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            # json takes lone surrogates, which no answer can repeat, and ends at deep nesting by RecursionError.
            fact = orjson.loads(await request.body())
            item, person, client = (str(fact[key]) for key in ("item", "who", "client"))
        except (ValueError, KeyError, TypeError):
            return _error("An answer is JSON with item, who, client, and label or undo.", HTTPStatus.BAD_REQUEST)
        if "undo" in fact:
            await run_in_threadpool(self.queue.undo, item, str(fact["undo"]), person, client)
        else:
            label = fact.get("label")
            if "label" not in fact or (label is not None and type(label) is not int):
                raise InputError(f"Label {label!r} is neither the index of a class nor null for a skip.")
            await run_in_threadpool(self.queue.answer, item, label, person, client)
        return JSONResponse({"saved": client})

    def _item(self, place: int) -> dict[str, Any]:
        item, probabilities = self.queue.items[place], self.queue.probabilities[place]
        shown = (-probabilities).argsort(kind="stable")[:_MAX_SHOWN]
        found = {
            "item": item.prediction,
            "guess": item.guess if item.guess >= 0 else None,
            "probabilities": {str(label): round(float(probabilities[label]), 4) for label in shown},
        }
        if is_image(self.queue):
            return found
        if (said := text(self.queue, place)) is not None:
            return {**found, "text": said}
        return {**found, "values": values(self.queue.inputs[place], self.queue.record["names"])}


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _error(sentence: str, status: HTTPStatus) -> Response:
    return JSONResponse({"error": sentence}, status)


def _refused(request: Request, error: HpctoolError) -> Response:
    wrong = isinstance(error, InputError)
    return _error(str(error), HTTPStatus.BAD_REQUEST if wrong else HTTPStatus.INTERNAL_SERVER_ERROR)


def _failed(request: Request, error: OSError) -> Response:
    return _error(f"It could not be saved: {error.strerror or error}.", HTTPStatus.INSUFFICIENT_STORAGE)
