import asyncio

from arq import create_pool
from arq.connections import RedisSettings
from note import JOBS, SECONDS, TUNED, URL, note


async def job(ctx: dict, number: int) -> int:
    note("S", number)
    await asyncio.sleep(SECONDS)
    note("E", number)
    return number


class WorkerSettings:
    functions = (job,)
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = 10
    if TUNED:
        job_timeout = 10  # what a dead worker took stays taken for this and 10 s more


async def _submit() -> None:
    pool = await create_pool(WorkerSettings.redis_settings)
    for number in range(JOBS):
        await pool.enqueue_job("job", number)


def submit() -> None:
    asyncio.run(_submit())
