"""Expiry over HTTP under a clock set by hand: up to the first start, and not from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from penstock.core.job import Verb
from penstock.core.states import State
from tests.conformance.subject import START_MS, Subject, memory_subject, redis_subject
from tests.integration.api_support import Process, Work, api_process, app_of, client_of


class Scene:
    """Hold a store with its clock, and a client of an API on it."""

    def __init__(self, subject: Subject, client: httpx.AsyncClient) -> None:
        self.subject = subject
        self.client = client
        self.work = Work(subject.store)

    async def submit(self, **fields: object) -> str:
        answer = await self.client.post("/submit", json={"task": "echo", **fields})
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    async def pass_time(self, ms: int) -> None:
        await self.subject.advance(ms)
        await self.subject.store.promote(0)

    async def status(self, job_id: str) -> str:
        status: str = (await self.client.get(f"/jobs/{job_id}")).json()["status"]
        return status


@pytest.fixture(params=["memory", "redis"])
async def scene(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            subject = await stack.enter_async_context(memory_subject())
        else:
            url = request.getfixturevalue("valkey_url")
            subject = await stack.enter_async_context(redis_subject(url, namespace, 1))
        app = app_of(subject.store)
        app.services.clock = lambda: subject.now_ms
        yield Scene(subject, await stack.enter_async_context(client_of(app)))
        assert await subject.audit() == []


@pytest.mark.parametrize("fields", [{"expires_in": 2}, {"expires_at": "2027-01-15T08:00:02Z"}])
async def test_a_queued_job_expires(scene: Scene, fields: dict[str, object]) -> None:
    assert START_MS == 1_800_000_000_000
    job_id = await scene.submit(**fields)
    assert (await scene.client.get(f"/jobs/{job_id}")).json()["expires_at"] == "2027-01-15T08:00:02.000Z"
    await scene.pass_time(1_999)
    assert await scene.status(job_id) == "queued"
    await scene.pass_time(1)
    assert await scene.status(job_id) == "expired"
    assert await scene.work.claim() == []
    queue = (await scene.client.get("/queues/default")).json()
    assert (queue["waiting"], queue["finished"]["expired"]) == (0, 1)
    assert 'penstock_jobs_expired_total{queue="default"} 1.0' in (await scene.client.get("/metrics")).text


async def test_a_late_job_is_not_handed_out_before_the_sweep_finds_it(scene: Scene) -> None:
    job_id = await scene.submit(expires_in=2)
    await scene.subject.advance(2_000)
    assert await scene.work.claim() == []
    assert await scene.status(job_id) == "expired"


async def test_a_delayed_job_expires_once_it_is_due_and_nobody_comes(scene: Scene) -> None:
    job_id = await scene.submit(delay=1, expires_in=2)
    assert await scene.status(job_id) == "scheduled"
    await scene.pass_time(1_000)
    assert await scene.status(job_id) == "queued"
    await scene.pass_time(1_000)
    assert await scene.status(job_id) == "expired"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"delay": 5, "expires_in": 5}, "expires_in"),
        ({"delay": 5, "expires_at": "2027-01-15T08:00:04Z"}, "expires_at"),
        ({"run_at": "2027-01-15T08:00:05Z", "expires_in": 2}, "expires_in"),
        ({"run_at": "2027-01-15T08:00:05Z", "expires_at": "2027-01-15T08:00:05Z"}, "expires_at"),
    ],
)
async def test_what_would_expire_before_it_is_due_is_refused(
    scene: Scene, fields: dict[str, object], wrong: str
) -> None:
    answer = await scene.client.post("/submit", json={"task": "echo", **fields})
    assert answer.status_code == 422
    assert [(error["field"], error["code"]) for error in answer.json()["errors"]] == [(wrong, "conflict")]


async def test_a_delayed_job_that_expires_before_it_is_due(scene: Scene) -> None:
    # HTTP refuses it by the API's clock; where that is ahead, the store still keeps its word.
    job_id = await scene.subject.submit(delay_ms=5_000, expires_in_ms=2_000)
    await scene.pass_time(2_000)
    assert await scene.status(job_id) == "expired"
    await scene.pass_time(5_000)
    assert await scene.status(job_id) == "expired"


async def test_a_job_that_nobody_knows_expires_while_it_is_put_off(scene: Scene) -> None:
    job_id = await scene.submit(task="nobody", expires_in=2)
    await scene.subject.claim(tasks=("echo",))
    assert await scene.status(job_id) == "retrying"
    await scene.pass_time(2_000)
    assert await scene.status(job_id) == "expired"


@pytest.mark.parametrize(("verb", "state"), [(Verb.RETRY, "retrying"), (Verb.SNOOZE, "scheduled")])
async def test_what_has_started_once_does_not_expire(scene: Scene, verb: Verb, state: str) -> None:
    job_id = await scene.submit(expires_in=2)
    await scene.work.settle(verb, delay_ms=5_000)
    await scene.pass_time(4_999)
    assert await scene.status(job_id) == state
    await scene.pass_time(1)
    assert await scene.status(job_id) == "queued"
    assert await scene.work.settle(Verb.COMPLETE, b"1") == job_id
    assert await scene.status(job_id) == "completed"


async def test_a_running_job_does_not_expire(scene: Scene) -> None:
    job_id = await scene.submit(expires_in=2)
    (job,) = await scene.work.claim()
    await scene.pass_time(60_000)
    assert await scene.status(job_id) == "running"
    await scene.subject.settle(job.token, Verb.RELEASE)
    await scene.pass_time(60_000)
    assert await scene.status(job_id) == "queued"


async def test_expiry_goes_on_in_a_paused_queue(scene: Scene) -> None:
    job_id = await scene.submit(expires_in=2)
    await scene.client.post("/queues/default/pause")
    await scene.pass_time(2_000)
    assert await scene.status(job_id) == "expired"


@pytest.fixture
def api(valkey_url: str, namespace: str) -> Iterator[Process]:
    with api_process(valkey_url, namespace) as running:
        yield running


def test_who_waits_is_told_by_a_server_without_workers(api: Process) -> None:
    body = {"task": "echo", "expires_in": 0.5}
    answer = httpx.post(f"{api.url}/submit?wait=60", json=body, timeout=90)
    assert (answer.status_code, answer.json()["status"]) == (200, State.EXPIRED.value)
