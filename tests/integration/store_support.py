"""Servers that can be killed, frozen and cut off, and shorthands for driving a store."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from penstock.core.ids import JobId, WorkerName, make_job_id
from penstock.core.job import Claimed, ClaimedJob, ClaimRequest, NewJob, Settle, Submitted, Verb
from penstock.store import StoreOptions
from penstock.store.protocol import JobStore
from penstock.store.redis.store import RedisStore
from tests import fleets

WORKER = WorkerName("worker-1")
_numbers = itertools.count(secrets.randbits(40))


def new_job(**fields: Any) -> NewJob:
    home = fields.pop("home", 0)
    job_id = make_job_id(unix_ms=time.time_ns() // 1_000_000, home=home, random_bits=next(_numbers))
    return NewJob(**{"id": job_id, "task": "echo", "input": b'{"n":1}', **fields})


async def submit(store: JobStore, **fields: Any) -> JobId:
    job = new_job(**fields)
    (answer,) = await store.submit([job])
    assert isinstance(answer, Submitted), answer
    return job.id


async def claim(store: JobStore, *, limit: int = 1, **fields: Any) -> Claimed:
    partition = fields.pop("partition", 0)
    request = {"worker": WORKER, "nonce": "nonce", "queues": ("default",), "limit": limit, **fields}
    return await store.claim(partition, ClaimRequest(**request))


async def claim_one(store: JobStore, **fields: Any) -> ClaimedJob:
    (job,) = (await claim(store, **fields)).jobs
    return job


async def settle(store: JobStore, job: ClaimedJob, verb: Verb = Verb.COMPLETE, value: bytes = b"1") -> Any:
    (answer,) = await store.settle([Settle(token=job.token, verb=verb, value=value)])
    return answer


def options_at(url: str, namespace: str = "test", **options: Any) -> StoreOptions:
    """Return the options of a store on a server of a test's own."""
    partitions = options.pop("partitions", None) or fleets.partitions_at(url)
    return StoreOptions(redis_url=url, namespace=namespace, partitions=partitions, **options)


@contextlib.asynccontextmanager
async def store_at(url: str, namespace: str = "test", **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(options_at(url, namespace, **options))
    try:
        yield store
    finally:
        await store.close()


class Server:
    """Run a Valkey of the test's own, on one port through all its restarts."""

    def __init__(self, folder: Path, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.port = fleets.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = folder
        self._arguments = arguments
        #: A command that runs the server; empty again for a plain restart.
        self.prefix = prefix
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [fleets.binary_under_test(), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *self._arguments]
        self._process = subprocess.Popen(
            [*self.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError("Valkey did not start:\n" + "".join(lines))

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            # A frozen process dies of SIGKILL too.
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def server_in(folder: Path, *arguments: str) -> Iterator[Server]:
    server = Server(folder, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Stand between a store and its server; can swallow the answer to a call that the server has carried out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut: bytes | None = None
        self.url = ""
        #: How many requests held the text that was to be cut.
        self.seen = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def cut_answer_to(self, text: bytes) -> None:
        """Close the connection in place of the answer to the next request that holds ``text``."""
        self._cut, self.seen = text, 0

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, upstream_writer}
        cutting = asyncio.Event()

        async def forward() -> None:
            while data := await reader.read(1 << 20):
                if self._cut is not None and self._cut in data:
                    self.seen += 1
                    self._cut = None
                    cutting.set()
                upstream_writer.write(data)
                await upstream_writer.drain()

        async def answer() -> None:
            while data := await upstream_reader.read(1 << 20):
                if cutting.is_set():
                    return
                writer.write(data)
                await writer.drain()

        tasks = {asyncio.create_task(forward()), asyncio.create_task(answer())}
        self._tasks |= tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, upstream_writer):
            end.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def run_script_count(store: RedisStore) -> int:
    """Return how many EVALSHA the server has run."""
    info = await store.connection.command("INFO", "commandstats")
    if isinstance(info, dict):
        return int(info.get("cmdstat_evalsha", {}).get("calls", 0))
    raise AssertionError("INFO came unparsed")
