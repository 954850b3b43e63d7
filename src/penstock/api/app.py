"""Put the API together."""

from __future__ import annotations

from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from penstock.api.bodies import ClientGone
from penstock.api.exchange import Reply
from penstock.api.front import Front, note_error, problem_reply
from penstock.api.hot import hot_routes
from penstock.api.openapi import document_text
from penstock.api.options import ApiOptions
from penstock.api.problems import (
    BAD_REQUEST,
    METHOD_NOT_ALLOWED,
    ROUTE_NOT_FOUND,
    ApiError,
    from_exception,
)
from penstock.api.routes import ROUTES
from penstock.api.routes.common import AnyRequest, exchange_of
from penstock.api.services import Services
from penstock.store.protocol import Store


def create_app(store: Store, options: ApiOptions) -> Front:
    """Return the ASGI application; it neither opens nor closes the store."""
    services = Services(store, options)
    framework = Litestar(
        route_handlers=ROUTES,
        # The document is made once, with what the framework cannot see; it serves none of its own.
        openapi_config=None,
        exception_handlers={Exception: _answer_error},
        logging_config=None,
        state=State({"services": services, "openapi": document_text()}),
        on_shutdown=[services.tasks.close, services.memory.close],
        # Bodies are read by our own reader, with its own limits.
        request_max_body_size=None,
    )
    return Front(services, hot_routes(services), framework)


def _answer_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    exchange = exchange_of(request)
    if isinstance(error, ClientGone):
        return Response(b"", status_code=499)
    problem = _framework_problem(error, request) if isinstance(error, HTTPException) else from_exception(error)
    if not isinstance(error, HTTPException):
        note_error(error, exchange)
    reply: Reply = problem_reply(problem, exchange)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, status_code=reply.status, media_type=reply.content_type, headers=headers)


def _framework_problem(error: HTTPException, request: AnyRequest) -> ApiError:
    """Turn what the framework refuses by itself into a problem."""
    path = request.scope["path"][:256]
    if error.status_code == 404:
        return ApiError(ROUTE_NOT_FOUND, f"{path!r} is no route of this server; /docs lists them.")
    if error.status_code == 405:
        allowed = sorted({name.strip() for name in (error.headers or {}).get("allow", "").split(",")})
        if "GET" in allowed:
            allowed = sorted({*allowed, "HEAD"})
        names = ", ".join(allowed)
        detail = f"{path!r} takes {names}, not {exchange_of(request).method[:32]}."
        return ApiError(METHOD_NOT_ALLOWED, detail, headers={"Allow": names})
    if error.status_code >= 500:
        return from_exception(error)
    return ApiError(BAD_REQUEST, f"{error.detail}")


__all__ = ["create_app"]
