"""Pause, resume and purge a queue."""

from __future__ import annotations

import asyncio

import pytest

from penstock.core.errors import QueueFull
from penstock.core.job import MemoryUse, Purged, Submitted, Verb
from penstock.core.limits import Limits
from penstock.core.states import Priority, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS, WORKER, Subject

LONG_MS = 20_000


async def is_paused(subject: Subject, queue: str = "default") -> bool:
    """Tell what the listing says of a queue."""
    return next(info.paused for info in await subject.store.queues() if info.name == queue)


class TestPause:
    async def test_a_paused_queue_takes_jobs_and_hands_out_none(self, subject: Subject) -> None:
        before = await subject.submit()
        await subject.store.pause("default")
        after = await subject.submit(priority=Priority.CRITICAL)
        claimed = await subject.claim(5)
        assert (claimed.jobs, claimed.remaining) == ((), False)
        assert [await subject.state(job_id) for job_id in (before, after)] == [State.QUEUED] * 2
        assert await is_paused(subject)

    async def test_other_queues_go_on(self, subject: Subject) -> None:
        await subject.submit()
        await subject.store.pause("default")
        other = await subject.submit(queue="other")
        claimed = await subject.claim(5, queues=("default", "other"))
        assert [job.token.job_id for job in claimed.jobs] == [other]
        assert not await is_paused(subject, "other")

    async def test_nobody_wakes_for_a_paused_queue(self, subject: Subject) -> None:
        await subject.submit()
        await subject.store.pause("default")
        await subject.submit()
        await subject.store.reap(0)
        await subject.claim(0)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()

    async def test_a_resume_wakes(self, subject: Subject) -> None:
        await subject.store.pause("default")
        job_id = await subject.submit()
        task = asyncio.create_task(subject.store.wait_work(WORKER, ("default",), timeout_ms=LONG_MS))
        await subject.store.ping()
        await subject.store.ping()
        await subject.store.resume("default")
        assert await task == frozenset({"queue:default"})
        assert (await subject.claim_one()).token.job_id == job_id
        assert not await is_paused(subject)

    async def test_what_runs_goes_on_and_comes_back_to_its_place(self, subject: Subject) -> None:
        first, second = await subject.running(), await subject.running()
        third = await subject.submit()
        await subject.store.pause("default")
        await subject.settle(first, Verb.COMPLETE, value=b"1")
        await subject.settle(second, Verb.RELEASE)
        assert await subject.state(first.job_id) is State.COMPLETED
        assert (await subject.claim(5)).jobs == ()
        assert await subject.order() == [second.job_id, third]

    async def test_due_jobs_queue_up_and_late_ones_expire(self, subject: Subject) -> None:
        await subject.store.pause("default")
        due = await subject.submit(delay_ms=10)
        late = await subject.submit(expires_in_ms=10)
        await subject.advance(10)
        await subject.store.promote(0)
        assert [await subject.state(job_id) for job_id in (due, late)] == [State.QUEUED, State.EXPIRED]
        assert (await subject.claim(5)).jobs == ()

    async def test_repeating_changes_nothing(self, subject: Subject) -> None:
        await subject.store.resume("default")
        await subject.submit()
        await subject.store.pause("default")
        await subject.store.pause("default")
        assert await is_paused(subject)
        await subject.store.resume("default")
        await subject.store.resume("default")
        assert len((await subject.claim(5)).jobs) == 1

    async def test_a_queue_can_be_paused_before_its_first_job(self, subject: Subject) -> None:
        await subject.store.pause("new")
        assert await is_paused(subject, "new")
        await subject.submit(queue="new")
        assert (await subject.claim(5, queues=("new",))).jobs == ()

    @pytest.mark.every_server
    async def test_every_partition_is_paused(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(2)
        for home in (0, 1):
            await subject.submit(home=home)
        await subject.store.pause("default")
        assert await is_paused(subject)
        assert [(await subject.claim(5, partition=partition)).jobs for partition in (0, 1)] == [(), ()]
        await subject.store.resume("default")
        assert [len((await subject.claim(5, partition=partition)).jobs) for partition in (0, 1)] == [1, 1]


def taken(answers: list[Submitted | Exception]) -> list[bool]:
    """Tell of each job whether it was taken; the others found their queue full."""
    assert all(isinstance(answer, Submitted | QueueFull) for answer in answers)
    return [isinstance(answer, Submitted) for answer in answers]


class TestMaxDepth:
    async def test_a_full_queue_takes_no_more(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_depth=3))
        jobs = [subject.new(priority=priority) for priority in Priority]
        assert taken(await subject.store.submit(jobs)) == [True, True, True, False]
        assert taken(await subject.store.submit([subject.new(), subject.new(queue="other")])) == [False, True]
        assert await subject.store.get(jobs[3].id) is None
        assert (await subject.count("refused"), await subject.count("submitted")) == (2, 3)
        await subject.claim_one()
        assert taken(await subject.store.submit([subject.new(), subject.new()])) == [True, False]

    async def test_delayed_jobs_count(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_depth=2))
        jobs = [subject.new(delay_ms=1_000), subject.new(), subject.new(delay_ms=1_000)]
        assert taken(await subject.store.submit(jobs)) == [True, True, False]
        assert taken(await subject.store.submit([subject.new()])) == [False]

    async def test_a_queue_may_have_its_own(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_depth=1, queue_max_depth=(("mail", 2), ("bulk", 0))))
        for queue, expected in (("default", 1), ("mail", 2), ("bulk", 5)):
            jobs = [subject.new(queue=queue) for _ in range(5)]
            assert sum(taken(await subject.store.submit(jobs))) == expected

    async def test_a_repeat_finds_its_job(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_depth=1))
        job = subject.new()
        assert taken(await subject.store.submit([job, job, subject.new()])) == [True, True, False]
        assert taken(await subject.store.submit([job])) == [True]

    async def test_what_comes_back_is_never_refused(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_depth=1))
        failed, released = await subject.running(), await subject.running()
        await subject.settle(failed, Verb.FAIL)
        await subject.submit()
        await subject.settle(released, Verb.RELEASE)
        await subject.store.redrive([failed.job_id])
        assert len(await subject.order()) == 3

    async def test_each_partition_takes_its_part(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(2, Limits(max_depth=4))
        jobs = [subject.new(home=number % 2) for number in range(8)]
        assert taken(await subject.store.submit(jobs)) == [True] * 4 + [False] * 4


@pytest.mark.every_server
async def test_memory_is_told(subject: Subject) -> None:
    use = await subject.store.memory()
    assert use.max_bytes == 0
    assert not use.is_above(1)
    assert MemoryUse(used_bytes=90, max_bytes=100).is_above(90)
    assert not MemoryUse(used_bytes=89, max_bytes=100).is_above(90)


class TestPurge:
    async def test_what_is_queued_is_cancelled(self, subject: Subject) -> None:
        ids = [await subject.submit(priority=priority) for priority in Priority]
        purged = await subject.store.purge(0, "default")
        assert (purged.cancelled, purged.more) == (4, False)
        records = [await subject.get(job_id) for job_id in ids]
        assert {record.state for record in records} == {State.CANCELLED}
        assert {record.cancel_requested_at_ms for record in records} == {START_MS}
        assert await subject.count("cancelled") == 4
        assert (await subject.claim(5)).jobs == ()

    async def test_what_is_not_queued_here_stays(self, subject: Subject) -> None:
        running = (await subject.running()).job_id
        retrying = await subject.running()
        await subject.settle(retrying, Verb.RETRY, delay_ms=1_000)
        scheduled = await subject.submit(delay_ms=1_000)
        other = await subject.submit(queue="other")
        assert (await subject.store.purge(0, "default")).cancelled == 0
        states = [await subject.state(job_id) for job_id in (running, retrying.job_id, scheduled, other)]
        assert states == [State.RUNNING, State.RETRYING, State.SCHEDULED, State.QUEUED]

    async def test_what_comes_meanwhile_stays(self, subject: Subject) -> None:
        await subject.submit_many(5)
        step = await subject.store.purge(0, "default", limit=3)
        assert (step.cancelled, step.more) == (3, True)
        urgent = await subject.submit(priority=Priority.CRITICAL)
        late = await subject.submit()
        step = await subject.store.purge(0, "default", up_to=step.up_to, limit=3)
        assert (step.cancelled, step.more) == (2, False)
        assert [await subject.state(job_id) for job_id in (urgent, late)] == [State.QUEUED] * 2

    async def test_an_empty_queue_is_nothing_to_purge(self, subject: Subject) -> None:
        assert await subject.store.purge(0, "nobody") == Purged(cancelled=0, up_to=0, more=False)

    async def test_a_paused_queue_can_be_purged(self, subject: Subject) -> None:
        await subject.submit_many(3)
        await subject.store.pause("default")
        assert (await subject.store.purge(0, "default")).cancelled == 3
        await subject.store.resume("default")
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=30) == frozenset()
