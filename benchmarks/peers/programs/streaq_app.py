import asyncio
import time

import marked
from streaq import Worker

worker = Worker(redis_url=marked.URL, concurrency=marked.CONCURRENCY or 16, anyio_kwargs={"use_uvloop": True})


@worker.task
async def noop(n: int) -> int:
    return marked.run(n)


@worker.task
async def short(n: int) -> int:
    await asyncio.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    chosen = {"noop": noop, "short": short}[task]

    async def run():
        async with worker:
            started = time.perf_counter()
            for start in range(0, len(numbers), 1000):
                await worker.enqueue_many([chosen.enqueue(n) for n in numbers[start : start + 1000]])
            return time.perf_counter() - started

    return asyncio.run(run())


if __name__ == "__main__":
    marked.main(submit)
