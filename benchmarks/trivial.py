"""Answer every request at once with a fixed 202, to show how much the load generator could send."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from benchmarks.load import content_length

_BODY = b'{"id":"019e0000-0000-7000-8000-000000000000","status":"queued","queue":"default","priority":"normal"}'
_ANSWER = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)


class Answerer(asyncio.Protocol):
    """Find the end of each request and answer it."""

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            needed = end + 4 + content_length(self._data[:end])
            if len(self._data) < needed:
                return
            self._data = self._data[needed:]
            self._transport.write(_ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answerer, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
