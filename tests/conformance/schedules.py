"""Make schedules, and let them tick as the loops do."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.core.cron import Timing
from penstock.core.schedule import Schedule, ScheduledJob, ScheduleRecord, Tick, Ticked, plan
from penstock.store.protocol import Store

MINUTE_MS = 60_000
MINUTELY = Timing(cron="* * * * *")


def schedule(
    name: str = "nightly", timing: Timing = MINUTELY, *, job: dict[str, Any] | None = None, **fields: Any
) -> Schedule:
    """Return a schedule; START_MS of the tests is a whole minute."""
    given = {"task": "echo", "input": msgspec.Raw(b"{}"), **(job or {})}
    return Schedule(name=name, timing=timing, job=ScheduledJob(**given), **fields)


async def put(store: Store, *arguments: Any, **fields: Any) -> ScheduleRecord:
    """Put a schedule."""
    return (await store.put_schedule(schedule(*arguments, **fields))).record


async def found(store: Store, name: str = "nightly") -> ScheduleRecord:
    """Return a schedule that exists."""
    record = await store.get_schedule(name)
    assert record is not None
    return record


async def plans(store: Store, partition: int = 0) -> list[Tick]:
    """Return what is to be done with the schedules that are due."""
    due = await store.due_schedules(partition)
    made = [plan(record, due.now_ms) for record in due.records]
    return [tick for tick in made if tick is not None]


async def tick_all(store: Store, partition: int = 0) -> list[Ticked]:
    """Do what is due, as long as anything is; return the answers."""
    answers: list[Ticked] = []
    while ticks := await plans(store, partition):
        for answer in await store.tick(partition, ticks):
            assert isinstance(answer, Ticked)
            answers.append(answer)
    return answers
