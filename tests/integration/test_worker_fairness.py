"""A thousand slow jobs in one queue: what another queue of the same worker, a cancel, leases and readiness get."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from penstock.core.ids import JobId
from penstock.core.job import ChangeCode, JobFilter, JobRecord
from penstock.core.states import AttemptOutcome, State
from penstock.store.protocol import Store
from penstock.worker.health import WorkerHealth
from tests.answers import without_errors
from tests.integration.test_worker_queues import Noting
from tests.integration.test_worker_running import fresh_board, handler_started
from tests.integration.test_worker_stops import TASKS, Notes, notes, store
from tests.integration.test_worker_supervisor import Start, options, start
from tests.integration.worker_support import completed, finished, new_job, submit, working
from tests.waiting import until_async

__all__ = ["fresh_board", "notes", "options", "start", "store"]
SLOW_JOBS = 1_000


async def held(store: Store) -> list[JobRecord]:
    """Return the slow jobs that run."""
    return list((await store.list_jobs(JobFilter(queue="slow", states=(State.RUNNING,)), limit=200)).items)


@pytest.mark.parametrize(
    ("executor", "settings", "slots"),
    [
        ("async", {}, 88),
        ("thread", {}, 7),
        # A pool of few processes leaves no eighth, so the bound is set.
        ("process", {"pool_processes": 2, "queue_slots": (("slow", 1),)}, 1),
    ],
)
async def test_a_thousand_slow_jobs_delay_neither_a_fast_queue_nor_a_cancel_nor_a_lease(
    store: Store, start: Start, notes: Notes, executor: str, settings: dict[str, Any], slots: int
) -> None:
    slow = [new_job(f"heed_{executor}", {"path": str(notes.path)}, queue="slow") for _ in range(SLOW_JOBS)]
    await submit(store, *slow)
    await start(modules=(TASKS,), queues=("slow", "fast"), lease_ms=2_000, announce_ms=100, **settings)
    await notes.wait_for("started", slots)

    # A fast job starts while all that were taken are still held, and each time again.
    echo = "echo" if executor == "async" else f"echo_{executor}"
    async with asyncio.timeout(20):
        for number in range(20):
            assert await completed(store, echo, {"value": number}, queue="fast") == number
    assert notes.lines() == ["started deadline=none"] * slots
    running = await held(store)
    assert len(running) == slots

    # Each lease is renewed, again and again, and readiness stays green.
    async with asyncio.timeout(30):
        for _ in range(2):
            before = {record.id: record.deadline_ms or 0 for record in await held(store)}
            await until_async(functools.partial(renewed, store, before), "renewed leases")
    (info,) = await store.workers()
    assert WorkerHealth.judge(info).ok
    assert info.running == slots
    after = await held(store)
    assert {record.id for record in after} == {record.id for record in running}
    assert {(record.attempt, record.lost) for record in after} == {(1, 0)}

    # A cancel reaches its handler, and the slot goes to the next slow job.
    async with asyncio.timeout(20):
        (answer,) = without_errors(await store.cancel([running[-1].id]))
        assert answer.code is ChangeCode.REQUESTED
        record = await finished(store, running[-1].id)
        await notes.wait_for("started", slots + 1)
    assert (record.state, record.attempts[-1].outcome) == (State.CANCELLED, AttemptOutcome.CANCELLED)
    assert notes.lines().count("told cancelled=True") == 1


async def renewed(store: Store, before: dict[JobId, int]) -> bool:
    return all((record.deadline_ms or 0) > before[record.id] for record in await held(store))


async def test_a_lone_queue_takes_all_slots(store: Store, start: Start, notes: Notes) -> None:
    await submit(store, *[new_job("heed_thread", {"path": str(notes.path)}, queue="slow") for _ in range(50)])
    await start(modules=(TASKS,), queues=("slow",), threads=8)
    await notes.wait_for("started", 8)


async def test_a_queue_at_its_bound_is_not_asked_until_it_has_room() -> None:
    store = Noting()

    def asked() -> list[dict[str, int]]:
        """Return what was claimed for async handlers: the most of each queue."""
        claims = [request for request in store.claims if "hang" in (request.tasks or ())]
        return [dict(zip(request.queues, request.queue_limits or (), strict=True)) for request in claims]

    async with working(store, queues=("slow", "fast"), queue_slots=(("slow", 2),), concurrency=16, builtin=False):
        jobs = await submit(store, *[new_job("hang", queue="slow") for _ in range(50)])
        await handler_started()
        await handler_started()
        asked_before = len(asked())
        for number in range(5):
            assert await completed(store, "add", {"width": number}, queue="fast") == number + 2
        assert all(set(claim) == {"fast"} for claim in asked()[asked_before:])
        await store.cancel([jobs[0]])
        await handler_started()
        assert [claim["slow"] for claim in asked()[asked_before:] if "slow" in claim] == [1]
        await store.cancel(jobs)
