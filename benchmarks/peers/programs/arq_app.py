import asyncio
import time

import marked
from arq import create_pool
from arq.connections import RedisSettings


async def noop(ctx, n):
    return marked.run(n)


async def short(ctx, n):
    await asyncio.sleep(0.001)
    return marked.run(n)


class WorkerSettings:
    functions = [noop, short]
    redis_settings = RedisSettings.from_dsn(marked.URL)
    max_jobs = marked.CONCURRENCY or 10
    poll_delay = 0.01


def submit(task, numbers):
    async def run():
        pool = await create_pool(RedisSettings.from_dsn(marked.URL))
        started = time.perf_counter()
        for start in range(0, len(numbers), 100):
            await asyncio.gather(*(pool.enqueue_job(task, n) for n in numbers[start : start + 100]))
        seconds = time.perf_counter() - started
        await pool.aclose()
        return seconds

    return asyncio.run(run())


if __name__ == "__main__":
    marked.main(submit)
