"""Look: one job, listings and cursors, queues, counters, the registry."""

from __future__ import annotations

import msgspec
import pytest

from penstock.core.ids import JobId, WorkerName
from penstock.core.job import JobFilter, JobOptions, QueueInfo, TaskInfo, Verb, WorkerInfo
from penstock.core.limits import DAY_MS
from penstock.core.retry import Backoff
from penstock.core.states import Priority, State
from penstock.store.redis import reader
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import OTHER_WORKER, START_MS, WORKER, Subject
from tests.conformance.test_change import IN_STATE, job_in

EVERY = JobFilter()
#: A queued job would be claimed in place of the one that is to run.
RUNNING_FIRST = sorted(IN_STATE, key=lambda state: state is State.QUEUED)


async def listed(subject: Subject, filters: JobFilter = EVERY, *, limit: int = 50) -> list[JobId]:
    """Return all pages together; each is as long as it may be."""
    found: list[JobId] = []
    cursor = None
    while True:
        page = await subject.store.list_jobs(filters, limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        found += [record.id for record in page.items]
        cursor = page.next
        if cursor is None:
            return found


async def test_ping(subject: Subject) -> None:
    await subject.store.ping()


async def test_no_such_job_is_none(subject: Subject) -> None:
    assert await subject.store.get(subject.new().id) is None


class TestListing:
    async def test_places_come_in_a_fixed_order(self, subject: Subject) -> None:
        ids = {state: await job_in(subject, state) for state in reversed(IN_STATE)}
        order = ["running", "queued", "retrying", "scheduled", "failed", "completed", "cancelled", "expired"]
        assert await listed(subject) == [ids[State(name)] for name in order]

    async def test_records_leave_out_input_and_result(self, subject: Subject) -> None:
        for state in RUNNING_FIRST:
            job_id = await job_in(subject, state)
            (record,) = (await subject.store.list_jobs(JobFilter(states=(state,)))).items
            full = await subject.get(job_id)
            assert (record.input, record.result) == (None, None)
            assert record == msgspec.structs.replace(full, input=None, result=None)

    async def test_what_runs_next_comes_first(self, subject: Subject) -> None:
        low = await subject.submit(priority=Priority.LOW)
        normal = await subject.submit_many(2)
        critical = await subject.submit(priority=Priority.CRITICAL)
        assert await listed(subject, JobFilter(states=(State.QUEUED,))) == [critical, *normal, low]
        late, early = await subject.submit(delay_ms=900), await subject.submit(delay_ms=300)
        assert await listed(subject, JobFilter(states=(State.SCHEDULED,))) == [early, late]

    @pytest.mark.parametrize("limit", [1, 3, 50])
    async def test_of_running_ones_that_whose_lease_lapses_first_comes_first(
        self, subject: Subject, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where there are more workers than are read at the same time."""
        monkeypatch.setattr(reader, "_CHUNK", 4)
        monkeypatch.setattr(reader, "_WORKERS_AT_ONCE", 2)
        running: dict[JobId, int] = {}
        for number in range(24):
            await subject.submit()
            # The last twelve are all of one worker and one moment.
            name, lease_ms = (number % 5, 1_000 + number * 7 % 11) if number < 12 else (0, 1_004)
            job = await subject.claim_one(worker=WorkerName(f"worker-{name}"), lease_ms=lease_ms)
            running[job.token.job_id] = lease_ms
        found = await listed(subject, JobFilter(states=(State.RUNNING,)), limit=limit)
        assert found == sorted(running, key=lambda job_id: (running[job_id], job_id))

    async def test_of_final_ones_the_newest_comes_first(self, subject: Subject) -> None:
        for state in (State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED):
            ids = []
            for _ in range(3):
                ids.append(await job_in(subject, state))
                await subject.advance(1)
            same_time = [await job_in(subject, state) for _ in range(2)]
            assert await listed(subject, JobFilter(states=(state,))) == [*reversed(same_time), *reversed(ids)]

    @pytest.mark.every_server
    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
    @pytest.mark.parametrize("partitions", [1, 4])
    async def test_pages_add_up_to_the_whole(self, make_subject: MakeSubject, limit: int, partitions: int) -> None:
        subject = await make_subject(partitions)
        ids = set()
        for home in range(4):
            ids.update(await subject.submit_many(3, home=home, queue="a"))
            ids.update(await subject.submit_many(2, home=home, delay_ms=5_000))
            done = await subject.submit_many(4, home=home, queue="b")
            await subject.store.cancel(done)
            ids.update(done)
        found = await listed(subject, limit=limit)
        assert len(found) == len(ids)
        assert set(found) == ids

    async def test_a_change_between_pages_shifts_nothing(self, subject: Subject) -> None:
        ids = await subject.submit_many(6)
        page = await subject.store.list_jobs(EVERY, limit=3)
        await subject.store.cancel(ids[:3])
        rest = await subject.store.list_jobs(JobFilter(states=(State.QUEUED,)), limit=9, cursor=page.next)
        assert page.next is not None
        assert [record.id for record in page.items] == ids[:3]
        assert {record.id for record in rest.items} <= set(ids)
        rest = await subject.store.list_jobs(EVERY, limit=9, cursor=page.next)
        assert [record.id for record in rest.items][:3] == ids[3:]

    async def test_filters_narrow_it(self, subject: Subject) -> None:
        plain = await subject.submit()
        tagged = await subject.submit(options=JobOptions(tags=("red", "blue")))
        await subject.advance(1_000)
        task = await subject.submit(task="resize", delay_ms=9)
        queue = await subject.submit(queue="other", options=JobOptions(tags=("blue",)))
        cases = {
            JobFilter(tag="blue"): [tagged, queue],
            JobFilter(tag="red"): [tagged],
            JobFilter(tag="re"): [],
            JobFilter(task="resize"): [task],
            JobFilter(queue="other"): [queue],
            JobFilter(queue="default"): [plain, tagged, task],
            JobFilter(queue="nowhere"): [],
            JobFilter(states=(State.SCHEDULED, State.RUNNING)): [task],
            JobFilter(states=(State.BLOCKED,)): [],
            JobFilter(created_after_ms=START_MS + 1): [queue, task],
            JobFilter(created_after_ms=START_MS + 1_000): [queue, task],
            JobFilter(created_before_ms=START_MS + 1_000): [plain, tagged],
            JobFilter(created_after_ms=START_MS, created_before_ms=START_MS + 1): [plain, tagged],
            JobFilter(queue="default", task="echo", tag="blue"): [tagged],
        }
        for filters, expected in cases.items():
            assert await listed(subject, filters) == expected, filters

    async def test_a_page_examines_at_most_a_thousand(self, subject: Subject) -> None:
        await subject.submit_many(1_200)
        last = await subject.submit(task="resize")
        page = await subject.store.list_jobs(JobFilter(task="resize"))
        assert page.items == ()
        assert page.next is not None
        page = await subject.store.list_jobs(JobFilter(task="resize"), cursor=page.next)
        assert [record.id for record in page.items] == [last]
        assert page.next is None

    @pytest.mark.parametrize("cursor", ["x", "AAAA", "ü", "bnVsbA==", "W10=", "a" * 5_000])
    async def test_a_foreign_cursor_is_refused(self, subject: Subject, cursor: str) -> None:
        with pytest.raises(ValueError):
            await subject.store.list_jobs(EVERY, cursor=cursor)


class TestQueues:
    async def test_no_queue_is_known_before_its_first_job(self, subject: Subject) -> None:
        await subject.claim(1, queues=("ghost",))
        assert await subject.store.queues() == []

    async def test_each_place_is_counted(self, subject: Subject) -> None:
        for state in RUNNING_FIRST:
            await job_in(subject, state)
        for priority, count in zip(Priority, (1, 2, 3, 4), strict=True):
            await subject.submit_many(count, priority=priority, queue="busy")
        default = QueueInfo(
            name="default",
            depth={Priority.CRITICAL: 0, Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 0},
            running=1,
            delayed=2,
            finished={State.COMPLETED: 1, State.FAILED: 1, State.CANCELLED: 1, State.EXPIRED: 1},
        )
        busy = QueueInfo(
            name="busy",
            depth={Priority.CRITICAL: 1, Priority.HIGH: 2, Priority.NORMAL: 3, Priority.LOW: 4},
            running=0,
            delayed=0,
            finished={State.COMPLETED: 0, State.FAILED: 0, State.CANCELLED: 0, State.EXPIRED: 0},
        )
        assert await subject.store.queues() == [busy, default]

    async def test_an_empty_queue_stays_known(self, subject: Subject) -> None:
        job_id = await subject.submit()
        await subject.store.cancel([job_id])
        await subject.store.delete([job_id])
        (info,) = await subject.store.queues()
        assert (info.name, info.running, info.delayed) == ("default", 0, 0)
        assert set(info.depth.values()) == set(info.finished.values()) == {0}

    async def test_names_with_colons_and_marks_are_names(self, subject: Subject) -> None:
        names = ["a.b", "a-b", "résumé", "with space", "UPPER"]
        for name in names:
            await subject.submit(queue=name)
            assert len((await subject.claim(1, queues=(name,))).jobs) == 1
        assert [info.name for info in await subject.store.queues()] == sorted(names)

    @pytest.mark.every_server
    async def test_partitions_are_added_up(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        for home in range(4):
            await subject.submit_many(2, home=home)
            await subject.submit(home=home, delay_ms=9)
            await subject.claim_one(partition=home)
        (info,) = await subject.store.queues()
        assert (info.depth[Priority.NORMAL], info.running, info.delayed) == (4, 4, 4)
        assert await subject.count("submitted") == 12


async def test_counters_start_empty_and_keep_queues_apart(subject: Subject) -> None:
    assert dict(await subject.store.counters()) == {}
    await subject.submit(queue="a")
    await subject.submit_many(2, queue="b")
    token = await subject.running(queue="c")
    await subject.settle(token, Verb.COMPLETE, value=b"1")
    assert dict(await subject.store.counters()) == {
        ("submitted", "a"): 1,
        ("submitted", "b"): 2,
        ("submitted", "c"): 1,
        ("started", "c"): 1,
        ("completed", "c"): 1,
    }


class TestRegistry:
    def worker(self, name: WorkerName) -> WorkerInfo:
        return WorkerInfo(
            name=name,
            hostname="höst",
            pid=7,
            version="1.2",
            queues=("a", "b"),
            tasks=("echo",),
            concurrency=10,
            running=3,
            started_at_ms=START_MS - 5,
            last_claim_at_ms=START_MS - 1,
        )

    async def test_workers_and_tasks_are_as_announced(self, subject: Subject) -> None:
        task = TaskInfo(
            name="echo", queue="a", max_attempts=5, backoff=Backoff(factor=3.0), timeout_ms=7, executor="thread"
        )
        await subject.store.announce(self.worker(OTHER_WORKER), [task])
        await subject.advance(10)
        await subject.store.announce(self.worker(WORKER), [TaskInfo(name="resize")])
        first, second = await subject.store.workers()
        assert (first.name, first.seen_at_ms, first.tasks) == (WORKER, START_MS + 10, ("echo",))
        assert (second.name, second.seen_at_ms) == (OTHER_WORKER, START_MS)
        assert await subject.store.tasks() == {"echo": task, "resize": TaskInfo(name="resize")}

    async def test_a_repeat_refreshes(self, subject: Subject) -> None:
        await subject.store.announce(self.worker(WORKER), [TaskInfo(name="echo", timeout_ms=1)])
        await subject.advance(59_000)
        await subject.store.announce(self.worker(WORKER), [TaskInfo(name="echo", timeout_ms=2)])
        await subject.advance(59_000)
        (worker,) = await subject.store.workers()
        assert worker.seen_at_ms == START_MS + 59_000
        assert (await subject.store.tasks())["echo"].timeout_ms == 2

    async def test_silent_workers_are_left_out(self, subject: Subject) -> None:
        await subject.store.announce(self.worker(WORKER), [])
        await subject.advance(59_999)
        assert len(await subject.store.workers()) == 1
        await subject.advance(1)
        assert await subject.store.workers() == []
        await subject.store.announce(self.worker(OTHER_WORKER), [])
        assert [worker.name for worker in await subject.store.workers()] == [OTHER_WORKER]

    async def test_tasks_are_known_for_a_day(self, subject: Subject) -> None:
        await subject.store.announce(self.worker(WORKER), [TaskInfo(name="echo")])
        await subject.advance(DAY_MS - 1)
        assert set(await subject.store.tasks()) == {"echo"}
        await subject.advance(1)
        assert await subject.store.tasks() == {}

    async def test_a_forgotten_worker_is_gone_and_its_tasks_stay(self, subject: Subject) -> None:
        await subject.store.announce(self.worker(WORKER), [TaskInfo(name="echo")])
        await subject.store.forget_worker(WORKER)
        await subject.store.forget_worker(WORKER)
        assert await subject.store.workers() == []
        assert set(await subject.store.tasks()) == {"echo"}

    @pytest.mark.every_server
    async def test_every_partition_knows_the_tasks(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(4)
        await subject.announce("resize", worker=OTHER_WORKER)
        for home in range(4):
            await subject.submit(home=home, task="resize")
            assert (await subject.claim(1, partition=home, tasks=("echo",))).skipped == 1
        assert len(await subject.store.workers()) == 1
