"""The server is killed, frozen, full or cut off in the middle of calls: no job is lost, stored by half or run twice."""

from __future__ import annotations

import asyncio
import functools
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.core.errors import StoreError, StoreFull, StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.job import Extension, NewJob, Settle, SettleCode, Settled, Submitted, Verb
from penstock.core.limits import KIB
from penstock.core.states import State
from penstock.store.audit import audit
from penstock.store.protocol import JobStore
from penstock.store.redis import jobs as jobs_module
from penstock.store.redis import primary as primary_module
from penstock.store.redis.codec import stored_state
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import change_job
from tests import waiting
from tests.answers import without_errors
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
from tests.waiting import begun


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path) as running:
        yield running


async def assert_healthy(store: Any) -> None:
    report = await audit(store.connection.options)
    assert report.findings == ()


class TestRestart:
    async def test_calls_go_on_after_a_restart_without_an_error(self, server: Server) -> None:
        async with store_at(server.url) as store:
            await asyncio.gather(*(store.ping() for _ in range(20)))
            job_id = await submit(store)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            # Scripts are gone with the old process, and each idle connection is dead.
            await asyncio.gather(*(store.ping() for _ in range(20)))
            assert (await claim_one(store)).token.job_id == job_id
            await assert_healthy(store)

    async def test_calls_while_it_is_away_fail_at_once_and_recover(self, server: Server) -> None:
        async with store_at(server.url) as store:
            await submit(store)
            server.kill()
            for call in (store.ping(), claim(store), store.submit([new_job()]), store.reap(0), store.queues()):
                with pytest.raises(StoreUnavailable):
                    await call
            server.start()
            assert len((await claim(store)).jobs) == 1

    async def test_a_store_that_starts_before_its_server_connects_later(self, server: Server) -> None:
        server.kill()
        async with store_at(server.url) as store:
            with pytest.raises(StoreUnavailable):
                await submit(store)
            server.start()
            await submit(store)

    async def test_a_load_through_kills_loses_nothing(self, server: Server) -> None:
        jobs = [new_job() for _ in range(2_000)]
        async with store_at(server.url) as store, asyncio.timeout(60):
            load = KilledLoad(store, len(jobs))
            await asyncio.gather(
                load.send(jobs), *(load.work(number) for number in range(3)), load.kill(server, (400, 800, 1_200))
            )
            assert load.done == {job.id for job in jobs}
            (queue,) = await store.queues()
            assert queue.finished[State.COMPLETED] == len(jobs)
            assert sum(queue.depth.values()) == queue.running == 0
            await assert_healthy(store)


class KilledLoad:
    """Submit and run jobs while the server dies; a submit and a settle are repeated, a claim is not."""

    def __init__(self, store: RedisStore, count: int) -> None:
        self.store = store
        self.count = count
        self.done: set[str] = set()
        self._progress = asyncio.Condition()

    async def insist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await waiting.insist(call, "a call is taken", trouble=(StoreUnavailable,))

    async def send(self, jobs: Sequence[NewJob]) -> None:
        for start in range(0, len(jobs), 50):
            await self.insist(functools.partial(self.store.submit, jobs[start : start + 50]))

    async def work(self, number: int) -> None:
        # What a claim took whose answer never came goes back once it is older than any that is worked on.
        arguments = (WORKER, b"\x90", 500, 200, 0, 1, 1, b"\xc0")
        release = functools.partial(self.store.connection.script, "release_held", 0, *arguments)
        while len(self.done) < self.count:
            claimed = await self.insist(functools.partial(claim, self.store, limit=20, nonce=f"nonce-{number}"))
            for job in claimed.jobs:
                answer = await self.insist(functools.partial(settle, self.store, job))
                assert answer.code in (SettleCode.DONE, SettleCode.REPEATED)
                self.done.add(job.token.job_id)
            if not claimed.jobs:
                await self.insist(release)
            async with self._progress:
                self._progress.notify_all()

    async def kill(self, server: Server, counts: Sequence[int]) -> None:
        for count in counts:
            async with self._progress:
                await self._progress.wait_for(lambda count=count: len(self.done) >= count)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)


class TestFrozen:
    @pytest.fixture(autouse=True)
    def _impatience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(primary_module, "CALL_TIMEOUT_S", 0.3)

    async def test_calls_end_within_the_time_out(self, server: Server) -> None:
        async with store_at(server.url) as store:
            job_id = await submit(store)
            server.send(signal.SIGSTOP)
            started = time.monotonic()
            answers = await asyncio.gather(*(store.get(job_id) for _ in range(40)), return_exceptions=True)
            assert all(isinstance(answer, StoreUnavailable) for answer in answers)
            # A machine that does other things takes longer than one time-out; one after the other would take over 12 s.
            assert time.monotonic() - started < 6.0
            server.send(signal.SIGCONT)
            assert (await claim_one(store)).token.job_id == job_id

    async def test_many_first_callers_share_one_time_out(self, server: Server) -> None:
        server.send(signal.SIGSTOP)
        async with store_at(server.url) as store:
            started = time.monotonic()
            answers = await asyncio.gather(*(claim(store) for _ in range(50)), return_exceptions=True)
            assert all(isinstance(answer, StoreUnavailable) for answer in answers)
            # A machine that does other things takes longer than one time-out; one after the other would take over 12 s.
            assert time.monotonic() - started < 6.0
            server.send(signal.SIGCONT)
            await submit(store)

    async def test_a_first_caller_that_goes_away_takes_nobody_along(self, server: Server) -> None:
        async with store_at(server.url) as store:
            first, second = asyncio.create_task(claim(store)), await begun(claim(store))
            first.cancel()
            assert (await second).jobs == ()

    async def test_what_ran_after_the_time_out_repeats_safely(self, server: Server) -> None:
        async with store_at(server.url) as store:
            await store.ping()
            job = new_job()
            await submit(store)
            server.send(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await store.submit([job])
            server.send(signal.SIGCONT)
            (again,) = await store.submit([job])
            assert isinstance(again, Submitted)
            (third,) = await store.submit([job])
            assert isinstance(third, Submitted)
            assert not third.created
            assert len((await claim(store, limit=10)).jobs) == 2


class TestCutAnswers:
    async def test_a_submit_whose_answer_was_lost_repeats_by_id(self, server: Server) -> None:
        async with proxy_to(server.port) as proxy, store_at(proxy.url) as store:
            await submit(store)
            job = new_job()
            proxy.cut_answer_to(job.id.encode())
            with pytest.raises(StoreUnavailable):
                await store.submit([job])
            # The client library must not have sent it again by itself.
            assert proxy.seen == 1
            (again,) = await store.submit([job])
            assert isinstance(again, Submitted)
            assert not again.created
            assert again.state is State.QUEUED
            assert len((await claim(store, limit=10)).jobs) == 2

    @pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.SNOOZE])
    async def test_a_settle_whose_answer_was_lost_repeats_by_token(self, server: Server, verb: Verb) -> None:
        async with proxy_to(server.port) as proxy, store_at(proxy.url) as store:
            await submit(store)
            # Loads the script: otherwise it would be the answer NOSCRIPT that is cut.
            await settle(store, await claim_one(store))
            await submit(store)
            job = await claim_one(store, nonce="a-secret")
            item = Settle(token=job.token, verb=verb, value=b"{}" if verb is Verb.COMPLETE else b"", delay_ms=60_000)
            proxy.cut_answer_to(b"a-secret")
            with pytest.raises(StoreUnavailable):
                await store.settle([item])
            (again,) = await store.settle([item])
            assert isinstance(again, Settled)
            assert again.code is SettleCode.REPEATED
            (other,) = await store.settle(
                [Settle(token=job.token, verb=Verb.FAIL if verb is Verb.COMPLETE else Verb.COMPLETE, value=b"")]
            )
            assert isinstance(other, Settled)
            assert other.code is SettleCode.STALE
            await assert_healthy(store)

    async def test_jobs_of_a_claim_whose_answer_was_lost_come_back(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with proxy_to(server.port) as proxy, store_at(proxy.url) as store:
            ids = [await submit(store) for _ in range(5)]
            kept = await claim_one(store, nonce="kept")
            proxy.cut_answer_to(b"cut-here")
            with pytest.raises(StoreUnavailable):
                await claim(store, limit=10, nonce="cut-here")
            assert (await claim(store, limit=10)).jobs == ()
            # Young ones stay: their answer may be on its way.
            await store.extend(WORKER, [Extension(token=kept.token)], lease_ms=15_000, complete=True)
            assert (await claim(store, limit=10)).jobs == ()
            monkeypatch.setattr(jobs_module, "HELD_MIN_AGE_MS", 0)
            (extended,) = await store.extend(WORKER, [Extension(token=kept.token)], lease_ms=15_000, complete=True)
            assert extended.deadline_ms is not None
            back = (await claim(store, limit=10)).jobs
            assert [job.token.job_id for job in back] == ids[1:]
            assert {(job.counted, job.lost) for job in back} == {(0, 0)}
            await assert_healthy(store)

    async def test_an_answer_is_never_read_by_another_caller(self, server: Server) -> None:
        """Cancel callers at every moment of a call; each one that is left must get the answer to its own question."""
        async with store_at(server.url) as store:
            jobs = [new_job(input=b'"%d"' % number) for number in range(50)]
            await store.submit(jobs)

            async def ask(number: int) -> None:
                if number % 2:
                    assert await store.input(jobs[number].id) == b'"%d"' % number
                else:
                    record = await store.get(jobs[number].id)
                    assert record is not None
                    assert (record.id, record.input) == (jobs[number].id, b'"%d"' % number)

            source = random.Random(7)
            for _ in range(60):
                tasks = [asyncio.create_task(ask(source.randrange(50))) for _ in range(50)]
                for _ in range(source.randrange(12)):
                    await asyncio.sleep(0)
                for task in source.sample(tasks, 25):
                    task.cancel()
                for answer in await asyncio.gather(*tasks, return_exceptions=True):
                    assert answer is None or isinstance(answer, asyncio.CancelledError), answer
            # No connection leaked: all of the pool can be in use at once.
            async with asyncio.timeout(5):
                await asyncio.gather(*(ask(number) for number in range(50)))
            pool = (await store.connection.server_of(0)).calls.connection_pool
            assert len(pool._in_use_connections) == 0


class TestFull:
    @pytest.fixture
    def full(self, tmp_path: Path) -> Iterator[Server]:
        with server_in(tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as running:
            yield running

    async def fill(self, store: JobStore) -> list[JobId]:
        accepted: list[JobId] = []
        for size in (64 * KIB, KIB, 1):
            value = b'"%s"' % (b"x" * size)
            with pytest.raises(StoreFull):
                while len(accepted) < 100_000:
                    accepted += [await submit(store, input=value)]
        return accepted

    async def test_submits_are_refused_and_leave_nothing(self, full: Server) -> None:
        async with store_at(full.url) as store:
            accepted = await self.fill(store)
            job = new_job()
            with pytest.raises(StoreFull):
                await store.submit([job])
            assert await store.get(job.id) is None
            (queue,) = await store.queues()
            assert sum(queue.depth.values()) == len(accepted)
            assert (await store.counters())["submitted", "default"] == len(accepted)
            await assert_healthy(store)

    async def test_work_goes_on_until_there_is_room(self, full: Server) -> None:
        async with store_at(full.url) as store:
            accepted = await self.fill(store)
            jobs = (await claim(store, limit=50)).jobs
            assert len(jobs) == 50
            await store.extend(WORKER, [Extension(token=job.token) for job in jobs], lease_ms=15_000)
            await store.reap(0)
            await store.promote(0)
            await store.cancel([jobs[1].token.job_id])
            assert (await settle(store, jobs[0], value=b'"%s"' % (b"y" * KIB))).code is SettleCode.DONE
            assert (await settle(store, jobs[2], Verb.RELEASE, b"")).code is SettleCode.DONE
            await store.cancel(accepted[60:])
            assert without_errors(await store.delete(accepted[60:]))[0].state is State.CANCELLED
            await submit(store)
            await assert_healthy(store)

    async def test_a_process_that_starts_on_a_full_server_can_work(self, full: Server) -> None:
        async with store_at(full.url) as store:
            await self.fill(store)
        async with store_at(full.url) as late:
            assert len((await claim(late)).jobs) == 1


class TestDamage:
    """One damaged job or key stops neither its neighbours nor the sweeps."""

    async def test_claims_pass_over_damaged_jobs(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            ids = [await submit(store) for _ in range(6)]
            keys = store.connection.keys[0]
            for job_id, field in zip(ids, ("queue", "priority", "task", "created"), strict=False):
                await change_job(store.connection, job_id, **{field: None})
            await store.connection.command("DEL", keys.key("job", ids[4]))
            await store.connection.command("SET", keys.key("job", ids[4]), "junk")
            claimed = await claim(store, limit=10)
            assert [job.token.job_id for job in claimed.jobs] == ids[5:]
            # Told as skipped, so that the worker rests instead of asking on and on.
            assert claimed.skipped == 5

    async def test_a_damaged_input_makes_no_job_run_that_nobody_was_handed(
        self, valkey_url: str, namespace: str
    ) -> None:
        async with store_at(valkey_url, namespace) as store:
            bad, good = await submit(store, input=b'"%s"' % (b"x" * 300)), await submit(store)
            key = store.connection.keys[0].key("input", bad)
            await store.connection.together([("DEL", key), ("RPUSH", key, "x")])
            assert [job.token.job_id for job in (await claim(store, limit=10)).jobs] == [good]
            text = await store.connection.command("GET", store.connection.keys[0].key("job", bad))
            assert stored_state(text) is State.QUEUED

    async def test_a_claim_answers_where_the_longest_lease_cannot_be_kept(
        self, valkey_url: str, namespace: str
    ) -> None:
        async with store_at(valkey_url, namespace) as store:
            job_id = await submit(store)
            key = store.connection.keys[0].key("meta")
            await store.connection.together([("DEL", key), ("SET", key, "junk")])
            assert [job.token.job_id for job in (await claim(store)).jobs] == [job_id]

    async def test_options_that_cannot_be_read_lose_no_other_job(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            bad, good = await submit(store), await submit(store)
            await change_job(store.connection, bad, head="{junk")
            assert [job.token.job_id for job in (await claim(store, limit=10)).jobs] == [good]

    async def test_sweeps_pass_over_damaged_jobs(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            bad, good = await submit(store, delay_ms=1), await submit(store, delay_ms=2)
            await change_job(store.connection, bad, queue=None)
            while (await store.promote(0, limit=1)).queued == 0:
                pass  # each look is a round trip, and the job is due after 2 ms
            record = await store.get(good)
            assert record is not None
            assert record.state is State.QUEUED
            promoted = await store.promote(0)
            assert promoted.next_due_ms is not None
            assert promoted.next_due_ms > promoted.now_ms + 50_000

            gone, stays = await submit(store, retention_ms=1), await submit(store, retention_ms=1)
            await store.cancel([stays, gone])
            await change_job(store.connection, stays, queue=None)

            async def pruned() -> bool:
                await store.prune(0, limit=1)
                return await store.get(gone) is None

            await waiting.until_async(pruned, "that the job is pruned")

    async def test_a_worker_renews_the_rest_of_its_leases(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            for _ in range(3):
                await submit(store)
            jobs = (await claim(store, limit=3)).jobs
            key = store.connection.keys[0].key("job", jobs[1].token.job_id)
            await store.connection.together([("DEL", key), ("SET", key, "junk")])
            answers = await store.extend(WORKER, [Extension(token=job.token) for job in jobs], lease_ms=15_000)
            assert [answer.deadline_ms is not None for answer in answers] == [True, False, True]

    @pytest.mark.parametrize("index", [("running", WORKER), ("leases",)])
    async def test_a_lost_lease_entry_is_set_again_by_its_worker(
        self, valkey_url: str, namespace: str, index: tuple[str, ...]
    ) -> None:
        async with store_at(valkey_url, namespace) as store:
            await submit(store)
            job = await claim_one(store)
            await store.connection.command("DEL", store.connection.keys[0].key(*index))
            await store.extend(WORKER, [Extension(token=job.token)], lease_ms=15_000)
            await assert_healthy(store)

    @pytest.mark.parametrize("index", ["queue", "ready", "counters", "queues"])
    async def test_a_submit_into_a_damaged_index_leaves_nothing(
        self, valkey_url: str, namespace: str, index: str
    ) -> None:
        async with store_at(valkey_url, namespace) as store:
            keys = store.connection.keys[0]
            key = keys.key("queue", "default", "normal") if index == "queue" else keys.key(index)
            await store.connection.command("SET", key, "junk")
            job = new_job()
            answers: list[Any]
            try:
                answers = await store.submit([job])
            except StoreError as error:
                answers = [error]
            assert isinstance(answers[0], Exception)
            if index != "ready":
                assert await store.get(job.id) is None
                await store.connection.command("DEL", key)
                await submit(store)
                assert len((await claim(store, limit=5)).jobs) == 1

    async def test_a_submit_never_removes_what_stood_under_its_id(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            job = new_job()
            key = store.connection.keys[0].key("job", job.id)
            await store.connection.command("SET", key, "of another kind")
            (answer,) = await store.submit([job])
            assert isinstance(answer, StoreError)
            assert await store.connection.command("GET", key) == b"of another kind"

    async def test_a_damaged_gauge_stops_no_job(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            await store.connection.command("HSET", store.connection.keys[0].key("gauges"), "running:default", "junk")
            await submit(store)
            assert (await settle(store, await claim_one(store))).code is SettleCode.DONE

    @pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE])
    async def test_a_job_is_never_in_no_place(self, valkey_url: str, namespace: str, verb: Verb) -> None:
        """The index that a job would enter is damaged: the job stays where it is, and goes on when that is repaired."""
        async with store_at(valkey_url, namespace) as store:
            keys = store.connection.keys[0]
            target = {
                Verb.COMPLETE: keys.key("final", "completed", "default"),
                Verb.RETRY: keys.key("delayed"),
                Verb.FAIL: keys.key("dead", "default"),
                Verb.RELEASE: keys.key("queue", "default", "normal"),
            }[verb]
            await submit(store)
            job = await claim_one(store)
            await store.connection.command("SET", target, "junk")
            assert isinstance(await settle(store, job, verb, b""), StoreError)
            record = await store.get(job.token.job_id)
            assert record is not None
            assert record.state is State.RUNNING
            await store.connection.command("DEL", target)
            assert (await settle(store, job, verb, b"")).code is SettleCode.DONE
            await assert_healthy(store)


class TestOddNames:
    @pytest.mark.parametrize("queue", ["a:b", "a b", "100%", "%s", "übergröße", "[x]*?\\", "a|b", "high:normal", "{0}"])
    async def test_a_queue_of_any_name_works(self, valkey_url: str, namespace: str, queue: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            worker = f"worker|{queue}"
            ids = [await submit(store, queue=queue) for _ in range(4)]
            jobs = (await claim(store, limit=3, queues=(queue,), worker=worker)).jobs
            await settle(store, jobs[0])
            await settle(store, jobs[1], Verb.FAIL, b'{"type":"E|","message":"m|n"}')
            await store.cancel([ids[3]])
            record = await store.get(ids[1])
            assert record is not None
            assert record.attempts[0].worker == worker
            assert record.attempts[0].error is not None
            assert record.attempts[0].error.message == "m|n"
            await store.release_worker(worker)  # type: ignore[arg-type]
            assert await store.wait_work(WORKER, [queue], timeout_ms=5_000) == {f"queue:{queue}"}
            await store.reap(0)
            assert [info.name for info in await store.queues()] == [queue]
            await assert_healthy(store)

    async def test_thousands_of_queues_can_be_served(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            await submit(store, queue="queue-2999")
            queues = tuple(f"queue-{number}" for number in range(3_000))
            assert len((await claim(store, queues=queues)).jobs) == 1


async def test_thousands_of_partitions(valkey_url: str, namespace: str) -> None:
    async with store_at(valkey_url, namespace, partitions=4096) as store:
        jobs = [new_job(home=home) for home in range(0, 4096, 64)]
        await store.submit(jobs)
        assert await store.wait_work(WORKER, ["default"], timeout_ms=5_000) == {"queue:default"}
        for job in jobs:
            claimed = await claim_one(store, partition=int(job.id[15:18], 16))
            assert claimed.token.job_id == job.id
        await assert_healthy(store)
