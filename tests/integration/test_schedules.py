"""Schedules that live processes run: each tick once, in time, whoever dies; those that code declares."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from penstock.core import events
from penstock.core.cron import Timing
from penstock.core.errors import SchedulesFull, StoreUnavailable, TaskError
from penstock.core.ids import WorkerName
from penstock.core.job import JobFilter
from penstock.core.limits import Limits
from penstock.core.schedule import (
    DueSchedules,
    Missed,
    Overlap,
    Schedule,
    ScheduledJob,
    Source,
    Tick,
    Ticked,
    home_of_schedule,
    job_id_of_tick,
)
from penstock.handlers.schedules import schedule as declare
from penstock.store import StoreOptions, connect
from penstock.store.memory import MemoryStore
from penstock.store.protocol import Store
from penstock.store.redis.store import RedisStore
from penstock.store.ticker import Ticker
from tests.integration.api_support import api_process
from tests.integration.store_support import store_at
from tests.integration.test_worker_supervisor import WorkerProcess
from tests.integration.worker_support import finished, memory_store, working
from tests.waiting import Fifo, until_async

TASKS = "tests.integration.schedule_tasks"
EVERY_SECOND = Timing(every_ms=1_000)
PATIENCE_S = 60


def schedule_of(name: str, timing: Timing, task: str, value: Any, **fields: Any) -> Schedule:
    job = ScheduledJob(task=task, input=msgspec.Raw(msgspec.json.encode(value)))
    return Schedule(name=name, timing=timing, job=job, **fields)


@pytest.fixture
async def store(valkey_url: str, namespace: str) -> AsyncIterator[Store]:
    opened = await connect(StoreOptions(redis_url=valkey_url, namespace=namespace))
    yield opened
    await opened.close()


class Lines(Fifo):
    """Read what handlers tell of their ticks."""

    def ticks(self) -> set[int]:
        """Return the planned times that were told."""
        return {int(line.split()[-1]) for line in self.lines()}

    async def until_ticks(self, count: int) -> set[int]:
        """Return once so many different ticks were told."""
        await self.until(lambda _: len(self.ticks()) >= count, f"{count} ticks")
        return self.ticks()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    opened = Lines(tmp_path / "ticks")
    yield opened
    opened.close()


@contextlib.contextmanager
def killed_at_the_end(worker: WorkerProcess) -> Iterator[WorkerProcess]:
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(timeout=30)
        assert worker.process.stderr is not None
        worker._reader.join(timeout=30)
        worker.process.stderr.close()


async def all_planned(store: Store) -> list[int]:
    """Return the planned times of all jobs, in order."""
    found: list[int] = []
    cursor: str | None = None
    while True:
        page = await store.list_jobs(JobFilter(), limit=200, cursor=cursor)
        found += [job.options.scheduled_for_ms or 0 for job in page.items]
        if (cursor := page.next) is None:
            return sorted(found)


async def test_no_tick_twice_and_none_missed_while_processes_die(
    store: Store, valkey_url: str, namespace: str, lines: Lines
) -> None:
    """Two workers and an API let an interval of a second tick; one worker is killed, then the API, then all but one."""
    options = StoreOptions(redis_url=valkey_url, namespace=namespace)
    with (
        api_process(valkey_url, namespace) as api,
        killed_at_the_end(WorkerProcess(options, modules=(TASKS,), lease_ms=3_000)) as first,
        killed_at_the_end(WorkerProcess(options, modules=(TASKS,), lease_ms=3_000)),
    ):
        body = {"every": 1, "missed": "all", "job": {"task": "tell", "input": {"path": str(lines.path)}}}
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            assert (await client.put("/schedules/each second", json=body)).status_code == 201
            await lines.until_ticks(3)
            os.killpg(first.process.pid, signal.SIGKILL)
            await lines.until_ticks(6)
        api.process.kill()
        await lines.until_ticks(9)
        record = await store.pause_schedule("each second")
        assert record is not None
        planned = await all_planned(store)
        # Every second from the first to the last, each once.
        assert planned == list(range(planned[0], planned[0] + len(planned) * 1_000, 1_000))
        assert planned[0] <= record.created_at_ms + 1_000
        assert (record.fired, record.missed, record.skipped) == (len(planned), 0, 0)
        # Each was run, also those that the killed worker held.
        assert await lines.until_ticks(len(planned)) == set(planned)


@pytest.mark.parametrize("partitions", [1, 16])
async def test_many_loops_at_once(valkey_url: str, namespace: str, partitions: int) -> None:
    """Eight stores of their own tick twenty schedules on a live server; no job twice, none missing."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(store_at(valkey_url, namespace, partitions=partitions)) for _ in range(8)
        ]
        names = [f"s{number}" for number in range(20)]
        for name in names:
            await stores[0].put_schedule(schedule_of(name, EVERY_SECOND, "echo", 1, missed=Missed.ALL))
        tickers = [Ticker(store, partitions) for store in stores]
        running = [asyncio.create_task(ticker.run()) for ticker in tickers]

        async def waiting() -> bool:
            queues = await stores[0].queues()
            return bool(queues) and sum(queues[0].depth.values()) >= 60

        await until_async(waiting, "sixty jobs", seconds=PATIENCE_S)
        for name in names:
            await stores[0].pause_schedule(name)
        for ticker in tickers:
            ticker.stop()
            ticker.stop()
        await asyncio.gather(*running)
        by_name: dict[str, list[int]] = {name: [] for name in names}
        cursor: str | None = None
        while True:
            page = await stores[0].list_jobs(JobFilter(), limit=200, cursor=cursor)
            for job in page.items:
                assert job.created_at_ms >= (job.options.scheduled_for_ms or 0)
                by_name[job.options.schedule or ""].append(job.options.scheduled_for_ms or 0)
            if (cursor := page.next) is None:
                break
        for name, times in by_name.items():
            times.sort()
            record = await stores[0].get_schedule(name)
            assert record is not None
            assert times == list(range(times[0], times[0] + 1_000 * record.fired, 1_000))
            assert record.missed == 0


async def test_a_tick_that_comes_soon_wakes_who_waits(store: Store) -> None:
    worker = WorkerName("w")
    waiting = asyncio.create_task(store.wait_work(worker, ["default"], timeout_ms=30_000))
    now_ms = await store.now_ms()
    await store.put_schedule(schedule_of("later", Timing(every_ms=3_600_000), "echo", 1))
    soon = schedule_of("soon", Timing(every_ms=3_600_000, start_at_ms=now_ms + 500), "echo", 1)
    await store.put_schedule(soon)
    assert await waiting == frozenset({"due"})


async def test_a_worker_starts_a_tick_and_shows_it_to_the_handler(store: Store, lines: Lines) -> None:
    async with working(store, modules=[TASKS]):
        due_ms = await store.now_ms() + 300
        timing = Timing(every_ms=3_600_000, start_at_ms=due_ms)
        await store.put_schedule(
            schedule_of("from a process", timing, "tell_from_a_process", {"path": str(lines.path)})
        )
        assert await lines.until_ticks(1) == {due_ms}
        record = await finished(store, job_id_of_tick("from a process", due_ms))
    assert record.started_at_ms is not None
    assert record.started_at_ms >= due_ms
    assert record.result == msgspec.json.encode(f"from a process {due_ms}\n")
    assert (record.options.schedule, record.options.scheduled_for_ms) == ("from a process", due_ms)


class TestInCode:
    async def test_workers_store_them_when_they_start(self) -> None:
        store = memory_store()
        async with working(store, modules=[TASKS]):
            pass
        found = {record.schedule.name: record.schedule for record in (await store.list_schedules()).items}
        assert sorted(found) == ["elsewhere", "hourly", "nightly report", "often"]
        assert all(schedule.source is Source.CODE for schedule in found.values())
        nightly = found["nightly report"]
        assert nightly.timing == Timing(cron="30 2 * * *", timezone="Europe/Berlin")
        # What the task says, because the schedule says nothing.
        assert (nightly.job.task, nightly.job.queue, nightly.job.options.tags) == ("hourly", "reports", ("night",))
        assert nightly.missed is Missed.ALL
        assert (found["hourly"].timing, found["hourly"].overlap) == (Timing(every_ms=3_600_000), Overlap.SKIP)
        assert (found["often"].job.task, bytes(found["often"].job.input)) == ("often", b"{}")
        elsewhere = found["elsewhere"].job
        assert (elsewhere.task, elsewhere.queue, bytes(elsewhere.input), elsewhere.expires_in_ms) == (
            "echo",
            "own",
            b"[1]",
            60_000,
        )

    async def test_a_restart_changes_nothing_and_keeps_a_pause(self) -> None:
        store = memory_store()
        async with working(store, modules=[TASKS]):
            pass
        await store.pause_schedule("often")
        before = (await store.list_schedules()).items
        async with working(store, modules=[TASKS]):
            pass
        assert (await store.list_schedules()).items == before

    async def test_one_that_cannot_be_stored_stops_no_work(self) -> None:
        store = MemoryStore(memory_store()._clock, limits=Limits(schedules=1))
        with structlog.testing.capture_logs() as logs:
            async with working(store, modules=[TASKS]):
                pass
        assert len((await store.list_schedules()).items) == 1
        assert [line["event"] for line in logs].count(events.SCHEDULE_REFUSED) == 3

    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("a/b", {"every": 5}, "URL"),
            ("", {"every": 5}, "characters"),
            ("\ud800", {"every": 5}, "printed"),
            ("..", {"every": 5}, "URL"),
            ("x", {}, "'cron' or 'every'"),
            ("x", {"every": 5, "cron": "@daily"}, "'cron' or 'every'"),
            ("x", {"cron": "0 0 31 2 *"}, "never comes"),
            ("x", {"cron": "@daily", "timezone": "Nowhere"}, "time zone"),
            ("x", {"cron": "@daily", "start_at": "2030-01-01T00:00:00Z"}, "'start_at'"),
            ("x", {"every": 5, "timezone": "UTC"}, "'timezone'"),
            ("x", {"every": 0.5}, "at least 1 s"),
            ("x", {"every": "soon"}, "every"),
            ("x", {"every": 5, "missed": "some"}, "some"),
            ("x", {"every": 5, "priority": "urgent"}, "urgent"),
            ("x", {"every": 5, "max_attempts": 0}, "max_attempts"),
            ("x", {"every": 5, "queue": ""}, "queue"),
            ("x", {"every": 5, "queue": "a/b"}, "queue"),
            ("x", {"every": 5, "task": "@ai"}, "'@'"),
            ("x", {"every": 5, "delay": 5}, "'delay'"),
            ("x", {"every": 5, "input": "x" * 70_000}, "bytes"),
            ("x", {"every": 5, "input": {1j}}, "complex"),
        ],
    )
    def test_what_cannot_be_used_stops_the_boot(self, name: str, options: dict[str, Any], words: str) -> None:
        with pytest.raises(TaskError) as refused:
            declare(name, **{"task": "echo", **options})
        assert words in str(refused.value)
        assert "test_schedules.py" in str(refused.value)


class Broken:
    """Stand for a store of one partition whose schedules cannot all be used."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records
        self.put_off: list[str] = []
        self.ticked: list[str] = []

    async def due_schedules(self, partition: int, *, limit: int) -> DueSchedules:
        records, self.records = self.records, []
        return DueSchedules(records=tuple(records), next_due_ms=2_000, now_ms=1_000)

    async def tick(self, partition: int, ticks: list[Tick]) -> list[Ticked | Exception]:
        self.ticked += [tick.record.schedule.name for tick in ticks]
        return [RuntimeError("no") if tick.record.schedule.name == "refused" else Ticked(moved=True) for tick in ticks]

    async def put_off_schedule(self, name: str) -> None:
        self.put_off.append(name)


class TestLoop:
    async def test_one_bad_schedule_does_not_stop_the_others(self) -> None:
        from penstock.core.schedule import ScheduleRecord

        def record(name: str, timing: Timing) -> ScheduleRecord:
            written = schedule_of(name, timing, "echo", 1)
            return ScheduleRecord(schedule=written, revision=1, next_ms=500, created_at_ms=0, updated_at_ms=0)

        unreadable = record("unreadable", Timing(cron="* * * * *", timezone="Gone/Zone"))
        store = Broken([unreadable, record("refused", EVERY_SECOND), record("good", EVERY_SECOND)])
        with structlog.testing.capture_logs() as logs:
            wait_s = await Ticker(store, 1).run_once()  # type: ignore[arg-type]
        assert store.put_off == ["unreadable"]
        assert store.ticked == ["refused", "good"]
        assert 0 < wait_s <= 1.3
        assert [line["subject"] for line in logs if line["event"] == events.LOOP_FAILED] == ["unreadable", "refused"]

    async def test_an_outage_is_told_once_and_survived(self) -> None:
        class Away(Broken):
            asked = 0

            async def due_schedules(self, partition: int, *, limit: int) -> DueSchedules:
                self.asked += 1
                if self.asked in (1, 2):
                    raise StoreUnavailable("away")
                if self.asked == 4:
                    ticker.stop()
                return await super().due_schedules(partition, limit=limit)

        store = Away([])
        ticker = Ticker(store, 1)  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            running = asyncio.create_task(ticker.run())

            def ended() -> bool:
                # Whenever it waits it is woken.
                ticker.nudge()
                return running.done()

            await until_async(ended, "the end of the ticker")
        assert [line["event"] for line in logs] == [events.STORE_LOST, events.STORE_BACK]

    async def test_a_part_that_is_away_does_not_hold_up_the_rest(self) -> None:
        class PartlyAway(Broken):
            async def due_schedules(self, partition: int, *, limit: int) -> DueSchedules:
                if partition == 1:
                    raise StoreUnavailable("away")
                self.ticked.append(str(partition))
                return await super().due_schedules(partition, limit=limit)

        store = PartlyAway([])
        ticker = Ticker(store, 3)  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            wait_s = await ticker.run_once()
        assert sorted(store.ticked) == ["0", "2"]
        assert 0 < wait_s <= 1.3
        assert [line["event"] for line in logs] == [events.STORE_LOST]

    async def test_stop_before_run(self) -> None:
        ticker = Ticker(Broken([]), 1)  # type: ignore[arg-type]
        ticker.stop()
        await asyncio.wait_for(ticker.run(), PATIENCE_S)


class TestDamaged:
    @pytest.mark.parametrize(
        "damage",
        [
            ("HSET", "definition", "{"),
            ("HSET", "next", "soon"),
            ("HDEL", "revision"),
            ("HSET", "definition", '{"name":"bad","timing":{"cron":"x"},"job":{"task":"t","input":1}}'),
        ],
    )
    async def test_a_damaged_schedule_stops_no_other(
        self, valkey_url: str, namespace: str, damage: tuple[str, ...]
    ) -> None:
        async with store_at(valkey_url, namespace, partitions=1) as store:
            now_ms = await store.now_ms()
            for name in ("bad", "good"):
                await store.put_schedule(schedule_of(name, Timing(every_ms=86_400_000), "echo", 1))
                await due(store, name, now_ms - 1_000)
            command, field, *value = damage
            await store.connection.command(command, store.connection.keys[0].key("schedule", "bad"), field, *value)
            await Ticker(store, 1).run_once()
            (job,) = (await store.list_jobs(JobFilter())).items
            assert job.options.schedule == "good"
            later = await store.due_schedules(0)
            assert later.records == ()
            # A PUT sets it right.
            await store.delete_schedule("bad")
            await store.put_schedule(schedule_of("bad", Timing(every_ms=86_400_000), "echo", 1))
            assert await store.get_schedule("bad") is not None
            assert home_of_schedule("bad") != home_of_schedule("good")

    async def test_a_tick_that_breaks_off_is_repeated_and_finds_its_jobs(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace, partitions=1) as store:
            keys = store.connection.keys[0]
            now_ms = await store.now_ms()
            await store.put_schedule(schedule_of("s", EVERY_SECOND, "echo", 1, missed=Missed.ALL))
            await due(store, "s", now_ms - 2_500)
            (record,) = (await store.due_schedules(0)).records
            first, second = (job_id_of_tick("s", now_ms - ago_ms) for ago_ms in (2_500, 1_500))
            # What stands under the second id cannot be read, which breaks the tick off after its first job.
            await store.connection.command("SET", keys.key("job", second), msgspec.msgpack.encode({"odd": "1"}))
            ticks = [Tick(record=record, fire=(now_ms - 2_500, now_ms - 1_500), missed=0, next_ms=now_ms - 500)]
            (answer,) = await store.tick(0, ticks)
            assert isinstance(answer, Exception)
            assert [job.id for job in (await store.list_jobs(JobFilter())).items] == [first]
            assert await store.get_schedule("s") == record
            # Put off by a minute, so that it is not met again at once.
            assert (await store.due_schedules(0)).records == ()
            await store.connection.command("DEL", keys.key("job", second))
            assert await store.tick(0, ticks) == [Ticked(moved=True, fired=2)]
            assert await all_planned(store) == [now_ms - 2_500, now_ms - 1_500]


async def due(store: RedisStore, name: str, next_ms: int) -> None:
    """Make a schedule due."""
    keys = store.connection.keys[0]
    await store.connection.command("HSET", keys.key("schedule", name), "next", next_ms)
    await store.connection.command("ZADD", keys.key("schedule_due"), next_ms, name)


async def test_puts_at_the_same_moment_hold_the_bound(valkey_url: str, namespace: str) -> None:
    async with store_at(valkey_url, namespace, partitions=1, limits=Limits(schedules=5)) as store:
        puts = (store.put_schedule(schedule_of(f"s{number}", EVERY_SECOND, "echo", 1)) for number in range(20))
        answers = await asyncio.gather(*puts, return_exceptions=True)
        assert sum(isinstance(answer, SchedulesFull) for answer in answers) == 15
        assert len((await store.list_schedules()).items) == 5
