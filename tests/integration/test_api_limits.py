"""Bounds that refuse submits: a full queue, and a server near its memory limit while what was accepted still runs."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import httpx
import pytest

from penstock.api.front import Front
from penstock.core.errors import StoreUnavailable
from penstock.core.job import MemoryUse, Settled
from penstock.core.limits import Limits
from penstock.store.memory import MemoryStore
from penstock.store.redis.store import RedisStore
from tests.integration.api_support import app_of, client_of
from tests.integration.store_support import claim_one, server_in, settle, store_at

START_MS = 1_800_000_000_000


class Filling(MemoryStore):
    """Use as much memory as the test says, and count who asks."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(itertools.count(START_MS).__next__, limits=limits)
        self.percent: int | None = 0
        self.asked = 0

    async def memory(self) -> MemoryUse:
        self.asked += 1
        if self.percent is None:
            raise StoreUnavailable("INFO is forbidden")
        return MemoryUse(used_bytes=self.percent * 1_000, max_bytes=100_000)


class Clock:
    """Stand still until the test moves it."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


async def refusals(client: httpx.AsyncClient, code: str) -> float:
    """Return the counter of submits refused by a limit."""
    name = f'penstock_submits_refused_total{{code="{code}"}} '
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def test_a_full_queue_is_429() -> None:
    store = MemoryStore(itertools.count(START_MS).__next__, limits=Limits(queue_max_depth=(("mail", 2),)))
    async with client_of(app_of(store)) as client:
        job = {"task": "a", "queue": "mail"}
        assert await refusals(client, "queue_full") == 0
        batch = (await client.post("/jobs/batch", json=[job, job, job, {"task": "a"}])).json()
        assert (batch["accepted"], batch["rejected"]) == (3, 1)
        error = batch["items"][2]["error"]
        assert (error["code"], error["status"]) == ("queue_full", 429)
        for path, body in (("/submit", job), ("/jobs", job), ("/jobs/batch", [job, job])):
            response = await client.post(path, json=body)
            assert (response.status_code, response.json()["code"]) == (429, "queue_full")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get("/queues/mail")).json()["waiting"] == 2
        assert await refusals(client, "queue_full") == 4
        assert 'penstock_jobs_refused_total{queue="mail"} 5.0' in (await client.get("/metrics")).text


async def test_submits_are_refused_near_the_memory_limit() -> None:
    store, clock = Filling(), Clock()
    app = app_of(store)
    app.services.memory._clock = clock
    async with client_of(app) as client:
        assert (await client.post("/submit", json={"task": "a"})).status_code == 202
        schedule = {"every": "1h", "job": {"task": "a"}}
        assert (await client.put("/schedules/hourly", json=schedule)).status_code == 201
        store.percent = 90
        # What was asked less than a second ago still holds.
        assert (await client.post("/submit", json={"task": "a"})).status_code == 202
        clock.now_ms += 6_000
        for path, body in (("/submit", {"task": "a"}), ("/jobs/batch", [{"task": "a"}])):
            response = await client.post(path, json=body)
            assert (response.status_code, response.json()["code"]) == (503, "store_full")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/health/ready")).status_code == 503
        assert await refusals(client, "store_full") == 2
        response = await client.post("/schedules/hourly/run")
        assert (response.status_code, response.json()["code"]) == (503, "store_full"), response.text
        assert "penstock_store_memory_limit_bytes 100000.0" in (await client.get("/metrics")).text
        store.percent = 89
        clock.now_ms += 1_000
        assert (await client.post("/submit", json={"task": "a"})).status_code == 202
        assert (await client.get("/health/ready")).status_code == 200


async def test_many_submits_ask_once_a_second() -> None:
    store, clock = Filling(), Clock()
    app = app_of(store)
    app.services.memory._clock = clock
    async with client_of(app) as client:
        for _ in range(3):
            for _ in range(20):
                await client.post("/submit", json={"task": "a"})
                # A call in this process may end without giving way to the question.
                await asyncio.sleep(0)
            clock.now_ms += 1_000
    assert store.asked == 3


@pytest.mark.parametrize(("percent", "setting"), [(None, 90), (100, 100), (95, 96)])
async def test_without_an_answer_or_a_bound_the_server_decides(percent: int | None, setting: int) -> None:
    store = Filling()
    store.percent = percent
    async with client_of(app_of(store, limits=Limits(memory_percent=setting))) as client:
        assert (await client.post("/submit", json={"task": "a"})).status_code == 202
        assert "penstock_store_up 1.0" in (await client.get("/metrics")).text


async def test_what_was_accepted_still_runs(tmp_path: Path) -> None:
    with server_in(tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as server:
        async with store_at(server.url, partitions=1) as store:
            app, clock = app_of(store), Clock()
            app.services.memory._clock = clock
            await fill_and_drain(app, clock, store)


async def fill_and_drain(app: Front, clock: Clock, store: RedisStore) -> None:
    async with client_of(app) as client:
        statuses: list[int] = []
        text = "x" * 100_000
        while not statuses or statuses[-1] == 202:
            response = await client.post("/submit", json={"task": "echo", "input": text})
            statuses.append(response.status_code)
            # So that each submit asks.
            clock.now_ms += 6_000
        assert (response.status_code, response.json()["code"]) == (503, "store_full")
        use = await store.memory()
        assert use.is_above(90)
        # The last tenth is left: it was our refusal, not that of the server.
        assert use.used_bytes < use.max_bytes
        for _ in range(statuses.count(202)):
            done = await settle(store, await claim_one(store))
            assert isinstance(done, Settled)
