"""Serve HTTP badly on purpose, on this machine alone: the first part of the path says how.

    python -m examples.flaky_server --port 8099

=============  =====================================================================
``/ok/N``      200 at once
``/slow/N``    200, the body in pieces over half a second
``/missing/N`` 404
``/busy/N``    503 with ``Retry-After: 1``, the second time 200
``/reset/N``   the connection is reset, the second time 200
``/cut/N``     half the body, then the end, the second time 200
``/silent/N``  no answer until the caller gives up, the second time 200
``/down/N``    500, each time
``/stats``     how often each path was asked for, as JSON
=============  =====================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence

#: How often each kind comes among 20 addresses.
MIX = {"ok": 9, "slow": 2, "missing": 2, "busy": 2, "reset": 2, "cut": 1, "silent": 1, "down": 1}
_CYCLE = [kind for kind, share in MIX.items() for _ in range(share)]
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


def make_urls(base_url: str, count: int) -> list[str]:
    """Return ``count`` addresses of a server in the mix."""
    return [f"{base_url}/{_CYCLE[number % len(_CYCLE)]}/{number}" for number in range(count)]


def body_of(path: str) -> bytes:
    """Return what a path holds: text of its own, 0.2 to 24 KiB."""
    return (f"This is {path}.\n" * (10 + zlib.crc32(path.encode()) % 1_000)).encode()


class FlakyServer:
    """Answer requests, one a connection, and count them by path."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on loopback while the block runs; gives the server's address. Port 0 takes a free one."""
        # Hundreds of downloads connect at once.
        server = await asyncio.start_server(self._handle, "127.0.0.1", port, backlog=1_024)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever asks may go at any time.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            if path == "/stats":
                await self._send(writer, 200, json.dumps(self.seen).encode())
            else:
                self.seen[path] += 1
                await self._answer(path, reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async def _answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body, first = body_of(path), self.seen[path] == 1
        match path.split("/")[1]:
            case "missing":
                await self._send(writer, 404, b"not here\n")
            case "down":
                await self._send(writer, 500, b"out of order\n")
            case "busy" if first:
                await self._send(writer, 503, b"come back\n", "Retry-After: 1\r\n")
            case "reset" if first:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
                writer.transport.abort()
            case "cut" if first:
                await self._send(writer, 200, body[: len(body) // 2], length=len(body))
            case "silent" if first:
                await reader.read()
            case "slow":
                await self._send(writer, 200, body[:100], length=len(body))
                for start in range(100, len(body), len(body) // 4):
                    await asyncio.sleep(0.1)
                    writer.write(body[start : start + len(body) // 4])
                    await writer.drain()
            case _:
                await self._send(writer, 200, body)

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: str = "", *, length: int | None = None
    ) -> None:
        head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body) if length is None else length}\r\n"
        writer.write(f"{head}Connection: close\r\n{headers}\r\n".encode() + body)
        await writer.drain()


async def serve(port: int) -> None:
    """Serve until cancelled."""
    async with FlakyServer().running(port) as base_url:
        print(base_url, flush=True)
        await asyncio.get_running_loop().create_future()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; print the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8_099, help="0 takes a free one [default: 8099]")
    options = parser.parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
