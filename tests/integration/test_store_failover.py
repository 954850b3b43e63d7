"""A primary dies or hangs while jobs run: a replica takes over, everything goes on by itself, and no job is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.job import NewJob, Submitted
from penstock.core.states import State
from penstock.store import StoreOptions, connect
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests import fleets, waiting
from tests.fleets import Fleet, Node
from tests.integration.store_support import new_job, submit
from tests.integration.worker_support import working
from tests.integration.worker_tasks import BOARD

LIMIT_S = 150.0


@pytest.fixture(autouse=True)
def _fresh_board() -> Iterator[None]:
    BOARD.reset()
    yield
    BOARD.go_on.set()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Fleet]:
    with fleets.running(fleets.cluster(tmp_path, node_timeout_ms=3_000)) as fleet:
        yield fleet


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Fleet]:
    with fleets.running(fleets.sentinel(tmp_path, replicas=2, down_after_ms=2_000)) as fleet:
        yield fleet


def replicated(primary: Node) -> bool:
    """Tell whether a replica has all that its primary wrote."""
    info = primary.ask("INFO", "replication")
    return any(
        info[f"slave{number}"]["offset"] == info["master_repl_offset"] for number in range(info["connected_slaves"])
    )


async def insist(store: RedisStore, job: NewJob) -> JobId:
    """Submit until it is accepted, as a client does."""
    (answer,) = await waiting.insist(lambda: store.submit([job]), "a submit is taken", trouble=(StoreUnavailable,))
    assert isinstance(answer, Submitted)
    return job.id


async def finals(store: RedisStore, ids: set[JobId]) -> None:
    """Wait until all jobs are final; an outage only delays."""
    left = set(ids)
    while left:
        job_id = next(iter(left))
        state = await waiting.insist(
            functools.partial(store.wait_final, job_id, timeout_ms=2_000),
            "a wait is taken",
            trouble=(StoreUnavailable,),
        )
        assert state is not None, f"{job_id} is gone"
        if state.is_final:
            left.discard(job_id)


async def survive(fleet: Fleet, options: StoreOptions, strike: Callable[[Node], None]) -> float:
    """Run jobs, strike the primary of the first partition in the middle, and count the jobs in the end.

    Return the seconds until a job that was submitted to that partition after the strike was done.
    """
    connected = await connect(options)
    assert isinstance(connected, RedisStore)
    homes = range(0, 4096, 4096 // 64)
    async with (
        contextlib.aclosing(_Closing(connected)),
        working(connected, connect=lambda: connect(options), concurrency=20, lease_ms=5_000) as worker,
        asyncio.timeout(LIMIT_S),
    ):
        ids = {await submit(connected, task="sleep", input=b'{"seconds":0.3}', home=home) for home in homes}
        await asyncio.to_thread(fleets.until, lambda: worker.running >= 5, "that jobs run")
        victim = fleet.node_at((await connected.connection.server_of(0)).port)
        await asyncio.to_thread(fleets.until, lambda: replicated(victim), "that a replica has all")
        started = time.monotonic()
        await asyncio.to_thread(strike, victim)
        probe = await insist(connected, new_job(task="echo", home=0))
        await finals(connected, {probe})
        recovered_s = time.monotonic() - started
        ids |= {await insist(connected, new_job(task="echo", home=home)) for home in homes}
        await finals(connected, ids)
        records = [await connected.get(job_id) for job_id in ids]
        assert {record.state for record in records if record is not None} == {State.COMPLETED}
        assert (await connected.connection.server_of(0)).port != victim.port
        (queue,) = await connected.queues()
        assert queue.running == sum(queue.depth.values()) == 0
    assert (await audit(options)).findings == ()
    return recovered_s


class _Closing:
    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def aclose(self) -> None:
        await self._store.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_a_cluster_goes_on_without_a_primary(
    cluster: Fleet, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    options = StoreOptions(redis_url=cluster.url, namespace="failover", partitions=16)
    recovered_s = await survive(cluster, options, lambda node: node.send(number))
    with capsys.disabled():
        print(f"\n  cluster, primary {number.name}: the first job of its partitions done after {recovered_s:.1f} s")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_sentinels_lead_to_the_next_primary(
    watched: Fleet, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    options = StoreOptions(redis_url=watched.url, namespace="failover", partitions=4)
    recovered_s = await survive(watched, options, lambda node: node.send(number))
    with capsys.disabled():
        print(f"\n  sentinels, primary {number.name}: the first job done after {recovered_s:.1f} s")
