"""Carry what handlers log and stream to the store: in batches, in order, and all of it before the attempt settles."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import StoreUnavailable
from penstock.core.ids import Token
from penstock.core.limits import MIB, OUTPUT_ENTRIES
from penstock.core.output import NewEntry, Output, OutputCode, OutputKind
from penstock.store.protocol import Store
from penstock.worker.backoff import Outage

#: What comes within this time after a write goes together.
GAP_S = 0.1
#: What one attempt may have waiting; above it the oldest goes and is counted.
MOST_ENTRIES = 10_000
MOST_BYTES = MIB
_BATCH_BYTES = MIB // 2


class OutputWriter:
    """Make the output of each attempt; lives on the worker's loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.loop = asyncio.get_running_loop()
        self.outage = Outage("output")
        self.log: Any = structlog.get_logger("penstock.worker")

    def open(self, token: Token, on_stale: Callable[[], None]) -> AttemptOutput:
        """Return what an attempt writes to; ``on_stale`` is called on the loop."""
        return AttemptOutput(self, token, on_stale)


class AttemptOutput:
    """Hold what one attempt has written until the store has it. ``add`` is safe from any thread, the rest is not.

    While the store is away the same batch is sent until it answers: a repeat stores nothing twice.
    """

    __slots__ = (
        "_awake",
        "_closed",
        "_hurry",
        "_lock",
        "_lost",
        "_made",
        "_on_stale",
        "_owner",
        "_size",
        "_token",
        "_waiting",
        "_writing",
    )

    def __init__(self, owner: OutputWriter, token: Token, on_stale: Callable[[], None]) -> None:
        self._owner = owner
        self._token = token
        self._on_stale = on_stale
        self._lock = threading.Lock()
        self._waiting: deque[NewEntry] = deque()
        self._size = 0
        #: Entries made before the first that waits.
        self._made = 0
        self._lost: Counter[OutputKind] = Counter()
        self._awake = False
        self._closed = False
        self._hurry = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def add(self, kind: OutputKind, value: bytes) -> None:
        """Take one line or chunk (JSON text); what comes after the attempt has ended is not taken."""
        with self._lock:
            if self._closed:
                return
            self._waiting.append(NewEntry(kind=kind, value=value))
            self._size += len(value)
            while len(self._waiting) > MOST_ENTRIES or self._size > MOST_BYTES:
                self._take_first(lost=True)
            if self._awake:
                return
            self._awake = True
        with contextlib.suppress(RuntimeError):
            # Without a loop the worker is gone, and with it whoever would write.
            self._owner.loop.call_soon_threadsafe(self._start)

    async def close(self) -> None:
        """Take no more, and return once the store has what was taken, or refused it."""
        with self._lock:
            self._closed = True
        self._hurry.set()
        self._start()
        if self._writing is not None:
            await self._writing

    def abandon(self) -> None:
        """Take no more, and give up what is not written."""
        self._forget()
        if self._writing is not None:
            self._writing.cancel()

    def _forget(self) -> None:
        with self._lock:
            self._closed = True
            self._waiting.clear()

    def _take_first(self, *, lost: bool) -> NewEntry:
        entry = self._waiting.popleft()
        self._size -= len(entry.value)
        if lost:
            self._lost[entry.kind] += 1
            self._made += 1
        return entry

    def _start(self) -> None:
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = self._owner.loop.create_task(self._write_all())

    def _next(self) -> Output | None:
        with self._lock:
            if not self._waiting:
                self._awake = False
                return None
            entries: list[NewEntry] = []
            size = 0
            while self._waiting and len(entries) < OUTPUT_ENTRIES and size < _BATCH_BYTES:
                entry = self._take_first(lost=False)
                entries.append(entry)
                size += len(entry.value)
            item = Output(
                token=self._token,
                made=self._made,
                entries=tuple(entries),
                dropped_lines=self._lost[OutputKind.LOG],
                dropped_chunks=self._lost[OutputKind.STREAM],
            )
            self._made += len(entries)
            self._lost.clear()
            return item

    async def _write_all(self) -> None:
        while (item := self._next()) is not None:
            if not await self._write(item):
                return
            if len(self._waiting) < OUTPUT_ENTRIES:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GAP_S):
                        await self._hurry.wait()

    async def _write(self, item: Output) -> bool:
        """Store one batch; false when the token is stale."""
        while True:
            answer: OutputCode | Exception
            try:
                (answer,) = await self._owner.store.output([item])
            except StoreUnavailable as error:
                await asyncio.sleep(self._owner.outage.failed(error))
                continue
            except Exception as error:  # noqa: BLE001 - output must not keep an attempt from settling
                answer = error
            self._owner.outage.over()
            break
        if answer is OutputCode.STALE:
            self._forget()
            self._on_stale()
            return False
        if isinstance(answer, Exception):
            # Refused: the store is full, or the job is damaged. The attempt itself goes on.
            with self._lock:
                self._lost.update(entry.kind for entry in item.entries)
                self._lost[OutputKind.LOG] += item.dropped_lines
                self._lost[OutputKind.STREAM] += item.dropped_chunks
            self._owner.log.warning(
                events.OUTPUT_REFUSED,
                message="The store refused what a job logged or streamed; it is not kept.",
                job_id=self._token.job_id,
                attempt=self._token.attempt,
                entries=len(item.entries),
                error=f"{type(answer).__name__}: {answer}",
            )
        return True
