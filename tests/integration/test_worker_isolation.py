"""Let no job feel what another one left behind or ended with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from penstock.core.job import ChangeCode, JobOptions
from penstock.core.states import State
from penstock.store.memory import MemoryStore
from tests.answers import without_errors
from tests.integration.worker_isolation_tasks import SEEN
from tests.integration.worker_support import TASKS, completed, finished, memory_store, new_job, run_one, submit, working
from tests.integration.worker_tasks import BOARD

MODULES = ("tests.integration.worker_isolation_tasks", TASKS)
ONCE = JobOptions(max_attempts=1)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    BOARD.reset()
    SEEN.clear()
    yield memory_store()
    SEEN.clear()


@pytest.mark.parametrize("sleep", [False, True])
async def test_context_variables_end_with_their_job(store: MemoryStore, sleep: bool) -> None:
    jobs = [new_job("set_mark", {"value": str(number), "sleep": sleep}) for number in range(20)]
    async with working(store, modules=MODULES, concurrency=7):
        for number, job_id in enumerate(await submit(store, *jobs)):
            record = await finished(store, job_id)
            assert record.result is not None
            # What a job starts itself sees what it has set.
            assert msgspec.json.decode(record.result) == ["unset", str(number), str(number)]
        for _ in range(3):
            assert await completed(store, "set_mark_on_thread", {"value": "set"}) == "unset"


async def test_each_job_has_a_task_of_the_loop_which_ends_with_it(store: MemoryStore) -> None:
    jobs = [new_job("who_runs", {"sleep": bool(number % 2)}) for number in range(20)]
    async with working(store, modules=MODULES, concurrency=7):
        for job_id in await submit(store, *jobs):
            assert (await finished(store, job_id)).result == b"true"
        assert len(set(SEEN)) == len(jobs)
        assert all(task.done() for task in SEEN)


async def test_cancelling_what_ran_a_job_reaches_no_other(store: MemoryStore) -> None:
    async with working(store, modules=MODULES, concurrency=1):
        assert await completed(store, "cancel_itself") == "done"
        assert await completed(store, "who_runs", {"sleep": True}) is True
        await completed(store, "cancel_the_last")
        assert await completed(store, "who_runs", {"sleep": True}) is True


async def test_a_cancel_leaves_the_neighbours_alone(store: MemoryStore) -> None:
    async with working(store, modules=MODULES, drain_ms=0):
        first, second = await submit(store, new_job("hang"), new_job("hang"))
        for _ in range(2):
            assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)
        assert [answer.code for answer in without_errors(await store.cancel([first]))] == [ChangeCode.REQUESTED]
        assert (await finished(store, first)).state is State.CANCELLED
        neighbour = await store.get(second)
        assert neighbour is not None
        assert neighbour.state is State.RUNNING
        assert await completed(store, "who_runs", {"sleep": True}) is True


async def test_timeouts_groups_and_anyio_work_in_a_handler(store: MemoryStore) -> None:
    async with working(store, modules=MODULES):
        assert await completed(store, "limited") == ["timeout", "group", "anyio"]


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "CancelledError", "Abort", "ValueError"])
async def test_whatever_a_handler_raises_fails_its_attempt_alone(store: MemoryStore, kind: str) -> None:
    async with working(store, modules=MODULES, drain_ms=0):
        (hanging,) = await submit(store, new_job("hang"))
        assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)
        record = await run_one(store, "raises", {"kind": kind}, options=ONCE)
        assert record.state is State.FAILED
        error = record.attempts[0].error
        assert error is not None
        assert error.type.endswith(kind)
        assert await completed(store, "who_runs", {"sleep": True}) is True
        neighbour = await store.get(hanging)
        assert neighbour is not None
        assert neighbour.state is State.RUNNING


async def test_a_handler_that_ends_as_a_closed_loop_would_gives_its_slot_back(store: MemoryStore) -> None:
    async with working(store, modules=MODULES, concurrency=1) as worker:
        await submit(store, new_job("raises", {"kind": "GeneratorExit"}))
        assert await completed(store, "who_runs", {"sleep": True}) is True
        assert worker.running == 0
