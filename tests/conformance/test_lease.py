"""Extend, release_worker and the leases that a worker does not know it holds."""

from __future__ import annotations

import msgspec
import pytest

from penstock.core.ids import Token
from penstock.core.job import Attempt, Extended, Extension, SettleCode, Verb
from penstock.core.limits import SCRIPT_ITEMS
from penstock.core.states import AttemptOutcome, Priority, Reason, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, START_MS, WORKER, Subject

STALE = Extended(deadline_ms=None)


async def test_a_lease_is_extended_from_now(subject: Subject) -> None:
    token = await subject.running()
    await subject.advance(7_000)
    answers = await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=3_000)
    assert answers == [Extended(deadline_ms=START_MS + 10_000)]
    record = await subject.get(token.job_id)
    assert record.deadline_ms == START_MS + 10_000
    assert record.started_at_ms == START_MS


async def test_progress_is_stored_and_kept(subject: Subject) -> None:
    token = await subject.running()
    await subject.store.extend(WORKER, [Extension(token=token, progress=b'{"percent":40}')], lease_ms=3_000)
    await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=3_000)
    assert (await subject.get(token.job_id)).progress == b'{"percent":40}'


async def test_a_lease_past_its_deadline_is_good_until_reaped(subject: Subject) -> None:
    token = await subject.running()
    await subject.advance(40_000)
    (answer,) = await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=3_000)
    assert answer.deadline_ms == subject.now_ms + 3_000


async def test_a_cancel_request_is_told(subject: Subject) -> None:
    token = await subject.running()
    await subject.store.cancel([token.job_id])
    (answer,) = await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=3_000)
    assert answer == Extended(deadline_ms=START_MS + 3_000, cancel_requested=True)


@pytest.mark.parametrize("change", [{"nonce": "wrong"}, {"attempt": 0}, {"attempt": 2}])
async def test_a_token_that_is_not_the_current_one_changes_nothing(subject: Subject, change: dict[str, object]) -> None:
    token = await subject.running()
    before = await subject.get(token.job_id)
    await subject.advance(1_000)
    wrong = msgspec.structs.replace(token, **change)
    assert await subject.store.extend(WORKER, [Extension(token=wrong, progress=b"1")], lease_ms=3_000) == [STALE]
    assert await subject.get(token.job_id) == before


@pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.SNOOZE])
async def test_a_settled_token_extends_nothing(subject: Subject, verb: Verb) -> None:
    token = await subject.running()
    await subject.settle(token, verb, value=b"" if verb is not Verb.COMPLETE else b"1", delay_ms=5)
    before = await subject.get(token.job_id)
    assert await subject.store.extend(WORKER, [Extension(token=token, progress=b"1")], lease_ms=3_000) == [STALE]
    assert await subject.get(token.job_id) == before


async def test_items_stand_for_themselves(subject: Subject) -> None:
    first, second = await subject.running(), await subject.running()
    gone = Token(subject.new().id, 1, "n")
    items = [Extension(token=first), Extension(token=gone), Extension(token=second)]
    answers = await subject.store.extend(WORKER, items, lease_ms=2_000)
    assert answers == [Extended(deadline_ms=START_MS + 2_000), STALE, Extended(deadline_ms=START_MS + 2_000)]


async def test_many_leases_are_extended_in_one_call(subject: Subject) -> None:
    await subject.submit_many(2 * SCRIPT_ITEMS + 50)
    tokens = [job.token for _ in range(3) for job in (await subject.claim(SCRIPT_ITEMS)).jobs]
    await subject.advance(500)
    answers = await subject.store.extend(WORKER, [Extension(token=token) for token in tokens], lease_ms=2_000)
    assert answers == [Extended(deadline_ms=START_MS + 2_500)] * (2 * SCRIPT_ITEMS + 50)


class TestUnnamed:
    """``complete`` frees what the claimer never heard of."""

    async def test_an_unnamed_lease_goes_back_after_ten_seconds(self, subject: Subject) -> None:
        ids = await subject.submit_many(3)
        lost = (await subject.claim_one()).token
        known = (await subject.claim_one()).token
        await subject.advance(9_999)
        await subject.store.extend(WORKER, [Extension(token=known)], lease_ms=15_000, complete=True)
        assert await subject.state(lost.job_id) is State.RUNNING
        await subject.advance(1)
        await subject.store.extend(WORKER, [Extension(token=known)], lease_ms=15_000, complete=True)
        record = await subject.get(lost.job_id)
        assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
        assert record.attempts == (
            Attempt(
                attempt=1,
                worker=WORKER,
                started_at_ms=START_MS,
                finished_at_ms=START_MS + 10_000,
                outcome=AttemptOutcome.RELEASED,
            ),
        )
        # Back in its own place, before the one that came after it.
        assert await subject.order() == [lost.job_id, ids[2]]
        assert await subject.state(known.job_id) is State.RUNNING
        assert (await subject.settle(lost, Verb.COMPLETE, value=b"1")).code is SettleCode.STALE

    async def test_nothing_goes_back_unless_asked(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.advance(60_000)
        await subject.store.extend(WORKER, [], lease_ms=15_000)
        assert await subject.state(token.job_id) is State.RUNNING

    async def test_other_workers_keep_theirs(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.advance(60_000)
        await subject.store.extend(OTHER_WORKER, [], lease_ms=15_000, complete=True)
        assert await subject.state(token.job_id) is State.RUNNING

    async def test_a_later_claim_counts_from_its_own_time(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.advance(60_000)
        await subject.settle(token, Verb.RELEASE)
        again = await subject.claim_one()
        await subject.advance(5_000)
        await subject.store.extend(WORKER, [], lease_ms=15_000, complete=True)
        assert await subject.state(again.token.job_id) is State.RUNNING

    async def test_a_cancelled_one_ends(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.store.cancel([token.job_id])
        await subject.advance(11_000)
        await subject.store.extend(WORKER, [], lease_ms=15_000, complete=True)
        assert await subject.state(token.job_id) is State.CANCELLED


class TestReleaseWorker:
    """What a dead worker holds goes back at once."""

    async def test_all_goes_back_to_its_own_place(self, subject: Subject) -> None:
        ids = await subject.submit_many(4)
        await subject.claim(3)
        assert await subject.store.release_worker(WORKER) == 3
        assert await subject.order() == ids
        record = await subject.get(ids[0])
        assert (record.state, record.counted, record.lost, record.deadline_ms) == (State.QUEUED, 0, 0, None)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.RELEASED]
        assert (record.worker, record.started_at_ms) == (WORKER, START_MS)
        assert await subject.store.release_worker(WORKER) == 0

    async def test_each_priority_gets_its_own_back(self, subject: Subject) -> None:
        for priority in Priority:
            await subject.submit_many(2, priority=priority)
        await subject.claim(5)
        await subject.store.release_worker(WORKER)
        for priority in Priority:
            assert len(await subject.order(priority=priority)) == 2

    async def test_other_workers_keep_theirs(self, subject: Subject) -> None:
        token = await subject.running()
        assert await subject.store.release_worker(OTHER_WORKER) == 0
        assert await subject.state(token.job_id) is State.RUNNING

    async def test_the_old_token_is_stale(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.store.release_worker(WORKER)
        for verb in Verb:
            assert (await subject.settle(token, verb)).code is SettleCode.STALE
        assert await subject.state(token.job_id) is State.QUEUED

    async def test_a_cancelled_one_ends(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.store.cancel([token.job_id])
        assert await subject.store.release_worker(WORKER) == 1
        record = await subject.get(token.job_id)
        assert (record.state, record.finished_at_ms) == (State.CANCELLED, START_MS)
        assert await subject.count("cancelled") == 1

    async def test_a_clock_that_went_back_hides_nothing(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.advance(-60_000)
        assert await subject.store.release_worker(WORKER) == 1
        assert await subject.state(token.job_id) is State.QUEUED

    async def test_more_than_one_script_call_takes(self, subject: Subject) -> None:
        ids = await subject.submit_many(SCRIPT_ITEMS + 50)
        await subject.claim(SCRIPT_ITEMS)
        await subject.claim(SCRIPT_ITEMS)
        assert await subject.store.release_worker(WORKER) == SCRIPT_ITEMS + 50
        assert await subject.order() == ids

    @pytest.mark.every_server
    async def test_all_partitions_are_searched(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        for home in range(4):
            await subject.submit(home=home)
            await subject.claim(1, partition=home)
        assert await subject.store.release_worker(WORKER) == 4


class TestLostWorker:
    """What a worker held that died under its supervisor counts as lost."""

    async def test_the_attempt_says_so_and_the_job_keeps_its_place(self, subject: Subject) -> None:
        ids = await subject.submit_many(3)
        token = (await subject.claim_one()).token
        assert await subject.store.release_worker(WORKER, lost=True) == 1
        assert await subject.order() == ids
        record = await subject.get(ids[0])
        assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 1)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST]
        assert (await subject.settle(token, Verb.COMPLETE, value=b"1")).code is SettleCode.STALE
        assert await subject.count("lost") == 1

    async def test_the_third_death_poisons(self, subject: Subject) -> None:
        job_id = await subject.submit()
        for _ in range(3):
            assert (await subject.claim_any()).token.job_id == job_id
            assert await subject.store.release_worker(WORKER, lost=True) == 1
        record = await subject.get(job_id)
        assert (record.state, record.reason, record.counted, record.lost) == (State.FAILED, Reason.POISONED, 0, 3)
        assert (await subject.count("lost"), await subject.count("poisoned")) == (3, 1)
        assert await subject.store.release_worker(WORKER, lost=True) == 0

    async def test_deaths_and_lapses_add_up_and_hand_backs_do_not(self, subject: Subject) -> None:
        job_id = await subject.submit()
        await subject.claim_one()
        for _ in range(17):
            await subject.advance(1_000)
            await subject.store.reap(0)
        for lost in (True, False, False, True):
            assert (await subject.claim_any()).token.job_id == job_id
            await subject.store.release_worker(WORKER, lost=lost)
        record = await subject.get(job_id)
        assert (record.state, record.reason, record.lost) == (State.FAILED, Reason.POISONED, 3)

    async def test_a_cancelled_one_ends(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.store.cancel([token.job_id])
        assert await subject.store.release_worker(WORKER, lost=True) == 1
        record = await subject.get(token.job_id)
        assert (record.state, record.lost) == (State.CANCELLED, 1)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST]
