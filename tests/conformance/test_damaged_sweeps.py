"""Keys and jobs that are damaged (Redis only): a sweep does what does not need them, and counts what it did."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest

from penstock.core.errors import StoreError
from penstock.core.ids import JobId
from penstock.core.job import Promoted, Pruned, Reaped, Settle, SettleCode, Settled, Verb
from penstock.core.limits import Limits
from penstock.core.states import Priority, State
from penstock.store.redis.testing import change_job
from tests.conformance.subject import START_MS, Subject, redis_subject
from tests.conformance.test_damaged import Damage
from tests.conformance.test_removal import completed, there

KEPT_MS = 1_000


@pytest.fixture
async def subject(valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
    """Return a store on Redis that is not audited at the end."""
    limits = Limits(finished_jobs=3, dead_letters=3, retention_ms=KEPT_MS)
    async with redis_subject(valkey_url, namespace, 1, limits) as one:
        yield one


async def spoil(subject: Subject, kind: str, *arguments: str) -> str:
    """Put a value of another type under a key, and return the key."""
    damage = Damage(subject)
    key = damage.keys.key(kind, *arguments)
    await damage.connection.command("SET", key, "not what it was")
    return key


async def repair(subject: Subject, key: str) -> None:
    await Damage(subject).connection.command("DEL", key)


async def dead(subject: Subject, count: int) -> list[JobId]:
    tokens = [await subject.running() for _ in range(count)]
    for token in tokens:
        await subject.settle(token, Verb.FAIL)
    return [token.job_id for token in tokens]


class TestPrune:
    @pytest.mark.parametrize("index", [("dead", "bad"), ("final", "cancelled", "bad"), ("queues",)])
    async def test_what_goes_by_age_is_counted_redis(self, subject: Subject, index: tuple[str, ...]) -> None:
        """Else the count would stay, and those that finish after the repair would lie above the cap."""
        await subject.submit(queue="bad")
        await completed(subject, *[None] * 5)
        await subject.advance(KEPT_MS)
        key = await spoil(subject, *index)
        assert await subject.store.prune(0) == Pruned(expired=5)
        await repair(subject, key)
        ids = await completed(subject, *[None] * 3)
        assert await subject.store.prune(0) == Pruned()
        assert await there(subject, ids) == [True] * 3

    @pytest.mark.parametrize("index", [("dead", "bad"), ("final", "cancelled", "bad"), ("expire",)])
    async def test_other_queues_keep_to_their_caps_redis(self, subject: Subject, index: tuple[str, ...]) -> None:
        await subject.submit(queue="bad")
        finished, failed = await completed(subject, *[None] * 5), await dead(subject, 5)
        await spoil(subject, *index)
        assert await subject.store.prune(0) == Pruned(capped=4)
        assert await there(subject, finished) == await there(subject, failed) == [False] * 2 + [True] * 3

    async def test_the_count_is_not_needed_where_age_decides_redis(self, subject: Subject) -> None:
        await completed(subject, None)
        await spoil(subject, "gauges")
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=1)

    async def test_damaged_jobs_that_are_the_oldest_keep_no_other_redis(self, subject: Subject) -> None:
        finished, failed = await completed(subject, *[None] * 8), await dead(subject, 8)
        damage = Damage(subject)
        for job_id in (*finished[:2], *failed[:2]):
            await damage.connection.command("SET", damage.keys.key("job", job_id), "1")
        for removed in (0, 4, 4, 2, 0):
            assert await subject.store.prune(0, limit=2) == Pruned(capped=removed)
        # They stay where they are, and count.
        assert await there(subject, [*finished[2:], *failed[2:]]) == ([False] * 5 + [True]) * 2
        assert await damage.holds(finished[0], "final", "completed", "default")
        assert await damage.holds(failed[0], "dead", "default")

    async def test_an_entry_of_another_index_removes_no_final_job_redis(self, subject: Subject) -> None:
        (done,), failed = await completed(subject, None), await dead(subject, 3)
        damage = Damage(subject)
        await damage.add(done, START_MS - 1, "dead", "default")
        await subject.store.prune(0)
        assert await there(subject, [done, *failed]) == [True] * 4
        assert not await damage.holds(done, "dead", "default")
        assert await damage.holds(done, "final", "completed", "default")
        assert await damage.holds(done, "expire")

    async def test_a_time_that_is_no_number_stops_no_other_redis(self, subject: Subject) -> None:
        ids = await completed(subject, *[None] * 5)
        await change_job(Damage(subject).connection, ids[0], until=math.nan)
        assert await subject.store.prune(0) == Pruned(capped=2)
        assert await there(subject, ids) == [False] * 2 + [True] * 3


class TestPromote:
    async def test_what_is_due_can_be_claimed_where_expiry_is_damaged_redis(self, subject: Subject) -> None:
        ids = await subject.submit_many(3, delay_ms=1_000)
        await spoil(subject, "expiry")
        await subject.advance(1_000)
        assert (await subject.store.promote(0)).queued == 3
        assert [job.token.job_id for job in (await subject.claim(5)).jobs] == ids

    async def test_what_is_late_expires_where_delayed_is_damaged_redis(self, subject: Subject) -> None:
        job_id = await subject.submit(expires_in_ms=1_000)
        await spoil(subject, "delayed")
        await subject.advance(1_000)
        assert await subject.store.promote(0) == Promoted(queued=0, expired=1, next_due_ms=None, now_ms=subject.now_ms)
        assert await subject.state(job_id) is State.EXPIRED


async def test_a_claim_answers_where_delayed_is_damaged_redis(subject: Subject) -> None:
    """Else jobs would run that nobody was handed, be lost again and again, and end as poisoned."""
    ids = await subject.submit_many(3)
    await spoil(subject, "delayed")
    claimed = await subject.claim(5)
    assert [job.token.job_id for job in claimed.jobs] == ids
    assert claimed.next_due_ms is None


async def test_what_is_purged_is_counted_where_a_priority_is_damaged_redis(subject: Subject) -> None:
    for priority in (Priority.CRITICAL, Priority.NORMAL):
        await subject.submit_many(2, priority=priority)
    await spoil(subject, "queue", "default", "high")
    assert (await subject.store.purge(0, "default")).cancelled == 4
    assert await subject.count("cancelled") == 4
    damage = Damage(subject)
    assert (
        await damage.connection.command("EXISTS", damage.keys.key("ready"), damage.keys.key("marker", "default")) == 0
    )


async def test_a_name_that_is_no_queue_stops_no_reap_redis(subject: Subject) -> None:
    await subject.steady_reaps(20_000)
    job_id = await subject.submit()
    await subject.claim_one(lease_ms=1_000)
    damage = Damage(subject)
    await damage.connection.command("ZADD", damage.keys.key("ready"), 1, "no queue")
    await subject.advance(1_000)
    assert await subject.store.reap(0) == Reaped(requeued=(job_id,))


async def test_a_retention_that_is_no_number_is_that_of_the_state_redis(subject: Subject) -> None:
    await subject.submit_many(3)
    jobs = (await subject.claim(3)).jobs
    await change_job(Damage(subject).connection, jobs[1].token.job_id, retention=math.nan)
    answers = await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
    assert answers == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * 3
    await subject.advance(KEPT_MS)
    assert await subject.store.prune(0) == Pruned(expired=3)


@pytest.mark.parametrize("until", [START_MS + KEPT_MS, math.nan])
async def test_a_damaged_job_is_deleted_as_a_whole_or_not_at_all_redis(subject: Subject, until: float) -> None:
    bad, good = await completed(subject, None, None)
    damage = Damage(subject)
    await change_job(damage.connection, bad, unique={"a": 1}, until=until)
    (answer,) = await subject.store.delete([bad])
    assert isinstance(answer, Exception)
    assert await damage.holds(bad, "final", "completed", "default")
    await change_job(damage.connection, bad, unique=None)
    await subject.store.delete([bad])
    assert await there(subject, [bad, good]) == [False, True]
    assert not await damage.holds(bad, "final", "completed", "default")


async def test_a_lost_list_of_queues_that_hold_work_is_written_anew_redis(subject: Subject) -> None:
    ids = [await subject.submit(queue="default"), await subject.submit(queue="mail", priority=Priority.LOW)]
    damage = Damage(subject)
    await damage.connection.command("DEL", damage.keys.key("ready"))
    assert (await subject.claim(5, queues=("default", "mail"))).jobs == ()
    await subject.steady_reaps(1_000)
    assert [job.token.job_id for job in (await subject.claim(5, queues=("default", "mail"))).jobs] == ids


async def test_what_is_moved_is_counted_where_that_list_is_damaged_redis(subject: Subject) -> None:
    await subject.steady_reaps(20_000)
    job_id = await subject.submit()
    await subject.claim_one(lease_ms=1_000)
    cancelled = await subject.submit()
    key = await spoil(subject, "ready")
    await subject.advance(1_000)
    for call in (subject.store.reap(0), subject.store.cancel([cancelled])):
        with pytest.raises(StoreError):
            await call
    await repair(subject, key)
    await subject.steady_reaps(1_000)
    assert await subject.audit() == []
    assert (await subject.claim_one()).token.job_id == job_id
