"""Handlers log and stream on every executor; what they wrote is with the job before it settles."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.core.errors import StoreFull, StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.output import OutputCode, OutputEntry, OutputKind
from penstock.core.states import State
from penstock.store.memory import MemoryStore
from penstock.worker import output
from tests.integration.worker_support import finished, memory_store, new_job, run_one, submit, working
from tests.integration.worker_tasks import BOARD


@pytest.fixture(autouse=True)
def _fresh_board() -> None:
    BOARD.reset()


async def entries(store: Any, job_id: JobId, kind: OutputKind) -> list[OutputEntry]:
    """Return all that is kept of one kind."""
    found = await store.follow(job_id, limit=20_000)
    return [entry for entry in found.entries if entry.kind is kind]


async def lines(store: Any, job_id: JobId) -> list[dict[str, Any]]:
    return [msgspec.json.decode(entry.value) for entry in await entries(store, job_id, OutputKind.LOG)]


async def chunks(store: Any, job_id: JobId) -> list[Any]:
    return [msgspec.json.decode(entry.value) for entry in await entries(store, job_id, OutputKind.STREAM)]


@pytest.mark.parametrize(
    ("task", "level", "message", "chunk"),
    [
        ("tell", "info", "step", "chunk 1 of attempt 1"),
        ("tell_on_a_thread", "warning", "on a thread", {"number": 1}),
        ("tell_in_a_process", "info", "in a process", [1]),
    ],
)
async def test_each_executor_logs_and_streams(task: str, level: str, message: str, chunk: Any) -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, task, {"lines": 3})
    assert record.state is State.COMPLETED, record
    assert await lines(store, record.id) == [
        {"level": level, "message": message, "fields": {"number": number}} for number in range(3)
    ]
    assert len(await chunks(store, record.id)) == 3
    assert (await chunks(store, record.id))[1] == chunk


async def test_a_process_tells_its_progress() -> None:
    store = memory_store()
    (job_id,) = await submit(store, new_job("tell_in_a_process", {"lines": 2}))
    told = []
    async with working(store):
        rev = ""
        async with asyncio.timeout(60):
            while True:
                found = await store.follow(job_id, log_after=None, stream_after=None, rev=rev, timeout_ms=60_000)
                assert found is not None
                told.append(found.progress)
                rev = found.rev
                if found.state.is_final:
                    break
    assert told[-1] == b'{"lines":2}'


async def test_two_attempts_can_be_told_apart() -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, "tell", {"lines": 2, "fail_first": True})
    found = await entries(store, record.id, OutputKind.STREAM)
    assert [(entry.attempt, msgspec.json.decode(entry.value)) for entry in found] == [
        (attempt, f"chunk {number} of attempt {attempt}") for attempt in (1, 2) for number in range(2)
    ]


async def test_the_newest_thousand_lines_are_kept() -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, "tell_on_a_thread", {"lines": 2_500})
    found = await store.follow(record.id, stream_after=None, limit=5_000)
    assert found is not None
    assert [msgspec.json.decode(entry.value)["fields"]["number"] for entry in found.entries] == list(
        range(1_500, 2_500)
    )
    assert found.log_dropped == 1_500
    assert len(await chunks(store, record.id)) == 2_500


async def test_what_was_logged_is_there_while_the_job_runs() -> None:
    store = memory_store()
    (job_id,) = await submit(store, new_job("tell_and_wait"))
    async with working(store), asyncio.timeout(60):
        seen: list[str] = []
        state = None
        rev = ""
        while not seen:
            found = await store.follow(job_id, stream_after=None, rev=rev, timeout_ms=60_000)
            assert found is not None
            rev, state = found.rev, found.state
            seen = [msgspec.json.decode(entry.value)["message"] for entry in found.entries]
        assert (seen, state) == (["before"], State.RUNNING)
        BOARD.go_on.set()
        record = await finished(store, job_id)
    assert [line["message"] for line in await lines(store, record.id)] == ["before", "after"]


async def test_a_traceback_is_part_of_the_line() -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, "tell_of_an_error")
    (line,) = await lines(store, record.id)
    assert (line["level"], line["message"]) == ("error", "caught")
    assert line["exception"].startswith("Traceback")
    assert "KeyError: 'lost'" in line["exception"]


async def test_a_process_that_tells_without_end_meets_its_timeout() -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, "tell_without_end")
    assert (record.state, record.attempts[0].outcome and record.attempts[0].outcome.value) == (
        State.FAILED,
        "timed_out",
    )
    assert len(await lines(store, record.id)) <= 1_000


async def test_what_comes_after_the_end_is_not_taken() -> None:
    store = memory_store()
    async with working(store):
        record = await run_one(store, "tell_too_late")
        assert record.state is State.FAILED
        BOARD.go_on.set()
        assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)
    assert "too late" not in [line["message"] for line in await lines(store, record.id)]


class _Moody(MemoryStore):
    """Be away for the first calls of ``output``, after having done what was asked."""

    failures = 2
    error: Exception = StoreUnavailable("away")

    async def output(self, items: Any) -> list[OutputCode | Exception]:
        answers = await super().output(items) if isinstance(self.error, StoreUnavailable) else []
        if self.failures > 0:
            self.failures -= 1
            raise self.error
        return answers


async def test_an_answer_that_is_lost_stores_nothing_twice() -> None:
    store = _Moody(memory_store()._clock)
    async with working(store):
        record = await run_one(store, "tell", {"lines": 5})
    assert record.state is State.COMPLETED
    assert [line["fields"]["number"] for line in await lines(store, record.id)] == [0, 1, 2, 3, 4]


async def test_a_full_store_refuses_output_and_not_the_job() -> None:
    store = _Moody(memory_store()._clock)
    store.error = StoreFull("full")
    store.failures = 1_000
    async with working(store):
        record = await run_one(store, "tell", {"lines": 5})
    assert record.state is State.COMPLETED
    assert await lines(store, record.id) == []


async def test_a_stale_attempt_writes_nothing_and_stops() -> None:
    store = memory_store()
    (job_id,) = await submit(store, new_job("tell_and_wait"))
    async with working(store, drain_ms=30_000) as worker:
        assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)
        async with asyncio.timeout(30):
            found = await store.follow(job_id, rev="", timeout_ms=0)
            while found is not None and not found.entries:
                found = await store.follow(job_id, rev=found.rev, timeout_ms=30_000)
        # The attempt is another worker's now; this one does not know it yet.
        await store.pause("default")
        assert await store.release_worker(worker.name) == 1
        BOARD.go_on.set()
        # It drains in order, once it knows.
        worker.request_stop()
    assert [line["message"] for line in await lines(store, job_id)] == ["before"]
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.attempt) == (State.QUEUED, 1)


async def test_above_the_bound_the_oldest_goes_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_ENTRIES", 10)
    store = memory_store()
    async with working(store):
        # Nothing is written while the loop is held.
        record = await run_one(store, "tell", {"lines": 20})
    found = await store.follow(record.id)
    assert found is not None
    assert [line["fields"]["number"] for line in await lines(store, record.id)] == [15, 16, 17, 18, 19]
    assert (found.log_dropped, found.stream_dropped) == (15, 15)


async def test_entries_go_together() -> None:
    calls: list[int] = []

    class Counting(MemoryStore):
        async def output(self, items: Any) -> list[OutputCode | Exception]:
            calls.append(len(items))
            return await super().output(items)

    store = Counting(memory_store()._clock)
    async with working(store):
        record = await run_one(store, "tell", {"lines": 400})
    assert record.state is State.COMPLETED
    # 800 entries in two batches, not one by one.
    assert len(calls) <= 4
