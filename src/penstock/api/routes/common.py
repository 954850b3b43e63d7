"""Give routes what they share: the services, the exchange, the query, an empty body."""

from __future__ import annotations

from typing import Any, cast

from litestar import Request

from penstock.api.bodies import JSON, content_type, read_body
from penstock.api.exchange import Exchange
from penstock.api.fields import Checker
from penstock.api.front import SCOPE_KEY
from penstock.api.problems import field_error, invalid
from penstock.api.query import QueryParameter, read_query
from penstock.api.services import Services
from penstock.api.submission import ENVELOPE_BYTES

AnyRequest = Request[Any, Any, Any]

#: The keys under which a route's ``opt`` documents what the framework cannot see.
QUERY = "query"
PROBLEMS = "problems"


def services_of(request: AnyRequest) -> Services:
    """Return what all routes share."""
    return cast("Services", request.app.state["services"])


def exchange_of(request: AnyRequest) -> Exchange:
    """Return what the front knows of this request."""
    return cast("Exchange", cast("dict[str, Any]", request.scope)[SCOPE_KEY])


def query_of(request: AnyRequest, declared: tuple[QueryParameter, ...] = ()) -> dict[str, Any]:
    """Return the query parameters that are there.

    Raises:
        ApiError: everything that is wrong with them.
    """
    return read_query(exchange_of(request).query, declared, Checker(services_of(request).clock()))


async def json_body(request: AnyRequest) -> bytes:
    """Return the body of a JSON request, as large as that of a submit."""
    services = services_of(request)
    exchange = exchange_of(request)
    content_type(exchange.headers, (JSON,))
    limit = services.options.limits.payload_bytes + ENVELOPE_BYTES
    return await read_body(exchange.receive, exchange.headers, limit=limit, timeout_ms=services.options.body_timeout_ms)


async def no_body(request: AnyRequest) -> None:
    """Refuse a body that would be ignored; nothing and an empty object are fine.

    Raises:
        ApiError: there is one.
    """
    exchange = exchange_of(request)
    timeout_ms = services_of(request).options.body_timeout_ms
    body = await read_body(exchange.receive, exchange.headers, limit=1_024, timeout_ms=timeout_ms)
    if body.strip() not in (b"", b"{}"):
        raise invalid(field_error("", "unknown_field", "this route takes no body"))
