"""Put jobs into the store and see them through, as the driver of a benchmark does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import uvloop

from benchmarks.load import content_length
from benchmarks.marks import Marks
from benchmarks.processes import Bench, until
from penstock.core.ids import IdMaker, WorkerName
from penstock.core.job import PRIORITY_WEIGHTS, ClaimRequest, NewJob
from penstock.store import StoreOptions
from penstock.store.redis.store import RedisStore

CALL_JOBS = 10_000
WORKER = WorkerName("benchmark")
DRAIN_S = 120.0
Value = TypeVar("Value")


def new_jobs(
    task: str, first: int, jobs: int, *, queue: str = "default", delay_ms: int | None = None, type_: str = "task"
) -> list[NewJob]:
    """Make jobs whose inputs are numbers from ``first`` on, at homes drawn at random as the API does."""
    now_ms = time.time_ns() // 1_000_000
    make_id = IdMaker(os.urandom)
    return [
        NewJob(
            id=make_id(now_ms),
            task=task,
            input=b'{"n":%d}' % number,
            queue=queue,
            delay_ms=delay_ms,
            type=type_,
        )
        for number in range(first, first + jobs)
    ]


def claim_request(queue: str, limit: int) -> ClaimRequest:
    """Ask for no-op jobs as a worker does."""
    return ClaimRequest(
        worker=WORKER,
        nonce="0123456789abcdef",
        queues=(queue,),
        tasks=("noop",),
        limit=limit,
        priority_weights=PRIORITY_WEIGHTS,
    )


async def submit(store: RedisStore, jobs: Sequence[NewJob]) -> None:
    """Submit jobs in one call. Raises what any of them was refused with."""
    for answer in await store.submit(jobs):
        if isinstance(answer, Exception):
            raise answer


class Feed:
    """Number jobs, submit them, let the worker have them, and check that each ran once."""

    def __init__(self, bench: Bench, marks: Marks, *, partitions: int = 1) -> None:
        self.bench = bench
        self.marks = marks
        self._partitions = partitions
        self._next = 0

    def take(self, jobs: int) -> int:
        """Return the first of so many new numbers."""
        first, self._next = self._next, self._next + jobs
        if self._next > self.marks.jobs:
            raise RuntimeError("more jobs than the marks have room for")
        return first

    @property
    def taken(self) -> int:
        """Return how many numbers are taken."""
        return self._next

    def with_store(self, work: Callable[[RedisStore], Awaitable[Value]]) -> Value:
        """Run something with a store of its own."""

        async def run() -> Value:
            store = RedisStore(StoreOptions(redis_url=self.bench.url, partitions=self._partitions))
            try:
                return await work(store)
            finally:
                await store.close()

        return uvloop.run(run())

    def submit(self, task: str, first: int, jobs: int, *, queue: str = "default", delay_ms: int | None = None) -> float:
        """Submit jobs in bulk; return how many a second, with the making of them."""

        async def work(store: RedisStore) -> float:
            await store.ping()
            await store.connection.verify()
            started = time.perf_counter()
            for start in range(first, first + jobs, CALL_JOBS):
                count = min(CALL_JOBS, first + jobs - start)
                await submit(store, new_jobs(task, start, count, queue=queue, delay_ms=delay_ms))
            return jobs / (time.perf_counter() - started)

        return self.with_store(work)

    def pause(self, queue: str = "default") -> None:
        self.with_store(lambda store: store.pause(queue))

    def resume(self, queue: str = "default") -> None:
        self.with_store(lambda store: store.resume(queue))

    def finished(self, queue: str = "default") -> int:
        return self.bench.finished(queue, self._partitions)

    def drain(self, first: int, jobs: int, *, queue: str = "default") -> tuple[float, str]:
        """Let go of a queue that was paused with these jobs in it, and pause it again once they have run.

        Return how many ran a second, from the first handler's start until the last result was stored, and what is wrong
        with how often they ran.
        """
        before = self.finished(queue)
        resumed_s = time.perf_counter()
        self.resume(queue)
        curve = self.marks.watch(first, jobs, timeout_s=DRAIN_S)
        rate = 0.0
        if curve:
            began_s, ran = curve[0] if curve[0][1] < jobs else (resumed_s, 0)
            rate = (jobs - ran) / (self._stored(queue, before + jobs) - began_s)
        self.pause(queue)
        return rate, self.marks.verdict(first, jobs)

    def _stored(self, queue: str, finished: int) -> float:
        """Return when so many jobs of the queue have their results stored, or when waiting for them is over."""
        deadline = time.perf_counter() + DRAIN_S
        while (now := time.perf_counter()) < deadline and self.finished(queue) < finished:
            time.sleep(0.001)
        return now

    def wait_finished(self, jobs: int, queue: str = "default") -> None:
        """Wait until so many jobs have been completed, ever."""
        until(lambda: self.finished(queue) >= jobs, f"{jobs} jobs are completed", seconds=600)


class Http:
    """Talk HTTP over one connection that stays open, with next to no time of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes, *, prefer: str = "") -> tuple[int, bytes]:
        """Send a request and return status and body of the answer."""
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\ncontent-type: application/json\r\n"
        head += f"prefer: {prefer}\r\n" if prefer else ""
        self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        while len(answer) < end + 4 + content_length(answer[:end]):
            answer += self._receive()
        return int(answer[9:12]), answer[end + 4 :]

    def _receive(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the API closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()
