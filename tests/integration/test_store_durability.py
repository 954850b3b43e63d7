"""Durability where there are several servers: each primary is waited for by itself, and a failover loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core.durability import Durability
from penstock.core.errors import NotDurable, StoreError, StoreUnfit
from penstock.core.ids import JobId
from penstock.core.job import Submitted
from penstock.store.redis.store import RedisStore
from tests import fleets
from tests.integration.store_support import new_job, store_at, submit
from tests.missing import skip_or_fail
from tests.waiting import insist

PARTITIONS = 8
PATIENCE_S = 60.0
SYNCED = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(fleets.cluster(tmp_path, *SYNCED)) as fleet:
        yield fleet


async def by_port(store: RedisStore) -> dict[int, list[int]]:
    """Return the partitions of each primary."""
    found: dict[int, list[int]] = {}
    for partition in range(PARTITIONS):
        found.setdefault((await store.connection.server_of(partition)).port, []).append(partition)
    return found


async def accepts(store: RedisStore, partition: int) -> bool:
    """Tell whether a submit to a partition is confirmed."""
    try:
        await submit(store, home=partition)
    except NotDurable:
        return False
    return True


async def test_each_primary_of_a_cluster_waits_for_its_own_replica(cluster: fleets.Fleet, namespace: str) -> None:
    options = {"partitions": PARTITIONS, "durability": Durability.REPLICA}
    async with (
        store_at(cluster.url, namespace, **options, durability_timeout_ms=500) as store,
        # On a busy machine a replica that does follow may take its time.
        store_at(cluster.url, namespace, **options, durability_timeout_ms=60_000) as patient,
    ):
        await store.check()
        await patient.check()
        places = await by_port(store)
        assert len(places) == 3
        frozen, *others = places
        primary = cluster.node_at(frozen)
        follower = cluster.node_at(int(primary.ask("INFO", "replication")["slave0"]["port"]))
        follower.send(signal.SIGSTOP)
        assert not await accepts(store, places[frozen][0])
        assert [await accepts(patient, places[port][0]) for port in others] == [True, True]
        follower.send(signal.SIGCONT)
        assert await accepts(patient, places[frozen][0])


async def test_each_primary_of_a_cluster_syncs_by_itself(cluster: fleets.Fleet, namespace: str) -> None:
    options = {"durability": Durability.FSYNC, "durability_timeout_ms": 60_000}
    async with store_at(cluster.url, namespace, partitions=PARTITIONS, **options) as store:
        await store.check()
        places = await by_port(store)
        loose, *others = places
        cluster.node_at(loose).ask("CONFIG", "SET", "appendfsync", "everysec")
        assert [await accepts(store, places[port][0]) for port in (loose, *others)] == [False, True, True]


async def test_a_failover_loses_nothing_that_the_replica_was_to_have(tmp_path: Path, namespace: str) -> None:
    options = {"durability": Durability.REPLICA, "durability_timeout_ms": 5_000}
    with fleets.running(fleets.sentinel(tmp_path, down_after_ms=1_000)) as fleet:
        async with store_at(fleet.url, namespace, **options) as store:
            await store.check()
            accepted = await submit_until_killed(store, fleet)
            assert len(accepted) >= 200
            await until_promoted(store)
            lost = [job_id for job_id in accepted if await store.get(job_id) is None]
            assert lost == []
            # The new primary has no replica: nothing more is promised.
            with pytest.raises(StoreError):
                await submit(store)


async def submit_until_killed(store: RedisStore, fleet: fleets.Fleet) -> list[JobId]:
    """Submit from many sides, kill the primary in the midst of it, and return what was accepted."""
    accepted: list[JobId] = []
    killed = asyncio.Event()

    async def one() -> None:
        while not killed.is_set():
            job = new_job()
            with contextlib.suppress(StoreError):
                (answer,) = await store.submit([job])
                if isinstance(answer, Submitted):
                    accepted.append(job.id)
            if len(accepted) >= 200 and not killed.is_set():
                killed.set()
                fleet.nodes[0].kill()

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(one() for _ in range(8)))
    return accepted


async def until_promoted(store: RedisStore) -> None:
    """Wait until the sentinels have made the replica the primary; they send no signal that is waited for here."""
    await insist(store.ping, "a primary", trouble=(StoreError,), seconds=PATIENCE_S)


async def test_a_redis_without_waitaof_is_refused_by_name(tmp_path: Path, namespace: str) -> None:
    with fleets.running(fleets.one(tmp_path, fleets.redis_binary(), *SYNCED)) as fleet:
        version = fleet.nodes[0].ask("INFO", "server")["redis_version"]
        if tuple(map(int, version.split(".")[:2])) >= (7, 2):
            skip_or_fail(f"redis-server older than 7.2; this one is {version}")
        async with store_at(fleet.url, namespace, durability=Durability.FSYNC) as store:
            with pytest.raises(StoreUnfit, match=rf"it lacks WAITAOF, .*; this is Redis {re.escape(version)}"):
                await store.check()
        async with store_at(fleet.url, namespace) as store:
            await store.check()
            await submit(store)
