"""Stand between a process and Valkey, and cut, delay or swallow what passes."""

from __future__ import annotations

import asyncio


class Wire:
    """Forward bytes to one socket; the counters say what a fault really touched."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.swallowing = False
        self.cutting = False
        self.half_closing = False
        self.delayed = self.swallowed = self.cut = self.half_closed = self.opened = 0
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the run is over
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self._socket)
        self.opened += 1
        halves = [asyncio.create_task(self._requests(reader, up_writer))]
        halves.append(asyncio.create_task(self._answers(up_reader, writer)))
        try:
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)
            up_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 18):
            up_writer.write(data)
            await up_writer.drain()

    async def _answers(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        half_closed = False
        while data := await up_reader.read(1 << 18):
            if self.cutting:
                self.cut += 1  # the server has carried it out, nobody hears of it
                return
            if half_closed or self.swallowing:
                self.swallowed += 1
                continue
            if self.half_closing:
                # The end of our side only: requests still pass, no answer ever does.
                half_closed = True
                self.half_closed += 1
                writer.write_eof()
                continue
            if self.delay_s:
                self.delayed += 1
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
