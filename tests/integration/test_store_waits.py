"""Waiting under trouble: restarts, closes, lost markers and lost signals, many waiters, cancelled waiters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import WorkerName
from penstock.core.limits import Limits
from penstock.core.states import State
from penstock.store.redis import primary as primary_module
from penstock.store.redis import waiter as waiter_module
from penstock.store.redis.store import RedisStore
from penstock.store.upkeep import Upkeep
from tests.integration.store_support import (
    WORKER,
    Server,
    claim,
    claim_one,
    new_job,
    proxy_to,
    server_in,
    settle,
    store_at,
    submit,
)
from tests.waiting import until_async

LONG_MS = 20_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiter_module, "_RETRY_S", 0.02)


async def blocked(store: RedisStore, count: int) -> None:
    """Wait until the server counts this many blocked clients."""

    async def enough() -> bool:
        return (await store.connection.command("INFO", "clients"))["blocked_clients"] >= count  # type: ignore[no-any-return]

    await until_async(enough, f"{count} blocked clients")


class TestMarkers:
    async def test_a_marker_taken_by_a_worker_that_dies_is_set_again(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            await submit(store)
            dying = WorkerName("dying")
            assert await store.wait_work(dying, ["default"], timeout_ms=LONG_MS) == {"queue:default"}
            upkeep = Upkeep(store)
            running = asyncio.create_task(upkeep.run())
            async with asyncio.timeout(5):
                assert await store.wait_work(WORKER, ["default"], timeout_ms=LONG_MS) == {"queue:default"}
            upkeep.stop()
            await running

    async def test_a_marker_whose_answer_was_lost_is_set_again(self, server: Server) -> None:
        async with proxy_to(server.port) as proxy, store_at(proxy.url) as store, store_at(server.url) as other:
            proxy.cut_answer_to(b"BLPOP")
            waiting = asyncio.create_task(store.wait_work(WORKER, ["default"], timeout_ms=LONG_MS))
            await blocked(other, 1)
            await submit(other)
            with pytest.raises(StoreUnavailable):
                await waiting
            await other.reap(0)
            assert await store.wait_work(WORKER, ["default"], timeout_ms=LONG_MS) == {"queue:default"}

    async def test_a_queue_of_other_workers_jobs_says_so(self, valkey_url: str, namespace: str) -> None:
        """The marker stays for the worker that can run them, so a claim that got nothing must tell why."""
        async with store_at(valkey_url, namespace) as store:
            await store.connection.command(
                "ZADD", store.connection.keys[0].key("tasks"), await store.now_ms(), "elsewhere"
            )
            await submit(store, task="elsewhere")
            claimed = await claim(store, tasks=("echo",))
            assert (claimed.jobs, claimed.skipped, claimed.remaining) == ((), 1, True)
            assert await store.wait_work(WORKER, ["default"], timeout_ms=LONG_MS) == {"queue:default"}

    @pytest.mark.not_on("cluster", reason="there nobody blocks on lists, so that none can be counted")
    async def test_more_waiters_than_ordinary_connections_all_wake(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            count = 3 * primary_module.CONNECTIONS
            names = [WorkerName(f"worker-{number}") for number in range(count)]
            waits = [asyncio.create_task(store.wait_work(name, ["default"], timeout_ms=LONG_MS)) for name in names]
            await blocked(store, count)
            # Neither the waits nor what else is asked meanwhile stands in a line.
            async with asyncio.timeout(5):
                await asyncio.gather(*(store.wake(name) for name in names))
                assert await asyncio.gather(*waits) == [frozenset({"wake"})] * count

    async def test_every_wait_ends_when_work_trickles_in(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            done: list[str] = []

            async def work(number: int) -> None:
                name = WorkerName(f"worker-{number}")
                while len(done) < 300:
                    claimed = await claim(store, limit=2, worker=name, nonce=str(number))
                    for job in claimed.jobs:
                        await settle(store, job)
                        done.append(job.token.job_id)
                    if not claimed.jobs and len(done) < 300:
                        await store.wait_work(name, ["default"], timeout_ms=LONG_MS)
                for other in range(4):
                    await store.wake(WorkerName(f"worker-{other}"))

            async def send() -> None:
                for _ in range(300):
                    await submit(store)

            # Without any sweep: no wake-up may be lost while all are alive.
            async with asyncio.timeout(15):
                await asyncio.gather(send(), *(work(number) for number in range(4)))
            assert len(set(done)) == 300


class TestFinal:
    async def test_a_restart_while_waiting(self, server: Server) -> None:
        async with store_at(server.url) as store, store_at(server.url) as other:
            job_id, late = await submit(store), await submit(store)
            waits = [asyncio.create_task(store.wait_final(each, timeout_ms=LONG_MS)) for each in (job_id, late)]
            await blocked(other, 1)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            # One ends while the listener is away, one after it has come back.
            await other.cancel([job_id])
            async with asyncio.timeout(10):
                assert await waits[0] is State.CANCELLED
                await blocked(other, 1)
                await other.cancel([late])
                assert await waits[1] is State.CANCELLED

    async def test_signals_lost_with_an_answer_are_asked_for_again(self, server: Server) -> None:
        async with proxy_to(server.port) as proxy, store_at(proxy.url) as store, store_at(server.url) as other:
            job_id = await submit(other)
            proxy.cut_answer_to(b"BLMPOP")
            waiting = asyncio.create_task(store.wait_final(job_id, timeout_ms=LONG_MS))
            await blocked(other, 1)
            await other.cancel([job_id])
            async with asyncio.timeout(5):
                assert await waiting is State.CANCELLED
            assert proxy.seen == 1

    async def test_waits_that_come_as_the_listener_ends(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            for _ in range(30):
                job_id = await submit(store)
                waiting = asyncio.create_task(store.wait_final(job_id, timeout_ms=LONG_MS))
                await store.ping()
                await settle(store, await claim_one(store))
                async with asyncio.timeout(3):
                    assert await waiting is State.COMPLETED

    async def test_thousands_wait_for_jobs_of_many_partitions(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace, partitions=8) as store, asyncio.timeout(30):
            ids = [await submit(store, home=home % 8) for home in range(1_000)]
            waits = [asyncio.create_task(store.wait_final(job_id, timeout_ms=LONG_MS)) for job_id in ids]
            await until_async(lambda: len(store._waiting) == len(ids), "that all wait")
            await store.cancel(ids)
            assert set(await asyncio.gather(*waits)) == {State.CANCELLED}
            assert store._waiting == {}

    @pytest.mark.not_on("cluster", reason="there nobody blocks on lists, so that none can be counted")
    async def test_cancelled_waiters_leave_nothing(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            job_id = await submit(store)
            waits = [asyncio.create_task(store.wait_final(job_id, timeout_ms=LONG_MS)) for _ in range(20)]
            await blocked(store, 1)
            for wait in waits[:19]:
                wait.cancel()
            await asyncio.wait(waits[:19])
            await store.cancel([job_id])
            assert await waits[19] is State.CANCELLED
            assert store._waiting == {}

    @pytest.mark.not_on("cluster", reason="there nobody blocks on lists, so that none can be counted")
    async def test_a_close_ends_all_waits(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store, store_at(valkey_url, namespace) as other:
            job_id = await submit(store)
            store_waits = [
                asyncio.create_task(store.wait_final(job_id, timeout_ms=LONG_MS)),
                asyncio.create_task(store.wait_work(WORKER, ["other"], timeout_ms=LONG_MS)),
            ]
            await blocked(other, 2)
            await store.close()
            async with asyncio.timeout(3):
                for answer in await asyncio.gather(*store_waits, return_exceptions=True):
                    assert isinstance(answer, StoreUnavailable)
            with pytest.raises(StoreUnavailable):
                await store.wait_final(job_id, timeout_ms=LONG_MS)
            with pytest.raises(StoreUnavailable):
                await store.ping()
            await store.close()

    async def test_close_before_use(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            await store.close()


class TestUpkeep:
    async def test_a_stop_before_the_start_and_twice(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            upkeep = Upkeep(store)
            upkeep.stop()
            upkeep.stop()
            await upkeep.run()

    async def test_a_damaged_index_stops_no_other_sweep(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            old = await submit(store, retention_ms=1)
            await store.cancel([old])
            await store.connection.command("SET", store.connection.keys[0].key("delayed"), "junk")
            upkeep = Upkeep(store)

            async def gone() -> bool:
                await upkeep.run_once()
                return await store.get(old) is None

            await until_async(gone, "that the old job is pruned")

    async def test_what_a_round_leaves_over_is_done_at_once(
        self, valkey_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("penstock.store.upkeep._ROUNDS", 1)
        monkeypatch.setattr("penstock.store.upkeep._REMOVED", 5)
        async with store_at(valkey_url, namespace) as store:
            ids = [await submit(store, retention_ms=1) for _ in range(12)]
            await store.cancel(ids)
            last = await store.now_ms()

            async def later() -> bool:
                return await store.now_ms() > last + 1

            await until_async(later, "that the server's clock goes on")
            upkeep = Upkeep(store)
            assert [await upkeep.run_once() == 0 for _ in range(3)] == [True, True, False]

    async def test_a_round_goes_on_until_nothing_lies_above_the_cap(self, valkey_url: str, namespace: str) -> None:
        """Of many queues a call looks at a few jobs each, so that it removes fewer than it may."""
        async with store_at(valkey_url, namespace, limits=Limits(finished_jobs=16)) as store:
            await store.submit([new_job(queue=f"queue-{number}") for number in range(240)])
            ids = [await submit(store, queue="busy") for _ in range(60)]
            await store.cancel(ids)
            await Upkeep(store).run_once()
            assert sum([await store.get(job_id) is not None for job_id in ids]) <= 16

    async def test_it_survives_an_outage(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.store.upkeep.TICK_S", 0.02)
        async with store_at(server.url) as store, store_at(server.url) as other:
            upkeep = Upkeep(store)
            running = asyncio.create_task(upkeep.run())
            await asyncio.to_thread(server.kill)
            await until_async(lambda: upkeep._away, "that the outage is noticed")
            await asyncio.to_thread(server.start)
            job_id = await submit(other, delay_ms=5)

            async def queued() -> bool:
                record = await other.get(job_id)
                return record is not None and record.state is State.QUEUED

            await until_async(queued, "that the job is promoted")
            upkeep.stop()
            await running
