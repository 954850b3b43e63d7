"""Jobs that one call moves: each as if it were alone, whatever its neighbours are."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from penstock.core.ids import JobId
from penstock.core.job import HeldUntil, Settle, SettleCode, Settled, Submitted, Unique, Verb
from penstock.core.limits import Limits
from penstock.core.states import Priority, State
from tests.conformance import test_wait
from tests.conformance.subject import OTHER_WORKER, WORKER, Subject, redis_subject
from tests.conformance.test_damaged import Damage


async def test_many_kinds_are_claimed_and_completed_in_one_call(subject: Subject) -> None:
    """The audit at the end compares every index and count with the jobs."""
    ids = []
    for queue in ("default", "mail"):
        for priority in (Priority.HIGH, Priority.NORMAL):
            ids += await subject.submit_many(5, queue=queue, priority=priority)
            ids += await subject.submit_many(2, queue=queue, priority=priority, expires_in_ms=60_000)
    claimed = await subject.claim(20, queues=("default", "mail"))
    others = await subject.claim(20, queues=("default", "mail"), worker=OTHER_WORKER)
    jobs = [*claimed.jobs, *others.jobs]
    assert (len(claimed.jobs), len(others.jobs)) == (20, 8)
    assert {job.token.job_id for job in jobs} == set(ids)
    assert await subject.count("started") + await subject.count("started", "mail") == 28
    assert {await subject.state(job_id) for job_id in ids} == {State.RUNNING}
    answers = await subject.store.settle(
        [Settle(token=job.token, verb=Verb.COMPLETE, value=str(number).encode()) for number, job in enumerate(jobs)]
    )
    assert answers == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * 28
    for number, job in enumerate(jobs):
        record = await subject.get(job.token.job_id)
        assert (record.state, record.result) == (State.COMPLETED, str(number).encode())
    assert await subject.count("completed") + await subject.count("completed", "mail") == 28
    assert await subject.store.release_worker(WORKER) == 0
    assert await subject.store.release_worker(OTHER_WORKER) == 0


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
async def test_large_values_are_kept_however_the_job_is_moved(subject: Subject, together: bool) -> None:
    big = b'"%s"' % (b"x" * 300)
    unique = None if together else Unique(key="0" * 32, until=HeldUntil.FINISHED)
    token = await subject.running(input=big, unique=unique)
    assert await subject.store.input(token.job_id) == big
    await subject.settle(token, Verb.COMPLETE, value=big)
    assert (await subject.get(token.job_id)).result == big


async def test_jobs_of_two_workers_are_completed_in_one_call(subject: Subject) -> None:
    await subject.submit_many(4)
    first, second = (await subject.claim(2)).jobs, (await subject.claim(2, worker=OTHER_WORKER)).jobs
    answers = await subject.store.settle(
        [Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in (*first, *second)]
    )
    assert answers == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * 4
    assert await subject.audit() == []


async def test_many_kinds_become_due_in_one_call(subject: Subject) -> None:
    """Scheduled and retrying ones, of two queues, priorities and workers, each back in its own place."""
    ids: dict[tuple[str, Priority], list[JobId]] = {}
    for queue, priority in itertools.product(("default", "mail"), (Priority.HIGH, Priority.NORMAL)):
        fields = {"queue": queue, "priority": priority}
        tried = await subject.submit_many(2, **fields)
        for worker in (WORKER, OTHER_WORKER):
            job = await subject.claim_one(queues=(queue,), worker=worker)
            await subject.settle(job.token, Verb.RETRY, delay_ms=1_000)
        late = await subject.submit_many(1, delay_ms=1_000, expires_in_ms=60_000, **fields)
        ids[queue, priority] = [*tried, *await subject.submit_many(2, delay_ms=1_000, **fields), *late]
    # Those of two priorities beside each other.
    for (queue, priority), wanted in ids.items():
        wanted.extend(await subject.submit_many(1, delay_ms=1_000, queue=queue, priority=priority))
    await subject.advance(1_000)
    assert (await subject.store.promote(0)).queued == 24
    for (queue, priority), wanted in ids.items():
        assert set(await subject.order(queue, priority)) == set(wanted)
    assert await subject.audit() == []


async def test_the_same_completion_twice_in_one_call(subject: Subject) -> None:
    await subject.submit_many(3)
    first, second, third = [
        Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in (await subject.claim(3)).jobs
    ]
    failed = Settle(token=second.token, verb=Verb.FAIL)
    answers = await subject.store.settle([first, second, first, failed, third])
    assert [answer.code for answer in answers if isinstance(answer, Settled)] == [
        SettleCode.DONE,
        SettleCode.DONE,
        SettleCode.REPEATED,
        SettleCode.STALE,
        SettleCode.DONE,
    ]
    assert await subject.count("completed") == 3


async def test_who_waits_for_one_of_many_is_told(subject: Subject) -> None:
    await subject.submit_many(6)
    jobs = (await subject.claim(6)).jobs
    waiting = await test_wait.TestFinal().waiting(subject, jobs[3].token)
    await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
    assert await test_wait.woken(waiting) is State.COMPLETED


class TestDamagedIndex:
    @pytest.fixture
    async def subject(self, valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
        """Return a store on Redis that is not audited at the end."""
        async with redis_subject(valkey_url, namespace, 1, Limits()) as one:
            yield one

    async def test_completions_of_another_queue_are_written_redis(self, subject: Subject) -> None:
        for queue in ("default", "mail"):
            await subject.submit_many(3, queue=queue)
        jobs = (await subject.claim(6, queues=("default", "mail"))).jobs
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("final", "completed", "mail"), "not a sorted set")
        answers = await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
        for job, answer in zip(jobs, answers, strict=True):
            is_mail = job.queue == "mail"
            assert isinstance(answer, Exception) is is_mail
            assert await subject.state(job.token.job_id) is (State.RUNNING if is_mail else State.COMPLETED)
            assert await damage.holds(job.token.job_id, "running", WORKER) is is_mail
        assert (await subject.count("completed"), await subject.count("completed", "mail")) == (3, 0)

    @pytest.mark.parametrize("kind", ["running", "leases"])
    async def test_what_cannot_be_moved_is_not_handed_out_redis(self, subject: Subject, kind: str) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        key = damage.keys.key(kind, *([WORKER] if kind == "running" else []))
        await damage.connection.command("SET", key, "not a sorted set")
        assert (await subject.claim(5)).jobs == ()
        await damage.connection.command("DEL", key)
        assert {await subject.state(job_id) for job_id in ids} == {State.QUEUED}
        assert [job.token.job_id for job in (await subject.claim(5)).jobs] == ids

    @pytest.mark.parametrize("delay_ms", [None, 1_000], ids=["queued", "scheduled"])
    async def test_of_a_new_job_that_cannot_be_written_nothing_stays_redis(
        self, subject: Subject, delay_ms: int | None
    ) -> None:
        damage = Damage(subject)
        key = damage.keys.key("delayed") if delay_ms else damage.keys.key("queue", "mail", "normal")
        await damage.connection.command("SET", key, "not a sorted set")
        good = subject.new()
        bad = [subject.new(queue="mail", delay_ms=delay_ms, input=b'"%s"' % (b"x" * 300)) for _ in range(2)]
        answers = await subject.store.submit([bad[0], good, bad[1], bad[0]])
        assert [isinstance(answer, Submitted) for answer in answers] == [False, True, False, False]
        for job in bad:
            for kind in ("job", "input"):
                assert await damage.connection.command("EXISTS", damage.keys.key(kind, job.id)) == 0
        assert (await subject.count("submitted"), await subject.count("submitted", "mail")) == (1, 0)
        await damage.connection.command("DEL", key)
        assert all(isinstance(answer, Submitted) and answer.created for answer in await subject.store.submit(bad))
        assert await subject.audit() == []
