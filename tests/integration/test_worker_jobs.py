"""Run jobs through a whole worker: binding, executors, failures, timeouts, cancels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.core.job import ChangeCode, JobOptions
from penstock.core.retry import Backoff
from penstock.core.states import AttemptOutcome, Reason, State
from penstock.store import StoreOptions, connect
from penstock.store.protocol import Store
from tests.answers import without_errors
from tests.integration.worker_support import (
    TASKS,
    completed,
    finished,
    memory_store,
    new_job,
    run_one,
    stands,
    submit,
    working,
)
from tests.integration.worker_tasks import BOARD
from tests.waiting import Fifo

ONCE = JobOptions(max_attempts=1)
QUICK = Backoff(base_ms=1, jitter=False)


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Store]:
    BOARD.reset()
    if request.param == "memory":
        yield memory_store()
        return
    opened = await connect(StoreOptions(redis_url=request.getfixturevalue("valkey_url"), namespace=namespace))
    yield opened
    await opened.close()


async def handler_started() -> None:
    assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)


async def test_each_executor_runs_typed_functions_by_name_and_the_only_parameter(store: Store) -> None:
    async with working(store):
        assert await completed(store, "add", {"width": 3}) == 5
        assert await completed(store, "multiply", {"width": 3, "height": 4}) == 12
        process = await completed(store, "cube", {"width": 3})
        assert process["cube"] == 27
        assert process["pid"] != os.getpid()
        assert (await completed(store, "cube_later", {"width": 2}))["cube"] == 8
        assert (await completed(store, "cube", 4))["cube"] == 64
        assert await completed(store, "echo", [1, {"a": None}]) == [1, {"a": None}]
        described = await completed(store, "describe")
        assert described["task"] == "describe"
        assert (described["attempt"], described["counted"]) == (1, 0)


@pytest.mark.parametrize(
    ("task", "value", "field"),
    [
        ("add", {"width": "3"}, "input.width"),
        ("add", {}, "input.width"),
        ("add", {"width": 1, "depth": 2}, "input.depth"),
        ("multiply", {"width": None}, "input.width"),
        ("cube", {"width": 1.5}, "input.width"),
        ("cube", "three", "input.width"),
        ("add", [1], "input"),
    ],
)
async def test_wrong_input_fails_at_once_and_names_the_argument(task: str, value: Any, field: str) -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, task, value)
    assert (record.state, record.reason) == (State.FAILED, Reason.INVALID_INPUT)
    error = record.attempts[-1].error
    assert error is not None
    assert (error.type, error.field) == ("InvalidInput", field)
    assert field in error.message


async def test_a_broken_task_is_retried_and_keeps_every_attempts_error(store: Store) -> None:
    async with working(store) as worker:
        record = await run_one(store, "broken")
    assert (record.state, record.reason, record.counted) == (State.FAILED, Reason.EXHAUSTED, 3)
    assert [attempt.error.message for attempt in record.attempts if attempt.error] == [
        "attempt 1 went wrong",
        "attempt 2 went wrong",
        "attempt 3 went wrong",
    ]
    for attempt in record.attempts:
        assert attempt.error is not None
        assert attempt.error.type == "ValueError"
        assert "raise ValueError" in attempt.error.traceback
        assert "penstock/worker" not in attempt.error.traceback
        assert attempt.worker == worker.name
        assert attempt.outcome is AttemptOutcome.FAILED


async def test_retry_discard_and_snooze_do_as_they_say(store: Store) -> None:
    async with working(store):
        assert await completed(store, "retry_later") == 1
        assert await completed(store, "snooze_once") == 0
        record = await run_one(store, "give_up")
    assert (record.reason, len(record.attempts)) == (Reason.DISCARDED, 1)
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.message == "never again"


async def test_fail_recovers_after_the_given_number_of_attempts(store: Store) -> None:
    async with working(store):
        record = await run_one(store, "fail", {"times": 2}, options=JobOptions(backoff=QUICK))
    assert (record.state, record.counted, record.attempt) == (State.COMPLETED, 2, 3)


@pytest.mark.parametrize(("task", "kind"), [("big", "ResultTooLarge"), ("not_json", "ResultNotJson")])
async def test_a_result_that_cannot_be_kept_fails_for_good(store: Store, task: str, kind: str) -> None:
    async with working(store):
        record = await run_one(store, task, {"size": 1024 * 1024} if task == "big" else None)
    assert (record.state, record.reason) == (State.FAILED, Reason.DISCARDED)
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.type == kind
    assert (await store.counters()).get(("result_refused", record.queue), 0) == (1 if task == "big" else 0)


async def test_an_input_of_a_megabyte_reaches_its_task(store: Store) -> None:
    text = "x" * 1_000_000
    async with working(store):
        assert await completed(store, "echo", text) == text


async def test_leaving_the_interpreter_is_a_failed_attempt(store: Store) -> None:
    async with working(store):
        for task in ("leave", "leave_thread", "leave_process"):
            record = await run_one(store, task, options=ONCE)
            assert (record.state, record.reason) == (State.FAILED, Reason.EXHAUSTED)
        assert await completed(store, "add", {"width": 1}) == 3


async def test_a_child_that_dies_is_a_counted_attempt_and_takes_nobody_along(store: Store) -> None:
    async with working(store, pool_processes=1):
        record = await run_one(store, "die", {"code": 7}, options=ONCE)
        assert (await completed(store, "cube", 2))["cube"] == 8
    assert (record.reason, record.attempts[0].outcome) == (Reason.EXHAUSTED, AttemptOutcome.WORKER_LOST)
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.type == "WorkerDied"
    assert "exit code 7" in record.attempts[0].error.message


@pytest.mark.parametrize("task", ["hang", "hang_thread", "hang_process"])
async def test_a_timeout_ends_the_attempt_on_each_executor(store: Store, task: str) -> None:
    options = JobOptions(timeout_ms=50, max_attempts=2, backoff=QUICK)
    async with working(store, threads=2):
        record = await run_one(store, task, options=options)
        BOARD.go_on.set()
    assert (record.state, record.reason) == (State.FAILED, Reason.TIMED_OUT)
    assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.TIMED_OUT] * 2
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.type == "Timeout"


async def test_a_thread_past_its_timeout_keeps_its_slot(store: Store) -> None:
    async with working(store, threads=1):
        await run_one(store, "hang_thread", options=JobOptions(timeout_ms=20, max_attempts=1))
        (waiting,) = await submit(store, new_job("multiply", {"width": 3}))
        # Async work goes on meanwhile, and the plain job is not even claimed.
        assert await completed(store, "add", {"width": 1}) == 3
        record = await store.get(waiting)
        assert record is not None
        assert record.state is State.QUEUED
        BOARD.go_on.set()
        assert (await finished(store, waiting)).result == b"6"


async def test_a_running_job_is_cancelled_on_each_executor(store: Store, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "started")
    async with working(store):
        for task in ("hang", "watchful"):
            (job_id,) = await submit(store, new_job(task))
            await handler_started()
            assert without_errors(await store.cancel([job_id]))[0].code is ChangeCode.REQUESTED
            assert (await finished(store, job_id)).state is State.CANCELLED
        (job_id,) = await submit(store, new_job("hang_process", {"fifo": str(fifo.path)}))
        await fifo.next()
        await store.cancel([job_id])
        record = await finished(store, job_id)
        assert (record.state, record.attempts[-1].outcome) == (State.CANCELLED, AttemptOutcome.CANCELLED)
        assert (await completed(store, "cube", 2))["cube"] == 8


async def test_a_cancel_reaches_a_worker_whose_slots_are_full(store: Store) -> None:
    async with working(store, concurrency=1, builtin=False):
        (job_id,) = await submit(store, new_job("hang"))
        await handler_started()
        await store.cancel([job_id])
        async with asyncio.timeout(3):
            assert (await finished(store, job_id)).state is State.CANCELLED


async def test_a_handler_that_finishes_in_spite_of_a_cancel_completes(store: Store) -> None:
    async with working(store):
        (job_id,) = await submit(store, new_job("stubborn"))
        await handler_started()
        await store.cancel([job_id])
        record = await finished(store, job_id)
    assert (record.state, record.result) == (State.COMPLETED, b'"finished in spite of it"')


async def test_progress_is_written_while_the_job_runs(store: Store) -> None:
    async with working(store):
        (job_id,) = await submit(store, new_job("report"))
        await handler_started()
        record = await stands(store, job_id, lambda record: record.progress is not None)
        assert record.progress == b'{"percent":50}'
        await store.cancel([job_id])
        await finished(store, job_id)


async def test_what_a_handler_reports_last_is_kept(store: Store) -> None:
    async with working(store):
        (job_id,) = await submit(store, new_job("report_to_the_end"))
        # From now on the worker would wait half a second before it writes again; the job ends before.
        await stands(store, job_id, lambda record: record.progress is not None)
        BOARD.go_on.set()
        record = await finished(store, job_id)
    assert (record.state, record.progress) == (State.COMPLETED, b'{"percent":100}')


async def test_a_lifespan_is_entered_once_and_left_at_the_end(store: Store) -> None:
    async with working(store, modules=[TASKS]):
        assert BOARD.lifespan == ["entered"]
        assert await completed(store, "resources") == {"model": "loaded"}
    assert BOARD.lifespan == ["entered", "left"]


async def test_a_delayed_job_starts_when_it_is_due(store: Store) -> None:
    async with working(store):
        record = await run_one(store, "add", {"width": 1}, delay_ms=100)
    assert record.started_at_ms is not None
    assert record.run_at_ms is None or record.started_at_ms >= record.run_at_ms
    assert 100 <= record.started_at_ms - record.created_at_ms < 1_000


async def test_nothing_that_is_delayed_or_retried_starts_early(store: Store) -> None:
    delays = [1, 30, 50, 90, 150, 151, 240, 333]
    jobs = [new_job("add", {"width": 1}, delay_ms=delay) for delay in delays]
    backoff = Backoff(base_ms=120, factor=1.0, jitter=False)
    jobs += [new_job("fail", {"times": 1}, options=JobOptions(backoff=backoff)) for _ in range(4)]
    async with working(store):
        ids = await submit(store, *jobs)
        records = [await finished(store, job_id) for job_id in ids]
    for delay, record in zip(delays, records, strict=False):
        assert record.started_at_ms is not None
        assert record.started_at_ms >= record.created_at_ms + delay
    for record in records[len(delays) :]:
        first, second = record.attempts
        assert first.finished_at_ms is not None
        assert second.started_at_ms is not None
        assert second.started_at_ms >= first.finished_at_ms + 120


async def test_an_ai_job_is_summarised_without_key_and_network(store: Store) -> None:
    text = "Water drives the mill. The mill grinds the grain. Bread is made of grain. Cats sleep."
    async with working(store, modules=[]):
        result = await completed(store, "summarize", text, type="ai")
    assert (result["provider"], result["method"]) == ("local", "textrank")
    assert all(line in text for line in result["text"].splitlines())
