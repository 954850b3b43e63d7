"""Jobs whose worker was lost again and again: they run alone, and only a death alone poisons."""

from __future__ import annotations

import pytest

from penstock.core.ids import JobId
from penstock.core.job import PRIORITY_WEIGHTS, Verb
from penstock.core.limits import Limits
from penstock.core.states import AttemptOutcome, Priority, Reason, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, WORKER, Subject


async def lose_together(subject: Subject, ids: list[JobId], times: int = 2) -> None:
    """Take a worker that runs all the jobs, again and again."""
    for _ in range(times):
        claimed = await subject.claim(len(ids))
        assert [job.token.job_id for job in claimed.jobs] == ids
        assert await subject.store.release_worker(WORKER, lost=True) == len(ids)


async def test_from_the_second_loss_on_only_a_claim_for_it_alone_gets_a_job(subject: Subject) -> None:
    ids = await subject.submit_many(3)
    await lose_together(subject, ids)
    claimed = await subject.claim(5)
    assert (claimed.jobs, claimed.apart, claimed.skipped, claimed.remaining) == ((), 3, 0, False)
    claimed = await subject.claim(5, alone=True)
    assert [job.token.job_id for job in claimed.jobs] == ids[:1]
    assert (claimed.jobs[0].lost, claimed.jobs[0].previous) == (2, AttemptOutcome.WORKER_LOST)
    assert await subject.order() == ids[1:]


async def test_a_claim_for_one_alone_takes_no_other(subject: Subject) -> None:
    ids = await subject.submit_many(2)
    await lose_together(subject, ids, times=1)
    claimed = await subject.claim(5, alone=True)
    assert (claimed.jobs, claimed.apart, claimed.remaining) == ((), 0, True)
    assert [job.token.job_id for job in (await subject.claim(5)).jobs] == ids


async def test_innocents_are_not_poisoned(subject: Subject) -> None:
    ids = await subject.submit_many(5)
    await lose_together(subject, ids)
    for job_id in ids:
        job = await subject.claim_one(alone=True)
        assert job.token.job_id == job_id
        if job_id == ids[2]:
            await subject.store.release_worker(WORKER, lost=True)
        else:
            await subject.settle(job.token, Verb.COMPLETE, value=b"1")
    states = [await subject.state(job_id) for job_id in ids]
    assert states == [State.FAILED if job_id == ids[2] else State.COMPLETED for job_id in ids]
    record = await subject.get(ids[2])
    assert (record.reason, record.lost, record.counted) == (Reason.POISONED, 3, 0)
    assert [await subject.count(name) for name in ("lost", "poisoned", "completed")] == [11, 1, 4]


async def test_losses_beside_others_never_poison(make_subject: MakeSubject) -> None:
    subject = await make_subject(1, Limits(max_lost=3, alone_after=100))
    ids = await subject.submit_many(2)
    # It runs beside others until one loss is left, whatever is set.
    await lose_together(subject, ids)
    assert (await subject.claim(5)).apart == 2


@pytest.mark.parametrize(("max_lost", "deaths"), [(1, 2), (2, 2), (3, 3), (5, 5)])
async def test_the_last_of_so_many_deaths_is_alone(make_subject: MakeSubject, max_lost: int, deaths: int) -> None:
    subject = await make_subject(1, Limits(max_lost=max_lost))
    job_id = await subject.submit()
    for number in range(deaths):
        alone = number >= min(2, max(1, max_lost - 1))
        assert (await subject.claim_one(alone=alone)).token.job_id == job_id
        await subject.store.release_worker(WORKER, lost=True)
    assert await subject.state(job_id) is State.FAILED


async def test_a_lapse_alone_poisons_too(subject: Subject) -> None:
    await subject.steady_reaps(1_000)
    (job_id,) = await subject.submit_many(1)
    await lose_together(subject, [job_id])
    await subject.claim_one(alone=True, lease_ms=2_000)
    for _ in range(5):
        await subject.advance(1_000)
        await subject.store.reap(0)
    assert (await subject.get(job_id)).reason is Reason.POISONED


async def test_what_had_not_started_is_not_lost(subject: Subject) -> None:
    ids = await subject.submit_many(3)
    await subject.claim(3)
    assert await subject.store.release_worker(WORKER, lost=True, started=ids[:1]) == 3
    records = [await subject.get(job_id) for job_id in ids]
    assert [record.lost for record in records] == [1, 0, 0]
    outcomes = [record.attempts[0].outcome for record in records]
    assert outcomes == [AttemptOutcome.WORKER_LOST, AttemptOutcome.RELEASED, AttemptOutcome.RELEASED]
    assert await subject.order() == ids


async def test_nothing_had_started(subject: Subject) -> None:
    ids = await subject.submit_many(2)
    await subject.claim(2)
    assert await subject.store.release_worker(WORKER, lost=True, started=[]) == 2
    assert [(await subject.get(job_id)).lost for job_id in ids] == [0, 0]


async def test_one_that_failed_meanwhile_stays_alone_and_a_redrive_forgets(subject: Subject) -> None:
    (job_id,) = await subject.submit_many(1)
    await lose_together(subject, [job_id])
    job = await subject.claim_one(alone=True)
    await subject.settle(job.token, Verb.RETRY)
    await subject.store.promote(0)
    assert (await subject.claim(1)).apart == 1
    job = await subject.claim_one(alone=True)
    assert job.previous is AttemptOutcome.FAILED
    await subject.settle(job.token, Verb.FAIL)
    await subject.store.redrive([job_id])
    job = await subject.claim_one()
    assert (job.token.job_id, job.lost) == (job_id, 0)
    # It is beside others again, and lost for the first time.
    await subject.store.release_worker(WORKER, lost=True)
    assert await subject.state(job_id) is State.QUEUED


async def test_those_that_run_alone_wake_no_other_worker(subject: Subject) -> None:
    ids = await subject.submit_many(2)
    await lose_together(subject, ids)
    assert (await subject.claim(5, worker=OTHER_WORKER)).apart == 2
    assert await subject.store.wait_work(OTHER_WORKER, ("default",), timeout_ms=1) == frozenset()
    fresh = await subject.submit()
    assert await subject.store.wait_work(OTHER_WORKER, ("default",), timeout_ms=5_000) == {"queue:default"}
    assert (await subject.claim_one(worker=OTHER_WORKER)).token.job_id == fresh
    # The sweep wakes one again, so that somebody sees that they are still there.
    await subject.store.reap(0)
    assert await subject.store.wait_work(OTHER_WORKER, ("default",), timeout_ms=5_000) == {"queue:default"}


async def test_what_stands_behind_them_is_handed_out(subject: Subject) -> None:
    ids = await subject.submit_many(3)
    await lose_together(subject, ids)
    fresh = await subject.submit_many(2)
    claimed = await subject.claim(1)
    assert ([job.token.job_id for job in claimed.jobs], claimed.remaining) == (fresh[:1], True)
    claimed = await subject.claim(5, priority_weights=PRIORITY_WEIGHTS)
    assert ([job.token.job_id for job in claimed.jobs], claimed.remaining) == (fresh[1:], False)


async def test_each_queue_and_priority_is_searched_for_them(subject: Subject) -> None:
    ids = []
    for queue, priority in (("a", Priority.LOW), ("b", Priority.HIGH)):
        ids.append(await subject.submit(queue=queue, priority=priority))
        for _ in range(2):
            await subject.claim_one(queues=(queue,))
            await subject.store.release_worker(WORKER, lost=True)
        await subject.submit_many(2, queue=queue, priority=priority)
    found = set()
    for _ in ids:
        job = await subject.claim_one(queues=("a", "b"), alone=True, priority_weights=PRIORITY_WEIGHTS, draw=0.4)
        found.add(job.token.job_id)
    assert found == set(ids)
    assert (await subject.claim(1, queues=("a", "b"), alone=True)).jobs == ()


async def test_one_that_is_met_twice_in_a_claim_counts_once(make_subject: MakeSubject) -> None:
    """The second window meets it, and so does the turn that takes what another priority left."""
    subject = await make_subject(1, Limits(max_lost=2))
    ids = await subject.submit_many(201)
    while (await subject.claim(100)).jobs:
        pass
    assert await subject.store.release_worker(WORKER, lost=True) == len(ids)
    fresh = await subject.submit_many(2)
    await subject.announce("other", worker=OTHER_WORKER)
    await subject.submit(task="other", priority=Priority.HIGH)
    claimed = await subject.claim(2, tasks=("echo",), priority_weights=PRIORITY_WEIGHTS, window_start=0.0)
    assert [job.token.job_id for job in claimed.jobs] == fresh
    assert (claimed.apart, claimed.skipped, claimed.remaining) == (len(ids), 1, True)


async def test_the_first_attempt_has_none_before_it(subject: Subject) -> None:
    await subject.submit()
    first = await subject.claim_one()
    assert first.previous is None
    await subject.settle(first.token, Verb.SNOOZE)
    await subject.store.promote(0)
    assert (await subject.claim_one()).previous is AttemptOutcome.RELEASED
