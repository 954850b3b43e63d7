"""Read bodies: never more than the limit, never for ever, and only of the types that a route takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from litestar.types import Receive

from penstock.api.problems import BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, ApiError

JSON = "application/json"
NDJSON = "application/x-ndjson"


class ClientGone(Exception):
    """Say that the client hung up."""


def content_type(headers: Mapping[bytes, bytes], taken: tuple[str, ...]) -> str:
    """Return the body's media type.

    Raises:
        ApiError: none of those taken, or a charset other than UTF-8.
    """
    given = headers.get(b"content-type")
    if given == b"application/json" and JSON in taken and b"content-encoding" not in headers:
        return JSON
    media_type, _, parameters = headers.get(b"content-type", b"").decode("latin-1").partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().removeprefix("charset=").strip('" ')
    if media_type not in taken or (parameters.strip().lower().startswith("charset=") and charset != "utf-8"):
        shown = f"got {media_type[:100]!r}" if media_type else "the Content-Type header is missing"
        raise ApiError(
            UNSUPPORTED_MEDIA_TYPE,
            f"send Content-Type: {' or '.join(taken)} in UTF-8; {shown}",
            headers={"Accept": ", ".join(taken)},
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(
            UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken", headers={"Accept-Encoding": "identity"}
        )
    return media_type


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, timeout_ms: int) -> bytes:
    """Return the body, at most ``limit`` bytes of it; stops reading as soon as it is longer.

    Raises:
        ApiError: too large, or too slow.
        ClientGone: the client hung up.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = message["body"]
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_ms / 1_000) as deadline:
            while True:
                if message["type"] != "http.request":
                    raise ClientGone
                chunk = message["body"]
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
                # Each piece buys the next one time: a large body on a slow line is fine, silence is not.
                deadline.reschedule(asyncio.get_running_loop().time() + timeout_ms / 1_000)
                message = await receive()
    except TimeoutError:
        raise ApiError(
            BODY_TIMEOUT, f"no more of the body came for {timeout_ms / 1_000:g} s", headers={"Connection": "close"}
        ) from None


def _too_large(limit: int) -> ApiError:
    return ApiError(BODY_TOO_LARGE, f"the body has more than {limit} bytes, which is what this route takes")
