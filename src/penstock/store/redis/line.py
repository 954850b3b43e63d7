"""Send calls over one connection as they come, without waiting for the answers of those before.

Answers come in the order of the calls, so that many calls are under way on one connection and each costs a write and a
future. The client library opens the connection (TLS, credentials, database); from then on its transport is ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
import redis.asyncio
import redis.exceptions
from redis._parsers.base import BaseParser

_MORE = object()
Argument = str | bytes | int


class _Wire(asyncio.Protocol):
    """Be one connection: the calls that wait for an answer on it, oldest first."""

    def __init__(self, connection: redis.asyncio.Connection, timeout_s: float) -> None:
        # Holds the transport's writer too, which would close it when collected.
        self._connection = connection
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=BaseParser.parse_error,
            notEnoughData=_MORE,
        )
        self.closed = False
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr]  # noqa: SLF001 - taken over
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.close(ConnectionError("the server closed the connection"))

    def call(self, arguments: Sequence[Argument]) -> asyncio.Future[Any]:
        if self.closed:
            # It was lost after it had been opened for this call, which has not been sent.
            raise ConnectionError("the connection was lost")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._transport.write(hiredis.pack_command(tuple(arguments)))  # type: ignore[arg-type]
        self._pending.append((answer, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        return answer

    def _look(self) -> None:
        """Close a connection whose oldest call has waited too long; one timer serves all calls."""
        self._timer = None
        if not self._pending:
            return
        left_s = self._pending[0][1] + self._timeout_s - self._loop.time()
        if left_s <= 0:
            self.close(TimeoutError(f"no answer within {self._timeout_s:g} s"))
        else:
            self._timer = self._loop.call_later(left_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _MORE:
                if not self._pending:
                    raise redis.exceptions.InvalidResponse("an answer that nobody asked for")
                waiting, _ = self._pending.popleft()
                # Who went away leaves a place in the line, because the answer still comes.
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
        except redis.exceptions.RedisError as error:
            self.close(error)

    def eof_received(self) -> None:
        self.close(ConnectionError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or ConnectionError("the connection was lost"))

    def close(self, error: Exception) -> None:
        """Close the connection; the calls under way fail, and nobody knows whether they happened."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - the public one waits
        # What is not sent by now is not sent: a hung server would keep it for ever.
        self._transport.abort()
        for waiting, _ in self._pending:
            if not waiting.done():
                waiting.set_exception(type(error)(*error.args))
        self._pending.clear()


class Line:
    """Call a server over one connection, which is opened on the first call and again on the next after it was lost."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[_Wire] | None = None
        self._closed = False

    async def call(self, *arguments: Argument) -> Any:
        """Run one command and return its answer.

        Raises:
            redis.exceptions.RedisError: what the server answered, or it could not be reached.
            OSError, TimeoutError: the connection was lost or no answer came in time; it may have happened.
        """
        wire = self._wire
        if wire is None or wire.closed:
            wire = await self._open()
        return await wire.call(arguments)

    async def _open(self) -> _Wire:
        if self._closed:
            raise ConnectionError("closed")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.get_running_loop().create_task(self._connect(), name="penstock-connect")
            # Nobody may be left to hear of its error.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Callers of the same moment share it, and none of them can take it from the others.
        return await asyncio.shield(self._opening)

    async def _connect(self) -> _Wire:
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        wire = _Wire(connection, self._timeout_s)
        if self._closed:
            wire.close(ConnectionError("closed"))
        self._wire = wire
        return wire

    async def close(self) -> None:
        """Close the connection; calls under way and later ones fail."""
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._wire is not None:
            self._wire.close(ConnectionError("closed"))
