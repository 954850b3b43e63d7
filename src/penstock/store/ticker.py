"""Run the loop that lets schedules tick. Every worker and API process runs one; there is no leader."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import StoreUnavailable
from penstock.core.limits import SCRIPT_ITEMS
from penstock.core.schedule import DueSchedules, Tick, plan
from penstock.store.protocol import ScheduleStore

#: Each partition is looked at so often, give or take a quarter, and at the time of its next tick.
LOOK_S = 1.0
#: Spreads the processes that wake for the same tick.
JITTER_S = 0.01
_ROUNDS = 40
#: Partitions that are looked at at the same time.
_AT_ONCE = 64
_PAUSE_S = 0.005


class Ticker:
    """Start the jobs of due ticks, in time and once: the store lets only the first of many loops move a schedule on."""

    def __init__(self, store: ScheduleStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions
        self._looks: dict[int, float] = {}
        self._stopping = False
        self._nudged = asyncio.Event()
        self._missing: set[int] = set()
        self._failing: set[str] = set()
        self._log: Any = structlog.get_logger()

    async def run_once(self) -> float:
        """Look at each partition whose time has come; return the seconds until the next one's.

        What fails stops one schedule or one partition: the others tick while a part of the store is away.
        """
        loop = asyncio.get_running_loop()
        partitions = [
            partition for partition in range(self._partitions) if self._looks.get(partition, 0) <= loop.time()
        ]
        random.shuffle(partitions)
        for start in range(0, len(partitions), _AT_ONCE):
            # Calls of the same moment share their way to a server.
            await asyncio.gather(*(self._guarded(partition) for partition in partitions[start : start + _AT_ONCE]))
        return max(0.0, min(self._looks.values()) - loop.time())

    async def _guarded(self, partition: int) -> None:
        subject, wait_s = f"partition {partition}", LOOK_S * random.uniform(0.75, 1.25)
        try:
            wait_s = await self._look(partition)
        except StoreUnavailable as error:
            if not self._missing:
                self._log.warning(events.STORE_LOST, message=f"Schedules wait for the store: {error}.")
            self._missing.add(partition)
        except Exception as error:  # noqa: BLE001 - a damaged index must not stop the other partitions
            self._tell(subject, f"The schedules of {subject} failed: {error}.", error)
        else:
            self._failing.discard(subject)
            if partition in self._missing:
                self._missing.remove(partition)
                if not self._missing:
                    self._log.info(events.STORE_BACK, message="Schedules have reached the store again.")
        self._looks[partition] = asyncio.get_running_loop().time() + wait_s

    async def _look(self, partition: int) -> float:
        """Let a partition's schedules tick; return in how many seconds to look again."""
        for _ in range(_ROUNDS):
            due = await self._store.due_schedules(partition, limit=SCRIPT_ITEMS)
            if not due.records:
                return self._until_next(due)
            await self._tick(partition, due)
        return 0.0

    def _until_next(self, due: DueSchedules) -> float:
        usual_s = LOOK_S * random.uniform(0.75, 1.25)
        if due.next_due_ms is None:
            return usual_s
        return min(usual_s, max(0.0, due.next_due_ms - due.now_ms) / 1_000 + random.uniform(0, JITTER_S))

    async def _tick(self, partition: int, due: DueSchedules) -> None:
        ticks: list[Tick] = []
        for record in due.records:
            try:
                tick = plan(record, due.now_ms)
            except ValueError as error:
                await self._put_off(record.schedule.name, error)
                continue
            if tick is not None:
                ticks.append(tick)
            # After a long outage each schedule has many ticks to go through; jobs must run meanwhile.
            await asyncio.sleep(0)
        for tick, answer in zip(ticks, await self._store.tick(partition, ticks), strict=True):
            name = tick.record.schedule.name
            if isinstance(answer, Exception):
                # The store has put it off itself.
                self._tell(name, f"The schedule {name!r} cannot tick: {answer}; tried again in a minute.", answer)
                continue
            self._failing.discard(name)
            if answer.moved and tick.missed:
                self._log.warning(
                    events.TICKS_MISSED,
                    message=f"The schedule {name!r} missed {tick.missed} ticks.",
                    schedule=name,
                    missed=tick.missed,
                )

    async def _put_off(self, name: str, error: Exception) -> None:
        self._tell(name, f"The schedule {name!r} cannot tick: {error}; tried again in a minute.", error)
        await self._store.put_off_schedule(name)

    def _tell(self, subject: str, message: str, error: Exception) -> None:
        """Log what fails once, until it works again."""
        if subject not in self._failing:
            self._failing.add(subject)
            self._log.error(events.LOOP_FAILED, message=message, loop="tick", subject=subject, error=repr(error))

    async def run(self) -> None:
        """Run until ``stop``; what is away is asked again after a second."""
        while not self._stopping:
            if self._nudged.is_set():
                self._nudged.clear()
                self._looks.clear()
            wait_s = await self.run_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait_s, _PAUSE_S)):
                    await self._nudged.wait()

    def nudge(self) -> None:
        """Look at all partitions now: a schedule was written that may tick soon."""
        self._nudged.set()

    def stop(self) -> None:
        """Make ``run`` return soon; may be called twice, or before it."""
        self._stopping = True
        self._nudged.set()
