"""The entries that tell when final jobs may go: one for all jobs of a call that go together, and only a hint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from penstock.core.ids import JobId
from penstock.core.job import Pruned, Settle, SettleCode, Settled, Verb
from penstock.core.limits import Limits
from penstock.core.states import State
from penstock.store.redis.testing import change_job
from tests.conformance.conftest import MakeSubject
from tests.conformance.dump import read_dumps
from tests.conformance.subject import Subject, redis_subject
from tests.conformance.test_damaged import Damage

KEPT_MS = 100_000


async def completed(subject: Subject, *retentions_ms: int | None) -> list[JobId]:
    """Complete jobs of the given retentions in one call."""
    ids = [await subject.submit(retention_ms=retention_ms) for retention_ms in retentions_ms]
    await complete(subject, len(ids))
    return ids


async def complete(subject: Subject, count: int) -> None:
    jobs = (await subject.claim(count)).jobs
    answers = await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
    assert answers == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * count


async def there(subject: Subject, ids: Sequence[JobId]) -> list[bool]:
    return [await subject.store.get(job_id) is not None for job_id in ids]


class TestOneCall:
    @pytest.fixture
    async def subject(self, make_subject: MakeSubject) -> Subject:
        return await make_subject(1, Limits(retention_ms=KEPT_MS, failed_retention_ms=KEPT_MS))

    @pytest.mark.every_server
    async def test_each_job_goes_at_its_own_time(self, subject: Subject) -> None:
        ids = await completed(subject, None, 5_000, None, 200_000, 5_000)
        await subject.advance(4_999)
        assert await subject.store.prune(0) == Pruned()
        await subject.advance(1)
        assert await subject.store.prune(0) == Pruned(expired=2)
        assert await there(subject, ids) == [True, False, True, True, False]
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=2)
        assert await there(subject, ids) == [False, False, False, True, False]

    async def test_a_limit_cuts_those_that_go_together(self, subject: Subject) -> None:
        await completed(subject, *[None] * 7)
        await subject.advance(KEPT_MS)
        for removed in (3, 3, 1, 0):
            assert await subject.store.prune(0, limit=3) == Pruned(expired=removed)
            assert await subject.audit() == []

    async def test_a_limit_bounds_those_that_ended_one_by_one(self, subject: Subject) -> None:
        await subject.store.cancel(await subject.submit_many(50))
        await completed(subject, *[None] * 3)
        await subject.advance(KEPT_MS)
        for removed in (45, 8, 0):
            assert await subject.store.prune(0, limit=45) == Pruned(expired=removed)
            assert await subject.audit() == []

    async def test_those_that_are_deleted_leave_their_neighbours(self, subject: Subject) -> None:
        ids = await completed(subject, *[None] * 5, 7_000)
        await subject.store.delete([ids[1], ids[3], ids[5]])
        assert await subject.audit() == []
        await subject.store.delete([ids[0]])
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=2)

    async def test_a_job_that_is_redriven_goes_by_its_new_end(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.settle(token, Verb.FAIL)
        await subject.advance(50_000)
        await subject.store.redrive([token.job_id])
        assert await subject.audit() == []
        await complete(subject, 1)
        await subject.advance(KEPT_MS - 1)
        assert await subject.store.prune(0) == Pruned()
        await subject.advance(1)
        assert await subject.store.prune(0) == Pruned(expired=1)

    async def test_those_above_a_cap_leave_their_neighbours(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(retention_ms=KEPT_MS, finished_jobs=4))
        await completed(subject, *[None] * 5)
        await subject.advance(1)
        await completed(subject, *[None] * 2)
        for limit, removed in ((2, 2), (200, 1)):
            assert await subject.store.prune(0, limit=limit) == Pruned(capped=removed)
            assert await subject.audit() == []
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=4)


class TestHints:
    @pytest.fixture
    async def subject(self, valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
        """Return a store on Redis that is not audited at the end."""
        async with redis_subject(
            valkey_url, namespace, 1, Limits(retention_ms=KEPT_MS, failed_retention_ms=9_000)
        ) as one:
            yield one

    async def entries(self, subject: Subject) -> dict[str, int]:
        (dump,) = await read_dumps(Damage(subject).connection)
        return dump.zset("expire")

    async def test_there_is_one_for_those_of_a_call_that_go_together_redis(self, subject: Subject) -> None:
        ids = await completed(subject, None, 5_000, None)
        failed = await subject.running()
        await subject.settle(failed, Verb.FAIL)
        now = subject.now_ms
        assert {frozenset(entry.split(" ")): at for entry, at in (await self.entries(subject)).items()} == {
            frozenset([ids[0], ids[2]]): now + KEPT_MS,
            frozenset([ids[1]]): now + 5_000,
            frozenset([failed.job_id]): now + 9_000,
        }

    async def test_a_limit_beyond_what_a_call_may_take_loses_no_job_redis(self, subject: Subject) -> None:
        await subject.store.cancel(await subject.submit_many(1_400, input=LONG))
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0, limit=2_000) == Pruned(expired=1_000)
        assert await subject.store.prune(0, limit=2_000) == Pruned(expired=400)
        assert await subject.audit() == []

    async def test_none_outlives_its_jobs_redis(self, subject: Subject) -> None:
        ids = await completed(subject, *[None] * 4)
        for some in (ids[:1], ids[1:]):
            await subject.store.delete(some)
        assert await self.entries(subject) == {}

    async def test_one_that_is_wrong_removes_nothing_and_goes_redis(self, subject: Subject) -> None:
        """Jobs that are gone, not final, to be kept for longer, or named twice."""
        queued, running = await subject.submit(queue="other"), (await subject.running()).job_id
        later, odd, due = await completed(subject, 200_000, None, 500)
        gone = subject.new().id
        await change_job(Damage(subject).connection, odd, until=None)
        await change_job(Damage(subject).connection, queued, until=1)
        await subject.advance(KEPT_MS)
        await Damage(subject).add(f"{gone} {queued} {running} {later} {odd} {due}", subject.now_ms, "expire")
        await Damage(subject).add("", subject.now_ms, "expire")
        assert await subject.store.prune(0) == Pruned(expired=1)
        assert await there(subject, [queued, running, later, odd, due]) == [True, True, True, True, False]
        assert await self.entries(subject) == {later: subject.now_ms + KEPT_MS}

    async def test_a_damaged_job_stops_no_neighbour_and_is_put_off_redis(self, subject: Subject) -> None:
        ids = await completed(subject, None, None, None, 100)
        damage = Damage(subject)
        keys = [damage.keys.key("job", ids[place]) for place in (1, 3)]
        texts = [await damage.connection.command("GET", key) for key in keys]
        for key in keys:
            await damage.connection.command("SET", key, "1")
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=2)
        assert await self.entries(subject) == dict.fromkeys([ids[1], ids[3]], subject.now_ms + 60_000)
        for key, text in zip(keys, texts, strict=True):
            await damage.connection.command("SET", key, text)
        await subject.advance(59_999)
        assert await subject.store.prune(0) == Pruned()
        await subject.advance(1)
        assert await subject.store.prune(0) == Pruned(expired=2)
        assert await self.entries(subject) == {}

    async def test_a_job_without_a_queue_stops_no_neighbour_and_is_put_off_redis(self, subject: Subject) -> None:
        first, odd, last = await completed(subject, None, None, None)
        await change_job(Damage(subject).connection, odd, queue=None)
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=2)
        assert await there(subject, [first, last]) == [False, False]
        assert await self.entries(subject) == {odd: subject.now_ms + 60_000}

    async def test_a_damaged_index_keeps_no_job_from_being_deleted_redis(self, subject: Subject) -> None:
        ids = await completed(subject, None, None)
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("expire"), "not a sorted set")
        await subject.store.delete(ids)
        assert await there(subject, ids) == [False, False]

    async def test_a_damaged_index_fails_those_that_would_never_go_redis(self, subject: Subject) -> None:
        await subject.submit_many(2)
        jobs = (await subject.claim(2)).jobs
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("expire"), "not a sorted set")
        settles = [Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs]
        assert all(isinstance(answer, Exception) for answer in await subject.store.settle(settles))
        await damage.connection.command("DEL", damage.keys.key("expire"))
        assert await subject.store.settle(settles) == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * 2
        await subject.advance(KEPT_MS)
        assert await subject.store.prune(0) == Pruned(expired=2)


LONG = b'"' + b"x" * 300 + b'"'


@pytest.mark.parametrize("how", ["delete", "age", "cap"])
@pytest.mark.parametrize(("given", "made"), [(b"1", b"1"), (LONG, b"1"), (b"1", LONG), (LONG, LONG)])
async def test_long_values_go_with_their_job(make_subject: MakeSubject, how: str, given: bytes, made: bytes) -> None:
    # What is left of a job that is gone fails the check at the end of each test.
    subject = await make_subject(1, Limits(retention_ms=KEPT_MS, finished_jobs=0 if how == "cap" else 10))
    token = await subject.running(input=given)
    await subject.settle(token, Verb.COMPLETE, value=made)
    if how == "delete":
        await subject.store.delete([token.job_id])
    else:
        await subject.advance(KEPT_MS if how == "age" else 0)
        await subject.store.prune(0)
        if how == "cap":
            # At least one is kept.
            other = await subject.running()
            await subject.settle(other, Verb.COMPLETE, value=b"1")
            await subject.store.prune(0)
    assert await subject.store.get(token.job_id) is None
