import asyncio

from note import JOBS, SECONDS, TUNED, URL, note
from saq import Queue

queue = Queue.from_url(URL)


async def job(ctx: dict, *, number: int) -> int:
    note("S", number)
    await asyncio.sleep(SECONDS)
    note("E", number)
    return number


settings = {"queue": queue, "functions": [job], "concurrency": 10}
if TUNED:
    settings["timers"] = {"sweep": 5}


async def _submit() -> None:
    await queue.connect()
    # A swept job runs again only when it has a try left; the default is one.
    options = {"retries": 3} if TUNED else {}
    for number in range(JOBS):
        await queue.enqueue("job", number=number, **options)
    await queue.disconnect()


def submit() -> None:
    asyncio.run(_submit())
