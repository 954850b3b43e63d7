"""What a 2xx to a submit means: with a disk that is never synced, a power cut, and replicas that stand still."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from penstock.core.durability import Durability
from penstock.core.errors import NotDurable, StoreUnfit
from penstock.core.ids import JobId
from penstock.core.job import Idempotency, Submitted
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests.conformance import schedules
from tests.integration.api_support import api_process
from tests.integration.power_cut import cut_back, synced_bytes, tracing
from tests.integration.store_support import Server, new_job, options_at, server_in, store_at, submit
from tests.waiting import begun, until_async

PATIENCE_S = 60.0
#: Long enough for any disk under load, as a limit that no test waits for.
LONG_MS = 60_000
SHORT_MS = 300
Api = tuple[Server, str]

pytestmark = pytest.mark.not_on("redis7", "redis7-tls", reason="WAITAOF came with Redis 7.2")


def fsync(timeout_ms: int = LONG_MS) -> dict[str, Any]:
    return {"durability": Durability.FSYNC, "durability_timeout_ms": timeout_ms}


def replica(timeout_ms: int = LONG_MS, replicas: int = 0) -> dict[str, Any]:
    return {
        "durability": Durability.REPLICA,
        "durability_timeout_ms": timeout_ms,
        "durability_replicas": replicas,
    }


def as_json(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "durability": options["durability"].value}


@contextlib.asynccontextmanager
async def api_at(url: str, namespace: str, options: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client of a real API that has found its server fit."""
    with api_process(url, namespace, store_options=as_json(options), health_timeout_ms=30_000) as api:
        async with httpx.AsyncClient(base_url=api.url, timeout=PATIENCE_S) as client:
            assert (await client.get("/health/ready")).status_code == 200
            yield client


async def config_set(store: RedisStore, name: str, value: str) -> None:
    await store.connection.command("CONFIG", "SET", name, value)


async def info(store: RedisStore, section: str) -> dict[str, Any]:
    answer = await store.connection.command("INFO", section)
    assert isinstance(answer, dict)
    return answer


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} "))


# with a disk that is not synced


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path) as server:
        yield server


async def never_sync(server: Server, namespace: str) -> None:
    """Keep the server from syncing its file, as may happen to one that is reconfigured while it runs."""
    async with store_at(server.url, namespace) as store:
        await config_set(store, "appendfsync", "no")


async def test_without_a_sync_no_submit_is_accepted(server: Server, namespace: str) -> None:
    job, key = {"task": "echo"}, {"idempotency-key": "k"}
    async with (
        # A key that stands in another partition than its job is one more to wait for.
        api_at(server.url, namespace, {**fsync(SHORT_MS), "partitions": 1}) as client,
        # On a busy machine a disk that does sync may take its time.
        api_at(server.url, namespace, {**fsync(), "partitions": 1}) as patient,
    ):
        await never_sync(server, namespace)
        first = await client.post("/submit", json=job, headers=key)
        # What is there already is no safer than when it came: a repeat waits as well.
        again = await client.post("/jobs", json=job, headers=key)
        for response in (first, again):
            problem = response.json()
            assert (response.status_code, problem["code"]) == (503, "not_durable"), response.text
            assert "may or may not have been taken" in problem["detail"]
            assert "Idempotency-Key" in problem["detail"]
            assert int(response.headers["retry-after"]) > 0
        assert (await client.get(f"/jobs/{first.json()['job_id']}")).status_code == 200
        batch = await client.post("/jobs/batch", json=[job, job])
        assert (batch.status_code, batch.json()["code"]) == (503, "not_durable")
        lines = await client.post(
            "/jobs/batch", content=b'{"task":"a"}\n', headers={"content-type": "application/x-ndjson"}
        )
        assert (lines.status_code, lines.json()["code"]) == (503, "not_durable")
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "not_durable")
        assert await metric(client, "penstock_durability_unconfirmed_total") == 4
        assert await metric(client, "penstock_durability_wait_seconds_count") == 4
        # Some items of a batch may be wrong all by themselves; none is accepted.
        mixed = (await client.post("/jobs/batch", json=[job, {"task": 7}])).json()
        assert mixed["code"] == "not_durable"
        async with store_at(server.url, namespace) as store:
            await config_set(store, "appendfsync", "always")
        accepted = await patient.post("/submit", json=job, headers=key)
        assert (accepted.status_code, accepted.headers["idempotency-replayed"]) == (202, "true")
        assert accepted.json()["id"] == first.json()["job_id"]
        assert (await patient.get("/health/ready")).status_code == 200


async def test_a_wait_holds_up_nothing_else(server: Server, namespace: str) -> None:
    async with api_at(server.url, namespace, fsync()) as client, store_at(server.url, namespace) as store:
        standing = await submit(store)
        await config_set(store, "appendfsync", "no")
        waiting = asyncio.create_task(client.post("/submit", json={"task": "echo"}))
        await until_async(lambda: is_blocked(store), "a call that the server holds up")
        assert (await client.get("/health")).status_code == 200
        assert (await client.get(f"/jobs/{standing}")).status_code == 200
        assert (await client.post(f"/jobs/{standing}/cancel")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        assert not waiting.done()
        await release(store)
        assert (await waiting).status_code == 202


async def is_blocked(store: RedisStore) -> bool:
    return int((await info(store, "clients"))["blocked_clients"]) > 0


async def release(store: RedisStore) -> None:
    """Make the server sync, and write something so that it does."""
    await config_set(store, "appendfsync", "always")
    await store.connection.command("HINCRBY", store.connection.keys[0].key("meta"), "test", 1)


async def test_a_group_waits_once(server: Server, namespace: str) -> None:
    waits: list[tuple[float, bool]] = []
    async with store_at(server.url, namespace) as other, store_at(server.url, namespace, **fsync()) as store:
        store.observe_waits(lambda seconds, confirmed: waits.append((seconds, confirmed)))
        await store.check()
        await config_set(other, "appendfsync", "no")
        first = asyncio.create_task(submit(store))
        await until_async(lambda: is_blocked(other), "a call that the server holds up")
        group = [await begun(submit(store)) for _ in range(50)]
        await release(other)
        await asyncio.gather(first, *group)
    assert [confirmed for _, confirmed in waits] == [True, True]


async def test_all_that_accepts_work_waits(server: Server, namespace: str) -> None:
    async with store_at(server.url, namespace) as other, store_at(server.url, namespace, **fsync(50)) as store:
        await store.check()
        await config_set(other, "appendfsync", "no")
        job = new_job()
        for _ in range(2):
            with pytest.raises(NotDurable, match="appendfsync is 'no'"):
                await store.submit([job])
        assert await other.get(job.id) is not None
        with pytest.raises(NotDurable):
            await store.redrive([job.id])
        with pytest.raises(NotDurable):
            await schedules.put(store)
        # What takes nothing on does not wait.
        await store.cancel([job.id])
        await store.delete([job.id])


async def test_a_key_of_another_partition_waits_too(server: Server, namespace: str) -> None:
    once = Idempotency(key="0" * 32, fingerprint="aa", keep_ms=3_600_000)
    async with store_at(server.url, namespace, partitions=4, **fsync(50)) as store:
        await store.check()
        await config_set(store, "appendfsync", "no")
        for home in range(4):
            with pytest.raises(NotDurable):
                await store.submit([new_job(home=home, idempotency=once)])
        await config_set(store, "appendfsync", "always")
    async with store_at(server.url, namespace, partitions=4, **fsync()) as store:
        (answer,) = await store.submit([new_job(home=3, idempotency=once)])
        assert isinstance(answer, Submitted)
        (again,) = await store.submit([new_job(home=2, idempotency=once)])
        assert isinstance(again, Submitted)
        assert (again.id, again.replayed) == (answer.id, True)


async def test_a_sync_each_second_confirms_nothing(server: Server, namespace: str) -> None:
    """The server would say yes before it has synced, as the test of the power cut has shown."""
    async with store_at(server.url, namespace, **fsync()) as store:
        await store.check()
        await config_set(store, "appendfsync", "everysec")
        with pytest.raises(NotDurable, match="appendfsync is 'everysec', not 'always'"):
            await submit(store)
        await config_set(store, "appendfsync", "always")
        await submit(store)


async def test_a_server_that_loses_its_file_on_the_way_is_noticed(server: Server, namespace: str) -> None:
    async with store_at(server.url, namespace, **fsync()) as store:
        await submit(store)
        await config_set(store, "appendonly", "no")
        with pytest.raises(NotDurable, match="could not be asked"):
            await submit(store)
        with pytest.raises(StoreUnfit, match="append-only file is off"):
            await submit(store)
        await config_set(store, "appendonly", "yes")
        await submit(store)


# a power cut


async def accept(url: str, *, enough: int, cut: Callable[[], None]) -> list[str]:
    """Submit from many sides, cut the power once there is enough, and return each id that was answered with 2xx."""
    accepted: list[str] = []
    reached = asyncio.Event()

    async def one() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            while True:
                response = await client.post("/submit", json={"task": "echo", "input": {"text": "x" * 100}})
                if response.status_code != 202:
                    # Whoever does not get a 2xx was promised nothing.
                    return
                accepted.append(response.json()["id"])
                if len(accepted) >= enough:
                    reached.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(one())
        async with asyncio.timeout(PATIENCE_S):
            await reached.wait()
        await asyncio.to_thread(cut)
    return accepted


@pytest.mark.parametrize(("durability", "appendfsync"), [("fsync", "always"), ("memory", "no")])
async def test_a_power_cut_loses_nothing_that_was_promised_to_be_on_disk(
    tmp_path: Path, namespace: str, durability: str, appendfsync: str
) -> None:
    folder, log = tmp_path / "data", tmp_path / "trace"
    folder.mkdir()
    # A rewrite of the file would begin another one.
    server = Server(folder, "--appendfsync", appendfsync, "--auto-aof-rewrite-percentage", "0", prefix=tracing(log))
    options = {"durability": durability, "durability_timeout_ms": LONG_MS}
    server.start()
    try:
        with api_process(server.url, namespace, store_options=options) as api:
            accepted = await accept(api.url, enough=100, cut=server.kill)
        written, synced = cut_back(folder, log)
        server.prefix = ()
        server.start()
        async with store_at(server.url, namespace) as store:
            lost = [job_id for job_id in accepted if await store.get(JobId(job_id)) is None]
    finally:
        server.kill()
    if durability == "fsync":
        assert lost == [], f"{len(lost)} of {len(accepted)}; {synced} of {written} bytes were synced"
    else:
        # So the cut bites: without a wait for the disk it costs jobs that were answered with 2xx.
        assert lost
        assert synced < written


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    trace = """\
7 write(8</d/a.incr.aof>, ""..., 10) = 10
7 write(9</d/log>, ""..., 99) = 99
8 fdatasync(8</d/a.incr.aof> <unfinished ...>
7 write(8</d/a.incr.aof>, ""..., 5 <unfinished ...>
7 <... write resumed>) = 5
8 <... fdatasync resumed>) = 0
7 write(8</d/a.incr.aof>, ""..., 5) = -1 ENOSPC (No space left on device)
8 fdatasync(8</d/a.incr.aof> <unfinished ...>
8 +++ killed by SIGKILL +++
"""
    assert synced_bytes(trace, "/a.incr.aof") == (15, 10)


# replicas


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    with server_in(tmp_path / "primary", "--repl-diskless-sync-delay", "0") as primary:
        arguments = ("--replicaof", "127.0.0.1", str(primary.port))
        with server_in(tmp_path / "replica", *arguments) as follower:
            yield primary, follower


async def followed(server: Server) -> None:
    """Wait until a replica is there and has all; the server tells who asks with WAIT."""
    client = redis.asyncio.Redis.from_url(server.url, socket_timeout=PATIENCE_S)
    try:
        assert await client.wait(1, round(PATIENCE_S * 500)) == 1
    finally:
        await client.aclose()


async def test_replica_means_that_the_replica_has_it(pair: tuple[Server, Server], namespace: str) -> None:
    primary, follower = pair
    job, key = {"task": "echo"}, {"idempotency-key": "k"}
    await followed(primary)
    async with (
        api_at(primary.url, namespace, replica(500)) as client,
        api_at(primary.url, namespace, replica()) as patient,
    ):
        assert (await patient.post("/submit", json=job)).status_code == 202
        follower.send(signal.SIGSTOP)
        # What is there already is no safer than when it came: a repeat, which writes nothing, waits as well.
        for _ in range(2):
            refused = await client.post("/submit", json=job, headers=key)
            assert (refused.status_code, refused.json()["code"]) == (503, "not_durable"), refused.text
            assert "(0 of 1)" in refused.json()["detail"]
        assert (await client.get("/health/ready")).status_code == 503
        follower.send(signal.SIGCONT)
        repeated = await patient.post("/submit", json=job, headers=key)
        assert (repeated.status_code, repeated.headers.get("idempotency-replayed")) == (202, "true"), repeated.text
        async with store_at(follower.url, namespace) as store:
            assert await store.get(JobId(repeated.json()["id"])) is not None


async def test_the_number_of_replicas_can_be_said(pair: tuple[Server, Server], namespace: str) -> None:
    primary, _ = pair
    await followed(primary)
    async with store_at(primary.url, namespace) as other:
        async with store_at(primary.url, namespace, **replica(replicas=1)) as store:
            await submit(store)
        async with store_at(primary.url, namespace, **replica(replicas=2)) as store:
            with pytest.raises(StoreUnfit, match="1 replicas are connected, 2 are wanted"):
                await store.check()
        report = await audit(options_at(primary.url, namespace, **replica()))
        (check,) = [check for check in report.checks if check.name == "durability"]
        assert (check.status, check.detail.split(":")[0]) == ("warning", "replica")
        await config_set(other, "min-replicas-to-write", "2")
        async with store_at(primary.url, namespace, **replica()) as store:
            await other.connection.verify()
            with pytest.raises(StoreUnfit, match="min-replicas-to-write is 2, and 1 replicas are connected"):
                await store.check()


# what a server cannot give


@pytest.mark.parametrize(
    ("arguments", "options", "lack"),
    [
        (("--appendonly", "no"), fsync(), "append-only file is off"),
        (("--appendfsync", "everysec"), fsync(), "appendfsync is 'everysec': set it to always"),
        (("--appendfsync", "no"), fsync(), "appendfsync is 'no': set it to always"),
        (("--rename-command", "WAITAOF", ""), fsync(), "lacks WAITAOF, which Redis and Valkey have from 7.2 on"),
        ((), replica(), "0 replicas are connected, 1 are wanted"),
    ],
    ids=["no file", "everysec", "no sync", "no WAITAOF", "no replica"],
)
async def test_what_the_server_cannot_give_is_named(
    tmp_path: Path, namespace: str, arguments: tuple[str, ...], options: dict[str, Any], lack: str
) -> None:
    with server_in(tmp_path, *arguments) as server:
        async with store_at(server.url, namespace, **options) as store:
            with pytest.raises(StoreUnfit, match=lack):
                await store.check()
            # Nor is anything sent where the check was missed, because the server was away then.
            with pytest.raises(StoreUnfit, match=lack):
                await submit(store)
            assert (await store.queues()) == []
        report = await audit(options_at(server.url, namespace, **options))
        (check,) = [check for check in report.checks if check.name == "durability"]
        assert check.status == "error"
        assert lack in check.detail
        assert not report.healthy
        async with store_at(server.url, namespace) as store:
            await store.check()
            await submit(store)


class OldServer:
    """Answer as a server of another version would, as far as a start asks."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                words = [await self._word(reader) for _ in range(int((await reader.readuntil(b"\n"))[1:]))]
                writer.write(self._answer(words[0].upper(), len(words)))
                await writer.drain()
        writer.close()

    async def _word(self, reader: asyncio.StreamReader) -> bytes:
        length = int((await reader.readuntil(b"\n"))[1:])
        return (await reader.readexactly(length + 2))[:-2]

    def _answer(self, command: bytes, words: int) -> bytes:
        text = f"redis_version:{self._version}\r\n".encode()
        answers = {
            b"INFO": b"$%d\r\n%s\r\n" % (len(text), text),
            b"GET": b"$-1\r\n",
            b"HMGET": b"*%d\r\n" % (words - 2) + b"$-1\r\n" * (words - 2),
        }
        return answers.get(command, b"+OK\r\n")


async def test_a_server_that_was_away_at_the_start_is_looked_at_by_readiness(tmp_path: Path, namespace: str) -> None:
    server = Server(tmp_path, "--appendonly", "no")
    with api_process(server.url, namespace, store_options=as_json(fsync()), health_timeout_ms=30_000) as api:
        async with httpx.AsyncClient(base_url=api.url, timeout=PATIENCE_S) as client:
            assert (await client.get("/health/ready")).json()["code"] == "store_unavailable"
            server.start()
            try:
                refused = await client.post("/submit", json={"task": "echo"})
                assert (refused.status_code, refused.json()["code"]) == (503, "store_unfit"), refused.text
                ready = await client.get("/health/ready")
                assert (ready.status_code, ready.json()["code"]) == (503, "store_unfit"), ready.text
                async with store_at(server.url, namespace) as store:
                    await config_set(store, "appendfsync", "always")
                    await config_set(store, "appendonly", "yes")
                assert (await client.post("/submit", json={"task": "echo"})).status_code == 202
                assert (await client.get("/health/ready")).status_code == 200
            finally:
                server.kill()


async def test_a_server_that_is_too_old_is_refused_by_name(namespace: str) -> None:
    async with OldServer("6.2.14") as url, store_at(url, namespace) as store:
        for call in (store.check(), submit(store)):
            with pytest.raises(
                StoreUnfit, match=r"the server 127\.0\.0\.1:\d+ is Redis 6\.2\.14; 7\.0 or later is needed"
            ):
                await call


async def test_the_api_stops_its_start_and_names_what_is_missing(tmp_path: Path, namespace: str) -> None:
    with server_in(tmp_path, "--appendonly", "no") as server:
        command = [sys.executable, "-P", "-m", "penstock", "api", "--port", "0", "--redis-url", server.url]
        process = await asyncio.create_subprocess_exec(
            *command, "--durability", "fsync", "--namespace", namespace, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(PATIENCE_S):
            _, stderr = await process.communicate()
    assert process.returncode == 2
    assert "the server can give: its append-only file is off: set appendonly yes, appendfsync always" in stderr.decode()
