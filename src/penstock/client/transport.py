"""Translate between the core's values and httpx, for both shells."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx

from penstock.client.core import Answer, Call, ClientCore, NoAnswer

#: The server closes an idle connection after 5 s; one that is about to be closed must not carry a submit.
_KEEP_ALIVE_SECONDS = 3.0
_CONNECT_SECONDS = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: A connection that was never made carried nothing.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def make_core(url: str | None, api_key: str | None, *, retries: int, timeout_seconds: float) -> ClientCore:
    """Return the core, with what was not given from the settings. Raises ConfigError, ValueError."""
    if url is None or api_key is None:
        from penstock.config import load_client

        settings = load_client()
        api_key = settings.api_key if api_key is None else api_key
        url = settings.server_url if url is None else url
    return ClientCore(url=url.rstrip("/"), api_key=api_key or None, retries=retries, timeout_seconds=timeout_seconds)


def transport_options(core: ClientCore) -> dict[str, Any]:
    """Return the arguments of both httpx clients."""
    parts = urlsplit(core.url)
    options: dict[str, Any] = {
        "base_url": core.url,
        "headers": core.headers,
        "limits": httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS),
        # No proxy stands between us and this machine.
        "trust_env": parts.hostname not in _LOOPBACK,
    }
    if parts.scheme == "http":
        # Loading the certificates of all authorities takes longer than a request; this context trusts none.
        options["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return options


def request_options(call: Call) -> dict[str, Any]:
    """Return the arguments of ``request``."""
    return {
        "method": call.method,
        "url": call.path,
        "params": list(call.params) or None,
        "content": call.body,
        "headers": ([("content-type", "application/json")] if call.body is not None else []) + list(call.headers),
        "timeout": httpx.Timeout(call.timeout_seconds, connect=_CONNECT_SECONDS),
    }


def answer_of(response: httpx.Response) -> Answer:
    return Answer(
        status=response.status_code,
        body=response.content,
        retry_after=response.headers.get("retry-after"),
        replayed=response.headers.get("idempotency-replayed") == "true",
        existing=response.headers.get("unique-existing") == "true",
    )


def no_answer_of(error: httpx.TransportError) -> NoAnswer:
    detail = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError) and "refused" in detail.lower():
        detail = "connection refused"
    return NoAnswer(detail=detail, sent=not isinstance(error, _NEVER_SENT))
