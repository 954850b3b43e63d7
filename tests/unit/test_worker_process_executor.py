"""Let jobs wait for a child process, unstarted, and see what becomes of them when it is taken, stopped or killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.ids import JobId, Token
from penstock.core.job import ClaimedJob, JobOptions
from penstock.core.limits import Limits
from penstock.core.outcome import Cancelled, FailedAttempt, Outcome, Released, Succeeded
from penstock.core.retry import DEFAULT_BACKOFF
from penstock.core.states import AttemptOutcome, Priority
from penstock.handlers.registry import Registry, task
from penstock.worker import process_executor
from penstock.worker.active import ActiveJob, Place, StopCause
from penstock.worker.child import start_child
from penstock.worker.decide import Policy
from penstock.worker.executors import Handlers
from penstock.worker.pool import ProcessPool
from penstock.worker.process_executor import ProcessExecutor

DONE = Succeeded(result=b"1")


def hold(folder: str) -> None:
    """Tell that it runs, and end when told to."""
    (Path(folder) / "started").write_text("started")
    (Path(folder) / "go_on").read_text()


@task(executor="process")
def held(folder: str) -> int:
    hold(folder)
    return 1


@task(executor="process")
def one() -> int:
    return 1


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


class OneChild:
    """Run jobs in the only child."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.mkfifo(folder / "started")
        os.mkfifo(folder / "go_on")
        self.attempts = Attempts()
        self.pool = ProcessPool(1)
        # Imports are no part of a job's time.
        self.pool.initialize_with(start_child, None, "warning", (__name__,))
        registry = Registry()
        registry.add_module(sys.modules[__name__])
        self._registry = registry
        # None of the tasks takes a context, so nothing is written.
        self.executor = ProcessExecutor(Handlers(registry, {}, Limits(), None), self.pool)  # type: ignore[arg-type]

    def begin(self, name: str, *, timeout_ms: int | None = None, handler: str = "one") -> ActiveJob:
        text = b'{"folder":"%s"}' % str(self.folder).encode() if handler == "held" else b"{}"
        claimed = ClaimedJob(
            token=Token(JobId(name), 1, "nonce"),
            task=handler,
            type="task",
            queue="default",
            priority=Priority.NORMAL,
            counted=0,
            lost=0,
            created_at_ms=0,
            deadline_ms=0,
            options=JobOptions(),
            input=text,
        )
        declared = self._registry.get(handler)
        assert declared is not None
        policy = Policy(max_attempts=1, backoff=DEFAULT_BACKOFF, timeout_ms=timeout_ms)
        job = ActiveJob(claimed, declared, policy, Place(lambda: None))
        self.executor.begin(job, text, self.attempts)
        return job

    async def started(self) -> None:
        """Wait until the child runs what holds it."""
        async with asyncio.timeout(30):
            await asyncio.to_thread((self.folder / "started").read_text)

    async def go_on(self) -> None:
        async with asyncio.timeout(30):
            await asyncio.to_thread((self.folder / "go_on").write_text, "go on")

    async def next_end(self) -> tuple[JobId, Outcome | None]:
        async with asyncio.timeout(30):
            return await self.attempts.ended.get()


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[OneChild]:
    made = OneChild(tmp_path)
    yield made
    await asyncio.to_thread(made.pool.close)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing go back for having waited."""
    monkeypatch.setattr(process_executor, "LOOK_S", 60.0)


async def hold_child(child: OneChild) -> ActiveJob:
    job = child.begin("first", handler="held")
    await child.started()
    return job


@pytest.mark.usefixtures("patient")
async def test_what_waits_starts_when_the_child_is_free_and_not_before(child: OneChild) -> None:
    await hold_child(child)
    child.begin("second")
    child.begin("third")
    assert child.attempts.started == ["first"]
    await child.go_on()
    assert [await child.next_end() for _ in range(3)] == [("first", DONE), ("second", DONE), ("third", DONE)]
    assert child.attempts.started == ["first", "second", "third"]


async def test_what_waits_too_long_goes_back_and_never_starts(child: OneChild) -> None:
    await hold_child(child)
    child.begin("second")
    assert await child.next_end() == ("second", Released())
    await child.go_on()
    assert await child.next_end() == ("first", DONE)
    child.begin("third")
    assert await child.next_end() == ("third", DONE)
    assert child.attempts.started == ["first", "third"]


async def test_a_job_that_is_next_keeps_its_turn_while_the_child_does_something_else(child: OneChild) -> None:
    call = child.pool.begin(hold, str(child.folder))
    await child.started()
    child.begin("first")
    child.begin("second")
    # Were the first one to go back too, it would before the second.
    assert await child.next_end() == ("second", Released())
    await child.go_on()
    assert await child.next_end() == ("first", DONE)
    await call.future


@pytest.mark.usefixtures("patient")
async def test_a_drain_hands_back_what_waits_and_lets_finish_what_runs(child: OneChild) -> None:
    await hold_child(child)
    child.begin("second")
    child.executor.withdraw()
    assert await child.next_end() == ("second", Released())
    await child.go_on()
    assert await child.next_end() == ("first", DONE)
    assert child.attempts.started == ["first"]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("cause", "outcome"), [(StopCause.CANCEL, Cancelled()), (StopCause.STALE, None)])
async def test_what_waits_is_stopped_at_once(child: OneChild, cause: StopCause, outcome: Outcome | None) -> None:
    await hold_child(child)
    child.begin("second").stop(cause)
    assert await child.next_end() == ("second", outcome)
    await child.go_on()
    assert await child.next_end() == ("first", DONE)
    child.begin("third")
    assert await child.next_end() == ("third", DONE)
    assert child.attempts.started == ["first", "third"]


@pytest.mark.usefixtures("patient")
async def test_a_child_that_is_killed_takes_along_what_it_ran_and_nothing_that_waits(child: OneChild) -> None:
    first = await hold_child(child)
    child.begin("second")
    first.stop(StopCause.STALE)
    assert await child.next_end() == ("first", None)
    assert await child.next_end() == ("second", DONE)


@pytest.mark.usefixtures("patient")
async def test_a_timeout_kills_what_runs_and_counts_for_the_next_from_its_own_start(
    child: OneChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.worker.pool.STOP_GRACE_S", 0.1)
    child.begin("first", handler="held", timeout_ms=1_000)
    # It waits for longer than its own time.
    child.begin("second", timeout_ms=1_000)
    name, outcome = await child.next_end()
    assert name == "first"
    assert isinstance(outcome, FailedAttempt)
    assert outcome.outcome is AttemptOutcome.TIMED_OUT
    assert await child.next_end() == ("second", DONE)
