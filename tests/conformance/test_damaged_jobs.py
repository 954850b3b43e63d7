"""Jobs whose stored text is damaged (Redis only): each spoils itself alone, and says so to whoever asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.core.errors import StoreError
from penstock.core.job import (
    ChangeCode,
    HeldUntil,
    JobFilter,
    OnConflict,
    Settle,
    SettleCode,
    Settled,
    Submitted,
    Unique,
    Verb,
)
from penstock.core.limits import Limits
from penstock.core.states import State
from penstock.store.redis.testing import change_job
from tests.answers import without_errors
from tests.conformance.subject import OTHER_WORKER, WORKER, Subject, redis_subject
from tests.conformance.test_damaged import Damage

#: What stands where a text should.
WRONG = pytest.mark.parametrize("wrong", [None, True, {"a": 1}, 7], ids=["none", "true", "map", "number"])
#: Texts that are no job.
TEXTS = pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x81", id="cut"),
        pytest.param(b"\x81\xa6status", id="cut-value"),
        pytest.param(b"\x90", id="list"),
        pytest.param(b"\x80", id="nothing"),
        pytest.param(b"\xa6queued", id="text"),
        pytest.param(b"not a map", id="numbers"),
        pytest.param(b"\x81\xa6status\xa6queued\xc1", id="trailing"),
        pytest.param(b"\xde\xff\xff", id="too-few"),
        pytest.param(b"\x81\xa4task\xa1\xff", id="no-utf8"),
    ],
)
#: Those that read as a job without a status, as if there were none: what names one of them is removed when it is met.
NONE = (b"\x90", b"\x80", b"\x81\xa4task\xa1\xff")


@pytest.fixture
async def subject(valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
    """Return a store on Redis that is not audited at the end."""
    async with redis_subject(valkey_url, namespace, 1, Limits()) as one:
        yield one


class TestNeighbours:
    @WRONG
    @pytest.mark.parametrize("field", ["queue", "priority"])
    async def test_are_claimed_redis(self, subject: Subject, field: str, wrong: Any) -> None:
        ids = await subject.submit_many(5)
        await change_job(Damage(subject).connection, ids[2], **{field: wrong})
        good = [*ids[:2], *ids[3:]]
        claimed = await subject.claim(3)
        assert [job.token.job_id for job in claimed.jobs] == good[:3]
        assert [job.token.job_id for job in (await subject.claim(3)).jobs] == good[3:]
        # The bad one stays where it is.
        assert await Damage(subject).holds(ids[2], "queue", "default", "normal")
        answers = await subject.store.settle(
            [Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in claimed.jobs]
        )
        assert answers == [Settled(code=SettleCode.DONE, state=State.COMPLETED)] * 3

    @pytest.mark.parametrize("field", ["task", "created"])
    async def test_are_claimed_where_one_lacks_what_a_worker_needs_redis(self, subject: Subject, field: str) -> None:
        ids = await subject.submit_many(3)
        await change_job(Damage(subject).connection, ids[1], **{field: None})
        assert [job.token.job_id for job in (await subject.claim(3)).jobs] == [ids[0], ids[2]]
        assert await Damage(subject).holds(ids[1], "queue", "default", "normal")

    @WRONG
    async def test_are_completed_where_one_names_no_worker_redis(self, subject: Subject, wrong: Any) -> None:
        await subject.submit_many(3)
        jobs = (await subject.claim(3)).jobs
        await change_job(Damage(subject).connection, jobs[1].token.job_id, worker=wrong)
        answers = await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
        assert [isinstance(answer, Exception) for answer in answers] == [False, True, False]

    @WRONG
    async def test_are_cancelled_and_the_bad_one_is_left_as_it_is_redis(self, subject: Subject, wrong: Any) -> None:
        job_id = await subject.submit()
        damage = Damage(subject)
        await change_job(damage.connection, job_id, priority=wrong)
        with pytest.raises(StoreError, match="damaged"):
            without_errors(await subject.store.cancel([job_id]))
        assert not await damage.holds(job_id, "final", "cancelled", "default")
        assert not await damage.holds(job_id, "expire")

    @pytest.mark.parametrize(
        "changes",
        [{"watch": {"a": 1}}, {"unique": {"a": 1}}, {"expires": "soon"}, {"expires": {"a": 1}}],
        ids=["watch", "unique", "expires", "expires-map"],
    )
    async def test_are_claimed_and_the_bad_one_leaves_no_trace_redis(
        self, subject: Subject, changes: dict[str, Any]
    ) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        await change_job(damage.connection, ids[1], **changes)
        for _ in range(3):
            await subject.claim(5)
        assert await damage.connection.command("ZRANGE", damage.keys.key("running", WORKER), 0, -1) == [
            ids[0].encode(),
            ids[2].encode(),
        ]
        (queue,) = await subject.store.queues()
        assert queue.running == 2
        with pytest.raises(StoreError):
            without_errors(await subject.store.cancel([ids[1]]))
        assert not await damage.holds(ids[1], "final", "cancelled", "default")

    @pytest.mark.parametrize("status", [{"a": 1}, 7, True, "lost"])
    async def test_are_answered_for_beside_one_of_a_strange_status_redis(self, subject: Subject, status: Any) -> None:
        await subject.submit_many(2)
        bad, good = (await subject.claim(2)).jobs
        await change_job(Damage(subject).connection, bad.token.job_id, status=status)
        answers = await subject.store.settle(
            [Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in (bad, good)]
        )
        assert answers == [
            Settled(code=SettleCode.STALE, state=None),
            Settled(code=SettleCode.DONE, state=State.COMPLETED),
        ]
        (changed,) = without_errors(await subject.store.redrive([bad.token.job_id]))
        assert (changed.code, changed.state) == (ChangeCode.CONFLICT, None)

    @WRONG
    async def test_are_completed_redis(self, subject: Subject, wrong: Any) -> None:
        await subject.submit_many(3)
        jobs = (await subject.claim(3)).jobs
        damage = Damage(subject)
        await change_job(damage.connection, jobs[1].token.job_id, queue=wrong)
        answers = await subject.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
        assert isinstance(answers[1], Exception)
        for index in (0, 2):
            assert answers[index] == Settled(code=SettleCode.DONE, state=State.COMPLETED)
            assert await subject.state(jobs[index].token.job_id) is State.COMPLETED
            assert not await damage.holds(jobs[index].token.job_id, "running", WORKER)
        assert await damage.holds(jobs[1].token.job_id, "running", WORKER)
        assert not await damage.holds(jobs[1].token.job_id, "expire")

    @WRONG
    @pytest.mark.parametrize("field", ["queue", "priority"])
    async def test_that_are_due_are_queued_redis(self, subject: Subject, field: str, wrong: Any) -> None:
        """A job that has run names a worker, so that its queue and priority are all that keeps it from its place."""
        ids = await subject.submit_many(3)
        for job in (await subject.claim(3)).jobs:
            await subject.settle(job.token, Verb.RETRY, delay_ms=1_000)
        damage = Damage(subject)
        await change_job(damage.connection, ids[1], **{field: wrong})
        await subject.advance(1_000)
        assert (await subject.store.promote(0)).queued == 2
        assert list(await subject.order()) == [ids[0], ids[2]]
        # It is put off, so that it is not met at once again.
        assert float(await damage.connection.command("ZSCORE", damage.keys.key("delayed"), ids[1])) > subject.now_ms
        assert (await subject.store.queues())[0].name == "default"

    @TEXTS
    async def test_of_a_text_that_is_no_job_redis(self, subject: Subject, text: bytes) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("job", ids[1]), text)
        assert [job.token.job_id for job in (await subject.claim(3)).jobs] == [ids[0], ids[2]]
        assert await damage.holds(ids[1], "queue", "default", "normal") is (text not in NONE)

    @TEXTS
    async def test_are_submitted_redis(self, subject: Subject, text: bytes) -> None:
        damage, bad, good = Damage(subject), subject.new(), subject.new()
        await damage.connection.command("SET", damage.keys.key("job", bad.id), text)
        answers = await subject.store.submit([bad, good])
        assert isinstance(answers[0], Exception) or (text in (b"\x80", b"\x90") and answers[0].created)
        assert isinstance(answers[1], Submitted)

    @pytest.mark.parametrize("changes", [{"created": None}, {"created": "soon"}, {"status": "lost"}, {"due": "soon"}])
    async def test_are_submitted_beside_one_that_stands_redis(self, subject: Subject, changes: dict[str, Any]) -> None:
        bad, good = subject.new(delay_ms=60_000), subject.new()
        await subject.store.submit([bad])
        await change_job(Damage(subject).connection, bad.id, **changes)
        answers = await subject.store.submit([bad, good])
        assert isinstance(answers[0], Exception)
        assert isinstance(answers[1], Submitted)

    @pytest.mark.parametrize("changes", [{"created": None}, {"created": "soon"}])
    async def test_are_submitted_beside_one_that_meets_a_damaged_holder_redis(
        self, subject: Subject, changes: dict[str, Any]
    ) -> None:
        unique = Unique(key="0" * 32, until=HeldUntil.FINISHED, on_conflict=OnConflict.RETURN_EXISTING)
        holder = await subject.submit(unique=unique)
        await change_job(Damage(subject).connection, holder, **changes)
        answers = await subject.store.submit([subject.new(unique=unique), subject.new()])
        assert isinstance(answers[0], Exception)
        assert isinstance(answers[1], Submitted)


class TestChanges:
    """Others that are changed in one call with a damaged one, in whose place its error stands."""

    async def test_cancels_the_others_redis(self, subject: Subject) -> None:
        ids = await subject.submit_many(3)
        await change_job(Damage(subject).connection, ids[1], queue=None)
        first, bad, last = await subject.store.cancel(ids)
        assert isinstance(bad, StoreError)
        assert [answer.code for answer in without_errors([first, last])] == [ChangeCode.DONE] * 2

    @pytest.mark.parametrize("cancel", ["soon", {"a": 1}])
    async def test_cancels_the_others_beside_one_whose_request_cannot_be_read_redis(
        self, subject: Subject, cancel: Any
    ) -> None:
        await subject.submit_many(3)
        ids = [job.token.job_id for job in (await subject.claim(3)).jobs]
        await change_job(Damage(subject).connection, ids[1], cancel=cancel)
        first, bad, last = await subject.store.cancel(ids)
        assert isinstance(bad, StoreError)
        assert [answer.code for answer in without_errors([first, last])] == [ChangeCode.REQUESTED] * 2

    async def test_redrives_and_deletes_the_others_redis(self, subject: Subject) -> None:
        ids = await subject.submit_many(3)
        for job in (await subject.claim(3)).jobs:
            await subject.settle(job.token, Verb.FAIL)
        await change_job(Damage(subject).connection, ids[1], queue=None)
        first, bad, last = await subject.store.redrive(ids)
        assert isinstance(bad, StoreError)
        assert [answer.code for answer in without_errors([first, last])] == [ChangeCode.DONE] * 2
        await subject.store.cancel([ids[0], ids[2]])
        first, bad, last = await subject.store.delete(ids)
        assert isinstance(bad, StoreError)
        assert [answer.code for answer in without_errors([first, last])] == [ChangeCode.DONE] * 2


class TestWhoLooks:
    @pytest.mark.parametrize("changes", [{"created": "soon"}, {"priority": True}, {"head": "{"}, {"head": "[1]"}])
    async def test_lists_the_others_redis(self, subject: Subject, changes: dict[str, Any]) -> None:
        ids = await subject.submit_many(3)
        await change_job(Damage(subject).connection, ids[1], **changes)
        page = await subject.store.list_jobs(JobFilter())
        assert {job.id for job in page.items} == {ids[0], ids[2]}

    @TEXTS
    async def test_lists_the_others_where_one_is_no_job_redis(self, subject: Subject, text: bytes) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("job", ids[1]), text)
        assert {job.id for job in (await subject.store.list_jobs(JobFilter())).items} == {ids[0], ids[2]}
        with pytest.raises(StoreError, match="damaged"):
            await subject.store.get(ids[1])
        with pytest.raises(StoreError, match="damaged"):
            await subject.store.input(ids[1])

    @pytest.mark.parametrize("value", ["failed", "failed|1|2|x|", "gone|1|2|1|w", "failed|1|2|1|w{"])
    async def test_lists_the_others_where_an_attempt_cannot_be_read_redis(self, subject: Subject, value: str) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        await damage.connection.command("HSET", damage.keys.key("attempts", ids[1]), 1, value)
        assert {job.id for job in (await subject.store.list_jobs(JobFilter())).items} == {ids[0], ids[2]}
        with pytest.raises(StoreError, match="damaged"):
            await subject.store.get(ids[1])

    async def test_lists_the_others_where_the_attempts_are_of_another_type_redis(self, subject: Subject) -> None:
        ids = await subject.submit_many(3)
        damage = Damage(subject)
        await damage.connection.command("SET", damage.keys.key("attempts", ids[1]), "not a hash")
        assert {job.id for job in (await subject.store.list_jobs(JobFilter())).items} == {ids[0], ids[2]}


async def test_who_waits_at_a_key_of_another_type_keeps_no_job_from_its_end_redis(subject: Subject) -> None:
    token = await subject.running()
    damage = Damage(subject)
    await change_job(damage.connection, token.job_id, watch="me +other")
    for name in ("me", "other"):
        await damage.connection.command("SET", damage.keys.key("inbox", name), "not a list")
    assert (await subject.settle(token, Verb.COMPLETE, value=b"1")).code is SettleCode.DONE
    assert not await damage.holds(token.job_id, "running", WORKER)
    assert await damage.connection.command("LRANGE", damage.keys.key("inbox", "me"), 0, -1) == [token.job_id.encode()]


async def test_a_wake_up_of_another_type_stops_no_request_to_cancel_redis(subject: Subject) -> None:
    token = await subject.running()
    damage = Damage(subject)
    await damage.connection.command("SET", damage.keys.key("wake", WORKER), "not a list")
    (answer,) = without_errors(await subject.store.cancel([token.job_id]))
    assert answer.cancel_requested_at_ms == subject.now_ms
    assert await subject.store.wait_work(WORKER, ["default"], timeout_ms=20_000) == frozenset({"wake"})


async def test_what_is_left_behind_by_a_damaged_job_goes_when_it_is_met_redis(subject: Subject) -> None:
    job_id = await subject.submit()
    damage = Damage(subject)
    await change_job(damage.connection, job_id, status="running", worker=OTHER_WORKER, priority=None)
    assert (await subject.claim(5)).jobs == ()
    assert not await damage.holds(job_id, "queue", "default", "normal")
