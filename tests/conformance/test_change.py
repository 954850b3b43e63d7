"""Cancel, redrive and delete, each in every state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from penstock.core.ids import JobId
from penstock.core.job import ChangeCode, Changed, Extension, SettleCode, Verb
from penstock.core.limits import Limits
from penstock.core.states import AttemptOutcome, Priority, Reason, State
from tests.answers import without_errors
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS, WORKER, Subject

MISSING = Changed(code=ChangeCode.MISSING)
FINAL = [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED]


async def _settled(subject: Subject, verb: Verb, **fields: object) -> JobId:
    token = await subject.running()
    await subject.settle(token, verb, **fields)
    return token.job_id


async def _scheduled(subject: Subject) -> JobId:
    return await subject.submit(delay_ms=60_000)


async def _queued(subject: Subject) -> JobId:
    return await subject.submit()


async def _running(subject: Subject) -> JobId:
    return (await subject.running()).job_id


async def _retrying(subject: Subject) -> JobId:
    return await _settled(subject, Verb.RETRY, delay_ms=60_000)


async def _completed(subject: Subject) -> JobId:
    return await _settled(subject, Verb.COMPLETE, value=b"1")


async def _failed(subject: Subject) -> JobId:
    return await _settled(subject, Verb.FAIL, reason=Reason.DISCARDED)


async def _cancelled(subject: Subject) -> JobId:
    job_id = await subject.submit()
    await subject.store.cancel([job_id])
    return job_id


async def _expired(subject: Subject) -> JobId:
    job_id = await subject.submit(expires_in_ms=0)
    await subject.store.promote(0)
    return job_id


IN_STATE: dict[State, Callable[[Subject], Awaitable[JobId]]] = {
    State.SCHEDULED: _scheduled,
    State.QUEUED: _queued,
    State.RUNNING: _running,
    State.RETRYING: _retrying,
    State.COMPLETED: _completed,
    State.FAILED: _failed,
    State.CANCELLED: _cancelled,
    State.EXPIRED: _expired,
}


async def job_in(subject: Subject, state: State) -> JobId:
    """Bring a job into a state."""
    job_id = await IN_STATE[state](subject)
    assert await subject.state(job_id) is state
    return job_id


class TestCancel:
    @pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.RETRYING])
    async def test_a_waiting_job_is_cancelled_at_once(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        await subject.advance(50)
        (answer,) = without_errors(await subject.store.cancel([job_id]))
        assert answer == Changed(code=ChangeCode.DONE, state=State.CANCELLED, cancel_requested_at_ms=START_MS + 50)
        record = await subject.get(job_id)
        assert (record.state, record.finished_at_ms, record.run_at_ms) == (State.CANCELLED, START_MS + 50, None)
        assert record.cancel_requested_at_ms == START_MS + 50
        assert (await subject.claim()).jobs == ()
        await subject.advance(100_000)
        assert (await subject.store.promote(0)).queued == 0
        assert await subject.count("cancelled") == 1

    async def test_a_running_job_is_told(self, subject: Subject) -> None:
        job_id = await job_in(subject, State.RUNNING)
        await subject.advance(50)
        requested = Changed(code=ChangeCode.REQUESTED, state=State.RUNNING, cancel_requested_at_ms=START_MS + 50)
        assert await subject.store.cancel([job_id]) == [requested]
        await subject.advance(50)
        assert await subject.store.cancel([job_id]) == [requested]
        record = await subject.get(job_id)
        assert (record.state, record.cancel_requested_at_ms) == (State.RUNNING, START_MS + 50)
        assert await subject.store.wait_work(WORKER, (), timeout_ms=5_000) == frozenset({"wake"})
        assert await subject.count("cancelled") == 0

    @pytest.mark.parametrize("state", FINAL)
    async def test_a_final_job_conflicts(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        before = await subject.get(job_id)
        await subject.advance(50)
        assert await subject.store.cancel([job_id]) == [Changed(code=ChangeCode.CONFLICT, state=state)]
        assert await subject.get(job_id) == before

    async def test_a_job_that_would_expire_no_longer_does(self, subject: Subject) -> None:
        job_id = await subject.submit(expires_in_ms=100)
        await subject.store.cancel([job_id])
        await subject.advance(100)
        assert (await subject.store.promote(0)).expired == 0
        assert await subject.state(job_id) is State.CANCELLED


class TestRedrive:
    async def test_a_failed_job_starts_afresh_at_the_end(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.store.extend(WORKER, [Extension(token=token, progress=b"1")], lease_ms=1_000)
        await subject.store.cancel([token.job_id])
        await subject.settle(token, Verb.FAIL, reason=Reason.DISCARDED)
        other = await subject.submit()
        await subject.advance(50)
        assert await subject.store.redrive([token.job_id]) == [Changed(code=ChangeCode.DONE, state=State.QUEUED)]
        record = await subject.get(token.job_id)
        assert (record.state, record.counted, record.lost, record.no_handler) == (State.QUEUED, 0, 0, 0)
        assert (record.reason, record.finished_at_ms, record.cancel_requested_at_ms) == (None, None, None)
        assert (record.attempt, record.created_at_ms, record.progress) == (1, START_MS, None)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.FAILED]
        assert await subject.order() == [other, token.job_id]
        assert await subject.count("redriven") == 1
        await subject.claim_one()
        job = await subject.claim_one()
        assert (job.token.attempt, job.counted, job.lost) == (2, 0, 0)
        assert [attempt.attempt for attempt in (await subject.get(token.job_id)).attempts] == [1, 2]

    async def test_it_is_not_pruned_any_more(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(failed_retention_ms=1_000))
        job_id = await job_in(subject, State.FAILED)
        await subject.store.redrive([job_id])
        await subject.advance(2_000)
        assert (await subject.store.prune(0)).expired == 0
        assert await subject.state(job_id) is State.QUEUED

    async def test_lost_starts_again(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_lost=1))
        await subject.steady_reaps(1_000)
        token = await subject.running()
        await subject.steady_reaps(14_000)
        await subject.advance(1_000)
        assert (await subject.store.reap(0)).requeued == (token.job_id,)
        await subject.claim_one(alone=True, lease_ms=1_000)
        await subject.advance(1_000)
        assert (await subject.store.reap(0)).poisoned == (token.job_id,)
        await subject.store.redrive([token.job_id])
        assert (await subject.get(token.job_id)).lost == 0

    @pytest.mark.parametrize("state", [State.SCHEDULED, State.RETRYING])
    async def test_a_delayed_job_starts_early(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        before = await subject.get(job_id)
        other = await subject.submit()
        assert await subject.store.redrive([job_id]) == [Changed(code=ChangeCode.DONE, state=State.QUEUED)]
        record = await subject.get(job_id)
        assert (record.state, record.run_at_ms, record.counted) == (State.QUEUED, None, before.counted)
        assert await subject.order() == [other, job_id]
        assert await subject.count("redriven") == 0
        await subject.advance(100_000)
        assert (await subject.store.promote(0)).queued == 0

    @pytest.mark.parametrize("state", [State.SCHEDULED, State.RETRYING])
    async def test_a_delayed_job_conflicts_unless_early(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        assert await subject.store.redrive([job_id], early=False) == [Changed(code=ChangeCode.CONFLICT, state=state)]
        assert await subject.state(job_id) is state

    @pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.COMPLETED, State.CANCELLED, State.EXPIRED])
    @pytest.mark.parametrize("early", [True, False])
    async def test_any_other_conflicts(self, subject: Subject, state: State, early: bool) -> None:
        job_id = await job_in(subject, state)
        before = await subject.get(job_id)
        answers = without_errors(await subject.store.redrive([job_id], early=early))
        assert answers == [Changed(code=ChangeCode.CONFLICT, state=state)]
        assert await subject.get(job_id) == before

    async def test_a_failed_job_that_never_started_may_still_expire(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(unknown_task_ms=0))
        job_id = await subject.submit(expires_in_ms=1_000, priority=Priority.LOW)
        await subject.claim(1, tasks=("other",))
        assert (await subject.get(job_id)).reason is Reason.UNKNOWN_TASK
        await subject.advance(1_000)
        assert (await subject.store.promote(0)).expired == 0
        await subject.store.redrive([job_id])
        assert (await subject.store.promote(0)).expired == 1


class TestDelete:
    @pytest.mark.parametrize("state", FINAL)
    async def test_a_final_job_is_removed(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        assert await subject.store.delete([job_id]) == [Changed(code=ChangeCode.DONE, state=state)]
        assert await subject.store.get(job_id) is None
        assert await subject.store.input(job_id) is None
        assert await subject.store.delete([job_id]) == [MISSING]
        await subject.advance(10**10)
        assert (await subject.store.prune(0)).expired == 0

    async def test_large_values_go_with_it(self, subject: Subject) -> None:
        token = await subject.running(input=b'"' + b"i" * 1_000 + b'"')
        await subject.settle(token, Verb.COMPLETE, value=b'"' + b"o" * 1_000 + b'"')
        await subject.store.delete([token.job_id])
        # The audit at the end of each test finds values that belong to no job.
        assert await subject.audit() == []

    @pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.RUNNING, State.RETRYING])
    async def test_any_other_conflicts(self, subject: Subject, state: State) -> None:
        job_id = await job_in(subject, state)
        before = await subject.get(job_id)
        assert await subject.store.delete([job_id]) == [Changed(code=ChangeCode.CONFLICT, state=state)]
        assert await subject.get(job_id) == before

    async def test_the_id_is_free_again(self, subject: Subject) -> None:
        job = subject.new(input=b'"' + b"i" * 1_000 + b'"')
        await subject.store.submit([job])
        await subject.store.cancel([job.id])
        await subject.store.delete([job.id])
        (answer,) = await subject.store.submit([job])
        assert getattr(answer, "created", None) is True
        assert (await subject.get(job.id)).cancel_requested_at_ms is None

    async def test_a_settle_afterwards_is_stale(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        await subject.store.delete([token.job_id])
        assert (await subject.settle(token, Verb.COMPLETE, value=b"1")).code is SettleCode.STALE


@pytest.mark.parametrize("verb", ["cancel", "redrive", "delete"])
async def test_a_missing_job_is_missing(subject: Subject, verb: str) -> None:
    assert await getattr(subject.store, verb)([subject.new().id]) == [MISSING]


@pytest.mark.parametrize("partitions", [1, 4])
async def test_each_id_is_answered_in_order(make_subject: MakeSubject, partitions: int) -> None:
    subject = await make_subject(partitions)
    waiting = [await subject.submit(home=home) for home in (2, 0, 3, 1)]
    gone = subject.new(home=1).id
    answers = without_errors(await subject.store.cancel([waiting[0], gone, *waiting[1:], waiting[0]]))
    done, conflict = ChangeCode.DONE, ChangeCode.CONFLICT
    assert [answer.code for answer in answers] == [done, ChangeCode.MISSING, done, done, done, conflict]
    answers = without_errors(await subject.store.delete([*waiting, gone]))
    assert [answer.code for answer in answers] == [done] * 4 + [ChangeCode.MISSING]


@pytest.mark.parametrize("verb", ["cancel", "redrive", "delete"])
async def test_more_ids_than_one_script_call_takes(subject: Subject, verb: str) -> None:
    ids = await subject.submit_many(450, delay_ms=1_000)
    if verb == "delete":
        await subject.store.cancel(ids)
    answers = await getattr(subject.store, verb)(ids)
    assert {answer.code for answer in answers} == {ChangeCode.DONE}
    if verb == "redrive":
        assert await subject.order() == ids
