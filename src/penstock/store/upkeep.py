"""Run the loops that keep a store moving: promote, reap, prune.

Every worker and API process runs them; there is no leader, and each step is harmless to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import structlog

from penstock.core.errors import StoreError
from penstock.store.protocol import JobStore

TICK_S = 1.0
_ROUNDS = 20
_LIMIT = 200


class Upkeep:
    """Look after all partitions about once a second, and earlier when a delayed job is due."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger()
        self._failing = False

    async def run_once(self) -> float:
        """Do one round over all partitions; return the seconds until the next one is due, at most ``TICK_S``."""
        partitions = list(range(self._store.partitions))
        random.shuffle(partitions)
        wait_s = TICK_S * random.uniform(0.75, 1.25)
        for partition in partitions:
            for _ in range(_ROUNDS):
                promoted = await self._store.promote(partition, limit=_LIMIT)
                if promoted.queued < _LIMIT and promoted.expired < _LIMIT:
                    break
            if promoted.next_due_ms is not None:
                wait_s = min(wait_s, max(0.0, (promoted.next_due_ms - promoted.now_ms) / 1_000))
            reaped = await self._store.reap(partition, limit=_LIMIT)
            for job_id in (*reaped.requeued, *reaped.poisoned, *reaped.cancelled):
                self._log.warning(
                    "job.lost",
                    message=f"The worker of job {job_id} was lost; its lease lapsed.",
                    job_id=job_id,
                    poisoned=job_id in reaped.poisoned,
                )
            for _ in range(_ROUNDS):
                pruned = await self._store.prune(partition, limit=_LIMIT)
                if pruned.expired < _LIMIT and pruned.capped < _LIMIT:
                    break
        return wait_s

    async def run(self) -> None:
        """Run until ``stop``; an unreachable store is tried again at the next tick."""
        while not self._stopping.is_set():
            try:
                wait_s = await self.run_once()
                self._failing = False
            except StoreError as error:
                wait_s = TICK_S
                if not self._failing:
                    self._failing = True
                    self._log.warning("store.lost", message=f"Upkeep waits for the store: {error}.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait_s, 0.001)):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Make ``run`` return soon; may be called twice, or before it."""
        self._stopping.set()
