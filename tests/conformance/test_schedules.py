"""Schedules: what is stored of them, and that each tick starts one job."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.core.cron import Timing
from penstock.core.errors import SchedulesFull, StoreError
from penstock.core.ids import home_of
from penstock.core.job import JobFilter, JobRecord, Verb
from penstock.core.limits import Limits
from penstock.core.retry import Backoff
from penstock.core.schedule import (
    Missed,
    Overlap,
    PutCode,
    Source,
    Tick,
    Ticked,
    home_of_schedule,
    job_id_of_tick,
    next_ticks,
)
from penstock.core.states import Priority, State
from penstock.store.redis.store import RedisStore
from tests.conformance import test_wait
from tests.conformance.conftest import MakeSubject
from tests.conformance.schedules import MINUTE_MS, found, plans, put, schedule, tick_all
from tests.conformance.subject import START_MS, WORKER, Subject


@pytest.fixture
async def subject(make_subject: MakeSubject) -> Subject:
    """Return a store of one partition, whatever the kind of server: a name decides where a schedule is."""
    return await make_subject(1)


EVERY_SECOND = Timing(every_ms=1_000)
NOTHING_DONE = Ticked(moved=False)


async def jobs_of(subject: Subject) -> list[JobRecord]:
    """Return all jobs, by planned time."""
    page = await subject.store.list_jobs(JobFilter(), limit=1_000)
    return sorted(page.items, key=lambda job: job.options.scheduled_for_ms or 0)


async def planned(subject: Subject) -> list[int]:
    """Return the planned times of all jobs, in seconds after the start."""
    return [((job.options.scheduled_for_ms or 0) - START_MS) // 1_000 for job in await jobs_of(subject)]


class TestPut:
    async def test_a_new_one_ticks_next_after_now(self, subject: Subject) -> None:
        answer = await subject.store.put_schedule(schedule())
        assert answer.code is PutCode.CREATED
        record = answer.record
        assert (record.next_ms, record.created_at_ms, record.updated_at_ms) == (
            START_MS + MINUTE_MS,
            START_MS,
            START_MS,
        )
        assert (record.fired, record.skipped, record.missed, record.last_job_id, record.paused_at_ms) == (
            0,
            0,
            0,
            None,
            None,
        )
        assert await found(subject.store) == record

    async def test_the_same_again_changes_nothing(self, subject: Subject) -> None:
        first = await put(subject.store, timing=Timing(every_ms=90_000))
        await subject.advance(30_000)
        again = await subject.store.put_schedule(schedule(timing=Timing(every_ms=90_000)))
        assert (again.code, again.record) == (PutCode.UNCHANGED, first)

    async def test_another_job_keeps_the_next_tick(self, subject: Subject) -> None:
        first = await put(subject.store, timing=Timing(every_ms=90_000))
        await subject.advance(30_000)
        again = await subject.store.put_schedule(schedule(timing=Timing(every_ms=90_000), job={"task": "other"}))
        assert again.code is PutCode.REPLACED
        assert (again.record.next_ms, again.record.created_at_ms) == (first.next_ms, START_MS)
        assert again.record.updated_at_ms == subject.now_ms
        assert again.record.revision > first.revision
        assert again.record.schedule.job.task == "other"

    async def test_another_timing_counts_from_now(self, subject: Subject) -> None:
        await put(subject.store, timing=Timing(every_ms=90_000))
        await subject.advance(30_000)
        record = await put(subject.store, timing=Timing(every_ms=20_000))
        assert record.next_ms == subject.now_ms + 20_000
        assert (await subject.store.due_schedules(0)).next_due_ms == record.next_ms

    async def test_a_revision_is_never_used_twice(self, subject: Subject) -> None:
        revisions = [(await put(subject.store, job={"task": task})).revision for task in ("a", "b", "a")]
        await subject.at(START_MS - 5_000)
        revisions.append((await put(subject.store, job={"task": "c"})).revision)
        assert sorted(set(revisions)) == revisions

    async def test_a_pause_outlives_it(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.store.pause_schedule("nightly")
        record = await put(subject.store, timing=EVERY_SECOND, source=Source.CODE)
        assert record.paused_at_ms == START_MS
        assert (await subject.store.due_schedules(0)).next_due_ms is None
        await subject.advance(5_000)
        assert await tick_all(subject.store) == []

    async def test_all_is_kept(self, subject: Subject) -> None:
        given = schedule(
            "a name/with: everything",
            Timing(cron="30 2 * * *", timezone="Europe/Berlin"),
            job={
                "input": msgspec.Raw(b'{"a":[],"b":1e400,"c":12345678901234567890}'),
                "type": "ai",
                "queue": "q",
                "priority": Priority.HIGH,
                "options": msgspec.structs.replace(
                    schedule().job.options, max_attempts=7, backoff=Backoff(base_ms=5), tags=("x",), metadata={"m": 1}
                ),
                "expires_in_ms": 5_000,
                "retention_ms": 0,
            },
            missed=Missed.ALL,
            overlap=Overlap.SKIP,
            source=Source.CODE,
        )
        answer = await subject.store.put_schedule(given)
        assert answer.record.schedule == given
        record = await subject.store.get_schedule(given.name)
        assert record is not None
        assert record.schedule == given
        assert await subject.store.delete_schedule(given.name)

    async def test_there_may_be_so_many(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4, Limits(schedules=3))
        names = [f"s{number}" for number in range(4)]
        for name in names[:3]:
            await put(subject.store, name)
        with pytest.raises(SchedulesFull):
            await put(subject.store, names[3])
        # Those that stand may be written still.
        assert (await subject.store.put_schedule(schedule(names[0], EVERY_SECOND))).code is PutCode.REPLACED
        assert await subject.store.delete_schedule(names[1])
        await put(subject.store, names[3])
        assert await subject.store.get_schedule(names[1]) is None

    async def test_what_never_ticks_is_refused(self, subject: Subject) -> None:
        for timing in (Timing(cron="0 0 31 2 *"), Timing(), Timing(cron="* * * * *", timezone="Nowhere/Land")):
            with pytest.raises(ValueError):
                await subject.store.put_schedule(schedule(timing=timing))
        assert await subject.store.get_schedule("nightly") is None


class TestTick:
    async def test_nothing_is_early(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.advance(MINUTE_MS - 1)
        due = await subject.store.due_schedules(0)
        assert (due.records, due.next_due_ms, due.now_ms) == ((), START_MS + MINUTE_MS, subject.now_ms)
        await subject.advance(1)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]
        (job,) = await jobs_of(subject)
        assert job.id == job_id_of_tick("nightly", subject.now_ms)
        assert (job.options.schedule, job.options.scheduled_for_ms) == ("nightly", subject.now_ms)
        assert (job.state, job.task, job.created_at_ms) == (State.QUEUED, "echo", subject.now_ms)
        record = await found(subject.store)
        assert (record.last_tick_ms, record.last_job_id, record.fired) == (subject.now_ms, job.id, 1)
        assert record.next_ms == subject.now_ms + MINUTE_MS
        assert (await subject.store.due_schedules(0)).next_due_ms == record.next_ms

    async def test_the_job_is_as_a_submit_would_make_it(self, subject: Subject) -> None:
        options = msgspec.structs.replace(schedule().job.options, max_attempts=7, tags=("red",), metadata={"m": [1]})
        job = {
            "input": msgspec.Raw(b'{"text":"' + b"x" * 100 + b'"}'),
            "type": "ai",
            "queue": "other",
            "priority": Priority.LOW,
            "options": options,
            "expires_in_ms": 5_000,
            "retention_ms": 9_000,
        }
        await put(subject.store, job=job)
        await subject.advance(MINUTE_MS + 100)
        await tick_all(subject.store)
        (listed,) = await jobs_of(subject)
        found_job = await subject.get(listed.id)
        assert (found_job.type, found_job.queue, found_job.priority) == ("ai", "other", Priority.LOW)
        assert found_job.input == b'{"text":"' + b"x" * 100 + b'"}'
        # Counted from the tick's time: what is not worth starting late, is not worth it after a late tick either.
        assert (found_job.expires_at_ms, found_job.retention_ms) == (START_MS + MINUTE_MS + 5_000, 9_000)
        assert (found_job.options.max_attempts, found_job.options.tags, found_job.options.metadata) == (
            7,
            ("red",),
            {"m": [1]},
        )
        assert await subject.count("submitted", "other") == 1
        assert await subject.count("ticks_fired", "other") == 1

    async def test_a_worker_gets_the_planned_time(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        await tick_all(subject.store)
        claimed = await subject.claim_one()
        assert (claimed.options.schedule, claimed.options.scheduled_for_ms) == ("nightly", START_MS + MINUTE_MS)

    async def test_the_first_of_many_loops_wins(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        first, second = await plans(subject.store), await plans(subject.store)
        assert first == second
        assert await subject.store.tick(0, first) == [Ticked(moved=True, fired=1)]
        assert await subject.store.tick(0, second) == [NOTHING_DONE]
        assert len(await jobs_of(subject)) == 1

    async def test_what_was_written_meanwhile_does_not_tick(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        ticks = await plans(subject.store)
        await put(subject.store, job={"task": "other"})
        assert await subject.store.tick(0, ticks) == [NOTHING_DONE]
        await tick_all(subject.store)
        assert [job.task for job in await jobs_of(subject)] == ["other"]

    @pytest.mark.parametrize("change", ["pause", "delete", "delete and make anew"])
    async def test_what_was_stopped_meanwhile_does_not_tick(self, subject: Subject, change: str) -> None:
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        ticks = await plans(subject.store)
        if change == "pause":
            await subject.store.pause_schedule("nightly")
        else:
            await subject.store.delete_schedule("nightly")
        if change == "delete and make anew":
            await put(subject.store)
        assert await subject.store.tick(0, ticks) == [NOTHING_DONE]
        assert await jobs_of(subject) == []

    async def test_a_tick_whose_job_stands_makes_no_second_one(self, subject: Subject) -> None:
        # As after a call that broke off between the jobs and the schedule, or a clock that went back.
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        await tick_all(subject.store)
        await subject.at(START_MS)
        await subject.store.delete_schedule("nightly")
        await put(subject.store)
        await subject.advance(MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]
        assert len(await jobs_of(subject)) == 1

    async def test_the_last_tick_of_all(self, subject: Subject) -> None:
        record = await put(subject.store)
        await subject.advance(MINUTE_MS)
        assert record.next_ms is not None
        last = Tick(record=record, fire=(record.next_ms,), missed=0, next_ms=None)
        assert await subject.store.tick(0, [last]) == [Ticked(moved=True, fired=1)]
        record = await found(subject.store)
        assert (record.next_ms, next_ticks(record, 5)) == (None, ())
        due = await subject.store.due_schedules(0)
        assert (due.records, due.next_due_ms) == ((), None)

    async def test_a_limit_bounds_what_is_returned_longest_due_first(self, subject: Subject) -> None:
        for number in range(5):
            await put(subject.store, f"s{number}", Timing(every_ms=5_000 - number * 1_000))
        await subject.advance(10_000)
        due = await subject.store.due_schedules(0, limit=2)
        assert [record.schedule.name for record in due.records] == ["s4", "s3"]
        assert due.next_due_ms == START_MS + 1_000

    async def test_a_schedule_and_its_jobs_share_a_home(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        for number in range(8):
            await put(subject.store, f"s{number}")
        await subject.advance(MINUTE_MS)
        for partition in range(4):
            await tick_all(subject.store, partition)
        jobs = await jobs_of(subject)
        assert {job.options.schedule for job in jobs} == {f"s{number}" for number in range(8)}
        assert all(home_of(job.id) == home_of_schedule(job.options.schedule or "") for job in jobs)

    async def test_many_at_once(self, subject: Subject) -> None:
        names = [f"s{number:03}" for number in range(450)]
        for name in names:
            await put(subject.store, name, job={"input": msgspec.Raw(b'"' + b"x" * 8_000 + b'"')})
        await subject.advance(MINUTE_MS)
        assert sum(answer.fired for answer in await tick_all(subject.store)) == 450
        page = await subject.store.queues()
        assert page[0].depth[Priority.NORMAL] == 450


class TestWake:
    async def test_a_tick_that_comes_soon_wakes_who_waits(self, subject: Subject) -> None:
        await put(subject.store, "later", Timing(every_ms=2_000))
        await put(subject.store, "soon", Timing(every_ms=1_999))
        assert await subject.store.wait_work(WORKER, ["default"], timeout_ms=30_000) == frozenset({"due"})

    @pytest.mark.every_server
    async def test_who_waits_already_is_woken_too(self, subject: Subject) -> None:
        # On a cluster this subscribes, so that the next wait only has to look.
        assert await subject.store.wait_work(WORKER, ["default"], timeout_ms=30) == frozenset()
        task = await test_wait.waiting(subject, "default")
        await put(subject.store, "soon", Timing(every_ms=1_999))
        assert await task == frozenset({"due"})

    async def test_a_resumed_one_too(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.store.pause_schedule("nightly")
        await subject.advance(MINUTE_MS)
        if isinstance(subject.store, RedisStore):
            # A tick a minute ahead woke nobody.
            keys = subject.store.connection.keys[0]
            assert await subject.store.connection.command("EXISTS", keys.key("due")) == 0
        await subject.store.resume_schedule("nightly")
        assert await subject.store.wait_work(WORKER, ["default"], timeout_ms=30_000) == frozenset({"due"})


@pytest.mark.redis_only("in memory nothing is damaged")
class TestDamaged:
    async def redis_of(self, subject: Subject) -> RedisStore:
        assert isinstance(subject.store, RedisStore)
        return subject.store

    async def test_an_index_that_does_not_agree_is_set_right(self, subject: Subject) -> None:
        store = await self.redis_of(subject)
        await put(store)
        keys = store.connection.keys[0]
        await store.connection.command("ZADD", keys.key("schedule_due"), START_MS, "nightly")
        await store.connection.command("ZADD", keys.key("schedule_due"), START_MS, "gone")
        due = await store.due_schedules(0)
        assert (due.records, due.next_due_ms) == ((), START_MS + MINUTE_MS)

    async def test_a_put_mends_the_indexes(self, subject: Subject) -> None:
        store = await self.redis_of(subject)
        record = await put(store)
        keys = store.connection.keys[0]
        for index in ("schedules", "schedule_due"):
            await store.connection.command("ZREM", keys.key(index), "nightly")
        assert (await store.put_schedule(schedule())).code is PutCode.UNCHANGED
        assert (await store.list_schedules()).items == (record,)
        assert (await store.due_schedules(0)).next_due_ms == record.next_ms

    async def test_an_unreadable_one_is_put_off_and_deleted(self, subject: Subject) -> None:
        store = await self.redis_of(subject)
        for name in ("bad", "good"):
            await put(store, name)
        keys = store.connection.keys[0]
        await store.connection.command("HSET", keys.key("schedule", "bad"), "definition", "{")
        await subject.advance(MINUTE_MS)
        assert [record.schedule.name for record in (await store.due_schedules(0)).records] == ["good"]
        assert [record.schedule.name for record in (await store.list_schedules()).items] == ["good"]
        with pytest.raises(StoreError):
            await store.get_schedule("bad")
        await tick_all(store)
        assert await store.delete_schedule("bad")


class TestMissed:
    async def test_skip_starts_only_what_is_in_time(self, subject: Subject) -> None:
        await put(subject.store, timing=EVERY_SECOND, missed=Missed.SKIP)
        await subject.advance(10_500)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]
        assert await planned(subject) == [10]
        assert (await found(subject.store)).missed == 9
        assert await subject.count("ticks_missed") == 9

    @pytest.mark.parametrize(("late_ms", "fired"), [(60_000, 1), (60_001, 0)])
    async def test_skip_forgives_a_minute(self, subject: Subject, late_ms: int, fired: int) -> None:
        await put(subject.store, timing=Timing(every_ms=3_600_000), missed=Missed.SKIP)
        await subject.advance(3_600_000 + late_ms)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=fired)]
        record = await found(subject.store)
        assert (record.missed, record.next_ms) == (1 - fired, START_MS + 2 * 3_600_000)

    async def test_latest_starts_the_newest(self, subject: Subject) -> None:
        await put(subject.store, timing=Timing(cron="0 * * * *"), missed=Missed.LATEST)
        first = (await found(subject.store)).next_ms
        assert first is not None
        await subject.at(first + 5 * 3_600_000 + 1_800_000)
        assert sum(answer.fired for answer in await tick_all(subject.store)) == 1
        record = await found(subject.store)
        assert (record.last_tick_ms, record.missed) == (first + 5 * 3_600_000, 5)
        assert record.next_ms == first + 6 * 3_600_000

    async def test_all_start_in_order(self, subject: Subject) -> None:
        await put(subject.store, timing=EVERY_SECOND, missed=Missed.ALL)
        await subject.advance(450_000)
        answers = await tick_all(subject.store)
        assert [answer.fired for answer in answers] == [100] * 4 + [50]
        assert [job.options.scheduled_for_ms for job in await jobs_of(subject)] == [
            START_MS + second * 1_000 for second in range(1, 451)
        ]
        order = await subject.order()
        assert list(order) == [job_id_of_tick("nightly", START_MS + second * 1_000) for second in range(1, 451)]
        record = await found(subject.store)
        assert (record.fired, record.missed, record.next_ms) == (450, 0, START_MS + 451_000)

    @pytest.mark.parametrize("timing", [Timing(every_ms=60_000), Timing(cron="* * * * *")])
    async def test_all_is_the_newest_thousand(self, subject: Subject, timing: Timing) -> None:
        await put(subject.store, timing=timing, missed=Missed.ALL)
        await subject.advance(2_500 * MINUTE_MS)
        answers = await tick_all(subject.store)
        assert sum(answer.fired for answer in answers) == 1_000
        assert max(answer.fired for answer in answers) == 100
        record = await found(subject.store)
        assert (record.fired, record.missed) == (1_000, 1_500)
        assert (await planned(subject))[0] == 1_501 * 60


class TestOverlap:
    async def test_a_tick_is_skipped_while_the_last_job_is_not_final(self, subject: Subject) -> None:
        await put(subject.store, overlap=Overlap.SKIP)
        await subject.advance(MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]
        token = (await subject.claim_one(lease_ms=600_000)).token
        for _ in range(2):
            await subject.advance(MINUTE_MS)
            assert await tick_all(subject.store) == [Ticked(moved=True, skipped=1)]
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        await subject.advance(MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]
        record = await found(subject.store)
        assert (record.fired, record.skipped, record.last_tick_ms) == (2, 2, subject.now_ms)
        assert await subject.count("ticks_skipped") == 2

    async def test_a_last_job_that_is_gone_is_final(self, subject: Subject) -> None:
        await put(subject.store, overlap=Overlap.SKIP)
        await subject.advance(MINUTE_MS)
        await tick_all(subject.store)
        (job,) = await jobs_of(subject)
        await subject.store.cancel([job.id])
        await subject.store.delete([job.id])
        await subject.advance(MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]

    async def test_of_several_missed_ones_one_starts(self, subject: Subject) -> None:
        await put(subject.store, overlap=Overlap.SKIP, missed=Missed.ALL)
        await subject.advance(4 * MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1, skipped=3)]

    async def test_else_jobs_may_overlap(self, subject: Subject) -> None:
        await put(subject.store)
        for _ in range(3):
            await subject.advance(MINUTE_MS)
            await tick_all(subject.store)
        assert len(await jobs_of(subject)) == 3


class TestFullQueue:
    async def test_a_tick_is_skipped(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(queue_max_depth=(("default", 2),)))
        await subject.submit()
        await put(subject.store, missed=Missed.ALL)
        await subject.advance(3 * MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1, skipped=2)]
        assert await subject.count("refused") == 2
        record = await found(subject.store)
        assert (record.fired, record.skipped, record.last_tick_ms) == (1, 2, START_MS + MINUTE_MS)
        await subject.claim(2)
        await subject.advance(MINUTE_MS)
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=1)]


class TestPause:
    @pytest.mark.parametrize(("missed", "fired", "gone"), [("skip", 1, 2), ("latest", 1, 2), ("all", 3, 0)])
    async def test_what_a_pause_missed(self, subject: Subject, missed: str, fired: int, gone: int) -> None:
        await put(subject.store, missed=Missed(missed))
        paused = await subject.store.pause_schedule("nightly")
        assert paused is not None
        assert (paused.paused_at_ms, next_ticks(paused, 5)) == (START_MS, ())
        await subject.advance(3 * MINUTE_MS + 1_000)
        assert await subject.store.pause_schedule("nightly") == paused
        assert await tick_all(subject.store) == []
        assert (await subject.store.due_schedules(0)).next_due_ms is None
        resumed = await subject.store.resume_schedule("nightly")
        assert resumed is not None
        assert (resumed.paused_at_ms, resumed.next_ms) == (None, START_MS + MINUTE_MS)
        assert await subject.store.resume_schedule("nightly") == resumed
        assert sum(answer.fired for answer in await tick_all(subject.store)) == fired
        assert (await found(subject.store)).missed == gone

    async def test_skip_drops_what_is_long_past(self, subject: Subject) -> None:
        await put(subject.store, timing=Timing(every_ms=3_600_000), missed=Missed.SKIP)
        await subject.store.pause_schedule("nightly")
        await subject.advance(3_600_000 + 120_000)
        await subject.store.resume_schedule("nightly")
        assert await tick_all(subject.store) == [Ticked(moved=True, fired=0)]

    async def test_a_resume_brings_back_what_a_wrong_clock_sent_far_ahead(self, subject: Subject) -> None:
        await put(subject.store)
        await subject.at(START_MS + 365 * 86_400_000)
        await tick_all(subject.store)
        await subject.at(START_MS + 10 * MINUTE_MS)
        await subject.store.pause_schedule("nightly")
        resumed = await subject.store.resume_schedule("nightly")
        assert resumed is not None
        assert resumed.next_ms == START_MS + 11 * MINUTE_MS

    async def test_there_is_none(self, subject: Subject) -> None:
        assert await subject.store.pause_schedule("nightly") is None
        assert await subject.store.resume_schedule("nightly") is None
        assert await subject.store.get_schedule("nightly") is None
        assert not await subject.store.delete_schedule("nightly")

    async def test_a_schedule_that_cannot_be_understood_is_put_off(self, subject: Subject) -> None:
        await put(subject.store, "bad")
        await put(subject.store, "good")
        await subject.advance(MINUTE_MS)
        await subject.store.put_off_schedule("bad")
        await subject.store.put_off_schedule("nobody")
        due = await subject.store.due_schedules(0)
        assert [record.schedule.name for record in due.records] == ["good"]
        await tick_all(subject.store)
        await subject.advance(MINUTE_MS)
        due = await subject.store.due_schedules(0)
        assert [record.schedule.name for record in due.records] == ["bad", "good"]
        await tick_all(subject.store)


class TestList:
    @pytest.mark.parametrize("partitions", [1, 4])
    async def test_pages_by_name(self, make_subject: MakeSubject, partitions: int) -> None:
        subject = await make_subject(partitions)
        names = ["Zoë", "a", "b c", "über", "日本", *(f"n{number:02}" for number in range(9))]
        for name in names:
            await put(subject.store, name)
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await subject.store.list_schedules(limit=4, cursor=cursor)
            assert len(page.items) <= 4
            seen += [record.schedule.name for record in page.items]
            if (cursor := page.next) is None:
                break
        assert seen == sorted(names)

    async def test_a_page_that_is_just_full_is_the_last(self, subject: Subject) -> None:
        for name in "ab":
            await put(subject.store, name)
        assert (await subject.store.list_schedules(limit=2)).next is None

    @pytest.mark.parametrize("cursor", ["!", "a", "/w=="])
    async def test_a_cursor_of_nobody(self, subject: Subject, cursor: str) -> None:
        with pytest.raises(ValueError):
            await subject.store.list_schedules(cursor=cursor)


class TestManyLoops:
    @pytest.mark.parametrize("partitions", [1, 16])
    async def test_each_tick_once(self, make_subject: MakeSubject, partitions: int) -> None:
        subject = await make_subject(partitions)
        expected: dict[str, int] = {}
        for number in range(12):
            every_ms = 1_000 * (1 + number % 4)
            await put(subject.store, f"s{number}", Timing(every_ms=every_ms), missed=Missed.ALL)
            expected[f"s{number}"] = 60_000 // every_ms
        fired: dict[str, int] = dict.fromkeys(expected, 0)

        async def loop() -> None:
            for partition in range(partitions):
                ticks = await plans(subject.store, partition)
                await asyncio.sleep(0)
                for tick, answer in zip(ticks, await subject.store.tick(partition, ticks), strict=True):
                    assert isinstance(answer, Ticked)
                    fired[tick.record.schedule.name] += answer.fired

        for _ in range(20):
            await subject.advance(3_000)
            await asyncio.gather(*(loop() for _ in range(8)))
        await asyncio.gather(*(loop() for _ in range(8)))
        assert fired == expected
        times: dict[str, list[Any]] = {name: [] for name in expected}
        cursor: str | None = None
        while True:
            page = await subject.store.list_jobs(JobFilter(), limit=200, cursor=cursor)
            for job in page.items:
                times[job.options.schedule or ""].append(job.options.scheduled_for_ms)
            if (cursor := page.next) is None:
                break
        assert {name: len(set(found)) for name, found in times.items()} == expected
        assert {name: len(found) for name, found in times.items()} == expected
