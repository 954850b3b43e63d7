"""Take how long script calls of full size last when nothing else runs, so that none waits for a processor."""

from __future__ import annotations

from benchmarks import scripts
from benchmarks.feed import WORKER, Feed, claim_request, new_jobs, submit
from penstock.core.job import ClaimedJob, Extension, Settle, Verb
from penstock.core.limits import SCRIPT_ITEMS
from penstock.store.redis.store import RedisStore

QUEUE = "calls"
LEASE_MS = 60_000
ROUNDS = 20


def full_calls(feed: Feed) -> dict[str, float]:
    """Call each verb that handles many jobs with as many as it takes at once, one call after the other.

    Returns the longest call of each in ms, the slowest first. Other queues must be paused.
    """
    bench = feed.bench

    async def measure(store: RedisStore) -> None:
        await _round(store)  # loads the scripts
        with scripts.every_call_noted(bench):
            for _ in range(ROUNDS):
                await _round(store)

    feed.with_store(measure)
    verbs = set(scripts.verbs().values())
    found = {name: ms for name, ms in scripts.slow_calls(bench).items() if name in verbs}
    bench.ask("SLOWLOG", "RESET")
    return found


async def _round(store: RedisStore) -> None:
    for verb in (Verb.COMPLETE, Verb.RETRY, Verb.FAIL):
        await _submit(store)
        jobs = await _claim(store)
        await store.extend(WORKER, [Extension(token=job.token) for job in jobs], lease_ms=LEASE_MS)
        await store.settle([Settle(token=job.token, verb=verb, value=b"12345", delay_ms=1) for job in jobs])
    failed = [job.token.job_id for job in jobs]
    await store.redrive(failed)
    await store.cancel(failed)
    await store.delete(failed)
    await _submit(store, delay_ms=1)
    await store.promote(0)
    await _claim(store)
    await store.release_worker(WORKER)
    await store.purge(0, QUEUE)
    await store.purge(0, QUEUE)
    await store.reap(0)
    await store.prune(0)


async def _submit(store: RedisStore, *, delay_ms: int | None = None) -> None:
    await submit(store, new_jobs("noop", 0, SCRIPT_ITEMS, queue=QUEUE, delay_ms=delay_ms))


async def _claim(store: RedisStore) -> list[ClaimedJob]:
    return list((await store.claim(0, claim_request(QUEUE, SCRIPT_ITEMS))).jobs)
