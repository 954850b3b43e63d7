"""A slot is moved key by key under load: nothing runs on half of a partition, and each job is in one place."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.job import NewJob, SettleCode, Settled, Submitted
from penstock.core.states import State
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests import fleets
from tests.fleets import Fleet, Node
from tests.integration.store_support import claim, new_job, settle, store_at, submit

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
        self.stopping = False
        self._progress = asyncio.Condition()

    async def reach(self, count: int) -> None:
        """Wait until so many jobs are completed."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.completed) >= count)

    async def submit(self) -> None:
        while not self.stopping:
            await self._insist_on(new_job())

    async def _insist_on(self, job: NewJob) -> None:
        while True:
            try:
                (answer,) = await self.store.submit([job])
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0.002)
                continue
            assert isinstance(answer, Submitted)
            self.accepted.add(job.id)
            return

    async def work(self) -> None:
        for number in itertools.count():
            try:
                jobs = (await claim(self.store, limit=10, nonce=f"n{number}")).jobs
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0.002)
                continue
            for job in jobs:
                while True:
                    try:
                        answer = await settle(self.store, job)
                    except StoreUnavailable:
                        await asyncio.sleep(0.002)
                        continue
                    assert isinstance(answer, Settled)
                    assert answer.code in (SettleCode.DONE, SettleCode.REPEATED)
                    break
                self.completed.add(job.token.job_id)
            async with self._progress:
                self._progress.notify_all()
            if self.stopping and not jobs and self.completed >= self.accepted:
                return
            if not jobs:
                await asyncio.sleep(0.002)

    async def sweep(self) -> None:
        while not self.stopping:
            for step in (self.store.promote, self.store.reap, self.store.prune):
                try:
                    await step(0)
                except StoreUnavailable:
                    self.refused += 1
            await asyncio.sleep(0.01)


async def move(slot: int, source: Node, target: Node) -> int:
    """Move a slot as `redis-cli --cluster reshard` does: key by key. Return how many keys went."""
    ids = {node: node.ask("CLUSTER", "MYID").decode() for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    moved = 0
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, STEP):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        moved += len(keys)
        await asyncio.sleep(0.002)
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
            assert await move(slot, source, target) > 50
            assert load.refused > before, "nothing was tried while the slot moved"
            await load.reach(len(load.completed) + 100)
            assert (await connection.server_of(0)).port == target.port
        load.stopping = True
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
