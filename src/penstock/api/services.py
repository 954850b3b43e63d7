"""Hold what all routes share: the store, options, clock, ids, the registry of tasks, the wish to stop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping

from penstock.api.options import ApiOptions
from penstock.api.scheduling import ScheduleParser
from penstock.api.slots import StreamSlots
from penstock.api.submission import SubmissionParser
from penstock.api.views import JobRenderer
from penstock.core.errors import NotDurable, StoreError, StoreFull, StoreMismatch
from penstock.core.ids import IdMaker
from penstock.core.job import JobRecord, TaskInfo, handler_name
from penstock.observability.metrics import HttpMetrics
from penstock.store.protocol import Store

#: A registry of tasks younger than this is used as it is, in ms.
_TASKS_FRESH_MS = 1_000
#: One older than this is not used before it was asked for again, in ms.
_TASKS_STALE_MS = 5_000
#: What is known of the store's memory is used for so long, in ms, and while it is asked for anew for so long.
_MEMORY_FRESH_MS = 1_000
_MEMORY_STALE_MS = 5_000
_MEMORY_PATIENCE_S = 0.5
_WHOLE = 100
#: How long a refusal for want of memory, or of a confirmation by disk or replicas, makes the API not ready, in ms.
_REFUSED_MS = 10_000


def unix_ms() -> int:
    """Return this machine's Unix time in ms."""
    return time.time_ns() // 1_000_000


class TaskCache:
    """Keep the registry of tasks; asks the store at most once a second, however many requests come."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._tasks: Mapping[str, TaskInfo] = {}
        self._asked_ms = -_TASKS_STALE_MS
        self._asking: asyncio.Task[None] | None = None

    async def get(self, names: Iterable[str] = ()) -> Mapping[str, TaskInfo]:
        """Return the registry, at most 5 s old, or 1 s where it lacks one of these names; the last known one when the
        store does not answer.
        """
        age_ms = self._clock() - self._asked_ms
        if 0 <= age_ms < _TASKS_FRESH_MS:
            return self._tasks
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if not 0 <= age_ms < _TASKS_STALE_MS or any(name not in self._tasks for name in names):
            await asyncio.shield(self._asking)
        return self._tasks

    async def _ask(self) -> None:
        try:
            self._tasks = await self._store.tasks()
            self._asked_ms = self._clock()
        except StoreError:
            # The caller's own verb will say so; until then what was known holds.
            pass
        finally:
            self._asking = None

    async def close(self) -> None:
        """End a question in flight."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


class MemoryGuard:
    """Tell whether the store is near its memory limit; asks at most once a second, however many submits come."""

    def __init__(self, store: Store, clock: Callable[[], int], percent: int) -> None:
        self._store = store
        self._clock = clock
        self._percent = percent
        self._near = False
        self._asked_ms = -_MEMORY_STALE_MS
        self._asking: asyncio.Task[None] | None = None

    async def is_near_limit(self) -> bool:
        """Return what held at most 5 s ago; false when the store does not say: its own refusal still stands."""
        if self._percent >= _WHOLE:
            return False
        age_ms = self._clock() - self._asked_ms
        if 0 <= age_ms < _MEMORY_FRESH_MS:
            return self._near
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if self._near or not 0 <= age_ms < _MEMORY_STALE_MS:
            # Where the last answer was bad, news of room must not wait for the next submit. A store that hangs must not
            # make the submit wait twice.
            await asyncio.wait({self._asking}, timeout=_MEMORY_PATIENCE_S)
        return self._near

    async def _ask(self) -> None:
        try:
            self._near = (await self._store.memory()).is_above(self._percent)
        except StoreError:
            self._near = False
        finally:
            self._asked_ms = self._clock()
            self._asking = None

    async def close(self) -> None:
        """End a question in flight."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


class Services:
    """Hold what all routes share; made once, in ``create_app``."""

    def __init__(self, store: Store, options: ApiOptions, *, clock: Callable[[], int] = unix_ms) -> None:
        self.store = store
        self.options = options
        self.clock = clock
        self.next_id = IdMaker(os.urandom)
        self.tasks = TaskCache(store, clock)
        self.memory = MemoryGuard(store, clock, options.limits.memory_percent)
        self.parser = SubmissionParser()
        self.schedule_parser = ScheduleParser()
        #: Makes the loop of this process look at the schedules now; does nothing where none runs.
        self.nudge_ticker: Callable[[], None] = lambda: None
        self.metrics = HttpMetrics()
        self.streams = StreamSlots(options.event_streams)
        self.metrics.watch_streams(lambda: self.streams.taken)
        self.stopping = asyncio.Event()
        #: When each worker last had an answer to a claim (the store's Unix ms), as the last good scrape found it.
        self.last_claims: dict[str, int] = {}
        #: Whether the server was found to have what is needed; one that was away at the start is asked by readiness.
        self.is_checked = False
        self._refusal: StoreError | None = None
        self._refused_at_ms = 0

    async def renderer(self, records: Iterable[JobRecord]) -> JobRenderer:
        """Return what shows these jobs, with what is in force also for a task whose first worker has just started."""
        names = (handler_name(record.type, record.task) for record in records if record.attempt)
        return JobRenderer(await self.tasks.get(names), self.options.defaults, self.options.limits)

    async def refuse_when_nearly_full(self) -> None:
        """Leave the last of the memory to what was accepted: claims and results need some too."""
        if await self.memory.is_near_limit():
            raise StoreFull(f"the store uses over {self.options.limits.memory_percent} % of its memory")

    def note_submit(self, error: StoreError | None = None) -> None:
        """Remember how the last submit ended: for want of memory, or of a confirmation by disk or replicas."""
        self._refusal = error if isinstance(error, StoreFull | NotDurable) else None
        if isinstance(error, StoreMismatch):
            self.is_checked = False
        self._refused_at_ms = self.clock()

    @property
    def refusal(self) -> StoreError | None:
        """Return why the last submit was refused, if that was a short while ago."""
        return self._refusal if self.clock() - self._refused_at_ms < _REFUSED_MS else None
