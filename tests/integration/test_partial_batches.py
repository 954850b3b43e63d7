"""A batch of which some calls fail: each item is told what is known of it, by the store, the API and the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.client import AsyncClient, ServerUnavailable
from penstock.core.errors import NotSent, StoreFull, StoreUnavailable
from penstock.core.job import Idempotency, NewJob, Submitted
from penstock.core.limits import KIB
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests.integration.api_support import app_of, client_of
from tests.integration.store_support import Proxy, Server, new_job, proxy_to, server_in, store_at, submit

#: Is in the last of the calls that 499 jobs take; that one is not full, and leaves when the others were answered.
LATE = 450
MARK = "cut-here"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path) as running:
        yield running


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with proxy_to(server.port) as running:
        yield running


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as running:
        yield running


def kinds(answers: Sequence[Any]) -> list[type]:
    return [type(answer) for answer in answers]


async def waiting_jobs(store: RedisStore) -> int:
    return sum(sum(queue.depth.values()) for queue in await store.queues())


async def assert_healthy(store: RedisStore) -> None:
    assert (await audit(store.connection.options)).findings == ()


class TestStore:
    async def test_what_was_stored_before_a_call_broke_is_told(self, proxy: Proxy) -> None:
        async with store_at(proxy.url, partitions=1) as store:
            jobs = [new_job() for _ in range(499)]
            proxy.cut_answer_to(jobs[LATE].id.encode())
            answers = await store.submit(jobs)
            assert kinds(answers) == [Submitted] * 400 + [StoreUnavailable] * 99
            # The server has carried the broken call out; under the same ids nothing is stored twice.
            again = await store.submit(jobs)
            assert kinds(again) == [Submitted] * 499
            assert await waiting_jobs(store) == 499
            await assert_healthy(store)

    async def test_what_was_not_sent_is_told_apart(self, proxy: Proxy) -> None:
        async with store_at(proxy.url, partitions=1) as store:
            jobs = [new_job() for _ in range(450)]
            proxy.cut_answer_to(jobs[325].id.encode())
            answers = await store.submit(jobs)
            # The second and the third call may be away still when the fourth breaks.
            assert kinds(answers[:100]) == [Submitted] * 100
            assert kinds(answers[300:]) == [StoreUnavailable] * 100 + [NotSent] * 50
            assert [await store.get(job.id) for job in jobs[400:]] == [None] * 50

    async def test_a_call_that_fails_for_all_is_raised(self, proxy: Proxy) -> None:
        async with store_at(proxy.url, partitions=1) as store:
            await submit(store)
            jobs = [new_job() for _ in range(500)]
            # Three calls are away and lost together, and the fourth is not sent: what leaves most open is raised.
            proxy.cut_answer_to(jobs[0].id.encode())
            with pytest.raises(StoreUnavailable) as raised:
                await store.submit(jobs)
            assert type(raised.value) is StoreUnavailable

    async def test_with_several_partitions_answers_stand_in_their_places(self, proxy: Proxy) -> None:
        async with store_at(proxy.url, partitions=2) as store:
            jobs = [new_job(home=int(number % 4 > 0)) for number in range(200)]
            there = [job for index, job in enumerate(jobs) if index % 4 > 0]
            proxy.cut_answer_to(there[-1].id.encode())
            answers = await store.submit(jobs)
            broken = {job.id for job in there[100:]}
            assert kinds(answers) == [StoreUnavailable if job.id in broken else Submitted for job in jobs]
            assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [
                job.id for job in jobs if job.id not in broken
            ]

    async def test_keys_of_other_partitions_are_kept_for_the_repeat(self, proxy: Proxy) -> None:
        def once(digit: str) -> Idempotency:
            return Idempotency(key=digit * 32, fingerprint="aa", keep_ms=3_600_000)

        def keyed() -> tuple[NewJob, NewJob]:
            # Each lives in another partition than its key.
            return new_job(home=1, idempotency=once("0")), new_job(home=1, idempotency=once("2"))

        async with store_at(proxy.url, partitions=2) as store:
            first, last = keyed()
            jobs = [first, *(new_job(home=1) for _ in range(148)), last]
            proxy.cut_answer_to(jobs[-2].id.encode())
            answers = await store.submit(jobs)
            assert kinds(answers) == [Submitted] * 100 + [StoreUnavailable] * 50
            again = await store.submit(keyed())
            assert [(answer.id, answer.replayed) for answer in again if isinstance(answer, Submitted)] == [
                (first.id, True),
                (last.id, True),
            ]
            assert await waiting_jobs(store) == 150

    async def test_a_server_that_fills_up_on_the_way(self, full: Server) -> None:
        async with store_at(full.url) as store:
            jobs = [new_job(input=b'"%s"' % (b"x" * 64 * KIB)) for _ in range(400)]
            answers = await store.submit(jobs)
            assert set(kinds(answers)) == {Submitted, StoreFull}
            for job, answer in zip(jobs, answers, strict=True):
                assert (await store.get(job.id) is not None) is isinstance(answer, Submitted)
            await assert_healthy(store)


class TestApi:
    async def test_each_item_is_told_what_is_known(self, proxy: Proxy) -> None:
        async with store_at(proxy.url, partitions=1) as store, client_of(app_of(store)) as client:
            # Wrong ones take no place in a call; the last of the chunk must not hide that the store is away.
            jobs: list[Any] = [{"task": "echo", "input": number} for number in range(1_000)]
            jobs[LATE]["input"] = MARK
            jobs[499] = {"task": 7}
            proxy.cut_answer_to(MARK.encode())
            response = await client.post("/jobs/batch", json=jobs)
            assert response.status_code == 200
            answer = response.json()
            assert (answer["accepted"], answer["rejected"]) == (400, 600)
            items = answer["items"]
            assert [item["index"] for item in items] == list(range(1_000))
            assert {item["status"] for item in items[:400]} == {"queued"}
            for item in items[400:499]:
                error = item["error"]
                assert (error["code"], error["status"]) == ("store_unavailable", 503)
                assert "may or may not" in error["detail"]
                assert (await client.get(f"/jobs/{error['job_id']}")).status_code == 200
            assert items[499]["error"]["code"] == "invalid_request"
            for item in items[500:]:
                error = item["error"]
                assert (error["code"], error["status"]) == ("store_unavailable", 503)
                assert "job_id" not in error
                assert error["detail"].startswith("Not taken")
            assert await waiting_jobs(store) == 499

    async def test_what_found_the_store_full_was_not_stored(self, full: Server) -> None:
        async with store_at(full.url) as store, client_of(app_of(store)) as client:
            jobs = [{"task": "echo", "input": "x" * 64 * KIB} for _ in range(400)]
            response = await client.post("/jobs/batch", json=jobs)
            assert response.status_code == 200
            answer = response.json()
            assert answer["accepted"] == await waiting_jobs(store) > 0
            errors = [item["error"] for item in answer["items"] if "error" in item]
            assert len(errors) == answer["rejected"] > 0
            assert {(error["code"], error["status"]) for error in errors} == {("store_full", 503)}
            assert {error["detail"] for error in errors} == {"This job was not stored; try again once there is room."}
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["code"]) == (503, "store_full")
            # Once nothing is taken the status says so.
            none = await client.post("/jobs/batch", json=jobs)
            assert (none.status_code, none.json()["code"]) == (503, "store_full")
            assert int(none.headers["retry-after"]) > 0


async def test_the_client_tells_what_to_look_for(proxy: Proxy) -> None:
    async with store_at(proxy.url, partitions=1) as store:
        transport = httpx.ASGITransport(app_of(store))  # type: ignore[arg-type]
        async with AsyncClient("http://localhost:5000", transport=transport) as client:
            inputs = [MARK if number == LATE else number for number in range(800)]
            proxy.cut_answer_to(MARK.encode())
            found = [item async for item in client.submit_many(("echo", value) for value in inputs)]
            stored = len([item for item in found if item.id is not None])
            # The API hands over 500 at once. Two calls before the one that breaks may be away still.
            assert stored in {200, 300, 400}
            errors = [item.error for item in found[stored:]]
            assert all(isinstance(error, ServerUnavailable) for error in errors)
            maybe = [error.job_id for error in errors if isinstance(error, ServerUnavailable) and error.job_id]
            assert len(maybe) == 500 - stored
            assert [(await client.get(job_id)).input for job_id in maybe] == inputs[stored:500]
