import asyncio
import os
import time

import marked
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

KIND = {"list": ListQueueBroker, "stream": RedisStreamBroker}[os.environ.get("BENCHMARK_BROKER", "stream")]
# A stream is read from its start, for what is submitted before the first worker.
FROM_START = {"consumer_id": "0"} if KIND is RedisStreamBroker else {}
broker = KIND(url=marked.URL, **FROM_START).with_result_backend(
    RedisAsyncResultBackend(redis_url=marked.URL, prefix_str="result", result_ex_time=3600)
)


@broker.task(task_name="noop")
async def noop(n: int) -> int:
    return marked.run(n)


@broker.task(task_name="short")
async def short(n: int) -> int:
    await asyncio.sleep(0.001)
    return marked.run(n)


def submit(task, numbers):
    chosen = {"noop": noop, "short": short}[task]

    async def run():
        await broker.startup()
        started = time.perf_counter()
        for start in range(0, len(numbers), 100):
            await asyncio.gather(*(chosen.kiq(n) for n in numbers[start : start + 100]))
        seconds = time.perf_counter() - started
        await broker.shutdown()
        return seconds

    return asyncio.run(run())


if __name__ == "__main__":
    marked.main(submit)
