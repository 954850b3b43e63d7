"""Wait for work and for final states by blocking pops; nothing polls."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence

from penstock.core.errors import StoreError, StoreUnavailable
from penstock.core.ids import JobId, WorkerName, partition_of
from penstock.core.states import State
from penstock.store.redis.codec import STATES
from penstock.store.redis.connection import BLOCK_LIMIT_S, Connection

_INBOX_POP = 500
_RETRY_S = 0.5


class RedisWaiter:
    """Implement ``JobWaiter``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._partitions = connection.options.partitions
        self._process = secrets.token_urlsafe(9)
        self._waiting: dict[JobId, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def wait_work(self, worker: WorkerName, queues: Sequence[str], *, timeout_ms: int) -> frozenset[str]:
        """See ``JobWaiter.wait_work``."""
        names: dict[str, str] = {}
        for keys in self._connection.keys:
            names[keys.key("wake", worker)] = "wake"
            if queues:
                names[keys.key("due")] = "due"
            for queue in queues:
                names[keys.key("marker", queue)] = f"queue:{queue}"
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_ms / 1_000
        while True:
            # A limit on each call shows a half-open connection; 0 would mean to wait for ever.
            wait_s = min(BLOCK_LIMIT_S, end - loop.time())
            if wait_s <= 0:
                return frozenset()
            answer = await self._connection.block("BLPOP", *names, f"{max(wait_s, 0.001):.3f}")
            if answer is not None:
                return frozenset({names[answer[0].decode()]})

    async def wake(self, worker: WorkerName) -> None:
        """See ``JobWaiter.wake``."""
        await self._connection.script("wake", 0, worker)

    async def _watch(self, job_id: JobId) -> State | None:
        status = await self._connection.script("watch", partition_of(job_id, self._partitions), job_id, self._process)
        return STATES.get(status)

    async def wait_final(self, job_id: JobId, *, timeout_ms: int) -> State | None:
        """See ``JobWaiter.wait_final``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        try:
            state = await self._watch(job_id)
            if state is None or state.is_final:
                return state
            if self._listener is None or self._listener.done():
                self._listener = asyncio.get_running_loop().create_task(self._listen())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1_000):
                    await future
            return await self._watch_again(job_id)
        finally:
            self._waiting[job_id].discard(future)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _watch_again(self, job_id: JobId) -> State | None:
        keys = self._connection.keys[partition_of(job_id, self._partitions)]
        status = await self._connection.command("HGET", keys.key("job", job_id), "status")
        return STATES.get(status)

    async def _listen(self) -> None:
        """Pop this process' inboxes while anyone waits; after an outage ask again for all that is waited for."""
        inboxes = [keys.key("inbox", self._process) for keys in self._connection.keys]
        while self._waiting:
            try:
                answer = await self._connection.block(
                    "BLMPOP", f"{BLOCK_LIMIT_S:.3f}", len(inboxes), *inboxes, "LEFT", "COUNT", _INBOX_POP
                )
            except StoreError:
                await asyncio.sleep(_RETRY_S)
                await self._rewatch()
                continue
            for job_id in answer[1] if answer else ():
                self._wake_waiters(JobId(job_id.decode()))

    async def _rewatch(self) -> None:
        for job_id in list(self._waiting):
            with contextlib.suppress(StoreUnavailable):
                state = await self._watch(job_id)
                if state is None or state.is_final:
                    self._wake_waiters(job_id)

    def _wake_waiters(self, job_id: JobId) -> None:
        for future in self._waiting.get(job_id, ()):
            if not future.done():
                future.set_result(None)

    async def stop(self) -> None:
        """End the listener; waiting calls end with ``StoreUnavailable``."""
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(StoreUnavailable("the store was closed"))
