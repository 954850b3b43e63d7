"""A slot is moved key by key under load: nothing runs on half of a partition, and each job is in one place."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.job import SettleCode, Settled, Submitted
from penstock.core.states import State
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests import fleets
from tests.fleets import Fleet, Node
from tests.integration.store_support import claim, new_job, settle, store_at, submit
from tests.waiting import insist

T = TypeVar("T")

LIMIT_S = 90.0
#: Keys of one step of the move; small, so that the load meets many half-moved partitions.
STEP = 7


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Fleet]:
    with fleets.running(fleets.cluster(tmp_path, primaries=2, replicas=0)) as fleet:
        yield fleet


class Load:
    """Submit, claim and settle in one partition until told to stop; what is refused is tried again."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.accepted: set[str] = set()
        self.completed: set[str] = set()
        self.refused = 0
        self.tried = 0
        self.stopping = False
        self._progress = asyncio.Condition()

    async def reach(self, count: int) -> None:
        """Wait until so many jobs are completed."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.completed) >= count)

    async def try_more(self) -> None:
        """Wait until something was tried from now on, with whatever outcome."""
        before = self.tried
        async with self._progress:
            await self._progress.wait_for(lambda: self.tried > before)

    async def stop(self) -> None:
        self.stopping = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call once, and count it."""
        try:
            return await call()
        except StoreUnavailable:
            self.refused += 1
            raise
        finally:
            self.tried += 1
            await self._tell()

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it is taken: nothing tells a client when a slot that moves takes calls again."""
        return await insist(lambda: self._attempt(call), "a call is taken", trouble=(StoreUnavailable,))

    async def submit(self) -> None:
        while not self.stopping:
            job = new_job()
            (answer,) = await self._insist(functools.partial(self.store.submit, [job]))
            assert isinstance(answer, Submitted)
            self.accepted.add(job.id)

    async def work(self) -> None:
        numbers = itertools.count()
        while not (self.stopping and self.completed >= self.accepted):
            # A claim must not be repeated, so each try is another one.
            jobs = (await self._insist(lambda: claim(self.store, limit=10, nonce=f"n{next(numbers)}"))).jobs
            for job in jobs:
                answer = await self._insist(functools.partial(settle, self.store, job))
                assert isinstance(answer, Settled)
                assert answer.code in (SettleCode.DONE, SettleCode.REPEATED)
                self.completed.add(job.token.job_id)
            await self._tell()

    async def sweep(self) -> None:
        while not self.stopping:
            for step in (self.store.promote, self.store.reap, self.store.prune):
                with contextlib.suppress(StoreUnavailable):
                    await self._attempt(functools.partial(step, 0))
            await self.try_more()


async def move(slot: int, source: Node, target: Node, between: Callable[[], Awaitable[None]]) -> int:
    """Move a slot as `redis-cli --cluster reshard` does: key by key. Return how many keys went.

    Between two steps it waits for ``between``: what asks the servers here blocks the loop that the load runs on.
    """
    ids = {node: node.ask("CLUSTER", "MYID").decode() for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    moved = 0
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, STEP):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        moved += len(keys)
        await between()
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    return moved


async def test_a_slot_that_moves_loses_no_job_and_runs_none_twice(cluster: Fleet) -> None:
    async with store_at(cluster.url, "move", partitions=16) as store, asyncio.timeout(LIMIT_S):
        connection = store.connection
        slot = connection.keys[0].slot
        delayed = [await submit(store, delay_ms=3_600_000) for _ in range(50)]
        load = Load(store)
        tasks = [asyncio.create_task(work) for work in (load.submit(), load.submit(), load.work(), load.sweep())]
        await load.reach(100)
        # There and back again.
        for _ in range(2):
            source = cluster.node_at((await connection.server_of(0)).port)
            (target,) = [node for node in cluster.nodes if node is not source]
            before = load.refused
            assert await move(slot, source, target, load.try_more) > 50
            assert load.refused > before, "nothing was tried while the slot moved"
            await load.reach(len(load.completed) + 100)
            assert (await connection.server_of(0)).port == target.port
        await load.stop()
        await asyncio.gather(*tasks)
        assert load.completed == load.accepted
        assert await store.counters() == {
            ("submitted", "default"): len(load.accepted) + len(delayed),
            ("started", "default"): len(load.accepted),
            ("completed", "default"): len(load.accepted),
        }
        for job_id in delayed:
            record = await store.get(job_id)
            assert record is not None
            assert record.state is State.SCHEDULED
    assert (await audit(connection.options)).findings == ()
