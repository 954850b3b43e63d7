"""Settle: every verb, every answer, tokens, records of attempts, cancels that were requested."""

from __future__ import annotations

import msgspec
import pytest

from penstock.core.ids import Token
from penstock.core.job import Attempt, JobError, Settle, SettleCode, Settled, Verb
from penstock.core.limits import Over
from penstock.core.states import AttemptOutcome, Reason, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, START_MS, WORKER, Subject

ERROR = JobError(type="ValueError", message="no | such ü thing", traceback="line 1\nline 2", field="")
ERROR_JSON = msgspec.json.encode(ERROR)
STATES = {
    Verb.COMPLETE: State.COMPLETED,
    Verb.RETRY: State.RETRYING,
    Verb.FAIL: State.FAILED,
    Verb.RELEASE: State.QUEUED,
    Verb.SNOOZE: State.SCHEDULED,
    Verb.CANCEL: State.CANCELLED,
}
WITHOUT_CANCEL = [verb for verb in Verb if verb is not Verb.CANCEL]


def ended(outcome: AttemptOutcome, *, error: JobError | None = None, attempt: int = 1, after_ms: int = 100) -> Attempt:
    return Attempt(
        attempt=attempt,
        worker=WORKER,
        started_at_ms=START_MS,
        finished_at_ms=START_MS + after_ms,
        outcome=outcome,
        error=error,
    )


@pytest.fixture
async def token(subject: Subject) -> Token:
    """Return the token of a job that has run for 100 ms."""
    token = await subject.running()
    await subject.advance(100)
    return token


async def test_complete_stores_the_result(subject: Subject, token: Token) -> None:
    assert await subject.settle(token, Verb.COMPLETE, value=b'{"answer":[]}') == Settled(
        code=SettleCode.DONE, state=State.COMPLETED
    )
    record = await subject.get(token.job_id)
    assert (record.state, record.result, record.finished_at_ms) == (State.COMPLETED, b'{"answer":[]}', START_MS + 100)
    assert (record.worker, record.started_at_ms, record.deadline_ms) == (WORKER, START_MS, None)
    assert (record.counted, record.attempt) == (0, 1)
    assert record.attempts == (ended(AttemptOutcome.COMPLETED),)
    assert await subject.count("completed") == 1


@pytest.mark.parametrize("size", [0, 1, 62, 63, 1_000, 1_000_000])
async def test_results_of_any_size_come_back_whole(subject: Subject, token: Token, size: int) -> None:
    value = b'"' + b"y" * size + b'"'
    await subject.settle(token, Verb.COMPLETE, value=value)
    assert (await subject.get(token.job_id)).result == value


async def test_retry_waits_and_counts(subject: Subject, token: Token) -> None:
    answer = await subject.settle(token, Verb.RETRY, value=ERROR_JSON, delay_ms=2_000)
    assert answer == Settled(code=SettleCode.DONE, state=State.RETRYING)
    record = await subject.get(token.job_id)
    assert (record.state, record.counted, record.run_at_ms) == (State.RETRYING, 1, START_MS + 2_100)
    assert (record.worker, record.started_at_ms, record.finished_at_ms) == (WORKER, START_MS, None)
    assert record.attempts == (ended(AttemptOutcome.FAILED, error=ERROR),)
    assert await subject.count("retried") == 1
    assert (await subject.claim()).jobs == ()
    await subject.advance(2_000)
    assert (await subject.store.promote(0)).queued == 1
    job = await subject.claim_one()
    assert (job.token.attempt, job.counted, job.lost) == (2, 1, 0)
    record = await subject.get(token.job_id)
    assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.FAILED, None]


async def test_retry_at_once_passes_through_the_delayed_place(subject: Subject, token: Token) -> None:
    await subject.submit()
    answer = await subject.settle(token, Verb.RETRY)
    assert answer.state is State.RETRYING
    assert (await subject.get(token.job_id)).run_at_ms == subject.now_ms
    assert (await subject.store.promote(0)).queued == 1
    assert (await subject.order())[-1] == token.job_id


async def test_retry_tells_a_timeout_from_a_failure(subject: Subject, token: Token) -> None:
    await subject.settle(token, Verb.RETRY, outcome=AttemptOutcome.TIMED_OUT)
    assert (await subject.get(token.job_id)).attempts == (ended(AttemptOutcome.TIMED_OUT),)


@pytest.mark.every_server
@pytest.mark.parametrize("reason", list(Reason))
async def test_fail_goes_to_the_dead_letter(subject: Subject, token: Token, reason: Reason) -> None:
    answer = await subject.settle(token, Verb.FAIL, value=ERROR_JSON, reason=reason, outcome=AttemptOutcome.TIMED_OUT)
    assert answer == Settled(code=SettleCode.DONE, state=State.FAILED)
    record = await subject.get(token.job_id)
    assert (record.state, record.reason, record.counted) == (State.FAILED, reason, 1)
    assert (record.result, record.finished_at_ms) == (None, START_MS + 100)
    assert record.attempts == (ended(AttemptOutcome.TIMED_OUT, error=ERROR),)
    assert await subject.count("failed") == 1


async def test_fail_without_a_reason_is_exhausted(subject: Subject, token: Token) -> None:
    await subject.settle(token, Verb.FAIL)
    assert (await subject.get(token.job_id)).reason is Reason.EXHAUSTED


async def test_release_keeps_the_place_and_counts_nothing(subject: Subject) -> None:
    ids = await subject.submit_many(3)
    first, second = [job.token for job in (await subject.claim(2)).jobs]
    await subject.advance(100)
    assert (await subject.settle(second, Verb.RELEASE)).state is State.QUEUED
    assert await subject.order() == [ids[1], ids[2]]
    await subject.settle(first, Verb.RELEASE, value=ERROR_JSON)
    assert await subject.order() == ids
    record = await subject.get(ids[0])
    assert (record.counted, record.run_at_ms, record.deadline_ms) == (0, None, None)
    assert record.attempts == (ended(AttemptOutcome.RELEASED, error=ERROR),)
    assert await subject.count("retried") == 0


async def test_a_redrive_or_retry_goes_to_the_end_and_a_later_release_back_there(subject: Subject) -> None:
    token = await subject.running()
    others = await subject.submit_many(2)
    await subject.settle(token, Verb.RETRY)
    await subject.store.promote(0)
    assert await subject.order() == [*others, token.job_id]
    tail = await subject.submit()
    tokens = [job.token for job in (await subject.claim(4)).jobs]
    for one in reversed(tokens):
        await subject.settle(one, Verb.RELEASE)
    assert await subject.order() == [*others, token.job_id, tail]


async def test_snooze_is_scheduled_and_not_counted(subject: Subject, token: Token) -> None:
    assert (await subject.settle(token, Verb.SNOOZE, delay_ms=900)).state is State.SCHEDULED
    record = await subject.get(token.job_id)
    assert (record.state, record.run_at_ms, record.counted) == (State.SCHEDULED, START_MS + 1_000, 0)
    assert record.attempts == (ended(AttemptOutcome.RELEASED),)
    await subject.advance(900)
    assert (await subject.store.promote(0)).queued == 1
    assert await subject.count("retried") == 0


async def test_cancel_needs_a_request(subject: Subject, token: Token) -> None:
    assert await subject.settle(token, Verb.CANCEL) == Settled(code=SettleCode.STALE, state=State.RUNNING)
    await subject.store.cancel([token.job_id])
    await subject.advance(100)
    assert await subject.settle(token, Verb.CANCEL) == Settled(code=SettleCode.DONE, state=State.CANCELLED)
    record = await subject.get(token.job_id)
    assert (record.finished_at_ms, record.cancel_requested_at_ms) == (START_MS + 200, START_MS + 100)
    assert record.attempts == (ended(AttemptOutcome.CANCELLED, after_ms=200),)
    assert await subject.count("cancelled") == 1


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.RELEASE, Verb.SNOOZE])
async def test_a_requested_cancel_turns_waiting_into_cancelled(subject: Subject, token: Token, verb: Verb) -> None:
    await subject.store.cancel([token.job_id])
    answer = await subject.settle(token, verb, value=ERROR_JSON, delay_ms=50)
    assert answer == Settled(code=SettleCode.DONE, state=State.CANCELLED)
    record = await subject.get(token.job_id)
    assert (record.counted, record.run_at_ms) == (0, None)
    assert record.attempts == (ended(AttemptOutcome.CANCELLED, error=ERROR),)
    assert (await subject.settle(token, verb)).code is SettleCode.REPEATED
    assert (await subject.settle(token, Verb.CANCEL)).code is SettleCode.STALE
    assert await subject.count("retried") == 0


@pytest.mark.parametrize(("verb", "state"), [(Verb.COMPLETE, State.COMPLETED), (Verb.FAIL, State.FAILED)])
async def test_an_end_goes_before_a_requested_cancel(subject: Subject, token: Token, verb: Verb, state: State) -> None:
    await subject.store.cancel([token.job_id])
    assert (await subject.settle(token, verb)).state is state


async def prepare(subject: Subject, token: Token, verb: Verb) -> None:
    if verb is Verb.CANCEL:
        await subject.store.cancel([token.job_id])


@pytest.mark.every_server
@pytest.mark.parametrize("verb", list(Verb))
async def test_the_same_again_changes_nothing(subject: Subject, token: Token, verb: Verb) -> None:
    await prepare(subject, token, verb)
    assert await subject.settle(token, verb, delay_ms=100) == Settled(code=SettleCode.DONE, state=STATES[verb])
    before = await subject.get(token.job_id)
    counters = await subject.store.counters()
    await subject.advance(10)
    repeated = await subject.settle(token, verb, value=ERROR_JSON, delay_ms=9_000)
    assert repeated == Settled(code=SettleCode.REPEATED, state=STATES[verb])
    assert await subject.get(token.job_id) == before
    assert await subject.store.counters() == counters


@pytest.mark.parametrize("first", list(Verb))
@pytest.mark.parametrize("second", list(Verb))
async def test_another_verb_afterwards_is_stale(subject: Subject, token: Token, first: Verb, second: Verb) -> None:
    if first is second:
        return
    await prepare(subject, token, first)
    await subject.settle(token, first)
    before = await subject.get(token.job_id)
    assert await subject.settle(token, second, value=b"9") == Settled(code=SettleCode.STALE, state=STATES[first])
    assert await subject.get(token.job_id) == before


async def test_a_repeat_tells_the_state_of_now(subject: Subject, token: Token) -> None:
    await subject.settle(token, Verb.RETRY)
    await subject.store.promote(0)
    assert await subject.settle(token, Verb.RETRY) == Settled(code=SettleCode.REPEATED, state=State.QUEUED)
    await subject.store.cancel([token.job_id])
    assert await subject.settle(token, Verb.RETRY) == Settled(code=SettleCode.REPEATED, state=State.CANCELLED)


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("change", [{"nonce": "wrong"}, {"attempt": 0}, {"attempt": 2}])
async def test_a_wrong_token_changes_nothing(
    subject: Subject, token: Token, verb: Verb, change: dict[str, object]
) -> None:
    await subject.store.cancel([token.job_id])
    before = await subject.get(token.job_id)
    wrong = msgspec.structs.replace(token, **change)
    assert await subject.settle(wrong, verb, value=b"1") == Settled(code=SettleCode.STALE, state=State.RUNNING)
    assert await subject.get(token.job_id) == before


@pytest.mark.parametrize("verb", list(Verb))
async def test_a_wrong_nonce_is_no_repeat(subject: Subject, token: Token, verb: Verb) -> None:
    await prepare(subject, token, verb)
    await subject.settle(token, verb, delay_ms=100)
    wrong = msgspec.structs.replace(token, nonce="wrong")
    assert (await subject.settle(wrong, verb)).code is SettleCode.STALE


@pytest.mark.parametrize("verb", list(Verb))
async def test_the_token_of_an_old_attempt_changes_nothing(subject: Subject, token: Token, verb: Verb) -> None:
    await subject.settle(token, Verb.RELEASE)
    await subject.claim(1, nonce=token.nonce, worker=OTHER_WORKER)
    await subject.store.cancel([token.job_id])
    before = await subject.get(token.job_id)
    assert await subject.settle(token, verb, value=b"1") == Settled(code=SettleCode.STALE, state=State.RUNNING)
    assert await subject.get(token.job_id) == before


async def test_a_token_is_stale_after_a_redrive(subject: Subject, token: Token) -> None:
    await subject.settle(token, Verb.FAIL)
    await subject.store.redrive([token.job_id])
    for verb in Verb:
        assert await subject.settle(token, verb) == Settled(code=SettleCode.STALE, state=State.QUEUED)


@pytest.mark.parametrize("verb", list(Verb))
async def test_a_job_that_is_gone_answers_stale(subject: Subject, verb: Verb) -> None:
    gone = Token(subject.new().id, 1, "n")
    assert await subject.settle(gone, verb) == Settled(code=SettleCode.STALE, state=None)


@pytest.mark.parametrize("verb", list(Verb))
async def test_a_job_never_claimed_answers_stale(subject: Subject, verb: Verb) -> None:
    job_id = await subject.submit()
    for attempt in (0, 1):
        answer = await subject.settle(Token(job_id, attempt, ""), verb)
        assert answer == Settled(code=SettleCode.STALE, state=State.QUEUED)


async def test_a_token_past_its_deadline_settles_until_reaped(subject: Subject, token: Token) -> None:
    await subject.advance(10_000_000)
    assert (await subject.settle(token, Verb.COMPLETE, value=b"1")).code is SettleCode.DONE


async def test_the_newest_twenty_records_are_kept(subject: Subject) -> None:
    token = await subject.running()
    for number in range(1, 24):
        error = msgspec.json.encode(JobError(type="E", message=str(number)))
        await subject.settle(token, Verb.RELEASE, value=error)
        token = (await subject.claim_one()).token
    attempts = (await subject.get(token.job_id)).attempts
    assert [attempt.attempt for attempt in attempts] == [*range(4, 24), 24]
    assert attempts[0].error == JobError(type="E", message="4")
    await subject.settle(token, Verb.COMPLETE, value=b"1")
    attempts = (await subject.get(token.job_id)).attempts
    assert [attempt.attempt for attempt in attempts] == [*range(4, 24), 24]
    assert attempts[-1].outcome is AttemptOutcome.COMPLETED


async def test_one_bad_item_does_not_stop_the_rest(subject: Subject) -> None:
    await subject.submit_many(3)
    first, second, third = [job.token for job in (await subject.claim(3)).jobs]
    items = [
        Settle(token=first, verb=Verb.COMPLETE, value=b"1"),
        Settle(token=second, verb=Verb.COMPLETE, value=b"\xff"),
        Settle(token=third, verb=Verb.COMPLETE, value=b"3"),
    ]
    answers = await subject.store.settle(items)
    done = Settled(code=SettleCode.DONE, state=State.COMPLETED)
    assert answers[0] == answers[2] == done
    assert isinstance(answers[1], Exception)
    assert await subject.state(second.job_id) is State.RUNNING


async def test_items_of_one_job_are_settled_in_order(subject: Subject, token: Token) -> None:
    items = [Settle(token=token, verb=Verb.RETRY), Settle(token=token, verb=Verb.COMPLETE, value=b"1")]
    answers = await subject.store.settle([*items, items[0]])
    codes = [answer.code for answer in answers if isinstance(answer, Settled)]
    assert codes == [SettleCode.DONE, SettleCode.STALE, SettleCode.REPEATED]


@pytest.mark.parametrize("partitions", [1, 4])
async def test_answers_come_in_the_order_of_the_items(make_subject: MakeSubject, partitions: int) -> None:
    subject = await make_subject(partitions)
    tokens = []
    for home in (3, 1, 0, 2, 1):
        await subject.submit(home=home)
        tokens.append((await subject.claim_one(partition=home % partitions)).token)
    verbs = [Verb.COMPLETE, Verb.FAIL, Verb.RETRY, Verb.SNOOZE, Verb.RELEASE]
    items = [Settle(token=token, verb=verb, delay_ms=9) for token, verb in zip(tokens, verbs, strict=True)]
    answers = await subject.store.settle(items)
    assert answers == [Settled(code=SettleCode.DONE, state=STATES[verb]) for verb in verbs]


async def test_what_was_over_its_limit_is_counted(subject: Subject) -> None:
    token = await subject.running()
    retry = {"value": ERROR_JSON, "over": Over.ERROR}
    assert (await subject.settle(token, Verb.RETRY, **retry)).code is SettleCode.DONE
    # A repeat counts nothing, nor does an attempt that is not the job's own.
    assert (await subject.settle(token, Verb.RETRY, **retry)).code is SettleCode.REPEATED
    assert (
        await subject.settle(msgspec.structs.replace(token, nonce="x"), Verb.FAIL, **retry)
    ).code is SettleCode.STALE
    other = await subject.running(queue="other")
    await subject.settle(other, Verb.FAIL, value=ERROR_JSON, over=Over.RESULT)
    assert [await subject.count("error_cut", queue) for queue in ("default", "other")] == [1, 0]
    assert [await subject.count("result_refused", queue) for queue in ("default", "other")] == [0, 1]


async def test_what_was_over_its_limit_is_counted_of_a_completion_too(subject: Subject) -> None:
    await subject.submit_many(2)
    first, second = [
        Settle(token=job.token, verb=Verb.COMPLETE, value=b"1", over=Over.RESULT)
        for job in (await subject.claim(2)).jobs
    ]
    await subject.store.settle([first, second, first])
    assert await subject.count("result_refused") == 2
