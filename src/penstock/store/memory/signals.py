"""Wake those who wait: markers of queues, earlier due times, wake-ups of workers, finished jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import WorkerName

_T = TypeVar("_T")


class Signals:
    """Keep what was signalled and not yet taken.

    A marker, like the due signal, is taken by one waiter; a claim or a reap sets it again while work is left.
    """

    def __init__(self) -> None:
        self._closed = False
        self._pulse = asyncio.Event()
        self._markers: set[tuple[int, str]] = set()
        self._due = False
        self._woken: set[WorkerName] = set()

    def mark(self, partition: int, queue: str, *, holds_work: bool) -> None:
        """Say whether a partition's queue holds work."""
        if holds_work:
            self._markers.add((partition, queue))
            self._beat()
        else:
            self._markers.discard((partition, queue))

    def due_changed(self) -> None:
        """Say that an earlier due time was set."""
        self._due = True
        self._beat()

    def wake(self, worker: WorkerName) -> None:
        """Wake one worker."""
        self._woken.add(worker)
        self._beat()

    def changed(self) -> None:
        """Say that some job changed or went away."""
        self._beat()

    def close(self) -> None:
        """End all waits with ``StoreUnavailable``."""
        self._closed = True
        self._beat()

    def take(self, worker: WorkerName, queues: Sequence[str]) -> frozenset[str] | None:
        """Take one signal: a wake-up before a due time before a queue, in the order given."""
        if worker in self._woken:
            self._woken.remove(worker)
            return frozenset({"wake"})
        if queues and self._due:
            self._due = False
            return frozenset({"due"})
        for queue in queues:
            marked = sorted(marker for marker in self._markers if marker[1] == queue)
            if marked:
                self._markers.remove(marked[0])
                return frozenset({f"queue:{queue}"})
        return None

    async def until(self, check: Callable[[], _T | None], *, timeout_ms: int) -> _T | None:
        """Return the first value of ``check`` that is not None, looking at each signal; None when the time is over."""
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1_000
        while True:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            found = check()
            if found is not None:
                return found
            try:
                async with asyncio.timeout_at(deadline):
                    await self._pulse.wait()
            except TimeoutError:
                return None

    def _beat(self) -> None:
        # Waiters hold the old event; those who come later wait for the next one.
        self._pulse.set()
        self._pulse = asyncio.Event()
