"""Declare schedules in task modules; the workers of a module store them when they start."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import msgspec

from penstock.core.cron import Timing, check_cron, check_timezone
from penstock.core.durations import parse_duration_ms, parse_time_ms
from penstock.core.errors import TaskError
from penstock.core.job import JobOptions, TaskInfo
from penstock.core.limits import NAME_CHARACTERS, SCHEDULE_INPUT_BYTES, SHORTEST_INTERVAL_MS
from penstock.core.schedule import Missed, Overlap, Schedule, ScheduledJob, Source, definition_of, name_problem
from penstock.core.states import Priority
from penstock.handlers.registry import Task, find_tasks

#: The variable of a module in which its schedules are noted, so that a call alone is enough.
_NOTED = "__penstock_schedules__"
_TIMING = ("cron", "timezone", "every", "start_at")


class DeclaredSchedule:
    """Hold what a module declares; ``queue`` None means the task's own."""

    def __init__(self, schedule: Schedule, *, has_queue: bool, where: str) -> None:
        self.schedule = schedule
        self.where = where
        self._has_queue = has_queue

    @property
    def name(self) -> str:
        """Return the schedule's name."""
        return self.schedule.name

    def with_queue(self, tasks: Mapping[str, TaskInfo], default: str) -> Schedule:
        """Return the schedule with the queue that its task names, unless it names one itself."""
        if self._has_queue:
            return self.schedule
        known = tasks.get(self.schedule.job.task)
        queue = (known.queue if known is not None else None) or default
        return msgspec.structs.replace(self.schedule, job=msgspec.structs.replace(self.schedule.job, queue=queue))


def schedule(name: str, *, task: Task[..., Any] | str, input: Any = None, **options: Any) -> DeclaredSchedule:  # noqa: A002 - the field's name
    """Declare a schedule of the module that calls this, under the fields of ``PUT /schedules/{name}``.

    ``cron`` (with ``timezone``) or ``every`` (with ``start_at``) say when; ``missed``, ``overlap``, ``queue``,
    ``priority``, ``max_attempts``, ``timeout``, ``expires_in``, ``retention``, ``tags`` and ``metadata`` the rest.

    Raises:
        TaskError: a field cannot be used.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - the module that declares is the one that calls
    declared = declare(name, task=task, value=input, options=options, where=_place(frame))
    frame.f_globals.setdefault(_NOTED, []).append(declared)
    return declared


def declare(
    name: str, *, task: Task[..., Any] | str, value: Any, options: Mapping[str, Any], where: str
) -> DeclaredSchedule:
    """Return a schedule. Raises TaskError."""
    try:
        return _declare(name, task, value, dict(options), where)
    except (ValueError, TypeError, AttributeError) as error:
        raise TaskError(f"{where}: schedule {name!r}: {error}") from None


def _declare(
    name: str, task: Task[..., Any] | str, value: Any, options: dict[str, Any], where: str
) -> DeclaredSchedule:
    problem = name_problem(name)
    if problem is not None:
        raise ValueError(f"its name {problem}")
    timing = _timing(options)
    encoded = msgspec.json.encode(value)
    if len(encoded) > SCHEDULE_INPUT_BYTES:
        raise ValueError(f"input takes {len(encoded)} bytes as JSON; at most {SCHEDULE_INPUT_BYTES}")
    queue = options.pop("queue", None)
    if queue is not None and (problem := name_problem(queue)) is not None:
        raise ValueError(f"its queue {queue!r} {problem}")
    job = ScheduledJob(
        task=task.name if isinstance(task, Task) else _text("task", task),
        input=msgspec.Raw(encoded),
        queue="default" if queue is None else queue,
        priority=Priority(options.pop("priority", "normal")),
        options=JobOptions(
            max_attempts=_count("max_attempts", options.pop("max_attempts", None)),
            timeout_ms=_duration("timeout", options.pop("timeout", None)),
            tags=tuple(_text("tags", tag) for tag in options.pop("tags", ())),
            metadata=dict(options.pop("metadata", {})),
        ),
        expires_in_ms=_duration("expires_in", options.pop("expires_in", None)),
        retention_ms=_duration("retention", options.pop("retention", None), low_ms=0),
    )
    missed, overlap = Missed(options.pop("missed", "latest")), Overlap(options.pop("overlap", "allow"))
    if options:
        raise ValueError(f"there is no option {min(options)!r}")
    written = Schedule(name=name, timing=timing, job=job, missed=missed, overlap=overlap, source=Source.CODE)
    # What cannot be stored must stop the boot here.
    definition_of(written)
    return DeclaredSchedule(written, has_queue=queue is not None, where=where)


def _timing(options: dict[str, Any]) -> Timing:
    given = {field: value for field in _TIMING if (value := options.pop(field, None)) is not None}
    if ("cron" in given) == ("every" in given):
        raise ValueError("say when, with either 'cron' or 'every'")
    if "cron" in given:
        if "start_at" in given:
            raise ValueError("'start_at' belongs to 'every'")
        return Timing(
            cron=_checked("cron", given), timezone=_checked("timezone", given) if "timezone" in given else "UTC"
        )
    if "timezone" in given:
        raise ValueError("'timezone' belongs to 'cron'")
    every_ms = _duration("every", given["every"], low_ms=SHORTEST_INTERVAL_MS)
    start_at = given.get("start_at")
    return Timing(every_ms=every_ms, start_at_ms=None if start_at is None else parse_time_ms(_moment(start_at)))


def _checked(field: str, given: Mapping[str, Any]) -> str:
    try:
        return (check_cron if field == "cron" else check_timezone)(given[field])
    except ValueError as error:
        raise ValueError(f"{field} {given[field]!r} {error}") from None


def _moment(value: Any) -> str:
    return value if isinstance(value, str) else str(value.isoformat())


def _duration(field: str, value: float | str | None, *, low_ms: int = 1) -> int | None:
    if value is None:
        return None
    try:
        duration_ms = parse_duration_ms(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{field}: {error}") from None
    if duration_ms < low_ms:
        raise ValueError(f"{field} must be at least {low_ms / 1_000:g} s")
    return duration_ms


def _count(field: str, value: Any) -> int | None:
    if value is not None and not (type(value) is int and 1 <= value <= 1_000):
        raise ValueError(f"{field} must be 1 to 1000, not {value!r}")
    return value


def _text(field: str, value: Any) -> str:
    if not (isinstance(value, str) and 1 <= len(value) <= NAME_CHARACTERS and value.isprintable()):
        raise ValueError(f"{field} must be 1 to {NAME_CHARACTERS} printable characters, not {value!r}")
    if value.startswith("@"):
        raise ValueError(f"{field} must not start with '@'")
    return value


def _place(frame: Any) -> str:
    return f"{frame.f_globals.get('__name__', '?')} ({frame.f_code.co_filename}:{frame.f_lineno})"


def find_schedules(modules: Iterable[ModuleType]) -> list[DeclaredSchedule]:
    """Return the schedules of modules, those of their tasks too.

    Raises:
        TaskError: two of one name differ.
    """
    found: dict[str, DeclaredSchedule] = {}
    for module in modules:
        noted = [task.schedule for task in find_tasks(module) if task.schedule is not None]
        for declared in [*noted, *vars(module).get(_NOTED, ())]:
            earlier = found.setdefault(declared.name, declared)
            if definition_of(earlier.schedule) != definition_of(declared.schedule):
                raise TaskError(f"two schedules are named {declared.name!r}: {earlier.where} and {declared.where}")
    return list(found.values())
