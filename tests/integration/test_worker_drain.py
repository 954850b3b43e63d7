"""What SIGTERM does, on each executor: claim no more, let finish what fits, hand the rest back to its own place."""

from __future__ import annotations

import signal

import pytest

from penstock.core.job import JobFilter
from penstock.core.states import AttemptOutcome, State
from penstock.store.protocol import Store
from tests.integration.test_worker_stops import EXECUTORS, TASKS, Notes, notes, store
from tests.integration.test_worker_supervisor import LONG_LEASE_MS, Start, options, start
from tests.integration.worker_support import finished, new_job, submit

__all__ = ["notes", "options", "start", "store"]
ONE = {"modules": (TASKS,), "lease_ms": LONG_LEASE_MS, "concurrency": 1, "threads": 1, "pool_processes": 1}


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_it_claims_no_more_and_lets_finish_what_runs(
    store: Store, start: Start, notes: Notes, executor: str
) -> None:
    worker = await start(**ONE, drain_ms=60_000)
    (running,) = await submit(store, new_job(f"ignore_{executor}", {"path": str(notes.path)}))
    await notes.wait_for("started")
    worker.signal(signal.SIGTERM)
    await worker.wait_for("worker.stopping")
    # There is room on the other executors, and soon on this one.
    after = await submit(store, *(new_job(task, {"value": 1}) for task in ("echo", "echo_thread", "echo_process")))
    notes.let_end()
    assert await worker.end() == 0
    record = await store.get(running)
    assert record is not None
    assert (record.state, record.attempt, record.result) == (State.COMPLETED, 1, b'"in spite of it"')
    for job_id in after:
        found = await store.get(job_id)
        assert found is not None
        assert (found.state, found.attempt) == (State.QUEUED, 0)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("hasten", [False, True], ids=["the grace is over", "a second signal"])
async def test_the_rest_is_handed_back_to_the_front_uncounted(
    store: Store, start: Start, notes: Notes, executor: str, hasten: bool
) -> None:
    worker = await start(**ONE, drain_ms=600_000 if hasten else 300)
    first, *others = await submit(
        store,
        new_job(f"ignore_{executor}", {"path": str(notes.path)}),
        *(new_job(f"ignore_{executor}", {"path": "/dev/null"}) for _ in range(2)),
    )
    await notes.wait_for("started")
    worker.signal(signal.SIGTERM)
    if hasten:
        await worker.wait_for("worker.stopping")
        worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    assert len(worker.events("worker.hastened")) == hasten
    record = await store.get(first)
    assert record is not None
    assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
    assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.RELEASED]
    page = await store.list_jobs(JobFilter(states=(State.QUEUED,)))
    assert [job.id for job in page.items] == [first, *others]
    assert await store.workers() == []


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_what_was_handed_back_runs_on_the_next_worker(
    store: Store, start: Start, notes: Notes, executor: str
) -> None:
    first = await start(**ONE, drain_ms=0)
    (job_id,) = await submit(store, new_job(f"ignore_{executor}", {"path": str(notes.path)}))
    await notes.wait_for("started")
    first.signal(signal.SIGTERM)
    assert await first.end() == 0
    notes.let_end()
    await start(**ONE)
    assert (await finished(store, job_id)).state is State.COMPLETED
    assert sum(line.startswith("started") for line in notes.lines()) == 2
