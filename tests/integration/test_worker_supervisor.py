"""Run real workers, harm their processes, and look what became of the jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.core.ids import JobId, WorkerName
from penstock.core.job import JobFilter
from penstock.core.states import AttemptOutcome, Reason, State
from penstock.store import StoreOptions, connect
from penstock.store.protocol import Store
from tests.chaos.host_faults import MemoryGroup
from tests.integration.api_support import api_process
from tests.integration.worker_support import finished, new_job, submit
from tests.missing import skip_or_fail
from tests.waiting import Fifo, until_async, wait_gone

TASKS = "tests.integration.worker_fault_tasks"
#: So long a lease that nothing in a test can be due to its lapse.
LONG_LEASE_MS = 600_000


@pytest.fixture
def options(valkey_url: str, namespace: str) -> StoreOptions:
    return StoreOptions(redis_url=valkey_url, namespace=namespace)


@pytest.fixture
async def store(options: StoreOptions) -> AsyncIterator[Store]:
    opened = await connect(options)
    yield opened
    await opened.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    opened = Fifo(tmp_path / "started")
    yield opened
    opened.close()


class WorkerProcess:
    """Run a supervisor and read its log."""

    def __init__(self, store_options: StoreOptions, **options: Any) -> None:
        settings = {"modules": (TASKS,), "log_json": True, "pool_processes": 1, "builtin": False} | options
        code = (
            "import sys\n"
            "from penstock.observability.logs import configure_logging\n"
            "from penstock.store import StoreOptions\n"
            "from penstock.worker.main import run_worker\n"
            "from penstock.worker.options import WorkerOptions\n"
            "configure_logging(json=True, level='info')\n"
            f"sys.exit(run_worker(WorkerOptions(**{settings!r}), StoreOptions("
            f"redis_url={store_options.redis_url!r}, namespace={store_options.namespace!r})))\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._came = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._came:
                self.raw.append(line)
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def wait_for(self, event: str, times: int = 1) -> dict[str, Any]:
        def wait() -> dict[str, Any]:
            with self._came:
                assert self._came.wait_for(lambda: self._ended or len(self.events(event)) >= times, timeout=30), (
                    self.raw
                )
                assert len(self.events(event)) >= times, self.raw
                return self.events(event)[times - 1]

        return await asyncio.to_thread(wait)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        code = await asyncio.to_thread(self.process.wait, 30)
        await asyncio.to_thread(self._reader.join, 10)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
def start(options: StoreOptions) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    async def begin(**settings: Any) -> WorkerProcess:
        worker = WorkerProcess(options, **settings)
        started.append(worker)
        await worker.wait_for("worker.started", settings.get("processes", 1))
        return worker

    yield begin
    for worker in started:
        worker.kill()


async def start_told(fifo: Fifo) -> tuple[int, float]:
    """Wait until a handler has told of its start; return its process and the time."""
    pid, at = (await fifo.next()).split()
    return int(pid), float(at)


async def reap_at_once(store: Any) -> None:
    """End the rest that the reaper keeps after a first look, so that a lapsed lease is taken within a second."""
    keys = store.connection.keys[0]

    async def swept() -> bool:
        (seen,) = await store.connection.together([("HGET", keys.key("meta"), "swept_at")])
        return seen is not None

    await until_async(swept, "a first sweep")
    await store.connection.together([("HSET", keys.key("meta"), "reap_from", 0)])


@pytest.mark.parametrize("task", ["hold_on_loop", "hold_on_thread", "hold_in_pool"])
async def test_a_handler_that_holds_the_lock_past_its_lease_runs_once(
    store: Store, start: Start, tmp_path: Path, task: str
) -> None:
    worker = await start(processes=2, lease_ms=1_500)
    await reap_at_once(store)
    runs = tmp_path / "runs"
    (job_id,) = await submit(store, new_job(task, {"path": str(runs), "seconds": 5}))
    record = await finished(store, job_id)
    assert (record.state, record.attempt, record.lost) == (State.COMPLETED, 1, 0)
    assert len(runs.read_text().splitlines()) == 1
    # A pool of processes holds up nobody; the two others needed the supervisor.
    assert len(worker.events("process.unresponsive")) == (0 if task == "hold_in_pool" else 1)


async def test_a_process_without_a_sign_of_life_is_killed(store: Store, start: Start, fifo: Fifo) -> None:
    worker = await start(lease_ms=LONG_LEASE_MS, process_silence_ms=3_000)
    (job_id,) = await submit(store, new_job("hold_first", {"path": str(fifo.path)}))
    first, _at = await start_told(fifo)
    second, _at = await start_told(fifo)
    record = await finished(store, job_id)
    assert first != second
    assert (record.state, record.attempt, record.lost) == (State.COMPLETED, 2, 1)
    assert record.attempts[0].outcome is AttemptOutcome.WORKER_LOST
    assert len(worker.events("process.killed")) == 1


async def test_a_unique_key_outlives_its_killed_worker(
    options: StoreOptions, store: Store, start: Start, fifo: Fifo
) -> None:
    body = {"task": "hang_first", "input": {"path": str(fifo.path)}, "unique_key": "k"}
    with api_process(options.redis_url, options.namespace) as api:
        async with httpx.AsyncClient(base_url=api.url, timeout=60) as client:
            killed = await start(lease_ms=LONG_LEASE_MS)
            job_id = JobId((await client.post("/submit", json=body)).json()["id"])
            await start_told(fifo)
            killed.kill()
            # Nobody runs it, and it has not ended: no second one may come.
            for way in ("reject", "replace"):
                second = {"task": "hang_first", "unique": {"key": "k", "on_conflict": way}}
                refused = await client.post("/submit", json=second)
                assert (refused.status_code, refused.json()["job_id"]) == (409, job_id), refused.text
            running = await store.get(job_id)
            assert running is not None
            assert running.worker is not None
            await store.release_worker(WorkerName(running.worker), lost=True)
            refused = await client.post("/submit", json=body)
            assert (refused.status_code, refused.json()["job_status"]) == (409, "queued"), refused.text
            await start(lease_ms=LONG_LEASE_MS)
            await start_told(fifo)
            record = await finished(store, job_id)
            assert (record.state, record.attempt, record.lost) == (State.COMPLETED, 2, 1)
            taken = await client.post("/submit", json={"task": "nothing", "unique_key": "k"})
            assert taken.status_code == 202
            assert (await finished(store, JobId(taken.json()["id"]))).state is State.COMPLETED


async def test_what_a_killed_process_held_starts_elsewhere_at_once(store: Store, start: Start, fifo: Fifo) -> None:
    worker = await start(processes=2, lease_ms=LONG_LEASE_MS)
    (job_id,) = await submit(store, new_job("hang_first", {"path": str(fifo.path)}))
    first, _at = await start_told(fifo)
    killed_at = time.monotonic()
    os.kill(first, signal.SIGKILL)
    second, started_at = await start_told(fifo)
    record = await finished(store, job_id)
    assert first != second
    # Milliseconds as a rule; the bound leaves room for a machine that does other things.
    assert started_at - killed_at < 5
    assert (record.state, record.counted, record.lost) == (State.COMPLETED, 0, 1)
    assert record.attempts[0].outcome is AttemptOutcome.WORKER_LOST
    await worker.wait_for("worker.started", 3)
    names = {info.name for info in await store.workers()}
    assert len(names) == 2
    assert worker.events("process.ended")[0]["exit_code"] == -signal.SIGKILL


async def test_a_process_that_the_kernel_kills_for_its_memory_gives_back_what_it_held(
    store: Store, start: Start, tmp_path: Path
) -> None:
    group = MemoryGroup()

    async def is_empty() -> bool:
        return (Path(group.path) / "cgroup.procs").read_text() == ""

    if not group.path:
        skip_or_fail("a memory control group that this user may make (root, cgroup v1 or v2) is missing")
    try:
        swap = Path(group.path) / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        worker = await start(lease_ms=LONG_LEASE_MS)
        runs = tmp_path / "runs"
        eaten, beside = await submit(
            store,
            new_job("eat_memory_first", {"path": str(runs), "group": group.path}),
            new_job("hang_first", {"path": str(tmp_path / "beside")}),
        )
        for job_id in (eaten, beside):
            record = await finished(store, job_id)
            assert (record.state, record.counted) == (State.COMPLETED, 0)
        record = await finished(store, eaten)
        assert record.lost == 1
        assert record.attempts[0].outcome is AttemptOutcome.WORKER_LOST
        assert record.result == b'"after worker_lost"'
        assert group.kills() >= 1
        assert [line["exit_code"] for line in worker.events("process.ended")] == [-signal.SIGKILL]
    finally:
        await until_async(is_empty, "that the group is empty")
        group.close()


async def test_the_first_deaths_in_a_row_cost_no_wait(store: Store, start: Start) -> None:
    worker = await start(lease_ms=LONG_LEASE_MS)
    for number in range(1, 6):
        name = (await worker.wait_for("worker.started", number))["worker"]
        (pid,) = [info.pid for info in await store.workers() if info.name == name]
        os.kill(pid, signal.SIGKILL)
    await worker.wait_for("worker.started", 6)
    assert [line["delay_s"] for line in worker.events("process.ended")] == [0.0] * 5


async def test_three_segmentation_faults_poison_a_job(store: Store, start: Start, tmp_path: Path) -> None:
    worker = await start(lease_ms=LONG_LEASE_MS)
    (job_id,) = await submit(store, new_job("segfault", {"path": str(tmp_path / "runs")}))
    record = await finished(store, job_id)
    assert (record.state, record.reason, record.lost, record.counted) == (State.FAILED, Reason.POISONED, 3, 0)
    assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST] * 3
    assert len((tmp_path / "runs").read_text().splitlines()) == 3
    assert (await store.counters())["poisoned", "default"] == 1
    # And the worker goes on.
    (after,) = await submit(store, new_job("nothing"))
    assert (await finished(store, after)).state is State.COMPLETED
    assert {line["exit_code"] for line in worker.events("process.ended")} == {-signal.SIGSEGV}


@pytest.mark.parametrize("task", ["hold_on_loop", "hold_on_thread", "hold_in_pool"])
async def test_a_drain_hands_back_what_holds_the_lock(store: Store, start: Start, fifo: Fifo, task: str) -> None:
    worker = await start(drain_ms=100, lease_ms=LONG_LEASE_MS)
    (job_id,) = await submit(store, new_job(task, {"path": str(fifo.path), "seconds": 600}))
    child, _at = await start_told(fifo)
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
    assert record.attempts[0].outcome is AttemptOutcome.RELEASED
    assert wait_gone(child, 0)
    assert await store.workers() == []


async def test_a_drain_lets_finish_and_one_signal_to_the_group_is_one_request(
    store: Store, start: Start, fifo: Fifo
) -> None:
    worker = await start(processes=2, drain_ms=30_000)
    (job_id,) = await submit(store, new_job("hold_on_thread", {"path": str(fifo.path), "seconds": 1}))
    await start_told(fifo)
    os.killpg(worker.process.pid, signal.SIGTERM)
    assert await worker.end() == 0
    record = await store.get(job_id)
    assert record is not None
    assert record.state is State.COMPLETED
    assert worker.events("worker.hastened") == []
    assert len(worker.events("worker.stopped")) == 2


async def test_a_second_signal_hastens(store: Store, start: Start, fifo: Fifo) -> None:
    worker = await start(drain_ms=600_000)
    (job_id,) = await submit(store, new_job("hang_first", {"path": str(fifo.path)}))
    await start_told(fifo)
    worker.signal(signal.SIGTERM)
    await worker.wait_for("worker.stopping")
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.counted, record.lost) == (State.QUEUED, 0, 0)
    assert len(worker.events("worker.hastened")) == 1


@pytest.mark.parametrize("task", ["hang_first", "hold_first"])
async def test_the_processes_end_with_a_killed_supervisor(store: Store, start: Start, fifo: Fifo, task: str) -> None:
    worker = await start(lease_ms=LONG_LEASE_MS)
    await submit(store, new_job(task, {"path": str(fifo.path)}))
    child, _at = await start_told(fifo)
    worker.signal(signal.SIGKILL)
    assert await asyncio.to_thread(wait_gone, child, 10)
    page = await store.list_jobs(JobFilter(states=(State.RUNNING,)))
    assert len(page.items) == 1


async def test_the_supervisor_imports_no_task_module(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importers = tmp_path / "importers"
    monkeypatch.setenv("TEST_IMPORTERS", str(importers))
    worker = await start(processes=2)
    pids = {int(line) for line in importers.read_text().split()}
    assert len(pids) == 2
    assert worker.process.pid not in pids
