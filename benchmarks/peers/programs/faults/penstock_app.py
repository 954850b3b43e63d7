import asyncio
import secrets
import time

import msgspec
from note import JOBS, URL, work

from penstock import task
from penstock.core.ids import make_job_id
from penstock.core.job import NewJob
from penstock.store import StoreOptions, connect


@task
def job(number: int) -> int:
    return work(number)


async def _submit() -> None:
    store = await connect(StoreOptions(redis_url=URL))
    for start in range(0, JOBS, 200):
        jobs = [
            NewJob(
                id=make_job_id(unix_ms=time.time_ns() // 1_000_000, home=0, random_bits=secrets.randbits(62)),
                task="job",
                input=msgspec.json.encode({"number": number}),
            )
            for number in range(start, min(JOBS, start + 200))
        ]
        assert not any(isinstance(answer, Exception) for answer in await store.submit(jobs))
    await store.close()


def submit() -> None:
    asyncio.run(_submit())
