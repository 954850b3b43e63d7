"""Carry one request and its answer through the front, the routes and the log."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import msgspec
from litestar.types import HTTPScope, Receive

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Reply(msgspec.Struct, frozen=True):
    """Answer a request; ``headers`` come besides type and length."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Exchange:
    """Hold what is known of one request; ``job_id`` and ``route`` are filled in on the way."""

    __slots__ = (
        "headers",
        "job_id",
        "method",
        "path",
        "query",
        "receive",
        "request_id",
        "route",
        "started_ns",
        "status",
    )

    def __init__(self, scope: HTTPScope, receive: Receive) -> None:
        self.started_ns = time.perf_counter_ns()
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = path.rstrip("/") or "/"
        self.query: bytes = scope["query_string"]
        self.receive = receive
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.route = ""
        self.status = 0
        self.job_id = ""

    @property
    def elapsed_seconds(self) -> float:
        """Return how long the request has been going on."""
        return (time.perf_counter_ns() - self.started_ns) / 1e9


class _RequestIds:
    """Make ids from the system's randomness, asked for many at once; not shared between processes."""

    _BYTES = 16
    _STOCK = 4_096

    def __init__(self) -> None:
        self._stock = b""
        self._used = 0

    def __call__(self) -> str:
        if self._used >= len(self._stock):
            self._stock, self._used = secrets.token_bytes(self._STOCK), 0
        self._used += self._BYTES
        return self._stock[self._used - self._BYTES : self._used].hex()


_new_id = _RequestIds()


def _request_id(sent: bytes | None) -> str:
    """Return the client's request id if it is sane, else a new one."""
    if sent is not None:
        text = sent.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return _new_id()
