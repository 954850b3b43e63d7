"""Settle attempts in groups: one call for all that finish while the one before is under way."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import StoreUnavailable
from penstock.core.job import Settle, Settled, Verb
from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS
from penstock.store.protocol import Store
from penstock.worker.backoff import Outage
from penstock.worker.options import WorkerOptions

#: Tells who brought an attempt's end what was sent and what became of it: None when the store refused it for good
#: (logged; the lease will lapse). Called on the loop; must not raise.
Done = Callable[[Any, Settle, Settled | None], None]
_Entry = tuple[Settle, Done, Any]


class Settler:
    """Write outcomes; an idle one writes at once, a busy one in groups.

    While the store is away it keeps trying: repeats are safe by token, and whether a lease is still good is for the
    store to say once it is back. What waits is bounded by the slots, which stay taken, and by ``most_bytes``: a result
    beyond it is given up, and its job handed back to run again.
    """

    def __init__(self, store: Store, *, most_bytes: int = WorkerOptions.unwritten_bytes) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: deque[_Entry] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._unsettled = 0
        # Asking for the running loop costs a system call each time.
        self._loop = asyncio.get_running_loop()
        # What ends last starts the writer, and its context variables are its own.
        self._context = contextvars.copy_context()
        self._outage = Outage("settle")
        self._log: Any = structlog.get_logger("penstock.worker")

    @property
    def unsettled(self) -> int:
        """Return how many attempts have ended and are not written yet."""
        return self._unsettled

    def add(self, item: Settle, done: Done, owner: Any) -> None:
        """Settle one attempt, and call ``done(owner, what was sent, what became of it)``."""
        size = len(item.value)
        if self._outage.lasts and size and self._bytes + size > self._most_bytes:
            self._log.error(
                events.RESULT_DROPPED,
                message="Too much waits for the store; a result is given up and its job runs again.",
                job_id=item.token.job_id,
                attempt=item.token.attempt,
                bytes=size,
            )
            item, size = Settle(token=item.token, verb=Verb.RELEASE), 0
        self._bytes += size
        self._waiting.append((item, done, owner))
        self._unsettled += 1
        if self._writer is None:
            # The task starts after the callbacks already due, so jobs that end in the same moment share a call.
            self._writer = self._loop.create_task(self._write_all(), name="penstock-settle", context=self._context)

    async def settle(self, item: Settle) -> Settled | None:
        """Settle one attempt; None when the store refused it for good."""
        future: asyncio.Future[Settled | None] = self._loop.create_future()
        self.add(item, _set_answer, future)
        return await future

    async def close(self) -> None:
        """Give up what is not written; its leases go back when the worker leaves, or lapse."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write_all(self) -> None:
        batch: list[_Entry] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                await self._write(batch)
        finally:
            self._writer = None
            # After an ordinary end nothing is left.
            left, batch = [*batch, *self._waiting], []
            self._waiting.clear()
            for entry in left:
                self._finish(entry, None)

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        size = 0
        while self._waiting and len(batch) < SCRIPT_ITEMS:
            size += len(self._waiting[0][0].value)
            if batch and size > SCRIPT_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _write(self, batch: list[_Entry]) -> None:
        """Write until nothing is left in ``batch``."""
        while batch:
            try:
                answers = await self._store.settle([entry[0] for entry in batch])
            except StoreUnavailable as error:
                await asyncio.sleep(self._outage.failed(error))
                continue
            except Exception as error:  # noqa: BLE001 - one bad call must not end all settling
                answers = [error] * len(batch)
            answered, again = batch[:], []
            batch.clear()
            last: StoreUnavailable | None = None
            for entry, answer in zip(answered, answers, strict=True):
                if isinstance(answer, Settled):
                    self._finish(entry, answer)
                elif isinstance(answer, StoreUnavailable):
                    again.append(entry)
                    last = answer
                else:
                    self._tell_refused(entry[0], answer)
                    self._finish(entry, None)
            batch += again
            if last is not None:
                await asyncio.sleep(self._outage.failed(last))
            else:
                self._outage.over()

    def _finish(self, entry: _Entry, answer: Settled | None) -> None:
        item, done, owner = entry
        self._unsettled -= 1
        self._bytes -= len(item.value)
        done(owner, item, answer)

    def _tell_refused(self, item: Settle, error: Exception) -> None:
        self._log.error(
            events.SETTLE_FAILED,
            message="The store refused an attempt's end; the job runs again when its lease lapses.",
            job_id=item.token.job_id,
            attempt=item.token.attempt,
            verb=item.verb.value,
            error=f"{type(error).__name__}: {error}",
        )


def _set_answer(future: asyncio.Future[Settled | None], _item: Settle, answer: Settled | None) -> None:
    if not future.done():
        future.set_result(answer)
