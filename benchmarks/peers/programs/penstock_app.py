"""Be Penstock beside its peers: the same order, the same clock."""

import time

import marked
import uvloop

from benchmarks.feed import CALL_JOBS, new_jobs
from benchmarks.feed import submit as submit_jobs
from penstock.store import StoreOptions
from penstock.store.redis.store import RedisStore


def submit(task, numbers):
    async def run():
        store = RedisStore(StoreOptions(redis_url=marked.URL))
        started = time.perf_counter()
        for start in range(0, len(numbers), CALL_JOBS):
            part = numbers[start : start + CALL_JOBS]
            await submit_jobs(store, new_jobs(task, part[0], len(part)))
        seconds = time.perf_counter() - started
        await store.close()
        return seconds

    return uvloop.run(run())


if __name__ == "__main__":
    marked.main(submit)
