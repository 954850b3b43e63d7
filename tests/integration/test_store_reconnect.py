"""The API and a worker live through what a server can do to them, show it meanwhile, and go on by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from penstock.core.errors import StoreError, StoreFull, StoreUnavailable
from penstock.core.states import State
from penstock.store import connect
from penstock.store.redis import names as names_module
from tests.integration.api_support import app_of, client_of
from tests.integration.store_support import Server, new_job, options_at, server_in, store_at
from tests.integration.worker_support import working
from tests.waiting import insist, until_async

LIMIT_S = 120.0
RDB = "snapshot.rdb"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path, "--replica-serve-stale-data", "no", "--dbfilename", RDB) as running:
        yield running


@contextlib.asynccontextmanager
async def administering(server: Server) -> AsyncIterator[Callable[..., Awaitable[object]]]:
    """Return a function that runs commands on the server, whatever the store thinks of it."""
    async with store_at(server.url, "other") as store:
        yield store.connection.command


async def readonly(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    # A replica of nothing: writes are READONLY.
    await run("CONFIG", "SET", "replica-serve-stale-data", "yes")
    await run("REPLICAOF", "127.0.0.1", "1")
    return lambda: run("REPLICAOF", "NO", "ONE")


async def masterdown(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    # The same that tells not even what it has: MASTERDOWN.
    await run("REPLICAOF", "127.0.0.1", "1")
    return lambda: run("REPLICAOF", "NO", "ONE")


async def misconf(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    # A snapshot that cannot be written: MISCONF.
    (server.folder / RDB).mkdir()
    await run("CONFIG", "SET", "appendonly", "no")
    await run("CONFIG", "SET", "save", "3600 1")
    await run("BGSAVE")
    await until_async(lambda: info_says(run, "rdb_last_bgsave_status", "err"), "a snapshot that failed")
    return lambda: run("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")


async def out_of_memory(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    await run("CONFIG", "SET", "maxmemory", "1mb")
    return lambda: run("CONFIG", "SET", "maxmemory", "0")


async def hung(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    server.send(signal.SIGSTOP)

    async def go_on() -> None:
        server.send(signal.SIGCONT)

    return go_on


async def killed(server: Server, run: Callable[..., Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    await asyncio.to_thread(server.kill)
    return lambda: asyncio.to_thread(server.start)


async def info_says(run: Callable[..., Awaitable[object]], name: str, value: str) -> bool:
    info = await run("INFO", "persistence")
    assert isinstance(info, dict)
    return bool(info[name] == value)


#: What is done to the server, and what a submit gets meanwhile.
TROUBLES = {
    "READONLY": (readonly, StoreUnavailable),
    "MASTERDOWN": (masterdown, StoreUnavailable),
    "MISCONF": (misconf, StoreUnavailable),
    "OOM": (out_of_memory, StoreFull),
    "hung": (hung, StoreUnavailable),
    "killed": (killed, StoreUnavailable),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_worker_goes_on_by_itself(server: Server, trouble: str) -> None:
    begin, wanted = TROUBLES[trouble]
    options = options_at(server.url)
    async with (
        store_at(server.url) as store,
        administering(server) as run,
        asyncio.timeout(LIMIT_S),
        working(store, connect=lambda: connect(options), lease_ms=30_000),
    ):
        before = new_job()
        await store.submit([before])
        assert await store.wait_final(before.id, timeout_ms=30_000) is State.COMPLETED
        end = await begin(server, run)
        job = new_job()
        with pytest.raises(wanted):
            await store.submit([job])
        await end()
        await insist(lambda: store.submit([job]), "a submit is taken", trouble=(StoreError,), seconds=LIMIT_S)
        wait = functools.partial(store.wait_final, job.id, timeout_ms=30_000)
        assert await insist(wait, "a wait is taken", trouble=(StoreError,), seconds=LIMIT_S) is State.COMPLETED


async def scrape(client: httpx.AsyncClient) -> tuple[int, float]:
    """Return whether the store is up, and the greatest time since a claim."""
    text = (await client.get("/metrics")).text
    up = re.search(r"^penstock_store_up (\S+)$", text, re.MULTILINE)
    ages = re.findall(r"^penstock_seconds_since_last_claim\{[^}]*\} (\S+)$", text, re.MULTILINE)
    assert up is not None
    return int(float(up[1])), max(map(float, ages), default=-1.0)


async def test_readiness_and_the_age_of_the_last_claim_show_an_outage(server: Server) -> None:
    options = options_at(server.url)
    async with (
        store_at(server.url) as store,
        client_of(app_of(store)) as client,
        asyncio.timeout(LIMIT_S),
        working(store, connect=lambda: connect(options)),
    ):
        await until_async(lambda: _is_up(client), "metrics of a store that is up, and of a claim")
        _, before = await scrape(client)
        assert before >= 0
        server.kill()
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 503
        up, age = await scrape(client)
        assert up == 0
        assert age > before

        async def grown() -> bool:
            return (await scrape(client))[1] > age

        await until_async(grown, "a time since the last claim that grows")
        await asyncio.to_thread(server.start)
        await until_async(lambda: _is_ready(client), "readiness")


async def _is_up(client: httpx.AsyncClient) -> bool:
    up, age = await scrape(client)
    return up == 1 and age >= 0


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    "answer", [b"-LOADING Redis is loading the dataset in memory\r\n", None], ids=["LOADING", "dumb"]
)
async def test_what_cannot_be_provoked_is_faked(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads says so to everything; one end of a half-open connection says nothing."""
    monkeypatch.setattr("penstock.store.redis.primary.CALL_TIMEOUT_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            for _ in range(data.count(b"*") if answer else 0):
                writer.write(answer or b"")
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        async with store_at(f"redis://127.0.0.1:{port}/0") as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.submit([new_job()])
            with pytest.raises(StoreUnavailable):
                await store.ping()
            assert time.monotonic() - started < 20
    finally:
        listener.close()


async def test_a_name_that_nobody_resolves_is_no_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver may wait for ten seconds; nobody waits for it, nor does the end of the process."""
    monkeypatch.setattr(names_module, "RESOLVE_TIMEOUT_S", 0.2)
    released = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        released.wait(LIMIT_S)
        raise OSError("no such name")

    monkeypatch.setattr("socket.getaddrinfo", slow)
    async with store_at("redis://nowhere.invalid:6379/0") as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"nowhere\.invalid"):
            await store.ping()
        with pytest.raises(StoreUnavailable, match=r"nowhere\.invalid"):
            await store.submit([new_job()])
        assert time.monotonic() - started < 10
    released.set()
