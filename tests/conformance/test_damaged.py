"""Entries that the job's hash does not agree with (Redis only): nothing acts on them, and what meets one removes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from penstock.core.cron import Timing
from penstock.core.ids import JobId, WorkerName
from penstock.core.job import (
    HeldUntil,
    Idempotency,
    NewJob,
    Pruned,
    Reaped,
    Settle,
    SettleCode,
    Settled,
    Submitted,
    Unique,
    Verb,
)
from penstock.core.limits import Limits
from penstock.core.output import NewEntry, Output, OutputCode, OutputKind
from penstock.core.states import State
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import change_job
from tests.conformance import schedules
from tests.conformance.subject import START_MS, WORKER, Subject, redis_subject

OLD = START_MS - 100_000


class Damage:
    """Write to the server behind the store's back."""

    def __init__(self, subject: Subject) -> None:
        assert isinstance(subject.store, RedisStore)
        self.connection = subject.store.connection
        self.keys = self.connection.keys[0]

    async def add(self, member: str, score: int, kind: str, *arguments: str) -> None:
        """Put an entry into an index."""
        await self.connection.command("ZADD", self.keys.key(kind, *arguments), score, member)
        if kind == "queue":
            await self.connection.command("ZADD", self.keys.key("ready"), 1, ":".join(arguments))

    async def holds(self, job_id: JobId, kind: str, *arguments: str) -> bool:
        """Tell whether an index holds an entry."""
        return await self.connection.command("ZSCORE", self.keys.key(kind, *arguments), job_id) is not None


@pytest.fixture
async def subject(valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
    """Return a store on Redis that is not audited at the end."""
    async with redis_subject(valkey_url, namespace, 1, Limits(finished_jobs=1, dead_letters=1)) as one:
        yield one


@pytest.mark.parametrize("exists", [True, False], ids=["redis-elsewhere", "redis-nowhere"])
class TestStrayEntries:
    async def stray(self, subject: Subject, exists: bool) -> JobId:
        return (await subject.running(queue="other")).job_id if exists else subject.new().id

    async def test_in_a_queue(self, subject: Subject, exists: bool) -> None:
        job_id = await self.stray(subject, exists)
        damage = Damage(subject)
        await damage.add(job_id, 1, "queue", "default", "normal")
        claimed = await subject.claim(5)
        assert (claimed.jobs, claimed.remaining) == ((), False)
        assert not await damage.holds(job_id, "queue", "default", "normal")

    async def test_in_a_queue_that_is_purged(self, subject: Subject, exists: bool) -> None:
        job_id = await self.stray(subject, exists)
        damage = Damage(subject)
        await damage.add(job_id, 0, "queue", "default", "normal")
        assert (await subject.store.purge(0, "default")).cancelled == 0
        assert not await damage.holds(job_id, "queue", "default", "normal")
        if exists:
            assert await subject.state(job_id) is State.RUNNING

    async def test_in_delayed(self, subject: Subject, exists: bool) -> None:
        job_id = await self.stray(subject, exists)
        damage = Damage(subject)
        await damage.add(job_id, OLD, "delayed")
        assert (await subject.store.promote(0)).queued == 0
        assert not await damage.holds(job_id, "delayed")

    async def test_in_expiry(self, subject: Subject, exists: bool) -> None:
        job_id = await self.stray(subject, exists)
        damage = Damage(subject)
        await damage.add(job_id, OLD, "expiry")
        assert (await subject.store.promote(0)).expired == 0
        assert not await damage.holds(job_id, "expiry")

    async def test_in_running(self, subject: Subject, exists: bool) -> None:
        await subject.steady_reaps(20_000)
        job_id = await subject.submit() if exists else subject.new().id
        damage = Damage(subject)
        await damage.add(job_id, OLD, "running", WORKER)
        await damage.add(WORKER, OLD, "leases")
        assert await subject.store.reap(0) == Reaped()
        assert not await damage.holds(job_id, "running", WORKER)

    async def test_in_what_a_worker_gives_back(self, subject: Subject, exists: bool) -> None:
        job_id = await subject.submit() if exists else subject.new().id
        damage = Damage(subject)
        await damage.add(job_id, OLD, "running", WORKER)
        assert await subject.store.release_worker(WORKER) == 0
        assert not await damage.holds(job_id, "running", WORKER)

    @pytest.mark.parametrize("index", [("expire",), ("dead", "other"), ("final", "completed", "other")])
    async def test_among_final_jobs(self, subject: Subject, exists: bool, index: tuple[str, ...]) -> None:
        job_id = await self.stray(subject, exists)
        for _ in range(2):
            await subject.settle(await subject.running(queue="other"), Verb.FAIL)
            await subject.settle(await subject.running(queue="other"), Verb.COMPLETE, value=b"1")
        await subject.store.prune(0)
        damage = Damage(subject)
        await damage.add(job_id, OLD, *index)
        await subject.settle(await subject.running(queue="other"), Verb.COMPLETE, value=b"1")
        for _ in range(3):
            await subject.store.prune(0)
        assert not await damage.holds(job_id, *index)
        if exists:
            assert await subject.state(job_id) is State.RUNNING
        assert await subject.store.prune(0) == Pruned()


@pytest.mark.parametrize("way", ["release-redis", "reap-redis"])
async def test_another_workers_job_among_those_of_a_worker(subject: Subject, way: str) -> None:
    """What once stood there and was left behind takes nothing from the one who runs it now."""
    await subject.steady_reaps(20_000)
    token = await subject.running()
    damage = Damage(subject)
    stranger = WorkerName("worker-9")
    await damage.add(token.job_id, OLD, "running", stranger)
    if way == "release-redis":
        assert await subject.store.release_worker(stranger) == 0
    else:
        await damage.add(stranger, OLD, "leases")
        assert await subject.store.reap(0) == Reaped()
    assert not await damage.holds(token.job_id, "running", stranger)
    assert await damage.holds(token.job_id, "running", WORKER)
    assert await subject.state(token.job_id) is State.RUNNING


async def test_who_has_settled_all_is_looked_at_no_more_redis(subject: Subject) -> None:
    await subject.steady_reaps(20_000)
    damage = Damage(subject)
    await subject.settle(await subject.running(), Verb.COMPLETE, value=b"1")
    assert await damage.connection.command("ZSCORE", damage.keys.key("leases"), WORKER) is not None
    await subject.steady_reaps(14_000)
    await subject.advance(1_000)
    assert await subject.store.reap(0) == Reaped()
    assert await damage.connection.command("EXISTS", damage.keys.key("leases")) == 0


async def test_a_worker_whose_jobs_cannot_be_read_keeps_no_other_waiting_redis(subject: Subject) -> None:
    await subject.steady_reaps(20_000)
    damage = Damage(subject)
    await damage.connection.command("SET", damage.keys.key("running", "broken"), "not a sorted set")
    await damage.add("broken", OLD, "leases")
    job_id = await subject.submit()
    await subject.claim_one(lease_ms=1_000)
    await subject.advance(1_000)
    assert await subject.store.reap(0) == Reaped(requeued=(job_id,))
    # It is looked at again a minute later, not at once.
    score = await damage.connection.command("ZSCORE", damage.keys.key("leases"), "broken")
    assert float(score) == subject.now_ms + 60_000


@pytest.mark.parametrize("way", ["release-redis", "reap-redis"])
async def test_a_released_job_still_among_those_of_its_worker(subject: Subject, way: str) -> None:
    await subject.steady_reaps(20_000)
    token = await subject.running()
    await subject.settle(token, Verb.RELEASE)
    damage = Damage(subject)
    await damage.add(token.job_id, OLD, "running", WORKER)
    before = await subject.get(token.job_id)
    if way == "release-redis":
        assert await subject.store.release_worker(WORKER) == 0
    else:
        await damage.add(WORKER, OLD, "leases")
        assert await subject.store.reap(0) == Reaped()
    assert await subject.get(token.job_id) == before


async def test_a_key_of_another_type_spoils_one_item_redis(subject: Subject) -> None:
    good, bad = await subject.running(), await subject.running()
    damage = Damage(subject)
    job_key = damage.keys.key("job", bad.job_id)
    await damage.connection.command("DEL", job_key)
    await damage.connection.command("SET", job_key, "not a hash")
    answers = await subject.store.settle([Settle(token=token, verb=Verb.FAIL) for token in (bad, good)])
    assert isinstance(answers[0], Exception)
    assert answers[1] == Settled(code=SettleCode.DONE, state=State.FAILED)
    jobs = [NewJob(id=bad.job_id, task="echo", input=b"1"), subject.new()]
    submitted = await subject.store.submit(jobs)
    assert isinstance(submitted[0], Exception)
    assert isinstance(submitted[1], Submitted)
    assert await damage.connection.command("GET", job_key) == b"not a hash"


@pytest.mark.parametrize("kind", ["log", "stream"])
async def test_a_list_of_another_type_spoils_one_item_redis(subject: Subject, kind: str) -> None:
    good, bad = await subject.running(), await subject.running()
    damage = Damage(subject)
    await damage.connection.command("SET", damage.keys.key(kind, bad.job_id), "not a list")
    entries = tuple(NewEntry(kind=one, value=b"1") for one in OutputKind)
    answers = await subject.store.output([Output(token=token, made=0, entries=entries) for token in (bad, good)])
    assert isinstance(answers[0], Exception)
    assert answers[1] is OutputCode.DONE
    # Nothing of the bad item was written.
    other = damage.keys.key("stream" if kind == "log" else "log", bad.job_id)
    assert await damage.connection.command("EXISTS", other) == 0
    assert (await subject.settle(bad, Verb.COMPLETE, value=b"1")).code is SettleCode.DONE


async def test_a_tally_that_cannot_be_read_spoils_one_item_redis(subject: Subject) -> None:
    good, bad = await subject.running(), await subject.running()
    damage = Damage(subject)
    await change_job(damage.connection, bad.job_id, output="1|x")
    entry = NewEntry(kind=OutputKind.LOG, value=b"1")
    answers = await subject.store.output([Output(token=token, made=0, entries=(entry,)) for token in (bad, good)])
    assert isinstance(answers[0], Exception)
    assert answers[1] is OutputCode.DONE
    assert await damage.connection.command("EXISTS", damage.keys.key("log", bad.job_id)) == 0


async def test_a_job_without_priority_keeps_no_neighbour_from_being_claimed_redis(subject: Subject) -> None:
    ids = await subject.submit_many(3)
    damage = Damage(subject)
    await change_job(damage.connection, ids[0], priority=None)
    assert [job.token.job_id for job in (await subject.claim(5)).jobs] == ids[1:]
    assert await damage.holds(ids[0], "queue", "default", "normal")


async def test_a_bad_item_takes_back_no_job_that_one_before_it_made_redis(subject: Subject) -> None:
    damage, job = Damage(subject), subject.new()
    once = Idempotency(key="0" * 32, fingerprint="aa", keep_ms=60_000)
    await damage.connection.command("RPUSH", damage.keys.key("idem", once.key), "not a record")
    answers = await subject.store.submit([job, msgspec.structs.replace(job, idempotency=once)])
    assert isinstance(answers[0], Submitted)
    assert isinstance(answers[1], Exception)
    assert (await subject.claim_one()).token.job_id == job.id
    # The same where the one before is written at once, since it does not go with others.
    alone = subject.new(unique=Unique(key="1" * 32, until=HeldUntil.FINISHED))
    answers = await subject.store.submit([alone, subject.new(idempotency=once)])
    assert isinstance(answers[0], Submitted)
    assert isinstance(answers[1], Exception)
    assert (await subject.claim_one()).token.job_id == alone.id


@pytest.mark.parametrize("kind", ["marker", "due"])
async def test_a_signal_of_another_type_stops_nothing_redis(subject: Subject, kind: str) -> None:
    damage = Damage(subject)
    key = damage.keys.key(kind, *(["default"] if kind == "marker" else []))
    await damage.connection.command("SET", key, "not a list")
    delay_ms = 1_000 if kind == "due" else None
    (answer,) = await subject.store.submit([subject.new(delay_ms=delay_ms)])
    assert isinstance(answer, Submitted)
    found = "due" if kind == "due" else "queue:default"
    assert await subject.store.wait_work(WORKER, ["default"], timeout_ms=20_000) == frozenset({found})
    await damage.connection.command("SET", key, "not a list")
    assert await subject.store.reap(0) == Reaped()
    await schedules.put(subject.store, timing=Timing(every_ms=1_000))
