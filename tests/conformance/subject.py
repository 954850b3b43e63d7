"""Drive one store under a clock set by hand."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from penstock.core.ids import JobId, Token, WorkerName, make_job_id
from penstock.core.job import (
    Claimed,
    ClaimedJob,
    ClaimRequest,
    JobRecord,
    NewJob,
    Reaped,
    Settle,
    Settled,
    Submitted,
    TaskInfo,
    Verb,
    WorkerInfo,
)
from penstock.core.limits import Limits
from penstock.core.states import Priority, State
from penstock.store.memory import MemoryStore
from penstock.store.protocol import Store
from penstock.store.redis.connection import Connection
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import connect_with_clock
from tests import fleets
from tests.conformance.dump import read_dumps, remove_namespace

START_MS = 1_800_000_000_000
WORKER = WorkerName("worker-1")
OTHER_WORKER = WorkerName("worker-2")


class Subject:
    """Hold a store, its clock, and shorthands for what most tests do."""

    def __init__(self, store: Store, set_clock: Callable[[int], Awaitable[None]]) -> None:
        self.store = store
        self.now_ms = START_MS
        self._set_clock = set_clock
        self._numbers = itertools.count(1)
        self._nonces = (f"nonce-{number}" for number in itertools.count(1))

    async def at(self, unix_ms: int) -> None:
        """Set the clock."""
        self.now_ms = unix_ms
        await self._set_clock(unix_ms)

    async def advance(self, ms: int) -> None:
        """Move the clock on."""
        await self.at(self.now_ms + ms)

    def new(self, **fields: Any) -> NewJob:
        """Describe a job; ids rise, and spread over partitions in turn."""
        number = next(self._numbers)
        job_id = make_job_id(unix_ms=START_MS + number, home=fields.pop("home", 0), random_bits=number)
        return NewJob(**{"id": job_id, "task": "echo", "input": b"{}", **fields})

    async def submit(self, **fields: Any) -> JobId:
        """Submit one job and return its id."""
        job = self.new(**fields)
        (answer,) = await self.store.submit([job])
        assert isinstance(answer, Submitted)
        assert answer.created
        return job.id

    async def submit_many(self, count: int, **fields: Any) -> list[JobId]:
        """Submit jobs alike and return their ids."""
        jobs = [self.new(**fields) for _ in range(count)]
        for answer in await self.store.submit(jobs):
            assert isinstance(answer, Submitted)
        return [job.id for job in jobs]

    async def claim(self, limit: int = 1, *, partition: int = 0, **fields: Any) -> Claimed:
        """Claim from the default queue as the first worker."""
        request = {"worker": WORKER, "nonce": next(self._nonces), "queues": ("default",), "limit": limit, **fields}
        return await self.store.claim(partition, ClaimRequest(**request))

    async def claim_one(self, **fields: Any) -> ClaimedJob:
        """Claim exactly one job."""
        (job,) = (await self.claim(1, **fields)).jobs
        return job

    async def claim_any(self, **fields: Any) -> ClaimedJob:
        """Claim exactly one job, alone when it must be."""
        claimed = await self.claim(1, **fields)
        return claimed.jobs[0] if claimed.jobs else await self.claim_one(alone=True, **fields)

    async def running(self, **fields: Any) -> Token:
        """Submit a job and claim it."""
        job_id = await self.submit(**fields)
        claimed = await self.claim_one(queues=(fields.get("queue", "default"),))
        assert claimed.token.job_id == job_id
        return claimed.token

    async def settle(self, token: Token, verb: Verb, **fields: Any) -> Settled:
        """Settle one attempt."""
        (answer,) = await self.store.settle([Settle(token=token, verb=verb, **fields)])
        assert isinstance(answer, Settled)
        return answer

    async def get(self, job_id: JobId) -> JobRecord:
        """Return a job that exists."""
        record = await self.store.get(job_id)
        assert record is not None
        return record

    async def state(self, job_id: JobId) -> State:
        """Return a job's state."""
        return (await self.get(job_id)).state

    async def count(self, name: str, queue: str = "default") -> int:
        """Return a counter."""
        return (await self.store.counters()).get((name, queue), 0)

    async def announce(self, *tasks: str, worker: WorkerName = WORKER) -> None:
        """Announce a worker that knows tasks."""
        info = WorkerInfo(
            name=worker,
            hostname="host",
            pid=1,
            version="1",
            queues=("default",),
            tasks=tasks,
            concurrency=1,
            running=0,
            started_at_ms=self.now_ms,
        )
        await self.store.announce(info, [TaskInfo(name=task) for task in tasks])

    async def steady_reaps(self, ms: int, *, partition: int = 0) -> None:
        """Let time pass with a reap every second, as live loops do; what it reaps is asserted to be nothing."""
        for _ in range(ms // 1_000):
            await self.advance(1_000)
            reaped = await self.store.reap(partition)
            assert reaped == Reaped()

    async def order(self, queue: str = "default", priority: Priority = Priority.NORMAL) -> Sequence[JobId]:
        """Return what waits in a queue at a priority, in order, in partition 0."""
        if isinstance(self.store, MemoryStore):
            return list(self.store._parts[0].queues[queue, priority])
        assert isinstance(self.store, RedisStore)
        (dump, *_) = await read_dumps(self.store.connection)
        return [JobId(job_id) for job_id in dump.queue_order().get((queue, priority), [])]

    async def audit(self, *, markers: bool = False) -> list[str]:
        """Name everything in the store that is not as it must be."""
        if isinstance(self.store, MemoryStore):
            return self.store.audit()
        assert isinstance(self.store, RedisStore)
        # On a connection of its own: a closed store answers no more, and some tests close it.
        reader = Connection(self.store.connection.options)
        reader.keys = self.store.connection.keys
        dumps = await read_dumps(reader)
        await reader.close()
        return [problem for dump in dumps for problem in dump.audit(markers=markers)]


@asynccontextmanager
async def memory_subject(partitions: int = 1, limits: Limits | None = None) -> AsyncIterator[Subject]:
    """Return a store in memory."""
    clock = [START_MS]

    async def set_clock(unix_ms: int) -> None:
        clock[0] = unix_ms

    store = MemoryStore(lambda: clock[0], partitions, limits)
    yield Subject(store, set_clock)
    await store.close()


def _turn(connection: Connection, name: str) -> None:
    """Let another partition be the first one in each test."""
    first = zlib.crc32(name.encode()) % len(connection.keys)
    connection.keys = connection.keys[first:] + connection.keys[:first]


@asynccontextmanager
async def redis_subject(
    url: str, namespace: str, partitions: int | None = None, limits: Limits | None = None
) -> AsyncIterator[Subject]:
    """Return a store in a namespace of servers; its keys are removed at the end."""
    is_free = partitions is None and limits is None
    partitions = partitions or (fleets.partitions_under_test() if is_free else 1)
    store, set_clock = await connect_with_clock(url, namespace, partitions, limits)
    if is_free:
        _turn(store.connection, namespace)
    await set_clock(START_MS)
    try:
        yield Subject(store, set_clock)
    finally:
        await store.close()
        cleaner = Connection(store.connection.options)
        await remove_namespace(cleaner)
        await cleaner.close()
