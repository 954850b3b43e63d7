"""Submit jobs and look at them over HTTP, on both stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from penstock.api.front import Front
from penstock.core import events
from penstock.core.durations import format_time
from penstock.core.ids import WorkerName, make_job_id
from penstock.core.job import ClaimRequest, JobError, Settle, TaskInfo, Verb, WorkerInfo
from penstock.core.retry import Backoff
from penstock.core.states import Reason
from penstock.store import Store, StoreOptions, connect
from penstock.store.memory import MemoryStore
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import change_job
from tests.integration.api_support import WORKER, Work, app_of, client_of
from tests.waiting import until_async


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore(lambda: time.time_ns() // 1_000_000)
    else:
        made = await connect(StoreOptions(redis_url=request.getfixturevalue("valkey_url"), namespace=namespace))
    yield made
    await made.close()


@pytest.fixture
def app(store: Store) -> Front:
    # A busy machine may take its time over a scrape.
    return app_of(store, health_timeout_ms=30_000)


@pytest.fixture
async def client(app: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as opened:
        yield opened


async def submit(client: httpx.AsyncClient, **body: Any) -> str:
    response = await client.post("/submit", json={"task": "echo", **body})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def announce(store: Store, *tasks: TaskInfo) -> None:
    worker = WorkerInfo(
        name=WORKER,
        hostname="here",
        pid=1,
        version="0",
        queues=("default",),
        tasks=tuple(task.name for task in tasks),
        concurrency=1,
        running=0,
        started_at_ms=1,
    )
    await store.announce(worker, tasks)


@pytest.mark.parametrize("path", ["/submit", "/jobs", "/submit/"])
async def test_submit_valid(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"task": "echo", "input": {"hello": "world"}})
    assert response.status_code == 202
    body = response.json()
    assert body["status"] == "queued"
    assert body["queue"] == "default"
    assert body["priority"] == "normal"
    assert response.headers["location"] == f"/jobs/{body['id']}"
    job = (await client.get(response.headers["location"])).json()
    assert job["input"] == {"hello": "world"}


async def test_submit_invalid_stores_nothing(client: httpx.AsyncClient) -> None:
    response = await client.post("/submit", json={"task": "echo", "max_attempts": 0, "inputs": 1})
    assert response.status_code == 422
    assert {error["field"] for error in response.json()["errors"]} == {"max_attempts", "inputs"}
    assert (await client.get("/jobs")).json()["items"] == []


async def test_submit_without_task(client: httpx.AsyncClient) -> None:
    response = await client.post("/submit", json={"input": 1})
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "task", "code": "required", "detail": "is missing"}]


async def test_job_found(client: httpx.AsyncClient, store: Store) -> None:
    job_id = await submit(client, tags=["a"], metadata={"who": "me"}, priority="high", retention="1h")
    queued = (await client.get(f"/jobs/{job_id.upper()}")).json()
    assert queued["status"] == "queued"
    assert queued["input"] is None
    assert queued["tags"] == ["a"]
    assert queued["metadata"] == {"who": "me"}
    assert queued["priority"] == "high"
    assert queued["retention"] == 3_600
    await Work(store).settle(Verb.COMPLETE, b'{"ok": [1]}')
    done = (await client.get(f"/jobs/{job_id}")).json()
    assert done["status"] == "completed"
    assert done["result"] == {"ok": [1]}
    assert done["error"] is None
    assert done["attempt"] == 1
    assert done["started_at"] <= done["finished_at"]


@pytest.mark.parametrize(
    ("age_days", "beyond", "words"), [(0, False, "never stored"), (2, True, "may have"), (31, True, "probably")]
)
async def test_job_404(client: httpx.AsyncClient, age_days: int, beyond: bool, words: str) -> None:
    made_ms = time.time_ns() // 1_000_000 - age_days * 86_400_000
    response = await client.get(f"/jobs/{make_job_id(unix_ms=made_ms, home=1, random_bits=2)}")
    assert response.status_code == 404
    body = response.json()
    assert body["code"] == "job_not_found"
    assert body["beyond_retention"] is beyond
    assert body["created_at"] == format_time(made_ms)
    assert words in body["detail"]


@pytest.mark.parametrize("text", ["7", "01a20ab0-5d1d-4186-ba24-91b8627576c8", "ffffffff-ffff-7fff-bfff-ffffffffffff"])
async def test_job_404_of_ids_that_cannot_be(client: httpx.AsyncClient, text: str) -> None:
    response = await client.get(f"/jobs/{text}")
    assert response.status_code == 404
    assert response.json()["code"] == "job_not_found"


@pytest.mark.parametrize(
    "text",
    [
        '{"big": 123456789012345678901234567890, "float": 0.1000000000000000055511151231257827, "e": [], "o": {}}',
        '{ "spaced" : [ 1 , 2.50 ] }',
        '"\\u00e9 \\ud83d\\ude00 é"',
        "-0",
        "null",
        "[[], {}, 1E5]",
    ],
)
async def test_input_is_kept_byte_for_byte(client: httpx.AsyncClient, store: Store, text: str) -> None:
    headers = {"content-type": "application/json"}
    body = f'{{"task": "echo", "input": {text}}}'.encode()
    job_id = (await client.post("/submit", content=body, headers=headers)).json()["id"]
    answer = (await client.get(f"/jobs/{job_id}")).content
    assert f'"input":{text},'.encode() in answer
    (claimed,) = await Work(store).claim()
    assert claimed.input == text.encode()


async def test_the_registry_fills_what_a_submit_leaves_out(store: Store, client: httpx.AsyncClient) -> None:
    backoff = Backoff(base_ms=2_000, factor=3, max_ms=9_000, jitter=False)
    await announce(store, TaskInfo(name="echo", queue="slow", max_attempts=7, backoff=backoff, timeout_ms=1_500))
    job_id = await submit(client)
    job = (await client.get(f"/jobs/{job_id}")).json()
    assert job["queue"] == "slow"
    assert job["max_attempts"] == 7
    assert job["backoff"] == {"base": 2.0, "factor": 3.0, "max": 9.0, "jitter": False}
    assert job["timeout"] == 1.5
    own = (await client.get(f"/jobs/{await submit(client, queue='q', max_attempts=1, timeout='2s', backoff=4)}")).json()
    assert (own["queue"], own["max_attempts"], own["timeout"], own["backoff"]["base"]) == ("q", 1, 2.0, 4.0)


async def test_defaults_in_force(client: httpx.AsyncClient) -> None:
    job = (await client.get(f"/jobs/{await submit(client)}")).json()
    assert job["max_attempts"] == 3
    assert job["backoff"] == {"base": 1.0, "factor": 2.0, "max": 300.0, "jitter": True}
    assert job["timeout"] is None


async def test_delay_and_expiry_are_answered_as_times(client: httpx.AsyncClient) -> None:
    response = await client.post("/submit", json={"task": "echo", "delay": "PT10M", "expires_in": "2h"})
    body = response.json()
    assert body["status"] == "scheduled"
    assert body["created_at"] < body["run_at"] < body["expires_at"]
    job = (await client.get(f"/jobs/{body['id']}")).json()
    assert (job["run_at"], job["expires_at"]) == (body["run_at"], body["expires_at"])


@pytest.mark.parametrize("how", ["query", "header"])
async def test_submit_waits_for_the_end(client: httpx.AsyncClient, store: Store, how: str) -> None:
    sent: dict[str, Any] = {"params": {"wait": "20"}} if how == "query" else {"headers": {"Prefer": "wait=20"}}
    waiting = asyncio.create_task(client.post("/submit", json={"task": "echo"}, **sent))
    work = Work(store)
    while not (claimed := await work.claim()):
        await store.wait_work(WORKER, ("default",), timeout_ms=1_000)
    error = msgspec.json.encode(JobError(type="ValueError", message="no"))
    settle = Settle(token=claimed[0].token, verb=Verb.FAIL, value=error, reason=Reason.EXHAUSTED)
    await store.settle([settle])
    response = await asyncio.wait_for(waiting, 10)
    assert response.status_code == 200
    job = response.json()
    assert (job["status"], job["reason"], job["error"]["message"]) == ("failed", "exhausted", "no")
    assert job["attempts"][0]["error"]["type"] == "ValueError"
    assert job["attempts"][0]["outcome"] == "failed"


async def test_submit_whose_wait_is_over(client: httpx.AsyncClient) -> None:
    response = await client.post("/submit?wait=0.05", json={"task": "echo"})
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


async def test_get_waits_for_the_end(client: httpx.AsyncClient, store: Store) -> None:
    job_id = await submit(client)
    waiting = asyncio.create_task(client.get(f"/jobs/{job_id}?wait=20"))
    await Work(store).settle(Verb.COMPLETE, b"7")
    assert (await asyncio.wait_for(waiting, 10)).json()["result"] == 7
    assert (await client.get(f"/jobs/{make_job_id(unix_ms=1, home=1, random_bits=1)}?wait=20")).status_code == 404


async def test_waits_end_when_the_server_stops(client: httpx.AsyncClient, app: Front) -> None:
    job_id = await submit(client)
    waits = [
        asyncio.create_task(client.get(f"/jobs/{job_id}?wait=60")),
        asyncio.create_task(client.post("/submit?wait=60", json={"task": "echo"})),
    ]

    async def both_are_there() -> bool:
        return len((await client.get("/jobs")).json()["items"]) == 2

    await until_async(both_are_there, "a second job")
    app.services.stopping.set()
    answers = await asyncio.wait_for(asyncio.gather(*waits), 10)
    assert [answer.status_code for answer in answers] == [200, 202]
    refused = await client.post("/submit", json={"task": "echo"})
    assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
    assert (await client.get("/health/ready")).status_code == 503
    assert (await client.get("/health/live")).status_code == 200


async def test_batch_takes_the_good_items_in_order(client: httpx.AsyncClient, store: Store) -> None:
    items = [{"task": f"t{index}", "input": index} for index in range(1_201)]
    items[3] = {"task": ""}
    items[700] = {"tusk": "x"}
    response = await client.post("/jobs/batch", json=items)
    assert response.status_code == 200
    body = response.json()
    assert (body["accepted"], body["rejected"]) == (1_199, 2)
    assert [item["index"] for item in body["items"]] == list(range(1_201))
    assert body["items"][3]["error"]["errors"][0]["field"] == "task"
    assert body["items"][700]["error"]["code"] == "invalid_request"
    claimed = await Work(store).claim(limit=200)
    expected = [index for index in range(202) if index != 3][: len(claimed)]
    assert [int(job.input or b"") for job in claimed] == expected


async def test_batch_of_lines(client: httpx.AsyncClient) -> None:
    lines = b'{"task": "a"}\n\nnot json\n{"task": "b", "input": [1]}'
    headers = {"content-type": "application/x-ndjson"}
    response = await client.post("/jobs/batch", content=lines, headers=headers)
    assert response.headers["content-type"] == "application/x-ndjson"
    answers = [msgspec.json.decode(line) for line in response.content.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert answers[1]["error"]["code"] == "not_json"
    assert [answer.get("status") for answer in answers] == ["queued", None, "queued"]
    as_json = await client.post("/jobs/batch", content=lines, headers={**headers, "accept": "application/json"})
    assert as_json.json()["accepted"] == 2
    both = await client.post("/jobs/batch", json=[{"task": "a"}], headers={"accept": "application/x-ndjson"})
    assert both.headers["content-type"] == "application/x-ndjson"


async def test_list_filters_and_pages(client: httpx.AsyncClient, store: Store) -> None:
    first = await submit(client, queue="a", tags=["x"])
    await Work(store).settle(Verb.COMPLETE, b"1", queue="a")
    others = [await submit(client, queue="a") for _ in range(5)]
    assert await submit(client, queue="b", task="other")

    async def listed(query: str) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = (await client.get(f"/jobs?{query}{cursor}")).json()
            found += [item["id"] for item in page["items"]]
            assert all("input" not in item and "result" not in item for item in page["items"])
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    assert await listed("queue=a&limit=2") == [*others, first]
    assert await listed("status=completed") == [first]
    assert set(await listed("status=completed,queued")) == set(await listed("status=completed&status=queued"))
    assert len(await listed("task=other")) == 1
    assert await listed("tag=x") == [first]
    assert await listed("created_before=2020-01-01T00:00:00Z") == []
    assert len(await listed("created_after=2020-01-01T00:00:00%2B02:00")) == 7


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        ("status=done", "status", "not_allowed"),
        ("limit=0", "limit", "out_of_range"),
        ("limit=-1", "limit", "out_of_range"),
        ("limit=201", "limit", "out_of_range"),
        ("limit=99999999999", "limit", "out_of_range"),
        ("limit=x", "limit", "wrong_type"),
        ("limit=1.5", "limit", "wrong_type"),
        ("cursor=zzz", "cursor", "bad_cursor"),
        ("created_after=yesterday", "created_after", "bad_time"),
        ("queue=a&queue=b", "queue", "conflict"),
        ("queu=a", "queu", "unknown_field"),
        ("tag=%00", "tag", "bad_name"),
    ],
)
async def test_list_refuses(client: httpx.AsyncClient, query: str, field: str, code: str) -> None:
    response = await client.get(f"/jobs?{query}")
    assert response.status_code == 422
    assert [(error["field"], error["code"]) for error in response.json()["errors"]] == [(field, code)]


async def test_cancel(client: httpx.AsyncClient, store: Store) -> None:
    waiting = await submit(client)
    response = await client.post(f"/jobs/{waiting}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    again = await client.post(f"/jobs/{waiting}/cancel")
    assert (again.status_code, again.json()["job_status"]) == (409, "cancelled")
    running = await submit(client)
    (claimed,) = await Work(store).claim()
    asked = await client.post(f"/jobs/{running}/cancel", json={})
    assert (asked.status_code, asked.json()["status"]) == (202, "running")
    assert asked.json()["cancel_requested_at"].endswith("Z")
    assert claimed.token.job_id == running
    assert (await client.post(f"/jobs/{running}/cancel", json={"why": 1})).status_code == 422


async def test_retry_and_delete(client: httpx.AsyncClient, store: Store) -> None:
    scheduled = await submit(client, delay=3_600)
    assert (await client.post(f"/jobs/{scheduled}/retry")).json()["status"] == "queued"
    refused = await client.post(f"/jobs/{scheduled}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "state_conflict")
    not_final = await client.delete(f"/jobs/{scheduled}")
    assert not_final.status_code == 409
    assert f"/jobs/{scheduled}/cancel" in not_final.json()["detail"]
    assert await Work(store).settle(Verb.FAIL, reason=Reason.DISCARDED) == scheduled
    assert (await client.post(f"/jobs/{scheduled}/retry")).json()["status"] == "queued"
    await Work(store).settle(Verb.COMPLETE, b"1")
    assert (await client.delete(f"/jobs/{scheduled}")).status_code == 204
    assert (await client.get(f"/jobs/{scheduled}")).status_code == 404


@pytest.mark.parametrize(("method", "path"), [("POST", "cancel"), ("POST", "retry"), ("DELETE", "")])
async def test_changes_of_jobs_that_are_not_there(client: httpx.AsyncClient, method: str, path: str) -> None:
    missing = make_job_id(unix_ms=time.time_ns() // 1_000_000, home=1, random_bits=2)
    assert (await client.request(method, f"/jobs/{missing}/{path}")).status_code == 404


async def test_queues(client: httpx.AsyncClient, store: Store) -> None:
    await submit(client, priority="critical")
    await submit(client)
    await submit(client, delay=60)
    await Work(store).claim()
    queue = (await client.get("/queues/default")).json()
    assert queue["depth"] == {"critical": 0, "high": 0, "normal": 1, "low": 0}
    assert (queue["waiting"], queue["running"], queue["delayed"], queue["dead_letters"]) == (1, 1, 1, 0)
    assert (await client.get("/queues")).json() == {"items": [queue], "next": None}
    assert (await client.get("/queues/nope")).json()["code"] == "queue_not_found"


async def test_pause_resume_and_purge(client: httpx.AsyncClient, store: Store) -> None:
    ids = [await submit(client, queue="mail") for _ in range(450)]
    paused = await client.post("/queues/mail/pause")
    assert (paused.status_code, paused.json()["paused"], paused.json()["waiting"]) == (200, True, 450)
    ids.append(await submit(client, queue="mail"))
    assert (await store.claim(0, claim_of("mail"))).jobs == ()
    assert 'penstock_queue_paused{queue="mail"} 1.0' in (await client.get("/metrics")).text
    assert (await client.get("/queues")).json()["items"][0]["paused"] is True
    purged = await client.post("/queues/mail/purge", content=b"{}")
    assert (purged.status_code, purged.json()) == (200, {"queue": "mail", "purged": 451, "more": False})
    assert (await client.get(f"/jobs/{ids[-1]}")).json()["status"] == "cancelled"
    assert (await client.post("/queues/mail/resume")).json()["paused"] is False
    last = await submit(client, queue="mail")
    assert [job.token.job_id for job in (await store.claim(0, claim_of("mail"))).jobs] == [last]


@pytest.mark.parametrize("verb", ["pause", "resume", "purge"])
async def test_changes_of_queues_that_are_not_there(client: httpx.AsyncClient, verb: str) -> None:
    assert (await client.post(f"/queues/nope/{verb}")).json()["code"] == "queue_not_found"
    await submit(client)
    assert (await client.post(f"/queues/default/{verb}", content=b'{"a": 1}')).status_code == 422
    assert (await client.post(f"/queues/default/{verb}?force=1")).status_code == 422


def claim_of(queue: str) -> ClaimRequest:
    return ClaimRequest(worker=WorkerName("w"), nonce="n", queues=(queue,), limit=5)


async def test_dead_letters(client: httpx.AsyncClient, store: Store) -> None:
    ids = []
    for index in range(5):
        ids.append(await submit(client, queue="a" if index < 3 else "b", tags=[f"t{index}"]))
        await Work(store).settle(Verb.FAIL, queue="a" if index < 3 else "b", reason=Reason.EXHAUSTED)
    listed = (await client.get("/dead-letter")).json()["items"]
    assert {item["id"] for item in listed} == set(ids)
    assert (await client.post("/dead-letter/redrive", json={"ids": [ids[0]]})).json() == {
        "redriven": 1,
        "skipped": 0,
        "more": False,
    }
    again = (await client.post("/dead-letter/redrive", json={"ids": [ids[0]]})).json()
    assert (again["redriven"], again["skipped"]) == (0, 1)
    assert (await client.post("/dead-letter/redrive", json={"queue": "a", "limit": 1})).json()["redriven"] == 1
    assert (await client.request("DELETE", "/dead-letter", json={"tag": "t4"})).json()["deleted"] == 1
    assert (await client.get(f"/jobs/{ids[4]}")).status_code == 404
    assert (await client.request("DELETE", "/dead-letter", json={"ids": [ids[0]]})).json()["skipped"] == 1
    assert (await client.post("/dead-letter/redrive", json={"all": True})).json()["redriven"] == 2
    assert (await client.get("/dead-letter?queue=a")).json()["items"] == []


@pytest.mark.parametrize("damage", [{"queue": None}, {"head": "{"}], ids=["queue", "head"])
@pytest.mark.parametrize(("method", "path", "verb"), [("POST", "/redrive", "redriven"), ("DELETE", "", "deleted")])
async def test_a_damaged_dead_letter_is_skipped_and_told(
    valkey_url: str,
    namespace: str,
    damage: dict[str, Any],
    method: str,
    path: str,
    verb: str,
) -> None:
    store = await connect(StoreOptions(redis_url=valkey_url, namespace=namespace))
    assert isinstance(store, RedisStore)
    try:
        async with client_of(app_of(store)) as client:
            ids = [await submit(client) for _ in range(3)]
            for _ in ids:
                await Work(store).settle(Verb.FAIL, reason=Reason.EXHAUSTED)
            await change_job(store.connection, ids[1], **damage)
            with structlog.testing.capture_logs() as lines:
                answer = await client.request(method, f"/dead-letter{path}", json={"ids": ids})
    finally:
        await store.close()
    redriven_anyway = verb == "redriven" and "head" in damage
    done = 3 if redriven_anyway else 2
    assert (answer.status_code, answer.json()) == (200, {verb: done, "skipped": 3 - done, "more": False})
    told = [line["job_id"] for line in lines if line["event"] == events.CHANGE_FAILED]
    assert told == ([] if redriven_anyway else [ids[1]])


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "", "empty_filter"),
        ({"ids": []}, "", "empty_filter"),
        ({"all": False}, "", "empty_filter"),
        ({"ids": ["x"]}, "ids.0", "bad_id"),
        ({"all": True, "queue": "a"}, "all", "conflict"),
        ({"queue": "a", "ids": ["01a20ab0-5d1d-7186-ba24-91b8627576c8"]}, "ids", "conflict"),
        ({"all": True, "limit": 0}, "limit", "out_of_range"),
        ({"everything": True}, "everything", "unknown_field"),
        ({"all": 1}, "all", "wrong_type"),
        ({"ids": [1]}, "ids.0", "wrong_type"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/dead-letter/redrive"), ("DELETE", "/dead-letter")])
async def test_dead_letter_choice_refused(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any], field: str, code: str
) -> None:
    response = await client.request(method, path, json=body)
    assert response.status_code == 422
    assert (field, code) in [(error["field"], error["code"]) for error in response.json()["errors"]]


async def test_workers(client: httpx.AsyncClient, store: Store) -> None:
    await announce(store, TaskInfo(name="echo"))
    (worker,) = (await client.get("/workers")).json()["items"]
    assert (worker["name"], worker["tasks"], worker["concurrency"]) == (WORKER, ["echo"], 1)


async def test_metrics_agree_with_queues(client: httpx.AsyncClient, store: Store) -> None:
    for _ in range(3):
        await submit(client, priority="high")
    await Work(store).settle(Verb.COMPLETE, b"1")
    await Work(store).settle(Verb.FAIL, reason=Reason.EXHAUSTED)
    response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = set(response.text.splitlines())
    for line in (
        'penstock_jobs_submitted_total{queue="default"} 3.0',
        'penstock_jobs_completed_total{queue="default"} 1.0',
        'penstock_jobs_failed_total{queue="default"} 1.0',
        'penstock_queue_depth{priority="high",queue="default"} 1.0',
        'penstock_queue_depth{priority="low",queue="default"} 0.0',
        'penstock_dead_letters{queue="default"} 1.0',
        "penstock_store_up 1.0",
        'penstock_http_requests_total{method="POST",route="/submit",status="202"} 3.0',
    ):
        assert line in {_sorted_labels(known) for known in lines}, line


def _sorted_labels(line: str) -> str:
    name, brace, rest = line.partition("{")
    labels, end, value = rest.partition("}")
    return f"{name}{brace}{','.join(sorted(labels.split(',')))}{end}{value}" if brace else line
