"""Run workers inside tests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from penstock.core.ids import JobId, make_job_id
from penstock.core.job import JobOptions, JobRecord, NewJob
from penstock.core.states import State
from penstock.store.memory import MemoryStore
from penstock.store.protocol import Store
from penstock.worker.options import WorkerOptions
from penstock.worker.service import Worker

TASKS = "tests.integration.worker_tasks"
OTHER_TASKS = "tests.integration.worker_other_tasks"
PATIENCE_MS = 30_000


def memory_store(partitions: int = 1) -> MemoryStore:
    return MemoryStore(lambda: time.time_ns() // 1_000_000, partitions=partitions)


def new_id() -> JobId:
    return make_job_id(
        unix_ms=time.time_ns() // 1_000_000, home=random.randrange(4096), random_bits=secrets.randbits(62)
    )


def new_job(task: str, value: Any = None, *, options: JobOptions | None = None, **fields: Any) -> NewJob:
    return NewJob(id=new_id(), task=task, input=msgspec.json.encode(value), options=options or JobOptions(), **fields)


async def submit(store: Store, *jobs: NewJob) -> list[JobId]:
    for start in range(0, len(jobs), 500):
        for answer in await store.submit(jobs[start : start + 500]):
            assert not isinstance(answer, Exception), answer
    return [job.id for job in jobs]


async def finished(store: Store, job_id: JobId) -> JobRecord:
    """Wait until a job is final and return it."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        state = await store.wait_final(job_id, timeout_ms=PATIENCE_MS)
        assert state is not None, "no such job"
        if state.is_final:
            record = await store.get(job_id)
            assert record is not None
            return record
    record = await store.get(job_id)
    raise AssertionError(f"not final: {record}")


async def stands(store: Store, job_id: JobId, tell: Callable[[JobRecord], bool]) -> JobRecord:
    """Follow a job until it is as wanted, and return it."""
    rev = ""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while True:
            found = await store.follow(job_id, log_after=None, stream_after=None, rev=rev, timeout_ms=PATIENCE_MS)
            assert found is not None, "no such job"
            record = await store.get(job_id)
            assert record is not None, "no such job"
            if tell(record):
                return record
            rev = found.rev


async def run_one(store: Store, task: str, value: Any = None, **fields: Any) -> JobRecord:
    (job_id,) = await submit(store, new_job(task, value, **fields))
    return await finished(store, job_id)


async def completed(store: Store, task: str, value: Any = None, **fields: Any) -> Any:
    """Run a job and return its result."""
    record = await run_one(store, task, value, **fields)
    assert record.state is State.COMPLETED, record
    assert record.result is not None
    return msgspec.json.decode(record.result)


@contextlib.asynccontextmanager
async def working(
    store: Store, *, modules: Sequence[str] = (TASKS,), connect: Any = None, **options: Any
) -> AsyncIterator[Worker]:
    """Run a worker beside the test; ``connect`` given, it has stores and a lease thread of its own."""

    async def same() -> Store:
        return _Unclosed(store)

    settings: dict[str, Any] = {"drain_ms": 10_000, "pool_processes": 2} | options
    worker = Worker(
        WorkerOptions(modules=tuple(modules), **settings), connect or same, lease_thread=connect is not None
    )
    running = asyncio.create_task(worker.run())
    started = asyncio.create_task(worker.started.wait())
    try:
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield worker
    finally:
        started.cancel()
        if not running.done() and not worker.stopping:
            worker.request_stop()
        await running


class _Unclosed:
    """Lend a store to a worker that must not close it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def close(self) -> None:
        return None
