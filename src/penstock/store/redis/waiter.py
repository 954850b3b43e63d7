"""Wait for work and for final states: by blocking pops, on a cluster by subscriptions; nothing polls."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from penstock.core.errors import StoreError, StoreUnavailable
from penstock.core.ids import JobId, WorkerName, partition_of
from penstock.core.output import Followed
from penstock.core.states import State
from penstock.store.redis.codec import STATES, followed, stored_state
from penstock.store.redis.connection import Connection
from penstock.store.redis.primary import BLOCK_LIMIT_S, Primary
from penstock.store.redis.signals import Signals

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
        self._following: dict[JobId, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._stopped = False
        self._signals = Signals(connection)

    async def wait_work(self, worker: WorkerName, queues: Sequence[str], *, timeout_ms: int) -> frozenset[str]:
        """See ``JobWaiter.wait_work``."""
        names: dict[str, str] = {}
        for keys in self._connection.keys:
            names[keys.key("wake", worker)] = "wake"
            if queues:
                names[keys.key("due")] = "due"
            for queue in queues:
                names[keys.key("marker", queue)] = f"queue:{queue}"
        if timeout_ms <= 0:
            return frozenset()
        if self._connection.is_cluster:
            found = await self._signals.pop(self._by_partition(names), timeout_s=timeout_ms / 1_000)
            return frozenset() if found is None else frozenset({names[found[0]]})
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

    def _by_partition(self, names: Iterable[str]) -> dict[int, list[str]]:
        """Return names of keys by their partition, in order."""
        places = {keys.prefix: partition for partition, keys in enumerate(self._connection.keys)}
        found: dict[int, list[str]] = {}
        for name in names:
            found.setdefault(places[name[: name.index("}:") + 2]], []).append(name)
        return found

    async def wake(self, worker: WorkerName) -> None:
        """See ``JobWaiter.wake``. Any partition will do: the worker waits in all of them."""
        tried: set[Primary] = set()
        last: StoreError | None = None
        for partition in range(self._partitions):
            try:
                server = await self._connection.server_of(partition)
                if server not in tried:
                    tried.add(server)
                    await self._connection.script("wake", partition, worker)
                    return
            except StoreUnavailable as error:
                last = error
        assert last is not None
        raise last

    async def _watch(self, job_id: JobId) -> State | None:
        status = await self._connection.script("watch", partition_of(job_id, self._partitions), job_id, self._process)
        return STATES.get(status)

    async def wait_final(self, job_id: JobId, *, timeout_ms: int) -> State | None:
        """See ``JobWaiter.wait_final``."""
        async with self._listening(self._waiting, job_id) as future:
            state = await self._watch(job_id)
            if state is None or state.is_final:
                return state
            await self._until(future, timeout_ms)
            return await self._watch_again(job_id)

    @contextlib.asynccontextmanager
    async def _listening(
        self, waiting: dict[JobId, set[asyncio.Future[None]]], job_id: JobId
    ) -> AsyncIterator[asyncio.Future[None]]:
        """Give a future that is done once the job's id comes to an inbox of this process."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = waiting.setdefault(job_id, set())
        waiters.add(future)
        try:
            yield future
        finally:
            waiters.discard(future)
            if not waiters and waiting.get(job_id) is waiters:
                del waiting[job_id]

    async def _until(self, future: asyncio.Future[None], timeout_ms: int) -> None:
        """Return when the future is done or the time is over."""
        if not self._stopped and (self._listener is None or self._listener.done()):
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._stopped else timeout_ms / 1_000):
                await future
        if self._stopped:
            raise StoreUnavailable("the store was closed")

    async def follow(
        self,
        job_id: JobId,
        *,
        log_after: int | None = 0,
        stream_after: int | None = 0,
        rev: str = "",
        limit: int = 200,
        timeout_ms: int = 0,
    ) -> Followed | None:
        """See ``JobWaiter.follow``."""

        async def look(process: str) -> Followed | None:
            partition = partition_of(job_id, self._partitions)
            seen = [-1 if after is None else after for after in (log_after, stream_after)]
            return followed(await self._connection.script("follow", partition, job_id, process, *seen, limit), limit)

        if timeout_ms <= 0:
            return await look("")
        async with self._listening(self._following, job_id) as future:
            found = await look(self._process)
            if found is None or found.entries or found.state.is_final or found.rev != rev:
                return found
            await self._until(future, timeout_ms)
            return await look("")

    async def _watch_again(self, job_id: JobId) -> State | None:
        keys = self._connection.keys[partition_of(job_id, self._partitions)]
        text = await self._connection.command("GET", keys.key("job", job_id))
        return stored_state(text)

    async def _listen(self) -> None:
        """Pop this process' inboxes while anyone waits; after an outage ask again for all that is waited for."""
        inboxes = [keys.key("inbox", self._process) for keys in self._connection.keys]
        # What was popped when the connection broke is lost, so that each job that is waited for must be asked for once.
        doubtful: set[JobId] = set()
        while self._waiting or self._following:
            try:
                await self._ask_again(doubtful)
                answer = await self._pop_inboxes(inboxes)
            except StoreError:
                doubtful.update(self._waiting)
                # Who follows looks again, and is told of the outage.
                for job_id in list(self._following):
                    self._wake_waiters(job_id, is_end=False)
                await asyncio.sleep(_RETRY_S)
                continue
            for raw_id in answer[1] if answer else ():
                text = raw_id.decode()
                # Who waits for the end must not be woken by other changes.
                self._wake_waiters(JobId(text.removeprefix("+")), is_end=not text.startswith("+"))

    async def _pop_inboxes(self, inboxes: list[str]) -> Any:
        if self._connection.is_cluster:
            return await self._signals.pop(self._by_partition(inboxes), timeout_s=BLOCK_LIMIT_S, count=_INBOX_POP)
        return await self._connection.block(
            "BLMPOP", f"{BLOCK_LIMIT_S:.3f}", len(inboxes), *inboxes, "LEFT", "COUNT", _INBOX_POP
        )

    async def _ask_again(self, doubtful: set[JobId]) -> None:
        while doubtful:
            job_id = next(iter(doubtful))
            if job_id in self._waiting:
                state = await self._watch(job_id)
                if state is None or state.is_final:
                    self._wake_waiters(job_id)
            doubtful.discard(job_id)

    def _wake_waiters(self, job_id: JobId, *, is_end: bool = True) -> None:
        ends = self._waiting.get(job_id, ()) if is_end else ()
        for future in (*ends, *self._following.get(job_id, ())):
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
        for job_id in {*self._waiting, *self._following}:
            self._wake_waiters(job_id)
        await self._signals.close()
