"""Let sentinels put another server in the place of a primary that lives on: no call stays with the old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.states import State
from penstock.store import StoreOptions, connect
from tests import fleets
from tests.integration.worker_support import new_job, submit
from tests.waiting import until_async


@pytest.fixture
def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[fleets.Fleet]:
    with fleets.running(fleets.sentinel(tmp_path / "fleet", *request.param, replicas=2)) as fleet:
        yield fleet


def named(fleet: fleets.Fleet) -> fleets.Node:
    _, port = fleet.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", fleets.SERVICE)
    return fleet.node_at(int(port))


@pytest.mark.parametrize(
    "fleet",
    [(), ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "5")],
    ids=["it takes writes", "it refuses writes"],
    indirect=True,
)
async def test_calls_leave_a_primary_that_was_replaced_and_does_not_know_it(
    fleet: fleets.Fleet, namespace: str
) -> None:
    store = await connect(StoreOptions(redis_url=fleet.url, namespace=namespace))
    try:
        await submit(store, new_job("before"))
        old = named(fleet)
        fleet.sentinels[0].ask("SENTINEL", "FAILOVER", fleets.SERVICE)
        await asyncio.to_thread(fleets.until, lambda: named(fleet) is not old, "that the sentinels name another")
        moved_s = time.monotonic()

        async def arrived() -> JobId | None:
            (job_id,) = await submit(store, new_job("after"))
            return job_id if await asyncio.to_thread(has, named(fleet), namespace, job_id) else None

        # Calls go on all the time, as those of a process do.
        job_id = await until_async(
            arrived, "a submit that the new primary has", trouble=(StoreUnavailable, AssertionError)
        )
        lasted_s = time.monotonic() - moved_s
        # The sentinels tell the old one after ten seconds.
        knows = await asyncio.to_thread(old.ask, "ROLE")
        assert knows[0] == b"master" or lasted_s < 8, lasted_s
        record = await store.get(job_id)
        assert record is not None
        assert record.state is State.QUEUED
    finally:
        await store.close()


def has(node: fleets.Node, namespace: str, job_id: str) -> bool:
    return bool(node.ask("EXISTS", f"{namespace}:{{1bz}}:job:{job_id}"))
