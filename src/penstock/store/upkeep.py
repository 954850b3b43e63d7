"""Run the loops that keep a store moving: promote, reap, prune.

Every worker and API process runs them; there is no leader, and each step is harmless to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import structlog

from penstock.core import events
from penstock.core.errors import StoreError, StoreUnavailable
from penstock.core.limits import SCRIPT_ITEMS
from penstock.store.protocol import JobStore

TICK_S = 1.0
_ROUNDS = 40
#: Jobs of a kind that a call removes: one costs a third of what moving one does.
_REMOVED = 2 * SCRIPT_ITEMS
_PAUSE_S = 0.005
#: Partitions that are swept at the same time.
_AT_ONCE = 64


class Upkeep:
    """Look after all partitions about once a second; earlier when a job is due or a sweep left some over."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger()
        self._away = False
        self._failing: set[str] = set()
        #: What a part of the store says that was away in the last round.
        self._missing: StoreUnavailable | None = None

    async def run_once(self) -> float:
        """Do one round over all partitions; return the seconds until the next one, at most about ``TICK_S``.

        Raises:
            StoreUnavailable: the store is away. Other errors stop one sweep of one partition, and not the rest; nor
                does one server of several that is away.
        """
        partitions = list(range(self._store.partitions))
        random.shuffle(partitions)
        wait_s = TICK_S * random.uniform(0.75, 1.25)
        missing: list[StoreUnavailable] = []
        for start in range(0, len(partitions), _AT_ONCE):
            # Calls of the same moment share their way to a server.
            sweeps = (self._sweep(partition) for partition in partitions[start : start + _AT_ONCE])
            for answer in await asyncio.gather(*sweeps, return_exceptions=True):
                if isinstance(answer, StoreUnavailable):
                    missing.append(answer)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    wait_s = min(wait_s, answer)
        if len(missing) == len(partitions):
            raise missing[0]
        self._missing = missing[0] if missing else None
        return wait_s

    async def _sweep(self, partition: int) -> float:
        waits_s = [await self._guarded(sweep, partition) for sweep in (self._promote, self._reap, self._prune)]
        return min(waits_s)

    async def _guarded(self, sweep: Callable[[int], Awaitable[float]], partition: int) -> float:
        name = sweep.__name__.strip("_")
        try:
            wait_s = await sweep(partition)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged index must not stop the other sweeps
            if name not in self._failing:
                self._failing.add(name)
                message = f"The sweep '{name}' failed and is tried again: {error}."
                self._log.error(events.LOOP_FAILED, message=message, loop=name, error=repr(error))
            return TICK_S
        self._failing.discard(name)
        return wait_s

    async def _promote(self, partition: int) -> float:
        for _ in range(_ROUNDS):
            promoted = await self._store.promote(partition, limit=SCRIPT_ITEMS)
            if promoted.queued < SCRIPT_ITEMS and promoted.expired < SCRIPT_ITEMS:
                break
        else:
            return 0.0
        if promoted.next_due_ms is None:
            return TICK_S
        return max(0.0, (promoted.next_due_ms - promoted.now_ms) / 1_000)

    async def _reap(self, partition: int) -> float:
        for _ in range(_ROUNDS):
            reaped = await self._store.reap(partition, limit=SCRIPT_ITEMS)
            ids = (*reaped.requeued, *reaped.poisoned, *reaped.cancelled)
            for job_id in ids:
                self._log.warning(
                    events.JOB_LOST,
                    message=f"The worker of job {job_id} was lost; its lease lapsed.",
                    job_id=job_id,
                    poisoned=job_id in reaped.poisoned,
                )
            if len(ids) < SCRIPT_ITEMS:
                return TICK_S
        return 0.0

    async def _prune(self, partition: int) -> float:
        for _ in range(_ROUNDS):
            pruned = await self._store.prune(partition, limit=_REMOVED)
            # Of many queues a call takes fewer than it may, though more lie above the cap.
            if pruned.expired < _REMOVED and not pruned.capped:
                return TICK_S
        return 0.0

    async def run(self) -> None:
        """Run until ``stop``; an unreachable store is tried again at the next tick."""
        while not self._stopping.is_set():
            trouble: StoreError | None
            try:
                wait_s = await self.run_once()
                trouble = self._missing
            except StoreError as error:
                wait_s = TICK_S
                trouble = error
            if trouble is not None and not self._away:
                self._away = True
                self._log.warning(events.STORE_LOST, message=f"Upkeep waits for the store: {trouble}.")
            elif trouble is None and self._away:
                self._away = False
                self._log.info(events.STORE_BACK, message="Upkeep has reached the store again.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait_s, _PAUSE_S)):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Make ``run`` return soon; may be called twice, or before it."""
        self._stopping.set()
