"""Measure what a thousand slow jobs in one queue of a worker do to another queue, and to a cancel."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable

from benchmarks.feed import DRAIN_S, Feed, new_jobs, submit
from penstock.core.job import NewJob
from penstock.store.redis.store import RedisStore
from penstock.worker.options import WorkerOptions
from penstock.worker.slots import Slots

SLOW, FAST = "slow", "fast"
FLAGS = ("--queues", f"{SLOW},{FAST}")
WAITING_JOBS = 1_000
#: What the slow queue may take of a worker at its defaults.
HELD_JOBS = Slots({"async": WorkerOptions().concurrency}, queues=(SLOW, FAST)).room("async", SLOW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Hold the times of each repeat, ms, and what is wrong with how often jobs ran."""

    starts: list[list[float]]
    cancels: list[list[float]]
    verdict: str


def measure(feed: Feed, *, repeats: int, samples: int) -> Times:
    """Time starts in the fast queue and cancels of slow jobs, while these hold all slots that they may have.

    A worker of both queues runs. Slow jobs end by a cancel only; so many are submitted that a thousand always wait.
    """
    return feed.with_store(lambda store: _Run(store, feed, repeats, samples).run())


class _Run:
    def __init__(self, store: RedisStore, feed: Feed, repeats: int, samples: int) -> None:
        self._store = store
        self._feed = feed
        self._marks = feed.marks
        self._repeats = repeats
        self._samples = samples
        self._total = HELD_JOBS + WAITING_JOBS + repeats * samples
        self._first = feed.take(self._total)
        self._cancelled = 0

    async def run(self) -> Times:
        await self._store.connection.verify()
        slow = new_jobs("hold", self._first, self._total, queue=SLOW)
        await submit(self._store, slow)
        starts, cancels, verdicts = [], [], []
        try:
            for _ in range(self._repeats):
                first = self._feed.take(self._samples)
                starts.append([await self._start(number) for number in range(first, first + self._samples)])
                verdicts.append(self._marks.verdict(first, self._samples))
                cancels.append([await self._cancel(slow) for _ in range(self._samples)])
            await self._pause()
            verdicts.append(self._marks.verdict(self._first, self._cancelled + HELD_JOBS))
        finally:
            await self._let_go(slow)
        return Times(starts=starts, cancels=cancels, verdict=next((text for text in verdicts if text), ""))

    async def _start(self, number: int) -> float:
        await self._pause()
        jobs = new_jobs("stamp", number, 1, queue=FAST)
        sent = time.monotonic_ns()
        await self._store.submit(jobs)
        await _until(lambda: bool(self._marks.runs[number]))
        return (self._marks.stamps[number] - sent) / 1e6

    async def _cancel(self, slow: list[NewJob]) -> float:
        """Cancel the job that has run for longest; they start in the order in which they came."""
        await self._pause()
        place = self._cancelled
        number = self._first + place
        sent = time.monotonic_ns()
        await self._store.cancel([slow[place].id])
        await _until(lambda: bool(self._marks.stamps[number]))
        self._cancelled += 1
        return (self._marks.stamps[number] - sent) / 1e6

    async def _pause(self) -> None:
        """Wait until the slow queue has all its slots again, and then for some ms."""
        running = self._cancelled + HELD_JOBS
        await _until(lambda: self._marks.ran(self._first, self._total) >= running)
        await asyncio.sleep(0.003 + random.random() * 0.004)

    async def _let_go(self, slow: list[NewJob]) -> None:
        await self._store.pause(SLOW)
        await self._store.cancel([job.id for job in slow[self._cancelled :]])


async def _until(condition: Callable[[], bool]) -> None:
    """Look each half ms; another process makes it so."""
    async with asyncio.timeout(DRAIN_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.0005)
