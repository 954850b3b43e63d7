"""One connection carries many calls: in order, bounded in time, and each told when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis.exceptions

from penstock.store.redis.line import Line
from penstock.store.redis.primary import open_client
from tests.waiting import begun

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def line_to(url: str, timeout_s: float = 30.0) -> AsyncIterator[Line]:
    client = open_client(url, timeout_s=timeout_s, connections=4)
    line = Line(client, timeout_s)
    try:
        yield line
    finally:
        await line.close()
        await client.aclose()
        await client.connection_pool.disconnect()


@contextlib.asynccontextmanager
async def server_that(serve: Serve) -> AsyncIterator[str]:
    """Serve each connection by ``serve``, after the greeting of the client library was answered."""
    open_now: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        try:
            while b"PING" not in (line := await reader.readuntil(b"\r\n")):
                # Whatever the library greets with (CLIENT SETNAME, SETINFO) names its command in a line of its own.
                if line in (b"CLIENT\r\n", b"HELLO\r\n", b"SELECT\r\n"):
                    writer.write(b"+OK\r\n")
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            open_now.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(open_now):
            task.cancel()
        if open_now:
            await asyncio.wait(open_now)


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


@pytest.mark.not_on("cluster", "sentinel", reason="one line leads to one server, and the keys lie on all")
async def test_answers_go_to_their_callers(valkey_url: str) -> None:
    async with line_to(valkey_url) as line:
        answers = await asyncio.gather(*(line.call("ECHO", str(number) * (number + 1)) for number in range(500)))
    assert answers == [str(number).encode() * (number + 1) for number in range(500)]


@pytest.mark.not_on("cluster", "sentinel", reason="one line leads to one server, and the keys lie on all")
async def test_an_error_is_one_callers_own(valkey_url: str) -> None:
    async with line_to(valkey_url) as line:
        calls = [line.call("ECHO", "1"), line.call("EVALSHA", "0" * 40, 0), line.call("ECHO", "2")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers.pop(1), redis.exceptions.NoScriptError)
    assert answers == [b"1", b"2"]


@pytest.mark.not_on("cluster", "sentinel", reason="one line leads to one server, and the keys lie on all")
async def test_a_caller_that_goes_away_keeps_its_place_in_the_line(valkey_url: str) -> None:
    async with line_to(valkey_url) as line:
        await line.call("PING")
        calls = [asyncio.create_task(line.call("ECHO", str(number))) for number in range(9)]
        calls.append(await begun(line.call("ECHO", "9")))
        calls[3].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert answers == [str(number).encode() for number in range(10) if number != 3]


async def test_a_lost_connection_fails_all_that_are_under_way_and_the_next_call_opens_another() -> None:
    connections = 0

    async def cut_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while connections > 1:
            writer.write(b"+PONG\r\n")
            await reader.readuntil(b"PING\r\n")

    async with server_that(cut_the_first) as url, line_to(url) as line:
        for answer in await asyncio.gather(*(line.call("PING") for _ in range(20)), return_exceptions=True):
            assert isinstance(answer, OSError | redis.exceptions.ConnectionError), answer
        assert await line.call("PING") == b"PONG"
    assert connections == 2


async def test_a_server_that_hangs_is_given_up_after_the_limit() -> None:
    async with server_that(hang) as url, line_to(url, timeout_s=0.3) as line:
        for answer in await asyncio.gather(*(line.call("PING") for _ in range(3)), return_exceptions=True):
            assert isinstance(answer, TimeoutError), answer


async def test_an_answer_that_nobody_asked_for_closes_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+PONG\r\n+AGAIN\r\n")
        await reader.read()

    async with server_that(talk) as url, line_to(url) as line:
        assert await line.call("PING") == b"PONG"
        wire = line._wire
        assert wire is not None
        assert wire.closed


async def test_nonsense_closes_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"?what\r\n")
        await reader.read()

    async with server_that(talk) as url, line_to(url) as line:
        with pytest.raises(redis.exceptions.InvalidResponse):
            await line.call("PING")


async def test_a_close_ends_calls_and_refuses_later_ones() -> None:
    async with server_that(hang) as url, line_to(url) as line:
        calls = [asyncio.create_task(line.call("PING")) for _ in range(3)]
        opened = await line._open()
        # One that has waited for the same connection as the others, and was not yet sent when that was closed.
        await line.close()
        assert opened.closed
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, OSError), answer
        with pytest.raises(OSError):
            await line.call("PING")


async def test_a_close_fails_what_was_sent() -> None:
    async with server_that(hang) as url, line_to(url) as line:
        await line._open()
        calls = [await begun(line.call("PING")) for _ in range(3)]
        await line.close()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, OSError), answer


async def test_nobody_to_connect_to_is_told_to_each() -> None:
    async with server_that(hang_up) as url:
        pass
    async with line_to(url) as line:
        for answer in await asyncio.gather(*(line.call("PING") for _ in range(3)), return_exceptions=True):
            assert isinstance(answer, OSError | redis.exceptions.ConnectionError), answer
