"""Which weights a worker asks with, and that it sleeps through a pause and wakes at its end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from penstock.core.errors import ConfigError
from penstock.core.job import Claimed, ClaimRequest
from penstock.core.states import State
from penstock.store.memory import MemoryStore
from tests.integration.worker_support import completed, finished, memory_store, new_job, submit, working


class Noting(MemoryStore):
    """Keep the last claim for each set of queues."""

    def __init__(self) -> None:
        super().__init__(lambda: time.time_ns() // 1_000_000)
        self.claims: list[ClaimRequest] = []

    async def claim(self, partition: int, request: ClaimRequest) -> Claimed:
        self.claims.append(request)
        return await super().claim(partition, request)


@pytest.mark.parametrize(
    ("options", "priorities", "queues"),
    [
        ({}, (16, 4, 1), None),
        ({"priorities": "strict"}, None, None),
        ({"queue_weights": (3, 1)}, (16, 4, 1), (3, 1)),
        ({"queue_weights": (3, 1), "priorities": "strict"}, None, (3, 1)),
    ],
)
async def test_claims_carry_the_weights(
    options: dict[str, Any], priorities: tuple[int, ...] | None, queues: tuple[int, ...] | None
) -> None:
    store = Noting()
    async with working(store, queues=("default", "mail"), **options):
        assert await completed(store, "echo", 1) == 1
    whole = [request for request in store.claims if request.queues == ("default", "mail")]
    assert {(request.priority_weights, request.queue_weights) for request in whole} == {(priorities, queues)}
    assert all(0 <= request.draw < 1 for request in whole)
    assert len({request.draw for request in store.claims}) > 1


async def test_slots_of_a_queue_that_no_task_names_stop_the_start() -> None:
    with pytest.raises(ConfigError, match=r"PENSTOCK_QUEUE_SLOTS: 'reprots' is not among .*: 'default'"):
        async with working(memory_store(), queue_slots=(("default", 20), ("reprots", 20))):
            pass


async def test_a_worker_rests_while_its_queue_is_paused() -> None:
    store = Noting()
    async with working(store):
        assert await completed(store, "echo", 1) == 1
        await store.pause("default")
        (job_id,) = await submit(store, new_job("echo", 2))
        assert await store.wait_final(job_id, timeout_ms=100) is State.QUEUED
        await store.resume("default")
        assert (await finished(store, job_id)).state is State.COMPLETED
