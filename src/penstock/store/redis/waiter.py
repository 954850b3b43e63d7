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
_CANCEL_AGAIN_S = 0.05


class RedisWaiter:
    """Implement ``JobWaiter``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._partitions = connection.options.partitions
        self._process = secrets.token_urlsafe(9)
        self._waiting: dict[JobId, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._stopped = False

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
        waiters = self._waiting.setdefault(job_id, set())
        waiters.add(future)
        try:
            state = await self._watch(job_id)
            if state is None or state.is_final:
                return state
            if not self._stopped and (self._listener is None or self._listener.done()):
                self._listener = asyncio.get_running_loop().create_task(self._listen())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if self._stopped else timeout_ms / 1_000):
                    await future
            if self._stopped:
                raise StoreUnavailable("the store was closed")
            return await self._watch_again(job_id)
        finally:
            waiters.discard(future)
            if not waiters and self._waiting.get(job_id) is waiters:
                del self._waiting[job_id]

    async def _watch_again(self, job_id: JobId) -> State | None:
        keys = self._connection.keys[partition_of(job_id, self._partitions)]
        status = await self._connection.command("HGET", keys.key("job", job_id), "status")
        return STATES.get(status)

    async def _listen(self) -> None:
        """Pop this process' inboxes while anyone waits; after an outage ask again for all that is waited for."""
        inboxes = [keys.key("inbox", self._process) for keys in self._connection.keys]
        # What was popped when the connection broke is lost, so that each job that is waited for must be asked for once.
        doubtful: set[JobId] = set()
        while self._waiting:
            try:
                await self._ask_again(doubtful)
                answer = await self._connection.block(
                    "BLMPOP", f"{BLOCK_LIMIT_S:.3f}", len(inboxes), *inboxes, "LEFT", "COUNT", _INBOX_POP
                )
            except StoreError:
                doubtful.update(self._waiting)
                await asyncio.sleep(_RETRY_S)
                continue
            for job_id in answer[1] if answer else ():
                self._wake_waiters(JobId(job_id.decode()))

    async def _ask_again(self, doubtful: set[JobId]) -> None:
        while doubtful:
            job_id = next(iter(doubtful))
            if job_id in self._waiting:
                state = await self._watch(job_id)
                if state is None or state.is_final:
                    self._wake_waiters(job_id)
            doubtful.discard(job_id)

    def _wake_waiters(self, job_id: JobId) -> None:
        for future in self._waiting.get(job_id, ()):
            if not future.done():
                future.set_result(None)

    async def stop(self) -> None:
        """End the listener; waiting calls end with ``StoreUnavailable``."""
        self._stopped = True
        if self._listener is not None:
            # Python 3.11 can swallow a cancel that meets the end of a `wait_for`, and the client library uses it.
            while not self._listener.done():
                self._listener.cancel()
                await asyncio.wait({self._listener}, timeout=_CANCEL_AGAIN_S)
        for job_id in list(self._waiting):
            self._wake_waiters(job_id)
