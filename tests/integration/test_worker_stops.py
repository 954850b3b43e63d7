"""What a timeout and a cancel do: on each executor, to handlers that heed them and to those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock.core.job import ChangeCode, JobOptions, JobRecord
from penstock.core.states import AttemptOutcome, Reason, State
from penstock.store import StoreOptions, connect
from penstock.store.protocol import Store
from penstock.worker.service import Worker
from tests.answers import without_errors
from tests.integration.test_worker_supervisor import LONG_LEASE_MS, Start, options, start
from tests.integration.worker_stop_tasks import gate_of
from tests.integration.worker_support import completed, finished, new_job, run_one, submit, working
from tests.waiting import Fifo, Gate, until_async

__all__ = ["options", "start"]
TASKS = "tests.integration.worker_stop_tasks"
EXECUTORS = ["async", "thread", "process"]
HEEDING = [*EXECUTORS, "async_process"]


@pytest.fixture
async def store(options: StoreOptions) -> AsyncIterator[Store]:
    opened = await connect(options)
    yield opened
    await opened.close()


class Notes(Fifo):
    """Read what handlers write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._gate = Gate(Path(gate_of(str(path))))

    async def wait_for(self, start: str, times: int = 1) -> None:
        await self.until(lambda lines: sum(line.startswith(start) for line in lines) >= times, start)

    def let_end(self) -> None:
        """Let those return that heed nothing else."""
        self._gate.open()

    def close(self) -> None:
        self.let_end()
        super().close()


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Notes]:
    opened = Notes(tmp_path / "notes")
    yield opened
    opened.close()


def outcomes(record: JobRecord) -> list[AttemptOutcome | None]:
    return [attempt.outcome for attempt in record.attempts]


def is_worn(worker: Worker) -> bool:
    return worker._slots.worn


@pytest.mark.parametrize("executor", HEEDING)
async def test_a_timeout_tells_a_handler_that_heeds_it(store: Store, notes: Notes, executor: str) -> None:
    options = JobOptions(timeout_ms=300, max_attempts=1)
    async with working(store, modules=[TASKS], builtin=False):
        record = await run_one(store, f"heed_{executor}", {"path": str(notes.path)}, options=options)
        await notes.wait_for("told")
        # It ended by itself, so its slot is free and its process goes on.
        plain = executor.replace("async_process", "process")
        assert await completed(store, {"async": "echo"}.get(plain, f"echo_{plain}"), {"value": 1}) == 1
    assert (record.state, record.reason) == (State.FAILED, Reason.TIMED_OUT)
    assert outcomes(record) == [AttemptOutcome.TIMED_OUT]
    assert notes.lines() == ["started deadline=some", "told cancelled=True"]


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_timeout_ends_the_attempt_of_a_handler_that_ignores_it(
    store: Store, notes: Notes, executor: str
) -> None:
    options = JobOptions(timeout_ms=100, max_attempts=1)
    async with working(store, modules=[TASKS], builtin=False, concurrency=1, threads=1, pool_processes=1) as worker:
        record = await run_one(store, f"ignore_{executor}", {"path": str(notes.path)}, options=options)
        assert (record.state, record.reason) == (State.FAILED, Reason.TIMED_OUT)
        assert outcomes(record) == [AttemptOutcome.TIMED_OUT]
        assert "returned" not in notes.lines()
        # A process is killed, so its slot is free; the others hold theirs until they return.
        assert worker.stuck == (0 if executor == "process" else 1)
        (waiting,) = await submit(store, new_job("echo" if executor == "async" else f"echo_{executor}", {"value": 1}))
        if executor != "process":
            found = await store.get(waiting)
            assert found is not None
            assert found.state is State.QUEUED
        notes.let_end()
        assert (await finished(store, waiting)).state is State.COMPLETED
        assert worker.stuck == 0
        # What it returned at last changed nothing.
        after = await store.get(record.id)
        assert after == record
    assert notes.lines()[-1] == ("started deadline=some" if executor == "process" else "returned")


@pytest.mark.parametrize("executor", HEEDING)
async def test_a_cancel_tells_a_handler_that_heeds_it(store: Store, notes: Notes, executor: str) -> None:
    async with working(store, modules=[TASKS], builtin=False):
        (job_id,) = await submit(store, new_job(f"heed_{executor}", {"path": str(notes.path)}))
        await notes.wait_for("started")
        (answer,) = without_errors(await store.cancel([job_id]))
        assert answer.code is ChangeCode.REQUESTED
        assert answer.cancel_requested_at_ms is not None
        record = await finished(store, job_id)
    assert (record.state, record.counted) == (State.CANCELLED, 0)
    assert outcomes(record) == [AttemptOutcome.CANCELLED]
    assert record.cancel_requested_at_ms == answer.cancel_requested_at_ms
    assert notes.lines() == ["started deadline=none", "told cancelled=True"]
    # A second request finds it done.
    assert without_errors(await store.cancel([job_id]))[0].code is ChangeCode.CONFLICT


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_cancel_of_a_handler_that_ignores_it(store: Store, notes: Notes, executor: str) -> None:
    async with working(store, modules=[TASKS], builtin=False):
        (job_id,) = await submit(store, new_job(f"ignore_{executor}", {"path": str(notes.path)}))
        await notes.wait_for("started")
        assert without_errors(await store.cancel([job_id]))[0].code is ChangeCode.REQUESTED
        if executor == "process":
            # Told, then killed.
            record = await finished(store, job_id)
            assert (record.state, outcomes(record)) == (State.CANCELLED, [AttemptOutcome.CANCELLED])
            assert notes.lines() == ["started deadline=none"]
            return
        if executor == "async":
            await notes.wait_for("told")
        # It runs on, and the request stands: asked is not done.
        assert without_errors(await store.cancel([job_id]))[0].code is ChangeCode.REQUESTED
        found = await store.get(job_id)
        assert found is not None
        assert (found.state, found.cancel_requested_at_ms is not None) == (State.RUNNING, True)
        notes.let_end()
        record = await finished(store, job_id)
    assert (record.state, record.result) == (State.COMPLETED, b'"in spite of it"')


@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_a_process_whose_slots_are_stuck_is_replaced(
    store: Store, start: Start, notes: Notes, executor: str
) -> None:
    worker = await start(modules=(TASKS,), lease_ms=LONG_LEASE_MS, concurrency=4, threads=4, drain_ms=500)
    options = JobOptions(timeout_ms=200, max_attempts=1)
    record = await run_one(store, f"ignore_{executor}", {"path": str(notes.path)}, options=options)
    assert record.reason is Reason.TIMED_OUT
    await worker.wait_for("worker.worn")
    await worker.wait_for("worker.started", 2)
    assert [line["exit_code"] for line in worker.events("process.ended")] == [75]
    assert await completed(store, "echo" if executor == "async" else "echo_thread", {"value": 2}) == 2
    assert await store.get(record.id) == record


async def test_one_stuck_slot_of_many_replaces_nothing(store: Store, notes: Notes) -> None:
    options = JobOptions(timeout_ms=100, max_attempts=1)
    async with working(store, modules=[TASKS], builtin=False, threads=5) as worker:
        await run_one(store, "ignore_thread", {"path": str(notes.path)}, options=options)
        assert worker.stuck == 1
        assert is_worn(worker) is False
        await run_one(store, "ignore_thread", {"path": str(notes.path)}, options=options)
        assert is_worn(worker) is True
        notes.let_end()
        await until_async(lambda: worker.stuck == 0, "that both return")
        # The registry tells of it, and with it the metric.
        await worker._store.announce(worker._info(), [])
        assert [info.stuck for info in await store.workers()] == [0]


async def test_a_cancel_reaches_a_handler_within_a_second_through_another_process(
    store: Store, start: Start, notes: Notes
) -> None:
    await start(modules=(TASKS,), lease_ms=LONG_LEASE_MS, processes=2)
    (job_id,) = await submit(store, new_job("heed_process", {"path": str(notes.path)}))
    await notes.wait_for("started")
    await store.cancel([job_id])
    # Milliseconds as a rule; renewals come each 200 s here, so that it was the wake-up that told.
    async with asyncio.timeout(20):
        assert (await finished(store, job_id)).state is State.CANCELLED
