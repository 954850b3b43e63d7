"""Give each fault what it acts on and how it sees that it bit."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable

from tests.chaos.ledger import Runs, Submitters
from tests.chaos.stack import Member, Stack
from tests.chaos.verdict import Gap
from tests.waiting import in_time

Fault = Callable[[], Awaitable["Bite"]]


@dataclasses.dataclass(frozen=True)
class Bite:
    """Count what a fault touched; 0 means that it missed."""

    count: int
    evidence: str


@dataclasses.dataclass(frozen=True)
class Mark:
    """Remember a fault for the times of recovery: each of ``jobs`` waits from ``at_s`` to its next start.

    Without jobs any start ends the waiting that comes after ``from_s``, when the system could work again.
    """

    what: str
    at_s: float
    jobs: frozenset[str] | None = None
    from_s: float = 0.0


@dataclasses.dataclass(kw_only=True)
class Scene:
    """Hold the running system, and what faults leave for the verdict."""

    stack: Stack
    runs: Runs
    submitters: Submitters
    source: random.Random
    #: How long a fault looks for its bite before it counts as missed.
    look_s: float
    marks: list[Mark] = dataclasses.field(default_factory=list)
    gaps: list[Gap] = dataclasses.field(default_factory=list)

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Look again and again; tell whether it came true in time."""
        return await in_time(condition, self.look_s if seconds is None else seconds)

    async def busy_worker(self) -> Member:
        """Choose a worker and wait until it runs jobs."""
        worker = self.source.choice(self.stack.of("worker"))
        await self.until(lambda: len(self.runs.open_of(worker.mark)) > 0)
        return worker

    def started_again(self, jobs: frozenset[str] | set[str], at_s: float, *, not_by: int | None = None) -> set[str]:
        """Return which of the jobs were started after a moment."""
        return {run.job for run in self.runs.since(at_s) if run.job in jobs and run.pid != not_by}

    async def errors(self, code: str) -> int:
        """Return how often the server has answered with an error code since it started."""
        async with self.stack.valkey.admin() as admin:
            found = (await admin.info("errorstats")).get(f"errorstat_{code}", {})
        return int(found["count"]) if isinstance(found, dict) and found else 0

    async def until_errors(self, code: str, before: int, *, least_s: float = 1.0) -> int:
        """Wait at least a while, and until the error was answered."""
        count = 0

        async def met() -> bool:
            nonlocal count
            count = await self.errors(code) - before
            return count > 0

        await asyncio.sleep(least_s)
        await in_time(met, self.look_s, pause_s=0.1)
        return count
