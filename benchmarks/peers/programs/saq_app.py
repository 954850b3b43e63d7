import asyncio
import time

import marked
from saq import Queue

queue = Queue.from_url(marked.URL)


async def noop(ctx, *, n):
    return marked.run(n)


async def short(ctx, *, n):
    await asyncio.sleep(0.001)
    return marked.run(n)


settings = {"queue": queue, "functions": [noop, short], "concurrency": marked.CONCURRENCY or 10}


def submit(task, numbers):
    async def run():
        await queue.connect()
        started = time.perf_counter()
        for start in range(0, len(numbers), 100):
            await asyncio.gather(*(queue.enqueue(task, n=n) for n in numbers[start : start + 100]))
        seconds = time.perf_counter() - started
        await queue.disconnect()
        return seconds

    return asyncio.run(run())


if __name__ == "__main__":
    marked.main(submit)
