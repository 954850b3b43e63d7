"""Wait for a job's end on behalf of a client, as long as the client and the server are there."""

from __future__ import annotations

import asyncio

from litestar.types import Receive

from penstock.api.bodies import ClientGone
from penstock.api.services import Services
from penstock.core.ids import JobId
from penstock.core.states import State


async def wait_final(services: Services, job_id: JobId, wait_ms: int, receive: Receive) -> State | None:
    """Return the state once it is final, the time is over or the server stops; None when there is no such job.

    The request's body must have been read. Returns None too when the server stops before the store said anything.

    Raises:
        ClientGone: the client hung up.
    """
    waiting = asyncio.create_task(services.store.wait_final(job_id, timeout_ms=wait_ms))
    stopping = asyncio.create_task(services.stopping.wait())
    gone = asyncio.create_task(_disconnected(receive))
    tasks: tuple[asyncio.Task[object], ...] = (waiting, stopping, gone)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if gone.done():
            raise ClientGone
        return None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
