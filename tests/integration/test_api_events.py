"""Follow jobs over real HTTP: order, resuming across a restart of the API, bounds, and nothing left behind."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import msgspec
import pytest

from penstock.api.follow import Follower, Seen
from penstock.client import AsyncClient, Client, JobEvent, JobNotFound
from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, Token
from penstock.core.job import Extension, Settle, Verb
from penstock.core.limits import Limits
from penstock.core.output import NewEntry, Output, OutputCode, OutputKind
from penstock.store import Store, StoreOptions, connect
from penstock.store.memory import MemoryStore
from tests.integration.api_support import WORKER, Work, api_process, app_of, client_of, free_port
from tests.waiting import until_async

PATIENCE_S = 60
LEASE_MS = 600_000


@pytest.fixture
async def store(valkey_url: str, namespace: str) -> AsyncIterator[Store]:
    made = await connect(StoreOptions(redis_url=valkey_url, namespace=namespace))
    yield made
    await made.close()


def line(text: str) -> NewEntry:
    return NewEntry(kind=OutputKind.LOG, value=msgspec.json.encode({"level": "info", "message": text}))


def chunk(value: Any) -> NewEntry:
    return NewEntry(kind=OutputKind.STREAM, value=msgspec.json.encode(value))


class Attempt:
    """Be the worker of one attempt."""

    def __init__(self, store: Store, token: Token) -> None:
        self.store = store
        self.token = token
        self._made = 0

    async def write(self, *entries: NewEntry) -> None:
        for start in range(0, len(entries), 500):
            part = entries[start : start + 500]
            assert await self.store.output([Output(token=self.token, made=self._made, entries=part)]) == [
                OutputCode.DONE
            ]
            self._made += len(part)

    async def progress(self, value: bytes) -> None:
        await self.store.extend(WORKER, [Extension(token=self.token, progress=value)], lease_ms=LEASE_MS)

    async def settle(self, verb: Verb, value: bytes = b"", delay_ms: int = 0) -> None:
        await self.store.settle([Settle(token=self.token, verb=verb, value=value, delay_ms=delay_ms)])


async def begin(store: Store) -> Attempt:
    (job,) = await Work(store).claim()
    # Long enough for the slowest machine: nobody renews it.
    await store.extend(WORKER, [Extension(token=job.token)], lease_ms=LEASE_MS)
    return Attempt(store, job.token)


def ask(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, url, headers=headers, timeout=PATIENCE_S)


def submit(url: str) -> JobId:
    answer = httpx.post(f"{url}/submit", json={"task": "echo", "input": 1})
    assert answer.status_code == 202, answer.text
    return JobId(answer.json()["id"])


async def collect(events: AsyncIterator[JobEvent], until: Any = None) -> list[JobEvent]:
    """Read events to the end, or to the first that ``until`` takes."""
    found = []
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            found.append(event)
            if until is not None and until(event):
                break
    return found


def short(event: JobEvent) -> tuple[str, int, Any]:
    """Return what an event says, in short."""
    match event.kind:
        case "state":
            return ("state", event.attempt, event.data["status"])
        case "log":
            return ("log", event.attempt, event.data["message"])
        case "stream":
            return ("stream", event.attempt, event.chunk)
        case _:
            return (event.kind, event.attempt, event.data["progress"])


async def test_all_that_happens_comes_in_order(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        async with AsyncClient(api.url, api_key="") as client:
            events = client.events(job_id)
            assert short(await anext(events)) == ("state", 0, "queued")
            first = await begin(store)
            assert short(await anext(events)) == ("state", 1, "running")
            await first.write(line("a"), chunk("b"), line("c"))
            assert [short(await anext(events)) for _ in range(3)] == [
                ("log", 1, "a"),
                ("stream", 1, "b"),
                ("log", 1, "c"),
            ]
            await first.progress(b'{"done":1}')
            assert short(await anext(events)) == ("progress", 1, {"done": 1})
            await first.write(chunk({"last": True}))
            await first.settle(Verb.RETRY, delay_ms=600_000)
            assert [short(await anext(events)) for _ in range(2)] == [
                ("stream", 1, {"last": True}),
                ("state", 1, "retrying"),
            ]
            await store.redrive([job_id])
            second = await begin(store)
            await second.write(chunk("d"))
            await second.settle(Verb.COMPLETE, b'"done"')
            rest = [short(event) for event in await collect(events)]
        # States that came and went between two looks may be left out; what is written never is.
        assert rest[-2:] == [("stream", 2, "d"), ("state", 2, "completed")]
        assert {event[0] for event in rest[:-2]} <= {"state"}


async def test_a_finished_job_is_told_whole(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        attempt = await begin(store)
        await attempt.write(line("a"), chunk("b"))
        await attempt.settle(Verb.COMPLETE, b"1")
        with Client(api.url, api_key="") as client:
            found = list(client.events(job_id))
            assert [short(event) for event in found] == [("log", 1, "a"), ("stream", 1, "b"), ("state", 1, "completed")]
            job = found[-1].job
            assert job is not None
            assert job.is_final
            # All was seen: there is nothing more, and a browser is told to stop asking.
            assert list(client.events(job_id, last_event_id=found[-1].id)) == []
            again = list(client.events(job_id, last_event_id=found[0].id))
            assert [short(event) for event in again] == [("stream", 1, "b"), ("state", 1, "completed")]
        answer = ask(f"{api.url}/jobs/{job_id}/events", **{"last-event-id": found[-1].id})
        assert (answer.status_code, answer.content) == (204, b"")
        raw = ask(f"{api.url}/jobs/{job_id}/events")
        assert raw.headers["content-type"] == "text/event-stream"
        assert re.fullmatch(r"id: [0-9a-f]{8}-1-1\.1", raw.text.split("\n\n")[-2].split("\n")[0])
        head = ask(f"{api.url}/jobs/{job_id}/events", "HEAD")
        assert (head.status_code, head.content) == (200, b"")


async def test_a_restart_of_the_api_costs_no_event_and_doubles_none(
    store: Store, valkey_url: str, namespace: str
) -> None:
    port = free_port()
    async with AsyncClient(f"http://127.0.0.1:{port}", api_key="") as client:
        with api_process(valkey_url, namespace, port=port) as api:
            job_id = submit(api.url)
            attempt = await begin(store)
            await attempt.write(*(chunk(number) for number in range(5)))
            events = client.events(job_id)
            before = await collect(events, until=lambda event: event.chunk == 4)
            api.process.kill()
            api.process.wait(timeout=30)
        await attempt.write(*(chunk(number) for number in range(5, 10)))
        reading = asyncio.create_task(collect(events))
        with api_process(valkey_url, namespace, port=port):
            await attempt.write(*(chunk(number) for number in range(10, 15)))
            await attempt.settle(Verb.COMPLETE, b"1")
            after = await reading
    told = [event.chunk for event in [*before, *after] if event.kind == "stream"]
    assert told == list(range(15))
    assert short(after[-1]) == ("state", 1, "completed")


async def test_two_attempts_are_told_apart(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        first = await begin(store)
        await first.write(chunk("Once upon"), chunk(" a t"))
        await store.release_worker(WORKER)
        second = await begin(store)
        # The old one is frozen, and wakes: nothing that it says is heard.
        assert await store.output([Output(token=first.token, made=2, entries=(chunk("ime"),))]) == [OutputCode.STALE]
        await second.write(chunk("Once"), chunk(" more"))
        await second.settle(Verb.COMPLETE, b"1")
        with Client(api.url, api_key="") as client:
            told = [(event.attempt, event.chunk) for event in client.events(job_id) if event.kind == "stream"]
    assert told == [(1, "Once upon"), (1, " a t"), (2, "Once"), (2, " more")]


async def test_an_id_from_beyond_the_end_hides_nothing(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        attempt = await begin(store)
        await attempt.write(line("a"), chunk("b"))
        async with AsyncClient(api.url, api_key="") as client:
            events = client.events(job_id, last_event_id="00000000-7-900.900")
            found = await collect(events, until=lambda event: event.kind == "stream")
            assert [short(event) for event in found] == [("state", 1, "running"), ("log", 1, "a"), ("stream", 1, "b")]
            await attempt.write(chunk("c"))
            assert short(await anext(events)) == ("stream", 1, "c")
            await attempt.settle(Verb.COMPLETE, b"1")
            await collect(events)


async def test_many_followers_of_one_job(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        attempt = await begin(store)
        async with AsyncClient(api.url, api_key="") as client:
            followers = [client.events(job_id) for _ in range(30)]
            for events in followers:
                assert short(await anext(events)) == ("state", 1, "running")
            await attempt.write(chunk("x"))
            for events in followers:
                assert short(await anext(events)) == ("stream", 1, "x")
            shown = await client._http.get("/metrics")
            assert "penstock_event_streams 30.0" in shown.text
            await attempt.settle(Verb.COMPLETE, b"1")
            for events in followers:
                assert short((await collect(events))[-1]) == ("state", 1, "completed")
            await streams_are(client, 0)


async def streams_are(client: AsyncClient, count: int) -> None:
    """Wait until the server shows so many open streams."""

    async def shown() -> bool:
        return f"penstock_event_streams {count}.0" in (await client._http.get("/metrics")).text

    await until_async(shown, f"{count} open streams in the metrics", seconds=PATIENCE_S)


async def test_a_client_that_leaves_frees_its_stream(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace, event_streams=2) as api:
        job_id = submit(api.url)
        async with AsyncClient(api.url, api_key="", retries=0) as client:
            first, second = client.events(job_id), client.events(job_id)
            for events in (first, second):
                assert short(await anext(events)) == ("state", 0, "queued")
            refused = await client._http.get(f"/jobs/{job_id}/events")
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
            assert int(refused.headers["retry-after"]) > 0
            await first.aclose()
            await streams_are(client, 1)
            third = client.events(job_id)
            assert short(await anext(third)) == ("state", 0, "queued")
            for events in (second, third):
                await events.aclose()
            await streams_are(client, 0)
        # A stop does not wait for those that are left.
        with Client(api.url, api_key="") as last:
            events_of = last.events(job_id)
            next(events_of)
            assert api.stop() == 0
            events_of.close()


async def test_wrong_ids(store: Store, valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace) as api:
        job_id = submit(api.url)
        for bad in ("x", "1-2-3", "00000000-1-1", "ABCDEF01-1-1.1"):
            answer = ask(f"{api.url}/jobs/{job_id}/events", **{"last-event-id": bad})
            assert answer.status_code == 422, bad
            assert answer.json()["errors"][0]["field"] == "Last-Event-ID"
        gone = job_id[:-4] + "0000"
        with Client(api.url, api_key="") as client, pytest.raises(JobNotFound):
            list(client.events(gone))
        for path in ("events", "log"):
            answer = ask(f"{api.url}/jobs/{gone}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
            answer = ask(f"{api.url}/jobs/{job_id}/{path}?bad=1")
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "bad")


class _Moody(MemoryStore):
    """Be away as often as told."""

    away = 0
    away_for_get = 0

    async def follow(self, job_id: JobId, **fields: Any) -> Any:
        if self.away > 0:
            self.away -= 1
            raise StoreUnavailable("away")
        return await super().follow(job_id, **fields)

    async def get(self, job_id: JobId) -> Any:
        if self.away_for_get > 0:
            self.away_for_get -= 1
            raise StoreUnavailable("away")
        return await super().get(job_id)


async def test_an_outage_in_between_costs_nothing_and_a_disconnect_ends_it() -> None:
    store = _Moody(lambda: time.time_ns() // 1_000_000)
    app = app_of(store)
    async with client_of(app) as client:
        job_id = JobId((await client.post("/submit", json={"task": "echo"})).json()["id"])
    gone = asyncio.Event()
    sent: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.put_nowait(message.get("body", b""))

    async def until(words: bytes) -> bytes:
        text = b""
        async with asyncio.timeout(PATIENCE_S):
            while words not in text:
                text += await sent.get()
        return text

    follower = Follower(app.services, job_id, Seen(), missing=LookupError(), head=False)
    serving = asyncio.create_task(follower.serve(cast("Any", {}), receive, send))
    await until(b'"queued"')
    assert app.services.streams.taken == 1
    store.away = 1
    attempt = await begin(store)
    await attempt.write(chunk("a"))
    told = await until(b'"a"')
    # The look at the status fails, so that what came with it is told by the next one, and once.
    store.away_for_get = 1
    await attempt.write(chunk("b"))
    await attempt.settle(Verb.RETRY, delay_ms=600_000)
    told += await until(b'"retrying"')
    assert b": the store does not answer" in told
    assert (told.count(b'"chunk":"a"'), told.count(b'"chunk":"b"')) == (1, 1)
    gone.set()
    async with asyncio.timeout(PATIENCE_S):
        await serving
    assert app.services.streams.taken == 0
    await store.close()


class TestLog:
    async def test_pages(self, store: Store, valkey_url: str, namespace: str) -> None:
        with api_process(valkey_url, namespace) as api:
            job_id = submit(api.url)
            attempt = await begin(store)
            await attempt.write(*(line(str(number)) for number in range(1_200)), chunk("no line"))
            with Client(api.url, api_key="") as client:
                page = client.log(job_id, limit=700)
                assert [entry.message for entry in page.items] == [str(number) for number in range(200, 900)]
                assert (page.items[0].number, page.items[0].attempt, page.dropped) == (201, 1, 200)
                page = client.log(job_id, limit=700, cursor=page.next)
                assert [entry.message for entry in page.items] == [str(number) for number in range(900, 1_200)]
                assert page.next is None
            for query in ("limit=0", "limit=1001", "limit=x", "cursor=-1"):
                answer = ask(f"{api.url}/jobs/{job_id}/log?{query}")
                assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, query.split("=")[0])

    async def test_a_line_of_another_form(self) -> None:
        store = MemoryStore(lambda: time.time_ns() // 1_000_000, limits=Limits())
        async with client_of(app_of(store)) as client:
            job_id = (await client.post("/submit", json={"task": "echo"})).json()["id"]
            attempt = await begin(store)
            await attempt.write(NewEntry(kind=OutputKind.LOG, value=b'{"text":\n1}'), line("ours"))
            items = (await client.get(f"/jobs/{job_id}/log")).json()["items"]
        assert [item["message"] for item in items] == ["", "ours"]
        assert items[1] | {"time": ""} == {
            "number": 2,
            "attempt": 1,
            "time": "",
            "level": "info",
            "message": "ours",
            "fields": {},
            "exception": None,
            "cut": False,
        }
