"""Schedules over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from penstock.core.limits import Limits
from penstock.core.schedule import plan
from penstock.store.memory import MemoryStore
from tests.integration.api_support import app_of, client_of

START_MS = 1_800_000_000_000
DAILY: dict[str, Any] = {
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "job": {"task": "echo", "input": {"a": [1.50, {}]}},
}


class Clocked(MemoryStore):
    """Stand still until the test moves it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = START_MS
        super().__init__(lambda: self.now, limits=limits)

    async def let_tick(self) -> None:
        due = await self.due_schedules(0)
        ticks = [plan(record, due.now_ms) for record in due.records]
        await self.tick(0, [tick for tick in ticks if tick is not None])


async def put(client: httpx.AsyncClient, name: str = "daily", **body: Any) -> httpx.Response:
    return await client.put(f"/schedules/{quote(name, safe='')}", json=body or DAILY)


def wrong(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 422, response.text
    return {error["field"]: error["code"] for error in response.json()["errors"]}


async def test_a_schedule_is_made_looked_at_and_replaced() -> None:
    store = Clocked()
    async with client_of(app_of(store)) as client:
        made = await put(client)
        assert made.status_code == 201
        shown = made.json()
        assert shown["next"] == [
            "2027-01-16T01:30:00.000Z",
            "2027-01-17T01:30:00.000Z",
            "2027-01-18T01:30:00.000Z",
            "2027-01-19T01:30:00.000Z",
            "2027-01-20T01:30:00.000Z",
        ]
        assert shown["job"]["input"] == {"a": [1.5, {}]}
        assert (shown["job"]["queue"], shown["job"]["max_attempts"], shown["job"]["backoff"]) == ("default", None, None)
        assert (shown["missed"], shown["overlap"], shown["source"], shown["paused"]) == (
            "latest",
            "allow",
            "api",
            False,
        )
        assert shown["ticks"] == {"fired": 0, "skipped": 0, "missed": 0}
        store.now += 60_000
        again = await put(client)
        assert (again.status_code, again.json()) == (200, shown)
        assert (await client.get("/schedules/daily")).json() == shown
        changed = await put(client, **{**DAILY, "overlap": "skip", "missed": "all"})
        assert changed.status_code == 200
        assert (changed.json()["overlap"], changed.json()["missed"], changed.json()["next"]) == (
            "skip",
            "all",
            shown["next"],
        )
        assert changed.json()["updated_at"] > shown["updated_at"]


async def test_every_field_of_the_job_is_taken() -> None:
    job = {
        "task": "t",
        "input": None,
        "type": "ai",
        "queue": "q",
        "priority": "high",
        "max_attempts": 5,
        "backoff": {"base": 2, "factor": 3, "max": 10, "jitter": False},
        "timeout": "2m",
        "expires_in": "1h",
        "tags": ["a"],
        "metadata": {"k": 1},
        "retention": 0,
    }
    async with client_of(app_of(Clocked())) as client:
        shown = (await put(client, every="90s", start_at="2020-01-01T00:00:10Z", job=job)).json()
        assert shown["job"] == {**job, "timeout": 120, "expires_in": 3_600}
        assert (shown["every"], shown["start_at"], shown["cron"], shown["timezone"]) == (
            90,
            "2020-01-01T00:00:10.000Z",
            None,
            None,
        )
        assert shown["next"][0].endswith("T08:00:10.000Z")


async def test_ticks_are_shown_on_schedule_and_job() -> None:
    store = Clocked()
    async with client_of(app_of(store)) as client:
        await put(client, every=60, job={"task": "echo", "tags": ["x"]})
        store.now += 60_000
        await store.let_tick()
        shown = (await client.get("/schedules/daily")).json()
        assert shown["last_tick"] == "2027-01-15T08:01:00.000Z"
        assert shown["ticks"] == {"fired": 1, "skipped": 0, "missed": 0}
        job = (await client.get(f"/jobs/{shown['last_job_id']}")).json()
        assert (job["schedule"], job["scheduled_for"], job["tags"]) == ("daily", "2027-01-15T08:01:00.000Z", ["x"])
        metrics = (await client.get("/metrics")).text
        assert 'penstock_schedule_ticks_fired_total{queue="default"} 1.0' in metrics


async def test_pause_resume_run_and_delete() -> None:
    store = Clocked()
    async with client_of(app_of(store)) as client:
        await put(client, every=60, job={"task": "echo"})
        paused = (await client.post("/schedules/daily/pause")).json()
        assert (paused["paused"], paused["paused_at"], paused["next"]) == (True, "2027-01-15T08:00:00.000Z", [])
        ran = await client.post("/schedules/daily/run")
        assert ran.status_code == 202
        job = (await client.get(ran.headers["location"])).json()
        assert (job["schedule"], job["scheduled_for"], job["status"]) == ("daily", "2027-01-15T08:00:00.000Z", "queued")
        store.now += 90_000
        await store.let_tick()
        resumed = (await client.post("/schedules/daily/resume")).json()
        assert (resumed["paused"], resumed["next"][0]) == (False, "2027-01-15T08:01:00.000Z")
        assert (await client.delete("/schedules/daily")).status_code == 204
        for method, path in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/run"),
        ]:
            gone = await client.request(method, f"/schedules/daily{path}")
            assert (gone.status_code, gone.json()["code"]) == (404, "schedule_not_found")
        assert (await client.get(ran.headers["location"])).status_code == 200


async def test_run_meets_a_full_queue() -> None:
    async with client_of(app_of(Clocked(Limits(max_depth=1)))) as client:
        await put(client, every=60, job={"task": "echo"})
        assert (await client.post("/schedules/daily/run")).status_code == 202
        refused = await client.post("/schedules/daily/run")
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")


async def test_the_list_is_paged_by_name() -> None:
    async with client_of(app_of(Clocked())) as client:
        for name in ("c", "a b", "ü"):
            assert (await put(client, name)).status_code == 201
        first = (await client.get("/schedules", params={"limit": 2})).json()
        assert [item["name"] for item in first["items"]] == ["a b", "c"]
        second = (await client.get("/schedules", params={"limit": 2, "cursor": first["next"]})).json()
        assert ([item["name"] for item in second["items"]], second["next"]) == (["ü"], None)
        assert wrong(await client.get("/schedules", params={"cursor": "!"})) == {"cursor": "bad_cursor"}
        assert (await client.get(f"/schedules/{quote('ü')}")).json()["name"] == "ü"


async def test_there_may_be_so_many() -> None:
    async with client_of(app_of(Clocked(Limits(schedules=1)))) as client:
        assert (await put(client, "a")).status_code == 201
        refused = await put(client, "b")
        assert (refused.status_code, refused.json()["code"]) == (409, "schedules_full")


JOB = {"task": "echo"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"job": JOB}, {"cron": "required"}),
        ({"every": 5}, {"job": "required"}),
        ({"every": 5, "cron": "* * * * *", "job": JOB}, {"every": "conflict"}),
        ({"every": 0.999, "job": JOB}, {"every": "out_of_range"}),
        ({"every": "soon", "job": JOB}, {"every": "bad_duration"}),
        ({"every": 5, "timezone": "UTC", "job": JOB}, {"timezone": "conflict"}),
        ({"cron": "* * * * *", "start_at": "2030-01-01T00:00:00Z", "job": JOB}, {"start_at": "conflict"}),
        ({"every": 5, "start_at": "tomorrow", "job": JOB}, {"start_at": "bad_time"}),
        ({"every": 5, "start_at": "2099-01-01T00:00:00Z", "job": JOB}, {"start_at": "out_of_range"}),
        ({"cron": "0 0 31 2 *", "job": JOB}, {"cron": "bad_cron"}),
        ({"cron": "* * * * * *", "job": JOB}, {"cron": "bad_cron"}),
        ({"cron": "* * * * *", "timezone": "Europe/Nowhere", "job": JOB}, {"timezone": "bad_timezone"}),
        ({"cron": 5, "job": JOB}, {"cron": "wrong_type"}),
        ({"every": 5, "missed": "some", "job": JOB}, {"missed": "not_allowed"}),
        (
            {"every": 5, "job": {"task": "@x", "max_attempts": 0}},
            {"job.task": "bad_name", "job.max_attempts": "out_of_range"},
        ),
        ({"every": 5, "job": {}}, {"job.task": "required"}),
        ({"every": 5, "job": []}, {"job": "wrong_type"}),
        ({"every": 5, "job": {"task": "a", "delay": 5}}, {"job.delay": "unknown_field"}),
        ({"every": 5, "job": {"task": "a", "backoff": {"base": 5, "max": 1}}}, {"job.backoff.max": "conflict"}),
        (
            {"every": 0.1, "job": {"task": "", "backoff": {"base": "soon", "factor": 0, "jitter": 1}}},
            {
                "every": "out_of_range",
                "job.task": "empty",
                "job.backoff.base": "bad_duration",
                "job.backoff.factor": "out_of_range",
                "job.backoff.jitter": "wrong_type",
            },
        ),
        ({"every": 5, "job": {"task": "a", "input": "x" * 70_000}}, {"job.input": "too_large"}),
        ({"every": 5, "task": "echo", "job": JOB}, {"task": "unknown_field"}),
        ({"interval": 5, "job": {"task": "a", "args": []}}, {"interval": "unknown_field", "job.args": "unknown_field"}),
    ],
)
async def test_what_is_wrong_is_named(body: dict[str, Any], fields: dict[str, str]) -> None:
    async with client_of(app_of(Clocked())) as client:
        assert wrong(await put(client, **body)) == fields
        assert (await client.get("/schedules")).json()["items"] == []


@pytest.mark.parametrize("name", ["..", "a" * 129, "tab\there", "\u200b"])
async def test_names_that_no_url_could_carry(name: str) -> None:
    async with client_of(app_of(Clocked())) as client:
        # The client would take the dots for a path of its own.
        path = "/schedules/" + ("%2E%2E" if name == ".." else quote(name, safe=""))
        response = await client.put(path, json=DAILY)
        assert response.status_code in (404, 422)
        if response.status_code == 422:
            assert wrong(response) == {"name": "bad_name"}


async def test_a_number_that_no_worker_could_read() -> None:
    async with client_of(app_of(Clocked())) as client:
        response = await client.put(
            "/schedules/x",
            content=b'{"every":5,"job":{"task":"a","input":1e999}}',
            headers={"content-type": "application/json"},
        )
        assert wrong(response) == {"job.input": "out_of_range"}
