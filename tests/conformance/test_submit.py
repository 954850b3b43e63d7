"""Submit: new jobs, repeats, due times, expiry, batches."""

from __future__ import annotations

import pytest

from penstock.core.ids import make_job_id
from penstock.core.job import JobOptions, NewJob, Submitted
from penstock.core.retry import Backoff
from penstock.core.states import Priority, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS, Subject


async def test_a_new_job_is_queued_with_all_it_was_given(subject: Subject) -> None:
    options = JobOptions(
        max_attempts=7,
        backoff=Backoff(base_ms=5),
        timeout_ms=9,
        tags=("a", "ü"),
        metadata={"k": [1, None]},
        traceparent="00-1-2-01",
    )
    job = subject.new(
        task="résumé",
        type="ai",
        queue="mail",
        priority=Priority.HIGH,
        input='{"x":[],"text":"ü"}'.encode(),
        options=options,
        retention_ms=5,
    )
    answers = await subject.store.submit([job])
    assert answers == [Submitted(id=job.id, state=State.QUEUED, created=True, created_at_ms=START_MS)]
    record = await subject.get(job.id)
    assert (record.task, record.type, record.queue, record.priority) == ("résumé", "ai", "mail", Priority.HIGH)
    assert record.input == job.input
    assert await subject.store.input(job.id) == job.input
    assert record.options == options
    assert record.retention_ms == 5
    assert (record.attempt, record.counted, record.lost, record.no_handler) == (0, 0, 0, 0)
    assert (record.worker, record.started_at_ms, record.finished_at_ms, record.run_at_ms) == (None, None, None, None)
    assert record.attempts == ()
    assert await subject.order("mail", Priority.HIGH) == [job.id]
    assert await subject.count("submitted", "mail") == 1


async def test_jobs_of_many_calls_keep_their_order(subject: Subject) -> None:
    jobs = [subject.new() for _ in range(1_050)]
    answers = await subject.store.submit(jobs)
    assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [job.id for job in jobs]
    assert await subject.order() == [job.id for job in jobs]


@pytest.mark.every_server
async def test_a_repeat_by_id_describes_the_standing_job(subject: Subject) -> None:
    job = subject.new(expires_in_ms=90_000)
    await subject.store.submit([job])
    await subject.advance(1_000)
    claimed = await subject.claim_one()
    again = NewJob(id=job.id, task="other", input=b"[1]", queue="elsewhere", priority=Priority.LOW)
    answers = await subject.store.submit([again])
    assert answers == [
        Submitted(
            id=job.id, state=State.RUNNING, created=False, created_at_ms=START_MS, expires_at_ms=START_MS + 90_000
        )
    ]
    assert (await subject.get(job.id)).task == "echo"
    assert claimed.token.job_id == job.id
    assert await subject.order("elsewhere", Priority.LOW) == []
    assert await subject.count("submitted") == 1
    assert await subject.count("submitted", "elsewhere") == 0


async def test_a_repeat_within_one_call_counts_once(subject: Subject) -> None:
    job = subject.new()
    first, second = await subject.store.submit([job, job])
    assert isinstance(first, Submitted)
    assert isinstance(second, Submitted)
    assert (first.created, second.created) == (True, False)
    assert await subject.order() == [job.id]


@pytest.mark.parametrize("fields", [{"run_at_ms": START_MS + 500}, {"delay_ms": 500}])
async def test_a_job_due_later_is_scheduled(subject: Subject, fields: dict[str, int]) -> None:
    job = subject.new(**fields)
    (answer,) = await subject.store.submit([job])
    assert answer == Submitted(
        id=job.id, state=State.SCHEDULED, created=True, created_at_ms=START_MS, run_at_ms=START_MS + 500
    )
    assert (await subject.get(job.id)).run_at_ms == START_MS + 500
    assert (await subject.claim()).jobs == ()
    (again,) = await subject.store.submit([job])
    assert isinstance(again, Submitted)
    assert again.run_at_ms == START_MS + 500


@pytest.mark.parametrize(
    "fields", [{"run_at_ms": START_MS}, {"run_at_ms": START_MS - 5}, {"run_at_ms": 1}, {"delay_ms": 0}]
)
async def test_a_job_due_now_or_earlier_is_queued(subject: Subject, fields: dict[str, int]) -> None:
    job = subject.new(**fields)
    (answer,) = await subject.store.submit([job])
    assert answer == Submitted(id=job.id, state=State.QUEUED, created=True, created_at_ms=START_MS)
    assert (await subject.get(job.id)).run_at_ms is None


@pytest.mark.parametrize("fields", [{"expires_at_ms": START_MS + 700}, {"expires_in_ms": 700}])
async def test_expiry_is_stored(subject: Subject, fields: dict[str, int]) -> None:
    job = subject.new(**fields)
    (answer,) = await subject.store.submit([job])
    assert isinstance(answer, Submitted)
    assert answer.expires_at_ms == START_MS + 700
    assert (await subject.get(job.id)).expires_at_ms == START_MS + 700


@pytest.mark.parametrize("expires_at_ms", [START_MS, START_MS - 1])
async def test_an_expiry_that_has_passed_is_accepted_and_expires_in_its_turn(
    subject: Subject, expires_at_ms: int
) -> None:
    job_id = await subject.submit(expires_at_ms=expires_at_ms)
    assert await subject.state(job_id) is State.QUEUED
    assert (await subject.store.promote(0)).expired == 1
    assert await subject.state(job_id) is State.EXPIRED


async def test_the_answer_for_a_job_no_longer_delayed_has_no_due_time(subject: Subject) -> None:
    job = subject.new(delay_ms=500)
    await subject.store.submit([job])
    await subject.store.cancel([job.id])
    (answer,) = await subject.store.submit([job])
    assert answer == Submitted(id=job.id, state=State.CANCELLED, created=False, created_at_ms=START_MS)


@pytest.mark.parametrize("size", [0, 1, 62, 63, 64, 65, 1_000, 1_000_000])
async def test_inputs_of_any_size_come_back_whole(subject: Subject, size: int) -> None:
    text = b'"' + b"x" * size + b'"'
    job_id = await subject.submit(input=text)
    assert (await subject.get(job_id)).input == text
    assert await subject.store.input(job_id) == text


async def test_the_input_of_no_job_is_none(subject: Subject) -> None:
    assert await subject.store.input(subject.new().id) is None


async def test_one_bad_item_does_not_stop_the_rest(subject: Subject) -> None:
    good, bad, last = subject.new(), subject.new(input=b"\xff"), subject.new()
    answers = await subject.store.submit([good, bad, last])
    assert isinstance(answers[0], Submitted)
    assert isinstance(answers[1], Exception)
    assert isinstance(answers[2], Submitted)
    assert await subject.store.get(bad.id) is None
    assert await subject.order() == [good.id, last.id]
    assert await subject.count("submitted") == 2


async def test_an_empty_batch_is_answered_by_nothing(subject: Subject) -> None:
    assert await subject.store.submit([]) == []
    assert await subject.store.settle([]) == []
    assert await subject.store.cancel([]) == []
    assert await subject.store.redrive([]) == []
    assert await subject.store.delete([]) == []


@pytest.mark.every_server
async def test_a_thousand_jobs_keep_their_order(subject: Subject) -> None:
    ids = await subject.submit_many(1_000)
    assert await subject.order() == ids


@pytest.mark.parametrize("partitions", [1, 4])
async def test_answers_come_in_the_order_of_the_items(make_subject: MakeSubject, partitions: int) -> None:
    subject = await make_subject(partitions)
    jobs = [subject.new(home=home) for home in (3, 0, 1, 3, 2, 0, 4095)]
    answers = await subject.store.submit(jobs)
    assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [job.id for job in jobs]
    repeat = await subject.store.submit(jobs[::-1])
    assert [answer.id for answer in repeat if isinstance(answer, Submitted)] == [job.id for job in jobs[::-1]]


async def test_ids_of_another_time_are_as_good(subject: Subject) -> None:
    job_id = make_job_id(unix_ms=1, home=9, random_bits=2**62 - 1)
    await subject.store.submit([NewJob(id=job_id, task="echo", input=b"1")])
    assert (await subject.get(job_id)).created_at_ms == START_MS
