"""Unique keys over real HTTP: many submitters at once, two servers, every way a conflict is answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from penstock import task
from penstock.client import AsyncClient, Client, UniqueConflict
from tests.integration.api_support import Process, api_process

SUBMITTERS = 40


@pytest.fixture
def api(valkey_url: str, namespace: str) -> Iterator[Process]:
    with api_process(valkey_url, namespace) as running:
        yield running


async def at_once(valkey_url: str, namespace: str, partitions: int, on_conflict: str) -> list[httpx.Response]:
    """Submit one key from many connections to two servers at once; return the answers, and last the list of jobs."""
    body = {"task": "echo", "unique": {"key": "report", "on_conflict": on_conflict}}
    with (
        api_process(valkey_url, namespace, partitions=partitions) as one,
        api_process(valkey_url, namespace, partitions=partitions) as two,
    ):
        limits = httpx.Limits(max_connections=SUBMITTERS)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            servers = [one, two] * (SUBMITTERS // 2)
            answers = await asyncio.gather(*(client.post(f"{api.url}/submit", json=body) for api in servers))
            listed = await client.get(f"{one.url}/jobs", params={"limit": 200})
            return [*answers, listed]


PARTITIONS = pytest.mark.parametrize("partitions", [1, 8])


@PARTITIONS
async def test_of_many_at_once_one_is_taken(valkey_url: str, namespace: str, partitions: int) -> None:
    *answers, listed = await at_once(valkey_url, namespace, partitions, "reject")
    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: SUBMITTERS - 1}
    (job_id,) = {answer.json().get("job_id") or answer.json()["id"] for answer in answers}
    assert [job["id"] for job in listed.json()["items"]] == [job_id]
    problem = next(answer for answer in answers if answer.status_code == 409).json()
    assert (problem["code"], problem["job_status"]) == ("unique_conflict", "queued")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [("unique_key", "key_held")]


@PARTITIONS
async def test_of_many_at_once_all_get_the_same_job(valkey_url: str, namespace: str, partitions: int) -> None:
    *answers, listed = await at_once(valkey_url, namespace, partitions, "return_existing")
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert Counter(answer.headers.get("unique-existing") for answer in answers) == {None: 1, "true": SUBMITTERS - 1}
    assert [job["id"] for job in listed.json()["items"]] == [answers[0].json()["id"]]


@PARTITIONS
async def test_of_many_at_once_the_last_is_left(valkey_url: str, namespace: str, partitions: int) -> None:
    *answers, listed = await at_once(valkey_url, namespace, partitions, "replace")
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == SUBMITTERS
    statuses = Counter(job["status"] for job in listed.json()["items"])
    assert statuses == {"queued": 1, "cancelled": SUBMITTERS - 1}


def test_short_and_long_form_share_a_key(api: Process) -> None:
    with httpx.Client(base_url=api.url) as client:
        first = client.post("/submit", json={"task": "echo", "queue": "mail", "unique_key": "k", "delay": 60})
        assert first.status_code == 202
        job_id = first.json()["id"]
        assert client.get(f"/jobs/{job_id}").json()["unique_key"] == "k"
        refused = client.post("/submit", json={"task": "other", "unique": {"key": "k"}})
        assert (refused.status_code, refused.json()["job_id"]) == (409, job_id)
        existing = client.post(
            "/jobs",
            json={"task": "other", "priority": "high", "unique": {"key": "k", "on_conflict": "return_existing"}},
        )
        assert (existing.status_code, existing.headers["unique-existing"]) == (202, "true")
        assert existing.headers["location"] == f"/jobs/{job_id}"
        assert existing.json() == first.json()
        assert client.post(f"/jobs/{job_id}/cancel").status_code == 200
        assert client.post("/submit", json={"task": "echo", "unique_key": "k"}).status_code == 202
        metrics = client.get("/metrics").text
        assert 'penstock_jobs_conflicts_total{queue="default"} 1.0' in metrics
        assert 'penstock_jobs_existing_total{queue="default"} 1.0' in metrics


async def test_a_wait_waits_for_the_existing_job(api: Process) -> None:
    body = {"task": "echo", "unique": {"key": "k", "on_conflict": "return_existing"}}
    async with httpx.AsyncClient(base_url=api.url, timeout=60) as client:
        job_id = (await client.post("/submit", json=body)).json()["id"]
        waiting = asyncio.create_task(client.post("/submit?wait=30", json=body))
        found = 'penstock_jobs_existing_total{queue="default"} 1.0'
        async with asyncio.timeout(30):
            while found not in (await client.get("/metrics")).text:
                pass
        assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 200
        existing = await waiting
    assert (existing.status_code, existing.headers["unique-existing"]) == (200, "true")
    assert (existing.json()["id"], existing.json()["status"]) == (job_id, "cancelled")


@pytest.mark.parametrize("ndjson", [False, True])
def test_items_of_a_batch(api: Process, ndjson: bool) -> None:
    def item(**unique: str) -> str:
        text = ", ".join(f'"{name}": "{value}"' for name, value in unique.items())
        return f'{{"task": "echo", "unique": {{{text}}}}}'

    items = [
        '{"task": "echo", "unique_key": "k"}',
        item(key="k"),
        item(key="k", on_conflict="return_existing"),
        item(key="other"),
        item(key="k", on_conflict="replace"),
        item(until="never", on_conflict="shout", during="1h"),
    ]
    text = "\n".join(items) if ndjson else f"[{', '.join(items)}]"
    media_type = "application/x-ndjson" if ndjson else "application/json"
    answer = httpx.post(
        f"{api.url}/jobs/batch", content=text, headers={"content-type": media_type, "accept": "application/json"}
    ).json()
    assert (answer["accepted"], answer["rejected"]) == (4, 2)
    first, refused, existing, other, last, wrong = answer["items"]
    assert (refused["error"]["code"], refused["error"]["job_id"]) == ("unique_conflict", first["id"])
    assert (existing["id"], existing["existing"]) == (first["id"], True)
    assert len({first["id"], other["id"], last["id"]}) == 3
    assert "existing" not in last
    assert httpx.get(f"{api.url}/jobs/{first['id']}").json()["status"] == "cancelled"
    fields = {(error["field"], error["code"]) for error in wrong["error"]["errors"]}
    assert fields == {
        ("unique.key", "required"),
        ("unique.until", "not_allowed"),
        ("unique.on_conflict", "not_allowed"),
        ("unique.during", "unknown_field"),
    }


@PARTITIONS
def test_with_an_idempotency_key(valkey_url: str, namespace: str, partitions: int) -> None:
    with (
        api_process(valkey_url, namespace, partitions=partitions) as api,
        httpx.Client(base_url=api.url, headers={"idempotency-key": "order-1"}) as client,
    ):
        body = {"task": "echo", "unique_key": "k"}
        first = client.post("/submit", json=body)
        again = client.post("/submit", json=body)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert again.text == first.text
        second = {"idempotency-key": "order-2"}
        assert client.post("/submit", json=body, headers=second).status_code == 409
        existing = {"task": "echo", "unique": {"key": "k", "on_conflict": "return_existing"}}
        third = {"idempotency-key": "order-3"}
        found, repeated = (client.post("/submit", json=existing, headers=third) for _ in range(2))
        assert found.headers["unique-existing"] == repeated.headers["unique-existing"] == "true"
        assert ("idempotency-replayed" in found.headers, "idempotency-replayed" in repeated.headers) == (False, True)
        assert found.text == repeated.text == first.text
        client.post(f"/jobs/{first.json()['id']}/cancel")
        taken = client.post("/submit", json=body, headers=second)
        assert (taken.status_code, "idempotency-replayed" in taken.headers) == (202, False)


async def test_the_clients(api: Process) -> None:
    with Client(api.url) as client:
        job = client.submit("echo", unique_key="k")
        assert not job.existing
        with pytest.raises(UniqueConflict) as refused:
            client.submit("echo", unique_key="k")
        assert (refused.value.job_id, refused.value.status) == (job.id, 409)
        assert refused.value.errors[0].field == "unique_key"
        assert client.get(job.id).unique_key == "k"
        unique = {"key": "k", "on_conflict": "return_existing"}
        refusal, existing = client.submit_many([("echo", 1), {"task": "echo", "unique": unique}], unique_key="k")
        assert isinstance(refusal.error, UniqueConflict)
        # An item that says `unique` beside the `unique_key` of the call says two things.
        assert existing.error is not None
        (found,) = client.submit_many([("echo", 1)], unique=unique)
        assert (found.id, found.existing) == (job.id, True)
    async with AsyncClient(api.url) as client:
        again = await client.submit("echo", unique=unique)
        assert (again.id, again.existing) == (job.id, True)
        newer = await client.submit("echo", unique={"key": "k", "on_conflict": "replace"})
        assert (await client.get(job.id)).status == "cancelled"
        assert newer.id != job.id


@task(unique={"key": "nightly:{customer}", "on_conflict": "reject"})
def nightly(customer: int, kind: str = "pdf") -> None:
    """Stand for a task whose submits have a key of their arguments."""


def test_a_task_makes_the_key_of_its_arguments(api: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", api.url)
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    first = nightly.submit(customer=1)
    with pytest.raises(UniqueConflict) as refused:
        nightly.submit(customer=1, kind="csv")
    assert refused.value.job_id == first.id
    assert nightly.submit(customer=2).id != first.id
    assert nightly.options(unique=None).submit(customer=1).id != first.id
    assert nightly.options(unique_key="other").submit(customer=1).id != first.id
    with Client(api.url) as client:
        job = client.get(first.id)
    assert (job.unique_key, job.input) == ("nightly:1", {"customer": 1})
