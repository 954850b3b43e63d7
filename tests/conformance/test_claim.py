"""Claim: order, limits, bounds on bytes, expiry, tasks unknown here or everywhere."""

from __future__ import annotations

import pytest

from penstock.core.ids import JobId, Token
from penstock.core.job import Claimed, Extension, JobOptions, Verb
from penstock.core.limits import KIB, SCRIPT_ITEMS, Limits
from penstock.core.states import AttemptOutcome, Priority, Reason, State
from penstock.store.redis.store import RedisStore
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, START_MS, WORKER, Subject


def ids_of(claimed: Claimed) -> list[JobId]:
    return [job.token.job_id for job in claimed.jobs]


async def test_a_claim_hands_out_a_lease(subject: Subject) -> None:
    options = JobOptions(tags=("x",))
    job_id = await subject.submit(options=options, input=b'{"a":1}', type="ai", task="summarize")
    await subject.advance(10)
    claimed = await subject.claim(5, nonce="secret", lease_ms=4_000)
    (job,) = claimed.jobs
    assert job.token == Token(job_id, 1, "secret")
    assert (job.task, job.type, job.queue, job.priority) == ("summarize", "ai", "default", Priority.NORMAL)
    assert (job.counted, job.lost, job.created_at_ms, job.deadline_ms) == (0, 0, START_MS, START_MS + 4_010)
    assert (job.options, job.input) == (options, b'{"a":1}')
    assert (claimed.skipped, claimed.deferred, claimed.remaining) == (0, 0, False)
    assert (claimed.next_due_ms, claimed.now_ms) == (None, START_MS + 10)
    record = await subject.get(job_id)
    assert (record.state, record.attempt, record.worker) == (State.RUNNING, 1, WORKER)
    assert (record.started_at_ms, record.deadline_ms) == (START_MS + 10, START_MS + 4_010)
    assert await subject.order() == []
    assert await subject.count("started") == 1


async def test_a_job_is_handed_out_once(subject: Subject) -> None:
    await subject.submit()
    assert len((await subject.claim(5)).jobs) == 1
    assert (await subject.claim(5, worker=OTHER_WORKER)).jobs == ()


@pytest.mark.every_server
async def test_priority_goes_before_queue_and_queue_before_arrival(subject: Subject) -> None:
    low = await subject.submit(priority=Priority.LOW)
    b_normal = await subject.submit(queue="b")
    normal = await subject.submit()
    normal_2 = await subject.submit()
    high = await subject.submit(priority=Priority.HIGH)
    b_high = await subject.submit(queue="b", priority=Priority.HIGH)
    b_critical = await subject.submit(queue="b", priority=Priority.CRITICAL)
    claimed = await subject.claim(10, queues=("default", "b"))
    assert ids_of(claimed) == [b_critical, high, b_high, normal, normal_2, b_normal, low]


async def test_the_order_of_queues_is_the_claimers(subject: Subject) -> None:
    first, second = await subject.submit(queue="a"), await subject.submit(queue="b")
    assert ids_of(await subject.claim(10, queues=("b", "a"))) == [second, first]


async def test_one_high_job_overtakes_a_thousand(subject: Subject) -> None:
    await subject.submit_many(1_000)
    high = await subject.submit(priority=Priority.HIGH)
    assert ids_of(await subject.claim(1)) == [high]


async def test_a_claim_takes_no_more_than_its_limit(subject: Subject) -> None:
    ids = await subject.submit_many(5)
    claimed = await subject.claim(3)
    assert ids_of(claimed) == ids[:3]
    assert claimed.remaining
    claimed = await subject.claim(3)
    assert ids_of(claimed) == ids[3:]
    assert not claimed.remaining


async def test_a_limit_reached_in_one_priority_leaves_the_next_alone(subject: Subject) -> None:
    high = await subject.submit_many(2, priority=Priority.HIGH)
    normal = await subject.submit_many(2)
    assert ids_of(await subject.claim(2)) == high
    assert await subject.order() == normal


async def test_a_claim_takes_at_most_what_a_call_may(subject: Subject) -> None:
    ids = await subject.submit_many(SCRIPT_ITEMS + 50)
    assert ids_of(await subject.claim(1_000)) == ids[:SCRIPT_ITEMS]


async def test_other_queues_are_left_alone(subject: Subject) -> None:
    await subject.submit(queue="other")
    claimed = await subject.claim(5)
    assert claimed.jobs == ()
    assert not claimed.remaining


async def test_no_queues_claim_nothing(subject: Subject) -> None:
    await subject.submit()
    claimed = await subject.claim(5, queues=())
    assert (claimed.jobs, claimed.remaining) == ((), False)


async def test_remaining_looks_at_each_served_queue_and_priority(subject: Subject) -> None:
    await subject.submit()
    await subject.submit(queue="b", priority=Priority.LOW)
    assert (await subject.claim(1, queues=("default", "b"))).remaining
    assert not (await subject.claim(0, queues=("default",))).remaining
    assert (await subject.claim(0, queues=("b",))).remaining


async def test_the_next_due_time_is_told(subject: Subject) -> None:
    await subject.submit(delay_ms=900)
    await subject.submit(delay_ms=300)
    assert (await subject.claim()).next_due_ms == START_MS + 300


async def test_large_inputs_are_fetched_apart(subject: Subject) -> None:
    small = b'"' + b"s" * (16 * KIB - 2) + b'"'
    large = b'"' + b"l" * (16 * KIB - 1) + b'"'
    ids = [await subject.submit(input=text) for text in (small, large, b"{}")]
    claimed = await subject.claim(5)
    assert [job.input for job in claimed.jobs] == [small, None, b"{}"]
    assert await subject.store.input(ids[1]) == large


async def test_inputs_beyond_a_mebibyte_a_call_are_fetched_apart(subject: Subject) -> None:
    text = b'"' + b"s" * (16 * KIB - 2) + b'"'
    tail = b'"' + b"t" * 298 + b'"'
    jobs = [subject.new(input=text) for _ in range(63)] + [subject.new(input=text[:-301] + b'"')]
    jobs += [subject.new(input=text), subject.new(input=tail), subject.new(input=tail), subject.new()]
    await subject.store.submit(jobs)
    got = [job.input for job in (await subject.claim(100)).jobs]
    assert got[:64] == [job.input for job in jobs[:64]]
    # 300 bytes are left: the next large one does not fit, the first short one does, and the smallest always do.
    assert got[64:] == [None, tail, None, b"{}"]


async def test_attempts_rise_with_each_claim(subject: Subject) -> None:
    token = await subject.running()
    await subject.settle(token, Verb.RELEASE)
    again = await subject.claim_one()
    assert again.token.attempt == 2
    assert again.counted == 0


async def hash_reads(store: RedisStore) -> int:
    """Return how often the server has read all fields of a hash."""
    info = await store.connection.command("INFO", "commandstats")
    return int(info.get("cmdstat_hgetall", {}).get("calls", 0))


@pytest.mark.redis_only("in memory nothing is read")
@pytest.mark.not_on("cluster", "sentinel", reason="counts what one server has run")
async def test_a_claim_reads_no_errors_of_earlier_attempts(subject: Subject) -> None:
    assert isinstance(subject.store, RedisStore)
    await subject.settle(await subject.running(), Verb.RETRY)
    await subject.store.promote(0)
    reads = await hash_reads(subject.store)
    # Twenty errors of 16 KiB in each of 200 jobs held the server up for 65 ms.
    job = await subject.claim_one()
    assert await hash_reads(subject.store) == reads
    assert (job.token.attempt, job.previous) == (2, AttemptOutcome.FAILED)


async def test_a_claim_clears_progress(subject: Subject) -> None:
    token = await subject.running()
    await subject.store.extend(WORKER, [Extension(token=token, progress=b'{"done":1}')], lease_ms=1_000)
    assert (await subject.get(token.job_id)).progress == b'{"done":1}'
    await subject.settle(token, Verb.RELEASE)
    assert (await subject.get(token.job_id)).progress == b'{"done":1}'
    await subject.claim_one()
    assert (await subject.get(token.job_id)).progress is None


@pytest.mark.parametrize(("late_ms", "state"), [(-1, State.RUNNING), (0, State.EXPIRED), (1, State.EXPIRED)])
async def test_a_job_that_never_started_expires_at_the_claim(subject: Subject, late_ms: int, state: State) -> None:
    job_id = await subject.submit(expires_in_ms=5_000)
    await subject.advance(5_000 + late_ms)
    claimed = await subject.claim(5)
    assert len(claimed.jobs) == (1 if state is State.RUNNING else 0)
    record = await subject.get(job_id)
    assert record.state is state
    if state is State.EXPIRED:
        assert record.finished_at_ms == subject.now_ms
        assert await subject.count("expired") == 1
        assert await subject.count("started") == 0


async def test_a_job_that_has_started_does_not_expire(subject: Subject) -> None:
    token = await subject.running(expires_in_ms=5_000)
    await subject.settle(token, Verb.RELEASE)
    await subject.advance(60_000)
    assert (await subject.store.promote(0)).expired == 0
    assert ids_of(await subject.claim()) == [token.job_id]


class TestTasks:
    """A worker names the tasks that it knows."""

    async def test_known_ones_are_claimed(self, subject: Subject) -> None:
        echo = await subject.submit()
        summarize = await subject.submit(type="ai", task="whatever")
        claimed = await subject.claim(5, tasks=("@ai", "echo"))
        assert ids_of(claimed) == [echo, summarize]

    async def test_a_task_name_is_not_a_type(self, subject: Subject) -> None:
        await subject.submit(type="ai", task="echo")
        assert (await subject.claim(5, tasks=("echo", "ai"))).deferred == 1

    @pytest.mark.every_server
    async def test_those_of_live_workers_are_skipped_in_place(self, subject: Subject) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        resize = await subject.submit(task="resize")
        echo = await subject.submit()
        claimed = await subject.claim(5, tasks=("echo",))
        assert ids_of(claimed) == [echo]
        assert (claimed.skipped, claimed.deferred, claimed.remaining) == (1, 0, True)
        assert await subject.order() == [resize]
        assert ids_of(await subject.claim(5, tasks=("resize",))) == [resize]

    @pytest.mark.parametrize(("silent_ms", "deferred"), [(59_999, 0), (60_000, 1)])
    async def test_a_worker_lives_for_a_minute(self, subject: Subject, silent_ms: int, deferred: int) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        await subject.submit(task="resize")
        await subject.advance(silent_ms)
        claimed = await subject.claim(5, tasks=("echo",))
        assert (claimed.skipped, claimed.deferred) == (1 - deferred, deferred)

    async def test_skipped_ones_do_not_use_up_the_limit(self, subject: Subject) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        await subject.submit_many(150, task="resize")
        ids = await subject.submit_many(60)
        claimed = await subject.claim(5, tasks=("echo",))
        assert ids_of(claimed) == ids[:5]
        assert claimed.skipped == 150

    async def test_only_two_hundred_are_looked_at(self, subject: Subject) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        echo = await subject.submit()
        await subject.submit_many(199, task="resize")
        hidden = await subject.submit()
        claimed = await subject.claim(5, tasks=("echo",))
        assert ids_of(claimed) == [echo]
        assert claimed.skipped == 199
        assert hidden in await subject.order()

    async def test_only_two_hundred_are_looked_at_even_when_all_leave(self, subject: Subject) -> None:
        await subject.submit_many(250, task="nobody")
        claimed = await subject.claim(5, tasks=("echo",))
        assert (claimed.deferred, claimed.skipped, claimed.remaining) == (200, 0, True)

    @pytest.mark.parametrize(("window_start", "found"), [(0.0, 10), (0.5, 10), (0.99, 3)])
    async def test_a_second_window_is_looked_at(self, subject: Subject, window_start: float, found: int) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        await subject.submit_many(200, task="resize")
        ids = await subject.submit_many(300)
        start = int(window_start * 300)
        claimed = await subject.claim(10, tasks=("echo",), window_start=window_start)
        assert ids_of(claimed) == ids[start : start + found]
        assert claimed.skipped == 200

    async def test_the_second_window_has_an_end(self, subject: Subject) -> None:
        await subject.announce("resize", worker=OTHER_WORKER)
        await subject.submit_many(400, task="resize")
        await subject.submit_many(3)
        claimed = await subject.claim(10, tasks=("echo",), window_start=0.0)
        assert (claimed.jobs, claimed.skipped) == ((), 400)

    async def test_those_of_nobody_are_deferred_ever_longer(self, subject: Subject) -> None:
        job_id = await subject.submit(task="nobody")
        for number, wait_ms in enumerate([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000], start=1):
            claimed = await subject.claim(5, tasks=("echo",))
            assert (claimed.jobs, claimed.deferred, claimed.skipped) == ((), 1, 0)
            record = await subject.get(job_id)
            assert (record.state, record.no_handler, record.counted) == (State.RETRYING, number, 0)
            assert record.run_at_ms == subject.now_ms + wait_ms
            assert (record.attempt, record.attempts) == (0, ())
            await subject.advance(wait_ms)
            assert (await subject.store.promote(0)).queued == 1
        assert await subject.count("deferred") == 7
        assert ids_of(await subject.claim(5, tasks=("nobody",))) == [job_id]

    async def test_deferred_ones_still_expire(self, subject: Subject) -> None:
        job_id = await subject.submit(task="nobody", expires_in_ms=500)
        await subject.claim(5, tasks=("echo",))
        await subject.advance(500)
        assert (await subject.store.promote(0)).expired == 1
        assert await subject.state(job_id) is State.EXPIRED

    async def test_those_of_nobody_fail_after_a_day(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(unknown_task_ms=50_000))
        job_id = await subject.submit(task="nobody")
        await subject.advance(49_999)
        assert (await subject.claim(5, tasks=("echo",))).deferred == 1
        await subject.advance(1_000)
        await subject.store.promote(0)
        claimed = await subject.claim(5, tasks=("echo",))
        assert (claimed.deferred, claimed.jobs) == (0, ())
        record = await subject.get(job_id)
        assert (record.state, record.reason, record.attempts) == (State.FAILED, Reason.UNKNOWN_TASK, ())
        assert record.finished_at_ms == subject.now_ms
        assert await subject.count("failed") == 1

    async def test_a_redrive_starts_the_day_anew(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(unknown_task_ms=50_000))
        job_id = await subject.submit(task="nobody")
        await subject.claim(5, tasks=("echo",))
        await subject.advance(50_000)
        await subject.store.promote(0)
        await subject.claim(5, tasks=("echo",))
        record = await subject.get(job_id)
        assert (record.state, record.no_handler) == (State.FAILED, 1)
        await subject.store.redrive([job_id])
        assert (await subject.get(job_id)).no_handler == 0
        await subject.advance(49_999)
        assert (await subject.claim(5, tasks=("echo",))).deferred == 1
        await subject.advance(1_000)
        await subject.store.promote(0)
        await subject.claim(5, tasks=("echo",))
        assert await subject.state(job_id) is State.FAILED

    async def test_a_worker_without_a_list_takes_any(self, subject: Subject) -> None:
        ids = [await subject.submit(task="nobody"), await subject.submit(type="ai")]
        assert ids_of(await subject.claim(5)) == ids


async def test_partitions_are_claimed_one_by_one(make_subject: MakeSubject) -> None:
    subject = await make_subject(4)
    by_home = {home: await subject.submit(home=home) for home in (0, 1, 2, 3, 4094)}
    assert ids_of(await subject.claim(5, partition=1)) == [by_home[1]]
    assert ids_of(await subject.claim(5, partition=2)) == [by_home[2], by_home[4094]]
    assert ids_of(await subject.claim(5, partition=2)) == []
    assert ids_of(await subject.claim(5, partition=0)) == [by_home[0]]
