"""Claim short jobs for threads ahead, and hand back what has to wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.core.ids import JobId, Token
from penstock.core.job import ClaimedJob, JobOptions
from penstock.core.limits import Limits
from penstock.core.outcome import Cancelled, FailedAttempt, Outcome, Released, Succeeded
from penstock.core.retry import DEFAULT_BACKOFF
from penstock.core.states import AttemptOutcome, Priority
from penstock.handlers.binding import WholeInput
from penstock.handlers.registry import Registry, Task
from penstock.worker.active import ActiveJob, Place, StopCause
from penstock.worker.ahead import Ahead
from penstock.worker.decide import Policy
from penstock.worker.executors import Handlers
from penstock.worker.slots import Slots
from penstock.worker.thread_executor import ThreadExecutor
from penstock.worker.threads import Threads


def test_as_many_are_wanted_as_end_within_twenty_milliseconds() -> None:
    ahead = Ahead()
    for number in range(120):
        ahead.note(0.001, 10 + number / 5_000)
    assert ahead.jobs in range(98, 102)
    for number in range(2_000):
        ahead.note(0.001, 10.024 + number / 50_000)
    assert ahead.jobs == 200


def test_a_long_run_and_a_pause_end_it() -> None:
    ahead = Ahead()

    def warm(at_s: float) -> None:
        for number in range(120):
            ahead.note(0.001, at_s + number / 5_000)
        assert ahead.jobs > 0

    warm(10)
    ahead.note(0.06, 10.03)
    assert ahead.jobs == 0
    warm(20)
    assert not ahead.is_idle(20.05)
    assert ahead.is_idle(20.2)
    assert ahead.jobs == 0
    warm(30)
    ahead.forget(30.1)
    assert ahead.jobs == 0
    # A single job now and then never has company.
    for number in range(20):
        ahead.note(0.001, 40 + number)
        assert ahead.jobs == 0


def test_room_for_what_is_claimed_ahead_opens_once_half_is_used_up() -> None:
    freed: list[int] = []
    slots = Slots({"thread": 2, "async": 0})
    slots.on_freed = lambda: freed.append(slots.free("thread"))
    slots.take("thread", "q")
    slots.take("thread", "q")
    assert slots.full
    slots.set_ahead("thread", 4)
    assert freed == [4]
    for _ in range(4):
        slots.take("thread", "q")
    assert (slots.full, slots.taken) == (True, 2)
    slots.give_back("thread", "q")
    slots.give_back("thread", "q")
    assert (slots.full, freed) == (True, [4])
    slots.give_back("thread", "q")
    assert (slots.free("thread"), freed) == (3, [4, 3])
    slots.set_ahead("thread", 0)
    assert slots.full
    slots.give_back("thread", "q")
    slots.give_back("thread", "q")
    assert (slots.free("thread"), freed) == (1, [4, 3, 1])
    one = Slots({"thread": 1}, most=1)
    one.set_ahead("thread", 4)
    assert one.free("thread") == 1


class Attempts:
    """Note what becomes of jobs."""

    def __init__(self) -> None:
        self.started: list[JobId] = []
        self.ended: asyncio.Queue[tuple[JobId, Outcome | None]] = asyncio.Queue()

    def mark_started(self, job: ActiveJob) -> None:
        self.started.append(job.claimed.token.job_id)

    def end(self, job: ActiveJob, outcome: Outcome | None) -> None:
        self.ended.put_nowait((job.claimed.token.job_id, outcome))

    def detach(self, job: ActiveJob, handler: asyncio.Task[None], outcome: Outcome) -> None:
        raise AssertionError

    def let_go(self, job: ActiveJob) -> None:
        raise AssertionError


class OneThread:
    """Run jobs on the only thread, which is taken by the job ``first`` until ``go_on``."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.attempts = Attempts()
        self.threads = Threads(1)
        nothing: Any = None
        self.executor = ThreadExecutor(Handlers(Registry(), {}, Limits(), nothing), self.threads)
        self.begin("first")

    def begin(self, name: str, *, timeout_ms: int | None = None) -> ActiveJob:
        claimed = ClaimedJob(
            token=Token(JobId(name), 1, "nonce"),
            task="t",
            type="task",
            queue="default",
            priority=Priority.NORMAL,
            counted=0,
            lost=0,
            created_at_ms=0,
            deadline_ms=0,
            options=JobOptions(),
            input=b"1",
        )
        task: Task[..., Any] = Task(self._run, name="t", binder=WholeInput("n"))
        policy = Policy(max_attempts=1, backoff=DEFAULT_BACKOFF, timeout_ms=timeout_ms)
        job = ActiveJob(claimed, task, policy, Place(lambda: None))
        self.executor.begin(job, b"1", self.attempts)
        return job

    def _run(self, n: int) -> int:
        self.go_on.wait(30)
        return n

    async def next_end(self) -> tuple[JobId, Outcome | None]:
        async with asyncio.timeout(30):
            return await self.attempts.ended.get()


@pytest.fixture
async def one() -> AsyncIterator[OneThread]:
    made = OneThread()
    yield made
    made.go_on.set()
    made.threads.close()


async def test_what_waits_runs_next(one: OneThread) -> None:
    one.begin("second")
    one.go_on.set()
    done = Succeeded(result=b"1")
    assert [await one.next_end(), await one.next_end()] == [("first", done), ("second", done)]
    assert one.attempts.started == ["first", "second"]


async def test_what_waits_too_long_goes_back_and_never_starts(one: OneThread) -> None:
    one.begin("second")
    assert await one.next_end() == ("second", Released())
    one.go_on.set()
    assert await one.next_end() == ("first", Succeeded(result=b"1"))
    one.begin("third")
    assert await one.next_end() == ("third", Succeeded(result=b"1"))
    assert one.attempts.started == ["first", "third"]


async def test_a_drain_hands_back_what_waits_and_lets_finish_what_runs(one: OneThread) -> None:
    one.begin("second")
    one.executor.withdraw()
    assert await one.next_end() == ("second", Released())
    one.go_on.set()
    assert await one.next_end() == ("first", Succeeded(result=b"1"))


@pytest.mark.parametrize(("cause", "outcome"), [(StopCause.CANCEL, Cancelled()), (StopCause.STALE, None)])
async def test_what_waits_is_stopped_at_once(one: OneThread, cause: StopCause, outcome: Outcome | None) -> None:
    one.begin("second").stop(cause)
    assert await one.next_end() == ("second", outcome)
    assert one.executor.stuck == 0


async def test_a_timeout_counts_from_the_start(one: OneThread) -> None:
    one.begin("second", timeout_ms=1)
    assert await one.next_end() == ("second", Released())
    one.go_on.set()
    await one.next_end()
    one.go_on.clear()
    one.begin("third", timeout_ms=1)
    name, outcome = await one.next_end()
    assert name == "third"
    assert isinstance(outcome, FailedAttempt)
    assert outcome.outcome is AttemptOutcome.TIMED_OUT
    assert one.executor.stuck == 1
