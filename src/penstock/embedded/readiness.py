"""Ask a server whether it is up (or to stop), without a client library, so that starting stays quick."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from urllib.parse import urlsplit

_ANSWER_SECONDS = 2.0


class Readiness(enum.Enum):
    """Say how far a child is; BUSY means alive and getting there, for as long as it takes."""

    NOT_YET = enum.auto()
    BUSY = enum.auto()
    READY = enum.auto()


async def valkey_readiness(host: str, port: int, password: str) -> Readiness:
    """Log in and PING; a server that does not know the password is another one, so it is NOT_YET ours."""
    answer = await _exchange(host, port, f"AUTH {password}\r\nPING\r\n".encode(), lines=2)
    login, _, ping = answer.partition(b"\r\n")
    if login == b"+OK" and ping.startswith(b"+PONG"):
        return Readiness.READY
    loading = login.startswith(b"-LOADING") or (login == b"+OK" and ping.startswith(b"-LOADING"))
    return Readiness.BUSY if loading else Readiness.NOT_YET


async def shut_down_valkey(host: str, port: int, password: str) -> None:
    """Log in and ask for a clean stop; a server that does not know the password ignores it."""
    await _exchange(host, port, f"AUTH {password}\r\nSHUTDOWN\r\n".encode(), lines=2)


async def http_readiness(url: str) -> Readiness:
    """GET an ``http://`` address; 200 is READY, anything else NOT_YET."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    answer = await _exchange(parts.hostname or "127.0.0.1", parts.port or 80, request.encode(), lines=1)
    status = answer.split(b" ", 2)
    return Readiness.READY if len(status) >= 2 and status[1] == b"200" else Readiness.NOT_YET


async def _exchange(host: str, port: int, request: bytes, *, lines: int) -> bytes:
    """Send a request and return the first lines of the answer; empty when there is none."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            return b"".join([await reader.readline() for _ in range(lines)])
    except (OSError, ValueError):  # TimeoutError is an OSError
        return b""
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
