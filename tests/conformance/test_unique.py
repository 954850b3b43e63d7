"""Unique keys: who holds one, until when, and what becomes of the next job that wants it."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.core.errors import KeyHeld, KeyReused, QueueFull
from penstock.core.ids import JobId, Token
from penstock.core.job import (
    ChangeCode,
    HeldUntil,
    Idempotency,
    NewJob,
    OnConflict,
    Settle,
    Submitted,
    Unique,
    Verb,
)
from penstock.core.limits import Limits
from penstock.core.states import Reason, State
from penstock.store.redis.store import RedisStore
from tests.answers import without_errors
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS, WORKER, Subject

KEY = "000" + "1" * 29
OTHER_KEY = "000" + "2" * 29
STARTED, FINISHED = HeldUntil.STARTED, HeldUntil.FINISHED
REJECT, EXISTING, REPLACE = OnConflict.REJECT, OnConflict.RETURN_EXISTING, OnConflict.REPLACE


def unique(on_conflict: OnConflict = REJECT, **fields: Any) -> Unique:
    return Unique(**{"key": KEY, "on_conflict": on_conflict, **fields})


async def answer_to(subject: Subject, job: NewJob) -> Submitted | Exception:
    (answer,) = await subject.store.submit([job])
    return answer


async def holder(subject: Subject) -> JobId | None:
    """Return which job holds the key, by asking for it."""
    (answer,) = await subject.store.submit([subject.new(queue="probe", unique=unique(EXISTING))])
    assert isinstance(answer, Submitted)
    if answer.existing:
        return answer.id
    assert answer.created
    await subject.store.cancel([answer.id])
    return None


async def fails(subject: Subject, token: Token) -> None:
    await subject.settle(token, Verb.FAIL, reason=Reason.DISCARDED)


# What the next one gets.


async def test_reject_names_the_holder(subject: Subject) -> None:
    first = await subject.submit(unique=unique(), delay_ms=5_000)
    job = subject.new(unique=unique())
    answer = await answer_to(subject, job)
    assert isinstance(answer, KeyHeld)
    assert (answer.job_id, answer.status) == (first, "scheduled")
    assert await subject.store.get(job.id) is None
    assert await subject.count("conflicts") == 1
    assert await subject.count("submitted") == 1
    assert await subject.audit() == []


async def test_return_existing_tells_of_the_holder(subject: Subject) -> None:
    first = await subject.submit(unique=unique(), delay_ms=5_000, expires_in_ms=9_000)
    await subject.advance(1_000)
    job = subject.new(unique=unique(EXISTING))
    assert await answer_to(subject, job) == Submitted(
        id=first,
        state=State.SCHEDULED,
        created=False,
        existing=True,
        created_at_ms=START_MS,
        run_at_ms=START_MS + 5_000,
        expires_at_ms=START_MS + 9_000,
    )
    assert await subject.store.get(job.id) is None
    assert (await subject.count("existing"), await subject.count("submitted")) == (1, 1)


async def test_return_existing_makes_one_where_there_is_none(subject: Subject) -> None:
    answer = await answer_to(subject, subject.new(unique=unique(EXISTING)))
    assert isinstance(answer, Submitted)
    assert (answer.created, answer.existing) == (True, False)


async def waits_queued(subject: Subject) -> JobId:
    return await subject.submit(unique=unique())


async def waits_scheduled(subject: Subject) -> JobId:
    return await subject.submit(unique=unique(), delay_ms=5_000)


async def waits_for_a_retry(subject: Subject) -> JobId:
    token = await subject.running(unique=unique())
    await subject.settle(token, Verb.RETRY, delay_ms=5_000)
    return token.job_id


@pytest.mark.parametrize("waits", [waits_queued, waits_scheduled, waits_for_a_retry])
async def test_replace_cancels_what_waits(subject: Subject, waits: Any) -> None:
    first = await waits(subject)
    job = subject.new(unique=unique(REPLACE))
    answer = await answer_to(subject, job)
    assert isinstance(answer, Submitted)
    assert (answer.id, answer.created, answer.existing) == (job.id, True, False)
    record = await subject.get(first)
    assert (record.state, record.cancel_requested_at_ms) == (State.CANCELLED, START_MS)
    assert await holder(subject) == job.id
    assert (await subject.count("replaced"), await subject.count("cancelled")) == (1, 1)
    assert await subject.audit() == []


async def test_replace_is_refused_where_the_holder_runs(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    answer = await answer_to(subject, subject.new(unique=unique(REPLACE)))
    assert isinstance(answer, KeyHeld)
    assert (answer.job_id, answer.status) == (token.job_id, "running")
    assert await subject.state(token.job_id) is State.RUNNING


async def test_replace_is_refused_where_the_holder_has_run(subject: Subject) -> None:
    token = await subject.running(unique=unique(until=None, for_ms=60_000))
    await subject.settle(token, Verb.COMPLETE)
    answer = await answer_to(subject, subject.new(unique=unique(REPLACE)))
    assert isinstance(answer, KeyHeld)
    assert (answer.job_id, answer.status) == (token.job_id, "completed")


async def test_a_replaced_job_tells_those_who_wait_for_it(subject: Subject) -> None:
    first = await subject.submit(unique=unique())
    await subject.store.submit([subject.new(unique=unique(REPLACE))])
    assert await subject.store.wait_final(first, timeout_ms=30_000) is State.CANCELLED


async def test_other_keys_do_not_matter(subject: Subject) -> None:
    await subject.submit(unique=unique())
    assert isinstance(await answer_to(subject, subject.new(unique=unique(key=OTHER_KEY))), Submitted)
    assert isinstance(await answer_to(subject, subject.new()), Submitted)


async def test_items_of_one_call_are_told_apart_in_order(subject: Subject) -> None:
    jobs = [subject.new(unique=unique(mode)) for mode in (REJECT, REJECT, EXISTING, REPLACE, REJECT)]
    created, refused, existing, replaced, last = await subject.store.submit(jobs)
    assert isinstance(created, Submitted)
    assert isinstance(existing, Submitted)
    assert isinstance(replaced, Submitted)
    assert isinstance(refused, KeyHeld)
    assert isinstance(last, KeyHeld)
    assert (created.created, existing.id, existing.existing) == (True, jobs[0].id, True)
    assert (refused.job_id, last.job_id) == (jobs[0].id, jobs[3].id)
    assert [await subject.state(job.id) for job in (jobs[0], jobs[3])] == [State.CANCELLED, State.QUEUED]


@pytest.mark.parametrize("mode", OnConflict)
async def test_the_same_job_again_is_no_conflict(subject: Subject, mode: OnConflict) -> None:
    job = subject.new(unique=unique(mode))
    first = await answer_to(subject, job)
    again = await answer_to(subject, job)
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert (again.id, again.state, again.created, again.existing) == (job.id, State.QUEUED, False, False)
    assert await subject.state(job.id) is State.QUEUED


# How long it is held.


async def test_until_finished(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    assert await holder(subject) == token.job_id
    await subject.settle(token, Verb.RETRY, delay_ms=1_000)
    assert await holder(subject) == token.job_id
    await subject.advance(1_000)
    await subject.store.promote(0)
    token = (await subject.claim_one()).token
    await subject.settle(token, Verb.SNOOZE, delay_ms=0)
    await subject.store.promote(0)
    token = (await subject.claim_one()).token
    await subject.store.release_worker(WORKER, lost=True)
    assert await holder(subject) == token.job_id
    token = (await subject.claim_one()).token
    assert await subject.audit() == []
    await subject.settle(token, Verb.COMPLETE)
    assert await holder(subject) is None
    assert await subject.audit() == []


async def test_until_started(subject: Subject) -> None:
    first = await subject.submit(unique=unique(until=STARTED), delay_ms=1_000)
    assert await holder(subject) == first
    await subject.advance(1_000)
    await subject.store.promote(0)
    assert await holder(subject) == first
    token = (await subject.claim_one()).token
    assert await holder(subject) is None
    second = await subject.submit(unique=unique(until=STARTED), delay_ms=9_000)
    # What comes back to the queue takes nothing back from the next one.
    await subject.settle(token, Verb.RETRY, delay_ms=1_000)
    assert await holder(subject) == second
    await subject.advance(1_000)
    await subject.store.promote(0)
    token = (await subject.claim_one()).token
    assert token.job_id == first
    await subject.settle(token, Verb.COMPLETE)
    assert await holder(subject) == second
    assert await subject.audit() == []


async def test_a_job_that_nobody_knows_has_not_started(subject: Subject) -> None:
    first = await subject.submit(task="nobody", unique=unique(until=STARTED))
    await subject.claim(tasks=("echo",))
    assert await subject.state(first) is State.RETRYING
    assert await holder(subject) == first


@pytest.mark.parametrize("ends", [None, Verb.COMPLETE, Verb.FAIL])
async def test_for_a_time_whatever_the_job_does(subject: Subject, ends: Verb | None) -> None:
    token = await subject.running(unique=unique(until=None, for_ms=60_000))
    if ends:
        await subject.settle(token, ends, reason=Reason.DISCARDED)
    await subject.advance(59_999)
    assert await holder(subject) == token.job_id
    await subject.advance(1)
    assert await holder(subject) is None
    assert await subject.audit() == []


async def test_both_end_with_the_later_one(subject: Subject) -> None:
    token = await subject.running(unique=unique(until=FINISHED, for_ms=60_000))
    await subject.advance(60_000)
    assert await holder(subject) == token.job_id
    assert await subject.audit() == []
    await subject.settle(token, Verb.COMPLETE)
    assert await holder(subject) is None
    token = await subject.running(unique=unique(until=FINISHED, for_ms=60_000))
    await subject.settle(token, Verb.COMPLETE)
    assert await holder(subject) == token.job_id
    await subject.advance(60_000)
    assert await holder(subject) is None
    token = await subject.running(unique=unique(until=STARTED, for_ms=60_000))
    await subject.advance(59_999)
    assert await holder(subject) == token.job_id
    await subject.advance(1)
    assert await holder(subject) is None
    assert await subject.audit() == []


async def test_time_outlives_the_job(make_subject: MakeSubject) -> None:
    subject = await make_subject(limits=Limits(retention_ms=1_000))
    token = await subject.running(unique=unique(until=None, for_ms=60_000))
    await subject.settle(token, Verb.COMPLETE)
    await subject.advance(1_000)
    assert (await subject.store.prune(0)).expired == 1
    assert await answer_to(subject, subject.new(unique=unique(EXISTING))) == Submitted(
        id=token.job_id, state=State.COMPLETED, created=False, existing=True, created_at_ms=START_MS
    )
    for mode in (REJECT, REPLACE):
        answer = await answer_to(subject, subject.new(unique=unique(mode)))
        assert isinstance(answer, KeyHeld)
        assert (answer.job_id, answer.status) == (token.job_id, "completed")
    assert await subject.audit() == []
    await subject.advance(59_000)
    assert await holder(subject) is None


@pytest.mark.parametrize("way", ["cancel", "purge", "cancel requested"])
async def test_a_cancel_frees_it_also_before_its_time(subject: Subject, way: str) -> None:
    if way == "cancel requested":
        token = await subject.running(unique=unique(for_ms=60_000))
        await subject.store.cancel([token.job_id])
        assert await holder(subject) == token.job_id
        await subject.settle(token, Verb.CANCEL)
    else:
        job_id = await subject.submit(unique=unique(for_ms=60_000))
        if way == "cancel":
            await subject.store.cancel([job_id])
        else:
            await subject.store.purge(0, "default")
    assert await holder(subject) is None
    assert await subject.audit() == []


@pytest.mark.parametrize("sweep", ["promote", "claim"])
async def test_an_expiry_frees_it_also_before_its_time(subject: Subject, sweep: str) -> None:
    job_id = await subject.submit(unique=unique(for_ms=60_000), expires_in_ms=1_000)
    await subject.advance(1_000)
    if sweep == "promote":
        await subject.store.promote(0)
    else:
        await subject.claim()
    assert await subject.state(job_id) is State.EXPIRED
    assert await holder(subject) is None
    assert await subject.audit() == []


async def test_a_delete_frees_it_also_before_its_time(subject: Subject) -> None:
    token = await subject.running(unique=unique(for_ms=60_000))
    await subject.settle(token, Verb.COMPLETE)
    await subject.store.delete([token.job_id])
    assert await holder(subject) is None
    assert await subject.audit() == []


async def test_a_delete_takes_no_key_from_the_next_holder(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    await subject.settle(token, Verb.COMPLETE)
    second = await subject.submit(unique=unique())
    await subject.store.delete([token.job_id])
    assert await holder(subject) == second


async def test_a_lapse_that_poisons_frees_it(make_subject: MakeSubject) -> None:
    subject = await make_subject(limits=Limits(max_lost=1))
    token = await subject.running(unique=unique())
    await subject.store.release_worker(WORKER, lost=True)
    await subject.claim_one(alone=True)
    await subject.store.release_worker(WORKER, lost=True)
    assert await subject.state(token.job_id) is State.FAILED
    assert await holder(subject) is None


async def test_what_is_left_of_keys_goes_from_memory(subject: Subject) -> None:
    token = await subject.running(unique=unique(for_ms=60_000))
    if isinstance(subject.store, RedisStore):
        name = subject.store.connection.keys[0].key("unique", KEY)
        assert await subject.store.connection.command("PTTL", name) == -1
        await subject.settle(token, Verb.COMPLETE)
        assert 0 < await subject.store.connection.command("PTTL", name) <= 60_000
    else:
        await subject.settle(token, Verb.COMPLETE)
        await subject.advance(60_000)
        await subject.store.prune(0)
        assert subject.store._parts[0].locks == {}  # type: ignore[attr-defined]


# Redrive.


async def test_a_redrive_takes_a_free_key(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    await fails(subject, token)
    assert await holder(subject) is None
    (changed,) = without_errors(await subject.store.redrive([token.job_id]))
    assert changed.code is ChangeCode.DONE
    assert await holder(subject) == token.job_id
    assert await subject.audit() == []
    await subject.settle((await subject.claim_one()).token, Verb.COMPLETE)
    assert await holder(subject) is None


async def test_a_redrive_beside_another_holder_is_refused(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    await fails(subject, token)
    second = await subject.submit(unique=unique())
    (changed,) = without_errors(await subject.store.redrive([token.job_id]))
    assert (changed.code, changed.state, changed.holder) == (ChangeCode.HELD, State.FAILED, second)
    assert await subject.count("redriven") == 0
    await subject.store.cancel([second])
    (changed,) = without_errors(await subject.store.redrive([token.job_id]))
    assert changed.code is ChangeCode.DONE
    assert await subject.audit() == []


async def test_of_two_failed_jobs_one_is_redriven(subject: Subject) -> None:
    ids = []
    for _ in range(2):
        token = await subject.running(unique=unique())
        await fails(subject, token)
        ids.append(token.job_id)
    first, second = without_errors(await subject.store.redrive(ids))
    assert (first.code, second.code, second.holder) == (ChangeCode.DONE, ChangeCode.HELD, ids[0])


async def test_a_redrive_within_its_own_time(subject: Subject) -> None:
    token = await subject.running(unique=unique(until=FINISHED, for_ms=60_000))
    await fails(subject, token)
    (changed,) = without_errors(await subject.store.redrive([token.job_id]))
    assert changed.code is ChangeCode.DONE
    assert await subject.audit() == []
    await subject.advance(60_000)
    assert await holder(subject) == token.job_id
    await subject.store.cancel([token.job_id])
    assert await holder(subject) is None


async def test_a_redrive_of_what_holds_no_more_is_free(subject: Subject) -> None:
    started = await subject.running(unique=unique(until=STARTED))
    await fails(subject, started)
    timed = await subject.running(unique=unique(until=None, for_ms=60_000, key=OTHER_KEY))
    await fails(subject, timed)
    await subject.advance(60_000)
    holders = [await subject.submit(unique=unique(key=key)) for key in (KEY, OTHER_KEY)]
    changes = without_errors(await subject.store.redrive([started.job_id, timed.job_id]))
    assert [changed.code for changed in changes] == [ChangeCode.DONE, ChangeCode.DONE]
    assert await holder(subject) == holders[0]
    assert await subject.audit() == []


async def test_a_redrive_of_what_never_started_takes_the_key_again(make_subject: MakeSubject) -> None:
    subject = await make_subject(limits=Limits(unknown_task_ms=1_000))
    job_id = await subject.submit(task="nobody", unique=unique(until=STARTED))
    await subject.advance(1_000)
    await subject.claim(tasks=("echo",))
    assert await subject.state(job_id) is State.FAILED
    assert await holder(subject) is None
    await subject.store.redrive([job_id])
    assert await holder(subject) == job_id
    assert await subject.audit() == []


# With an idempotency key; with a bound on depth; with damage.


def once(key: str = KEY, fingerprint: str = "aa") -> Idempotency:
    return Idempotency(key=key, fingerprint=fingerprint, keep_ms=60_000)


#: (partitions, idempotency key): its home is that of the unique key, and another one.
PLACES = pytest.mark.parametrize(("partitions", "key"), [(1, KEY), (2, KEY), (2, "001" + "0" * 29)])


@PLACES
async def test_a_repeat_by_idempotency_key_is_no_conflict(make_subject: MakeSubject, partitions: int, key: str) -> None:
    subject = await make_subject(partitions)
    first = subject.new(unique=unique(), idempotency=once(key))
    assert isinstance(await answer_to(subject, first), Submitted)
    again = await answer_to(subject, subject.new(unique=unique(), idempotency=once(key)))
    assert isinstance(again, Submitted)
    assert (again.id, again.state, again.replayed, again.existing) == (first.id, State.QUEUED, True, False)


@PLACES
async def test_a_conflict_leaves_the_idempotency_key_free(make_subject: MakeSubject, partitions: int, key: str) -> None:
    subject = await make_subject(partitions)
    holding = await subject.submit(unique=unique())
    assert isinstance(await answer_to(subject, subject.new(unique=unique(), idempotency=once(key))), KeyHeld)
    await subject.store.cancel([holding])
    job = subject.new(unique=unique(), idempotency=once(key, "bb"))
    answer = await answer_to(subject, job)
    assert isinstance(answer, Submitted)
    assert (answer.id, answer.created, answer.replayed) == (job.id, True, False)


@PLACES
async def test_an_existing_job_is_remembered_as_the_first_answer(
    make_subject: MakeSubject, partitions: int, key: str
) -> None:
    subject = await make_subject(partitions)
    holding = await subject.submit(unique=unique(), delay_ms=5_000)
    first = await answer_to(subject, subject.new(unique=unique(EXISTING), idempotency=once(key)))
    assert isinstance(first, Submitted)
    assert (first.id, first.existing, first.replayed) == (holding, True, False)
    await subject.store.cancel([holding])
    again = await answer_to(subject, subject.new(unique=unique(EXISTING), idempotency=once(key)))
    assert isinstance(again, Submitted)
    assert (again.id, again.state, again.existing, again.replayed) == (holding, State.SCHEDULED, True, True)
    assert again.run_at_ms == START_MS + 5_000
    assert isinstance(
        await answer_to(subject, subject.new(unique=unique(EXISTING), idempotency=once(key, "bb"))), KeyReused
    )


async def test_a_replacement_needs_no_room_of_its_own(make_subject: MakeSubject) -> None:
    subject = await make_subject(limits=Limits(max_depth=1))
    await subject.submit(unique=unique())
    second = subject.new(unique=unique(REPLACE))
    third = subject.new(unique=unique(REPLACE))
    answers = await subject.store.submit([second, third, subject.new()])
    assert [isinstance(answer, Submitted) for answer in answers] == [True, True, False]
    assert isinstance(answers[2], QueueFull)
    await subject.submit(queue="other")
    elsewhere = await answer_to(subject, subject.new(queue="other", unique=unique(REPLACE)))
    assert isinstance(elsewhere, QueueFull)
    assert await subject.state(third.id) is State.QUEUED
    assert await holder(subject) == third.id


async def test_a_replaced_job_makes_room(make_subject: MakeSubject) -> None:
    subject = await make_subject(1, Limits(max_depth=2))
    await subject.submit(unique=unique())
    jobs = [subject.new(queue="other", unique=unique(REPLACE)), subject.new(unique=unique(REPLACE))]
    answers = await subject.store.submit([*jobs, subject.new(), subject.new(), subject.new(queue="other")])
    assert [isinstance(answer, Submitted) for answer in answers] == [True, True, True, False, True]


@pytest.mark.redis_only("in memory nothing is forgotten")
async def test_a_lock_that_was_forgotten_locks_nothing_out(subject: Subject) -> None:
    assert isinstance(subject.store, RedisStore)
    gone, final = subject.new().id, await subject.submit(unique=unique())
    await subject.store.cancel([final])
    name = subject.store.connection.keys[0].key("unique", KEY)
    for text in (f"0|{gone}|{START_MS}|", f"0|{final}|{START_MS}|", "odd", f"{START_MS}|{gone}|{START_MS}|completed"):
        await subject.store.connection.command("SET", name, text)
        job_id = await subject.submit(unique=unique())
        assert await holder(subject) == job_id
        await subject.store.cancel([job_id])


@pytest.mark.redis_only("in memory nothing is damaged")
async def test_a_failed_replacement_replaces_nothing(subject: Subject) -> None:
    assert isinstance(subject.store, RedisStore)
    first = await subject.submit(unique=unique())
    command, keys = subject.store.connection.command, subject.store.connection.keys[0]
    await command("SET", keys.key("final", "cancelled", "default"), "odd")
    for fields in ({}, {"delay_ms": 5_000}):
        job = subject.new(unique=unique(REPLACE), **fields)
        assert not isinstance(await answer_to(subject, job), Submitted)
        assert await subject.store.get(job.id) is None
    await command("DEL", keys.key("final", "cancelled", "default"))
    assert await holder(subject) == first
    assert await subject.audit() == []


async def test_settling_twice_changes_no_lock(subject: Subject) -> None:
    token = await subject.running(unique=unique())
    await subject.settle(token, Verb.COMPLETE)
    second = await subject.submit(unique=unique())
    await subject.store.settle([Settle(token=token, verb=Verb.COMPLETE)])
    assert await holder(subject) == second
