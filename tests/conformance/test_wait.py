"""Wait for work, for wake-ups and for the end of a job. A wake-up that is lost runs into the timeout."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import Token
from penstock.core.job import JobFilter, Verb
from penstock.core.limits import Limits
from penstock.core.states import State
from penstock.store.redis.store import RedisStore
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, WORKER, Subject

LONG_MS = 20_000
QUEUE = frozenset({"queue:default"})
WAKE = frozenset({"wake"})
DUE = frozenset({"due"})


async def waiting(subject: Subject, *queues: str, worker: object = WORKER) -> asyncio.Task[frozenset[str]]:
    """Start to wait for work and return once the call is under way."""
    task = asyncio.create_task(subject.store.wait_work(worker, queues, timeout_ms=LONG_MS))  # type: ignore[arg-type]
    # A round trip of ours gets the blocking call of the other connection out as well.
    await subject.store.ping()
    await subject.store.ping()
    return task


async def woken(task: asyncio.Task[State | None]) -> State | None:
    """Return what a wait for an end came to, well before its own time is over: then it would look by itself."""
    async with asyncio.timeout(LONG_MS / 2_000):
        return await task


class TestWork:
    async def test_what_is_there_returns_at_once(self, subject: Subject) -> None:
        await subject.submit()
        assert await subject.store.wait_work(WORKER, ("other", "default"), timeout_ms=LONG_MS) == QUEUE

    @pytest.mark.every_server
    async def test_what_comes_wakes(self, subject: Subject) -> None:
        task = await waiting(subject, "default")
        await subject.submit()
        assert await task == QUEUE

    async def test_a_promoted_job_wakes(self, subject: Subject) -> None:
        await subject.submit(delay_ms=100)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE
        task = await waiting(subject, "default")
        await subject.advance(100)
        await subject.store.promote(0)
        assert await task == QUEUE

    @pytest.mark.parametrize("how", ["release", "redrive", "reap", "release_worker"])
    async def test_a_job_that_comes_back_wakes(self, subject: Subject, how: str) -> None:
        await subject.steady_reaps(20_000)
        token = await subject.running()
        if how == "redrive":
            await subject.settle(token, Verb.FAIL)
        task = await waiting(subject, "default")
        if how == "release":
            await subject.settle(token, Verb.RELEASE)
        elif how == "redrive":
            await subject.store.redrive([token.job_id])
        elif how == "release_worker":
            await subject.store.release_worker(WORKER)
        else:
            for _ in range(15):
                await subject.advance(1_000)
                await subject.store.reap(0)
        assert await task == QUEUE

    async def test_other_queues_do_not_wake(self, subject: Subject) -> None:
        await subject.submit(queue="other")
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    async def test_an_emptied_queue_does_not_wake(self, subject: Subject) -> None:
        job_id = await subject.submit()
        await subject.store.cancel([job_id])
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    @pytest.mark.every_server
    async def test_a_marker_wakes_one_and_the_claim_passes_it_on(self, subject: Subject) -> None:
        first, second = await waiting(subject, "default"), await waiting(subject, "default", worker=OTHER_WORKER)
        await subject.submit_many(2)
        done, pending = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == len(pending) == 1
        await subject.claim(1)
        assert await pending.pop() == QUEUE

    async def test_a_claim_passes_on_each_queue_that_it_serves(self, subject: Subject) -> None:
        await subject.submit_many(2, queue="a")
        await subject.submit(queue="b")
        for _ in "ab":
            assert await subject.store.wait_work(WORKER, ("a", "b"), timeout_ms=LONG_MS)
        await subject.claim(1, queues=("a", "b"))
        for name in "ab":
            assert await subject.store.wait_work(WORKER, (name,), timeout_ms=LONG_MS) == frozenset({f"queue:{name}"})

    async def test_a_claim_that_empties_the_queue_passes_nothing_on(self, subject: Subject) -> None:
        await subject.submit_many(2)
        await subject.claim(2)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    @pytest.mark.every_server
    @pytest.mark.parametrize("home", range(4))
    async def test_each_partition_wakes(self, make_subject: MakeSubject, home: int) -> None:
        subject = await make_subject(4)
        task = await waiting(subject, "default")
        await subject.submit(home=home)
        assert await task == QUEUE

    async def test_the_time_is_over(self, subject: Subject) -> None:
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=0) == frozenset()


class TestDue:
    async def test_an_earlier_due_time_wakes_one(self, subject: Subject) -> None:
        task = await waiting(subject, "default")
        await subject.submit(delay_ms=1_000)
        assert await task == DUE
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    async def test_a_later_due_time_does_not(self, subject: Subject) -> None:
        await subject.submit(delay_ms=1_000)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE
        await subject.submit(delay_ms=2_000)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()
        await subject.submit(delay_ms=999)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE

    @pytest.mark.parametrize("verb", [Verb.RETRY, Verb.SNOOZE])
    async def test_a_settle_that_delays_wakes(self, subject: Subject, verb: Verb) -> None:
        token = await subject.running()
        task = await waiting(subject, "default")
        await subject.settle(token, verb, delay_ms=10)
        assert await task == DUE

    async def test_a_deferred_job_wakes(self, subject: Subject) -> None:
        await subject.submit(task="nobody")
        await subject.claim(1, tasks=("echo",))
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE

    async def test_several_are_one(self, subject: Subject) -> None:
        for delay_ms in (900, 800, 700):
            await subject.submit(delay_ms=delay_ms)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()


class TestWake:
    @pytest.mark.every_server
    async def test_a_wake_returns_the_wait(self, subject: Subject) -> None:
        task = await waiting(subject, "default")
        await subject.store.wake(WORKER)
        assert await task == WAKE

    async def test_a_wake_before_the_wait_is_kept(self, subject: Subject) -> None:
        await subject.store.wake(WORKER)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == WAKE

    async def test_a_wake_goes_before_work(self, subject: Subject) -> None:
        await subject.submit()
        await subject.submit(delay_ms=5)
        await subject.store.wake(WORKER)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == WAKE

    async def test_a_wake_is_for_one_worker(self, subject: Subject) -> None:
        await subject.store.wake(OTHER_WORKER)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    async def test_without_queues_only_the_wake_counts(self, subject: Subject) -> None:
        await subject.submit()
        await subject.submit(delay_ms=10)
        task = await waiting(subject)
        assert not task.done()
        await subject.store.wake(WORKER)
        assert await task == WAKE
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS) == DUE

    async def test_a_cancel_request_wakes_the_worker_that_runs_it(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        await subject.submit(home=3)
        token = (await subject.claim_one(partition=3, worker=OTHER_WORKER)).token
        task = await waiting(subject, worker=OTHER_WORKER)
        await subject.store.cancel([token.job_id])
        assert await task == WAKE
        await subject.store.cancel([token.job_id])
        assert await subject.store.wait_work(OTHER_WORKER, (), timeout_ms=30) == frozenset()

    async def test_many_wakes_are_bounded(self, subject: Subject) -> None:
        for _ in range(40):
            await subject.store.wake(WORKER)
        count = 0
        while await subject.store.wait_work(WORKER, (), timeout_ms=30):
            count += 1
        assert 1 <= count <= 16


class TestFinal:
    async def test_no_such_job_is_none(self, subject: Subject) -> None:
        assert await subject.store.wait_final(subject.new().id, timeout_ms=LONG_MS) is None

    async def test_a_final_job_returns_at_once(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        assert await subject.store.wait_final(token.job_id, timeout_ms=LONG_MS) is State.COMPLETED

    @pytest.mark.every_server
    @pytest.mark.parametrize(
        ("verb", "state"), [(Verb.COMPLETE, State.COMPLETED), (Verb.FAIL, State.FAILED), (Verb.CANCEL, State.CANCELLED)]
    )
    async def test_an_end_wakes(self, subject: Subject, verb: Verb, state: State) -> None:
        token = await subject.running()
        task = await self.waiting(subject, token)
        await subject.store.cancel([token.job_id])
        await subject.settle(token, verb)
        assert await woken(task) is state

    async def test_a_cancel_of_a_waiting_job_wakes(self, subject: Subject) -> None:
        job_id = await subject.submit(delay_ms=60_000)
        task = await self.waiting(subject, Token(job_id, 0, ""))
        await subject.store.cancel([job_id])
        assert await woken(task) is State.CANCELLED

    async def test_an_expiry_wakes(self, subject: Subject) -> None:
        job_id = await subject.submit(expires_in_ms=100)
        task = await self.waiting(subject, Token(job_id, 0, ""))
        await subject.advance(100)
        await subject.claim()
        assert await woken(task) is State.EXPIRED

    async def test_a_poisoned_job_wakes(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_lost=1))
        token = await subject.running()
        await subject.store.release_worker(WORKER, lost=True)
        await subject.claim_one(alone=True)
        task = await self.waiting(subject, token)
        for _ in range(18):
            await subject.advance(1_000)
            await subject.store.reap(0)
        assert await woken(task) is State.FAILED

    async def test_all_who_wait_are_woken(self, subject: Subject) -> None:
        tokens = [await subject.running() for _ in range(3)]
        tasks = [await self.waiting(subject, token) for token in tokens for _ in range(3)]
        for token in tokens:
            await subject.settle(token, Verb.COMPLETE, value=b"1")
        assert [await woken(task) for task in tasks] == [State.COMPLETED] * 9

    @pytest.mark.every_server
    async def test_a_step_on_the_way_does_not_end_the_wait(self, subject: Subject) -> None:
        token = await subject.running()
        task = await self.waiting(subject, token)
        await subject.settle(token, Verb.RETRY)
        await subject.store.promote(0)
        again = (await subject.claim_one()).token
        assert not task.done()
        await subject.settle(again, Verb.COMPLETE, value=b"1")
        assert await woken(task) is State.COMPLETED

    async def test_the_time_is_over(self, subject: Subject) -> None:
        job_id = await subject.submit()
        assert await subject.store.wait_final(job_id, timeout_ms=20) is State.QUEUED
        assert await subject.store.wait_final(job_id, timeout_ms=0) is State.QUEUED

    async def test_a_wait_after_a_wait_is_woken_too(self, subject: Subject) -> None:
        job_id = await subject.submit()
        assert await subject.store.wait_final(job_id, timeout_ms=20) is State.QUEUED
        task = await self.waiting(subject, Token(job_id, 0, ""))
        await subject.store.cancel([job_id])
        assert await woken(task) is State.CANCELLED

    @pytest.mark.redis_only("in memory there is one process")
    async def test_who_came_first_gives_way_where_many_wait(self, subject: Subject) -> None:
        assert isinstance(subject.store, RedisStore)
        token = await subject.running()
        watch = functools.partial(subject.store.connection.script, "watch", 0, token.job_id)
        for number in range(15):
            await watch(f"dead-{number}")
        task = await self.waiting(subject, token)
        for number in range(15, 20):
            await watch(f"dead-{number}")
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        assert await woken(task) is State.COMPLETED

    async def waiting(self, subject: Subject, token: Token) -> asyncio.Task[State | None]:
        task = asyncio.create_task(subject.store.wait_final(token.job_id, timeout_ms=LONG_MS))
        await subject.store.ping()
        await subject.store.ping()
        return task


class TestClose:
    async def test_who_waits_for_an_end_is_told(self, subject: Subject) -> None:
        job_id = await subject.submit()
        task = await TestFinal().waiting(subject, Token(job_id, 0, ""))
        await subject.store.close()
        with pytest.raises(StoreUnavailable):
            await task

    async def test_who_waits_for_work_is_told(self, subject: Subject) -> None:
        task = await waiting(subject, "default")
        await subject.store.close()
        with pytest.raises(StoreUnavailable):
            await task

    async def test_later_calls_are_told(self, subject: Subject) -> None:
        job_id = await subject.submit()
        await subject.store.close()
        calls: list[Callable[[], Awaitable[object]]] = [
            subject.store.ping,
            subject.store.queues,
            subject.store.counters,
            lambda: subject.store.get(job_id),
            lambda: subject.store.list_jobs(JobFilter()),
            lambda: subject.store.wake(WORKER),
            subject.submit,
            subject.claim,
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call()

    async def test_closing_twice_is_fine(self, subject: Subject) -> None:
        await subject.store.close()
        await subject.store.close()
