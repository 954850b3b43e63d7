import asyncio

from note import JOBS, SECONDS, TUNED, URL, note
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

options = {"idle_timeout": 15_000, "unacknowledged_lock_timeout": 10} if TUNED else {}
broker = RedisStreamBroker(URL, **options).with_result_backend(RedisAsyncResultBackend(URL))


@broker.task
async def job(number: int) -> int:
    note("S", number)
    await asyncio.sleep(SECONDS)
    note("E", number)
    return number


async def _submit() -> None:
    await broker.startup()
    for number in range(JOBS):
        await job.kiq(number)
    await broker.shutdown()


def submit() -> None:
    asyncio.run(_submit())
