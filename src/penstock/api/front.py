"""Stand in front of all routes: request id, guard, bare routes, errors, log, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import structlog
from litestar.types import ASGIApp, HTTPResponseStartEvent, HTTPScope, Message, Receive, Scope, Send

from penstock.api.bodies import ClientGone
from penstock.api.exchange import Exchange, Reply
from penstock.api.guard import Guard
from penstock.api.hot import HotRoute
from penstock.api.problems import PROBLEM_JSON, ApiError, from_exception
from penstock.api.services import Services
from penstock.core import events

#: Where routes find the exchange in the ASGI scope.
SCOPE_KEY = "penstock.exchange"
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"})
_log = structlog.get_logger("penstock.api")


def problem_reply(error: ApiError, exchange: Exchange) -> Reply:
    """Render an error: the one place that does."""
    headers = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items())
    return Reply(error.kind.status, error.body(exchange.request_id), PROBLEM_JSON, headers)


def note_error(error: BaseException, exchange: Exchange) -> None:
    """Log an error that nobody expected, with its traceback."""
    if not isinstance(error, ApiError) and from_exception(error).kind.status == 500:
        _log.error(
            events.REQUEST_CRASHED,
            message=f"{exchange.method} {exchange.path} stopped with {type(error).__name__}.",
            request_id=exchange.request_id,
            exc_info=error,
        )


class Front:
    """Be the whole application; ``framework`` gets what is not a bare route."""

    def __init__(self, services: Services, hot: Mapping[tuple[str, str], HotRoute], framework: ASGIApp) -> None:
        self.services = services
        self._guard = Guard(services.options)
        self._hot = hot
        self._framework = framework

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = str(scope["type"])
        if kind == "http":
            await self._serve(cast("HTTPScope", scope), receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        else:
            await self._framework(scope, receive, send)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        hot: HotRoute | None = None
        try:
            try:
                self._guard.check(exchange.path, exchange.headers)
                hot = self._hot.get((exchange.method, exchange.path))
                if hot is not None:
                    exchange.route = exchange.path
                    await _send(await hot(exchange), exchange, send)
                else:
                    await self._through_framework(scope, exchange, send)
            except (ClientGone, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever happened, the client gets a problem
                note_error(error, exchange)
                if exchange.status == 0:
                    problem = from_exception(error)
                    if hot is not None:
                        self.services.metrics.refused(problem.kind.code)
                    await _send(problem_reply(problem, exchange), exchange, send)
        except ClientGone:
            exchange.status = 499
        finally:
            self._record(exchange, is_hot=hot is not None)

    async def _through_framework(self, scope: HTTPScope, exchange: Exchange, send: Send) -> None:
        inner = cast("dict[str, Any]", dict(scope))
        inner[SCOPE_KEY] = exchange
        if exchange.method == "HEAD":
            # The server leaves the body out; everything else is as for GET.
            inner["method"] = "GET"
        inner["path"] = exchange.path

        async def framework_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_common_headers(exchange)]
            await send(message)

        try:
            await self._framework(cast("Scope", inner), exchange.receive, framework_send)
        finally:
            exchange.route = inner.get("path_template") or ""

    def _record(self, exchange: Exchange, *, is_hot: bool) -> None:
        seconds = exchange.elapsed_seconds
        method = exchange.method if exchange.method in _METHODS else "other"
        status = exchange.status or 500
        self.services.metrics.observe(method, exchange.route or "unmatched", status, seconds)
        if not self.services.options.access_log or (is_hot and status < 400):
            # A line for each taken job would cost more than taking it; the metrics count them.
            return
        level = "error" if status >= 500 else "info"
        getattr(_log, level)(
            events.REQUEST_FINISHED,
            message=f"{exchange.method} {exchange.path[:256]} answered {status}.",
            method=exchange.method,
            path=exchange.path[:256],
            status_code=status,
            duration_ms=round(seconds * 1_000, 3),
            request_id=exchange.request_id,
            **({"job_id": exchange.job_id} if exchange.job_id else {}),
        )


def _common_headers(exchange: Exchange) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"x-request-id", exchange.request_id.encode("latin-1")), (b"x-content-type-options", b"nosniff"))


async def _send(reply: Reply, exchange: Exchange, send: Send) -> None:
    exchange.status = reply.status
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": reply.status,
        "headers": [
            (b"content-type", reply.content_type.encode("latin-1")),
            (b"content-length", str(len(reply.body)).encode("latin-1")),
            *_common_headers(exchange),
            *reply.headers,
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})
