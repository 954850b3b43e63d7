"""One job that kills its process, among many that do not: only the one is poisoned."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core.states import AttemptOutcome, Reason, State
from penstock.store import StoreOptions
from penstock.store.protocol import Store
from tests.integration.test_worker_supervisor import LONG_LEASE_MS, Start, options, start, store
from tests.integration.worker_support import finished, new_job, submit
from tests.waiting import Fifo, until_async

__all__ = ["options", "start", "store"]
INNOCENTS = 50


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Fifo]:
    opened = Fifo(tmp_path / "runs")
    yield opened
    opened.close()


def let_through(fifo: Path) -> bool:
    """Open and close a FIFO for who waits to read it; fails when nobody does."""
    os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    return True


@pytest.mark.parametrize(
    ("innocent", "count"), [("innocent", INNOCENTS), ("innocent_on_thread", 7), ("innocent_in_pool", 2)]
)
async def test_one_crasher_poisons_none_of_its_neighbours(
    store: Store, start: Start, runs: Fifo, tmp_path: Path, innocent: str, count: int
) -> None:
    go, crashes = tmp_path / "go", tmp_path / "crashes"
    os.mkfifo(go)
    worker = await start(lease_ms=LONG_LEASE_MS, pool_processes=2)
    jobs = [new_job(innocent, {"path": str(runs.path)}) for _ in range(count)]
    crasher = new_job("crash_when_told", {"path": str(crashes), "go": str(go)})
    *innocents, crashing = await submit(store, *jobs, crasher)
    for attempt in (1, 2):
        await runs.count(count * attempt)
        await until_async(lambda: let_through(go), "a crasher that waits", trouble=(OSError,))
    record = await finished(store, crashing)
    assert (record.state, record.reason, record.lost, record.counted) == (State.FAILED, Reason.POISONED, 3, 0)
    assert len(crashes.read_text().splitlines()) == 3
    processes = set()
    for job_id in innocents:
        record = await finished(store, job_id)
        assert (record.state, record.lost, record.attempt) == (State.COMPLETED, 2, 3)
        assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.WORKER_LOST] * 2 + [
            AttemptOutcome.COMPLETED
        ]
        assert record.result is not None
        result = json.loads(record.result)
        assert result["previous"] == "worker_lost"
        processes.add(record.worker)
    # They ran one after the other in processes of their own, of which the crasher took one along.
    assert len(processes) <= 2
    assert processes.isdisjoint({attempt.worker for attempt in record.attempts[:2]})
    counters = await store.counters()
    assert counters["poisoned", "default"] == 1
    assert counters["lost", "default"] == 3 + 2 * count
    assert [line["exit_code"] for line in worker.events("process.ended")] == [-signal.SIGSEGV] * 3
    # And the worker goes on beside them.
    (after,) = await submit(store, new_job("nothing"))
    assert (await finished(store, after)).state is State.COMPLETED


async def test_a_thread_that_crashes_alone_is_poisoned(store: Store, start: Start, tmp_path: Path) -> None:
    await start(lease_ms=LONG_LEASE_MS)
    (job_id,) = await submit(store, new_job("crash_on_thread", {"path": str(tmp_path / "runs")}))
    record = await finished(store, job_id)
    assert (record.reason, record.lost) == (Reason.POISONED, 3)


async def test_a_drain_ends_the_process_for_those_that_run_alone(
    store: Store, start: Start, options: StoreOptions, tmp_path: Path
) -> None:
    del options
    path = tmp_path / "runs"
    worker = await start(lease_ms=LONG_LEASE_MS, drain_ms=100)
    (job_id,) = await submit(store, new_job("hang_alone", {"path": str(path)}))
    await worker.wait_for("worker.started", 4)
    await worker.wait_for("test.alone")
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.lost, record.counted) == (State.QUEUED, 2, 0)
    assert record.attempts[-1].outcome is AttemptOutcome.RELEASED
