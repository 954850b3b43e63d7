"""Promote, reap and prune: what time does to jobs."""

from __future__ import annotations

import pytest

from penstock.core.ids import JobId, Token, WorkerName
from penstock.core.job import Attempt, Extension, Promoted, Pruned, Reaped, SettleCode, Verb
from penstock.core.limits import Limits
from penstock.core.states import AttemptOutcome, Priority, Reason, State
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, START_MS, WORKER, Subject
from tests.conformance.test_change import job_in

NOTHING = Reaped()


class TestPromote:
    async def test_nothing_is_early(self, subject: Subject) -> None:
        job_id = await subject.submit(delay_ms=1_000)
        await subject.advance(999)
        assert await subject.store.promote(0) == Promoted(
            queued=0, expired=0, next_due_ms=START_MS + 1_000, now_ms=START_MS + 999
        )
        await subject.advance(1)
        assert await subject.store.promote(0) == Promoted(
            queued=1, expired=0, next_due_ms=None, now_ms=START_MS + 1_000
        )
        record = await subject.get(job_id)
        assert (record.state, record.run_at_ms) == (State.QUEUED, None)

    @pytest.mark.every_server
    async def test_the_oldest_due_goes_first_and_behind_what_waits(self, subject: Subject) -> None:
        late = await subject.submit(delay_ms=300)
        early = await subject.submit(delay_ms=100)
        middle = await subject.submit(delay_ms=200)
        waiting = await subject.submit()
        await subject.advance(1_000)
        assert (await subject.store.promote(0)).queued == 3
        assert await subject.order() == [waiting, early, middle, late]

    async def test_a_limit_bounds_each_kind(self, subject: Subject) -> None:
        due = await subject.submit_many(5, delay_ms=100)
        late = await subject.submit_many(5, expires_in_ms=100)
        await subject.advance(100)
        promoted = await subject.store.promote(0, limit=3)
        assert (promoted.queued, promoted.expired, promoted.next_due_ms) == (3, 3, START_MS + 100)
        assert [await subject.state(job_id) for job_id in late] == [State.EXPIRED] * 3 + [State.QUEUED] * 2
        promoted = await subject.store.promote(0, limit=3)
        assert (promoted.queued, promoted.expired, promoted.next_due_ms) == (2, 2, None)
        assert await subject.order() == due

    @pytest.mark.parametrize(("late_ms", "expired"), [(-1, 0), (0, 1)])
    async def test_what_was_not_started_in_time_expires(self, subject: Subject, late_ms: int, expired: int) -> None:
        queued = await subject.submit(expires_in_ms=500, priority=Priority.HIGH)
        scheduled = await subject.submit(expires_in_ms=500, delay_ms=9_000)
        started = await subject.running(expires_in_ms=500, queue="other")
        await subject.advance(500 + late_ms)
        assert (await subject.store.promote(0)).expired == 2 * expired
        for job_id in (queued, scheduled):
            assert ((await subject.get(job_id)).finished_at_ms == subject.now_ms) is bool(expired)
        assert await subject.state(started.job_id) is State.RUNNING
        assert await subject.count("expired") == 2 * expired

    async def test_what_is_due_and_late_at_once_expires(self, subject: Subject) -> None:
        job_id = await subject.submit(delay_ms=500, expires_in_ms=400)
        await subject.advance(500)
        await subject.store.promote(0)
        assert await subject.state(job_id) is State.EXPIRED
        assert await subject.order() == []

    async def test_only_its_own_partition(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        ids = [await subject.submit(home=home, delay_ms=100) for home in range(4)]
        await subject.advance(100)
        assert (await subject.store.promote(2)).queued == 1
        states = [await subject.state(job_id) for job_id in ids]
        assert states == [State.SCHEDULED, State.SCHEDULED, State.QUEUED, State.SCHEDULED]


class TestReap:
    @pytest.mark.every_server
    async def test_a_lapsed_lease_is_given_back_to_its_own_place(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        ids = await subject.submit_many(3)
        token = (await subject.claim_one(lease_ms=4_000)).token
        claimed_at = subject.now_ms
        await subject.steady_reaps(3_000)
        await subject.advance(999)
        assert await subject.store.reap(0) == NOTHING
        await subject.advance(1)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))
        assert await subject.order() == ids
        record = await subject.get(token.job_id)
        assert (record.state, record.lost, record.counted, record.deadline_ms) == (State.QUEUED, 1, 0, None)
        assert record.attempts == (
            Attempt(
                attempt=1,
                worker=WORKER,
                started_at_ms=claimed_at,
                finished_at_ms=subject.now_ms,
                outcome=AttemptOutcome.WORKER_LOST,
            ),
        )
        assert await subject.count("lost") == 1
        assert await subject.count("retried") == 0
        assert (await subject.settle(token, Verb.COMPLETE, value=b"1")).code is SettleCode.STALE
        assert (await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=1))[0].deadline_ms is None
        assert await subject.store.release_worker(WORKER) == 0
        assert (await subject.claim_one()).lost == 1

    async def test_an_extended_lease_is_not(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        token = (await subject.running(),)[0]
        for _ in range(5):
            await subject.steady_reaps(10_000)
            await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=15_000)
        assert await subject.state(token.job_id) is State.RUNNING

    async def test_the_first_reap_ever_waits(self, subject: Subject) -> None:
        token = await subject.running(queue="default")
        await subject.advance(60_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(14_000)
        await subject.advance(999)
        assert await subject.store.reap(0) == NOTHING
        await subject.advance(1)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    @pytest.mark.parametrize(("gap_ms", "waits"), [(5_000, False), (5_001, True), (3_600_000, True), (-1, True)])
    async def test_a_gap_in_time_grants_a_grace(self, subject: Subject, gap_ms: int, waits: bool) -> None:
        await subject.steady_reaps(20_000)
        token = await subject.running()
        (extended,) = await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=-10_000)
        assert extended.deadline_ms is not None
        await subject.advance(gap_ms)
        reaped = await subject.store.reap(0)
        assert reaped == (NOTHING if waits else Reaped(requeued=(token.job_id,)))
        if waits:
            await subject.steady_reaps(14_000)
            await subject.advance(1_000)
            assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    @pytest.mark.parametrize("lease_ms", [3_000, 90_000])
    async def test_the_grace_is_the_longest_lease_in_use(self, subject: Subject, lease_ms: int) -> None:
        await subject.steady_reaps(1_000)
        long = (await self._held(subject, lease_ms)).job_id
        short = (await self._held(subject, 1_000)).job_id
        await subject.advance(lease_ms + 60_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(lease_ms - 1_000)
        await subject.advance(999)
        assert await subject.store.reap(0) == NOTHING
        await subject.advance(1)
        assert set((await subject.store.reap(0)).requeued) == {long, short}

    @staticmethod
    async def _held(subject: Subject, lease_ms: int) -> Token:
        job_id = await subject.submit()
        token = (await subject.claim_one(lease_ms=lease_ms)).token
        assert token.job_id == job_id
        return token

    async def test_a_renewal_tells_of_its_lease_too(self, subject: Subject) -> None:
        await subject.steady_reaps(1_000)
        token = await self._held(subject, 1_000)
        await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=40_000)
        await subject.advance(60_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(39_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_a_long_lease_that_nobody_uses_any_more_is_forgotten(self, subject: Subject) -> None:
        await subject.steady_reaps(1_000)
        await subject.settle(await self._held(subject, 20_000), Verb.COMPLETE, value=b"1")
        await subject.steady_reaps(600_000 + 2 * 20_000)
        await subject.settle(await self._held(subject, 2_000), Verb.COMPLETE, value=b"1")
        await subject.steady_reaps(1_000)
        token = await self._held(subject, 2_000)
        await subject.advance(10_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(1_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_a_long_lease_in_use_is_not_forgotten(self, subject: Subject) -> None:
        await subject.steady_reaps(1_000)
        token = await self._held(subject, 20_000)
        for _ in range(64):
            await subject.steady_reaps(10_000)
            await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=20_000)
        await subject.steady_reaps(5_000)
        await subject.advance(30_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(19_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_a_long_outage_makes_no_lease_forgotten(self, subject: Subject) -> None:
        await subject.steady_reaps(1_000)
        token = await self._held(subject, 20_000)
        await subject.advance(3_600_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(1_000)
        await subject.advance(6_000)
        assert await subject.store.reap(0) == NOTHING
        await subject.steady_reaps(19_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_where_nothing_runs_no_grace_is_needed(self, subject: Subject) -> None:
        assert await subject.store.reap(0) == NOTHING
        token = await self._held(subject, 2_000)
        await subject.steady_reaps(1_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_a_clock_that_went_back_while_nothing_ran_leaves_no_grace(self, subject: Subject) -> None:
        token = await self._held(subject, 2_000)
        await subject.store.reap(0)
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        await subject.advance(-86_400_000)
        assert await subject.store.reap(0) == NOTHING
        token = await self._held(subject, 2_000)
        await subject.steady_reaps(1_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_a_job_lost_three_times_is_poisoned(self, subject: Subject) -> None:
        job_id = await subject.submit()
        await subject.steady_reaps(20_000)
        for number in (1, 2, 3):
            await subject.claim_any(lease_ms=1_000)
            await subject.advance(1_000)
            reaped = await subject.store.reap(0)
            assert reaped == (Reaped(requeued=(job_id,)) if number < 3 else Reaped(poisoned=(job_id,)))
        record = await subject.get(job_id)
        assert (record.state, record.reason, record.lost, record.counted) == (State.FAILED, Reason.POISONED, 3, 0)
        assert record.finished_at_ms == subject.now_ms
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST] * 3
        counts = [await subject.count(name) for name in ("lost", "poisoned", "failed", "started")]
        assert counts == [3, 1, 1, 3]

    async def test_a_cancelled_one_ends_even_when_it_would_be_poisoned(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(max_lost=1))
        await subject.steady_reaps(20_000)
        token = await subject.running()
        await subject.store.cancel([token.job_id])
        await subject.steady_reaps(14_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(cancelled=(token.job_id,))
        record = await subject.get(token.job_id)
        assert (record.state, record.lost, record.reason) == (State.CANCELLED, 1, None)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST]
        assert [await subject.count(name) for name in ("lost", "cancelled", "poisoned")] == [1, 1, 0]

    async def test_a_limit_bounds_it_and_the_oldest_go_first(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        ids = await subject.submit_many(5)
        for lease_ms in (500, 100, 300, 200, 400):
            await subject.claim_one(lease_ms=lease_ms)
        await subject.advance(1_000)
        reaped = await subject.store.reap(0, limit=3)
        assert reaped.requeued == (ids[1], ids[3], ids[2])
        assert (await subject.store.reap(0, limit=3)).requeued == (ids[4], ids[0])

    async def test_the_oldest_go_first_whoever_ran_them(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        ids = await subject.submit_many(7)
        leases = [("b", 300), ("a", 500), ("b", 100), ("c", 200), ("a", 200), ("b", 200), ("b", 400)]
        for worker, lease_ms in leases:
            await subject.claim_one(worker=WorkerName(worker), lease_ms=lease_ms)
        await subject.advance(1_000)
        reaped = [(await subject.store.reap(0, limit=limit)).requeued for limit in (2, 1, 1, 9)]
        # Those of one moment go by worker.
        order = [ids[number] for number in (2, 4, 5, 3, 0, 6, 1)]
        assert reaped == [tuple(order[:2]), (order[2],), (order[3],), tuple(order[4:])]

    async def test_one_worker_with_many_keeps_no_other_waiting(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        early, *many, late = await subject.submit_many(302)
        await subject.claim_one(worker=OTHER_WORKER, lease_ms=999)
        for _ in range(3):
            assert len((await subject.claim(100, lease_ms=1_000)).jobs) == 100
        assert (await subject.claim_one(worker=OTHER_WORKER, lease_ms=1_001)).token.job_id == late
        await subject.advance(2_000)
        assert (await subject.store.reap(0, limit=100)).requeued == (early, *many[:99])
        assert len((await subject.store.reap(0, limit=100)).requeued) == 100
        assert len((await subject.store.reap(0, limit=100)).requeued) == 100
        assert (await subject.store.reap(0, limit=100)).requeued == (many[-1], late)

    async def test_a_dead_worker_is_found_among_many_live_ones(self, subject: Subject) -> None:
        """All of them have renewed, and have to be looked at since the last reap; that takes more than one call."""
        await subject.steady_reaps(20_000)
        await subject.submit_many(1_202)
        renewals = []
        for number in range(1_200):
            job = await subject.claim_one(worker=WorkerName(f"live-{number}"), lease_ms=2_500)
            renewals.append(Extension(token=job.token))
        dead = [(await subject.claim_one(lease_ms=3_000)).token.job_id for _ in range(2)]
        answers = await subject.store.extend(OTHER_WORKER, renewals, lease_ms=60_000)
        assert all(answer.deadline_ms == subject.now_ms + 60_000 for answer in answers)
        await subject.steady_reaps(2_000)
        await subject.advance(1_000)
        assert (await subject.store.reap(0, limit=1)).requeued == (dead[0],)
        assert await subject.store.reap(0) == Reaped(requeued=(dead[1],))
        await subject.steady_reaps(50_000)

    async def test_a_long_lease_hides_no_short_one_of_the_same_worker(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        short, _ = await subject.submit_many(2)
        for lease_ms in (1_000, 60_000):
            await subject.claim_one(lease_ms=lease_ms)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(short,))

    async def test_a_renewal_may_shorten_a_lease(self, subject: Subject) -> None:
        await subject.steady_reaps(20_000)
        token = await subject.running()
        await subject.store.extend(WORKER, [Extension(token=token)], lease_ms=1_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(token.job_id,))

    async def test_where_all_is_settled_nobody_is_given_time(self, subject: Subject) -> None:
        """A worker that has run something, and runs nothing now, renews nothing after a gap."""
        await subject.steady_reaps(1_000)
        await subject.settle(await subject.running(), Verb.COMPLETE, value=b"1")
        await subject.advance(5_001)
        assert await subject.store.reap(0) == NOTHING
        job_id = await subject.submit()
        await subject.claim_one(lease_ms=1_000)
        await subject.advance(1_000)
        assert await subject.store.reap(0) == Reaped(requeued=(job_id,))

    async def test_only_its_own_partition(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        await subject.steady_reaps(20_000, partition=1)
        for home in (1, 2):
            await subject.submit(home=home)
            await subject.claim_one(partition=home, lease_ms=500)
        await subject.advance(1_000)
        assert len((await subject.store.reap(1)).requeued) == 1
        # Partition 2 was never reaped before: its grace begins.
        assert await subject.store.reap(2) == NOTHING

    async def test_it_sets_a_taken_marker_again(self, subject: Subject) -> None:
        await subject.submit()
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=5_000) == frozenset({"queue:default"})
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=1) == frozenset()
        await subject.store.reap(0)
        assert await subject.store.wait_work(WORKER, ("default",), timeout_ms=5_000) == frozenset({"queue:default"})


class TestPrune:
    @pytest.mark.every_server
    @pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
    @pytest.mark.parametrize(("retention_ms", "kept_ms"), [(None, 0), (0, 60_000), (1, 1), (250_000, 250_000)])
    async def test_final_jobs_go_after_their_retention(
        self, make_subject: MakeSubject, state: State, retention_ms: int | None, kept_ms: int
    ) -> None:
        subject = await make_subject(1, Limits(retention_ms=100_000, failed_retention_ms=200_000))
        kept_ms = kept_ms or (200_000 if state is State.FAILED else 100_000)
        job = subject.new(retention_ms=retention_ms, expires_in_ms=0 if state is State.EXPIRED else None)
        await subject.store.submit([job])
        if state is State.EXPIRED:
            await subject.store.promote(0)
        elif state is State.CANCELLED:
            await subject.store.cancel([job.id])
        else:
            token = (await subject.claim_one()).token
            await subject.settle(token, Verb.COMPLETE if state is State.COMPLETED else Verb.FAIL)
        assert await subject.state(job.id) is state
        await subject.advance(kept_ms - 1)
        assert await subject.store.prune(0) == Pruned()
        assert await subject.state(job.id) is state
        await subject.advance(1)
        assert await subject.store.prune(0) == Pruned(expired=1)
        assert await subject.store.get(job.id) is None
        assert await subject.count("pruned") == 1

    async def test_waiting_and_running_jobs_stay(self, subject: Subject) -> None:
        ids = [await job_in(subject, state) for state in (State.RETRYING, State.RUNNING, State.SCHEDULED, State.QUEUED)]
        await subject.advance(10**11)
        assert await subject.store.prune(0) == Pruned()
        for job_id in ids:
            await subject.get(job_id)

    async def test_a_limit_bounds_it_and_the_first_to_expire_go_first(self, subject: Subject) -> None:
        ids = [await subject.submit(retention_ms=retention_ms) for retention_ms in (500, 100, 300)]
        await subject.store.cancel(ids)
        await subject.advance(1_000)
        assert await subject.store.prune(0, limit=2) == Pruned(expired=2)
        assert await subject.state(ids[0]) is State.CANCELLED
        assert await subject.store.prune(0, limit=2) == Pruned(expired=1)

    async def test_the_oldest_dead_letters_above_the_cap_go(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(dead_letters=3))
        ids: dict[str, list[JobId]] = {}
        for queue in ("default", "other"):
            ids[queue] = []
            for _ in range(5):
                token = await subject.running(queue=queue)
                await subject.advance(1)
                await subject.settle(token, Verb.FAIL)
                ids[queue].append(token.job_id)
        done = await job_in(subject, State.COMPLETED)
        assert await subject.store.prune(0) == Pruned(capped=4)
        for queue in ("default", "other"):
            found = [await subject.store.get(job_id) is not None for job_id in ids[queue]]
            assert found == [False, False, True, True, True]
            assert await subject.count("dead_dropped", queue) == 2
            assert await subject.count("dropped", queue) == 0
        await subject.get(done)
        assert await subject.store.prune(0) == Pruned()

    async def test_the_oldest_finished_jobs_above_the_cap_go(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(finished_jobs=3))
        ids = []
        for state in (State.COMPLETED, State.CANCELLED, State.EXPIRED, State.COMPLETED, State.CANCELLED):
            ids.append(await job_in(subject, state))
            await subject.advance(1)
        failed = await job_in(subject, State.FAILED)
        assert await subject.store.prune(0) == Pruned(capped=2)
        assert [await subject.store.get(job_id) is not None for job_id in ids] == [False, False, True, True, True]
        await subject.get(failed)
        assert await subject.store.prune(0) == Pruned()

    async def test_the_oldest_are_those_that_finished_first(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(finished_jobs=1))
        old, new = await subject.submit(retention_ms=900_000), await subject.submit(retention_ms=1_000)
        await subject.store.cancel([old])
        await subject.advance(10)
        await subject.store.cancel([new])
        assert await subject.store.prune(0) == Pruned(capped=1)
        assert await subject.store.get(old) is None
        assert await subject.state(new) is State.CANCELLED

    async def test_dead_letters_do_not_hide_finished_jobs_from_the_cap(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(finished_jobs=1, failed_retention_ms=1_000, retention_ms=9_000))
        for _ in range(3):
            await job_in(subject, State.FAILED)
        first, _second = await job_in(subject, State.COMPLETED), await job_in(subject, State.COMPLETED)
        assert await subject.store.prune(0, limit=2) == Pruned(capped=1)
        assert await subject.store.get(first) is None

    async def test_a_limit_bounds_the_caps(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(dead_letters=1, finished_jobs=1))
        for _ in range(6):
            await job_in(subject, State.FAILED)
            await job_in(subject, State.COMPLETED)
        assert await subject.store.prune(0, limit=2) == Pruned(capped=4)
        assert await subject.store.prune(0, limit=2) == Pruned(capped=4)
        assert await subject.store.prune(0, limit=2) == Pruned(capped=2)

    async def test_a_limit_bounds_dead_letters_of_all_queues_together(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(dead_letters=1))
        for queue in ("a", "b"):
            for _ in range(3):
                await subject.settle(await subject.running(queue=queue), Verb.FAIL)
        assert await subject.store.prune(0, limit=3) == Pruned(capped=3)
        assert await subject.store.prune(0, limit=3) == Pruned(capped=1)

    async def test_of_jobs_that_finished_at_once_the_first_id_goes(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(finished_jobs=1))
        ids = [await subject.submit(queue=queue) for queue in ("b", "a", "c")]
        await subject.store.cancel(ids[::-1])
        await subject.store.prune(0)
        assert [await subject.store.get(job_id) is not None for job_id in ids] == [False, False, True]

    async def test_caps_are_shared_out_among_partitions(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4, Limits(dead_letters=8, finished_jobs=2))
        for _ in range(4):
            await job_in(subject, State.FAILED)
            await job_in(subject, State.COMPLETED)
        assert await subject.store.prune(1) == Pruned()
        # Two dead letters and one finished job may stay in each.
        assert await subject.store.prune(0) == Pruned(capped=2 + 3)

    async def test_age_goes_before_the_cap(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(finished_jobs=2))
        ids = await subject.submit_many(3, retention_ms=100)
        keep = await subject.submit_many(2)
        await subject.store.cancel(ids + keep)
        await subject.advance(100)
        assert await subject.store.prune(0) == Pruned(expired=3)
        assert await subject.state(keep[0]) is State.CANCELLED
