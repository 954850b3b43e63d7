"""Define schedules, and decide what becomes of their ticks."""

from __future__ import annotations

import enum
import hashlib
import itertools

import msgspec

from penstock.core.cron import Timing, ticks_after
from penstock.core.ids import JobId, digest_of, home_of_digest, make_job_id
from penstock.core.job import JobOptions
from penstock.core.limits import NAME_CHARACTERS, SCRIPT_ITEMS
from penstock.core.states import Priority

#: A tick that no loop saw within this time is missed, even when it is the newest one.
MISSED_AFTER_MS = 60_000
#: How many missed ticks ``Missed.ALL`` still starts; older ones are counted as missed.
MOST_MISSED = 1_000
#: Ticks that one step starts, and that it looks at.
STEP_TICKS = SCRIPT_ITEMS
_LOOKED_AT = 250


class Missed(enum.Enum):
    """Say what becomes of ticks that were missed: nothing ran, or the schedule was paused."""

    #: None of them starts a job.
    SKIP = "skip"
    #: The newest one does.
    LATEST = "latest"
    #: All do, in order, the newest thousand at most.
    ALL = "all"


class Overlap(enum.Enum):
    """Say what becomes of a tick while the job of the tick before is not final."""

    ALLOW = "allow"
    SKIP = "skip"


class Source(enum.Enum):
    """Say where a schedule was written last."""

    API = "api"
    #: A task module; its workers write it anew when they start.
    CODE = "code"


class ScheduledJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describe the job that each tick submits, as ``NewJob`` does; ``expires_in_ms`` counts from the tick's time."""

    task: str
    input: msgspec.Raw
    type: str = "task"
    queue: str = "default"
    priority: Priority = Priority.NORMAL
    options: JobOptions = JobOptions()
    expires_in_ms: int | None = None
    retention_ms: int | None = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describe a schedule as it was written."""

    name: str
    timing: Timing
    job: ScheduledJob
    missed: Missed = Missed.LATEST
    overlap: Overlap = Overlap.ALLOW
    source: Source = Source.API


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that is stored of a schedule. Times are Unix ms.

    ``revision`` changes whenever the schedule is written differently. ``next_ms`` None means that it never ticks again.
    ``last_tick_ms`` is the planned time of the newest tick that started a job, ``last_job_id`` the newest job.
    """

    schedule: Schedule
    revision: int
    next_ms: int | None
    created_at_ms: int
    updated_at_ms: int
    paused_at_ms: int | None = None
    last_tick_ms: int | None = None
    last_job_id: JobId | None = None
    fired: int = 0
    skipped: int = 0
    missed: int = 0


class PutCode(enum.Enum):
    """Say what a put did."""

    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


class PutSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a put."""

    code: PutCode
    record: ScheduleRecord


class DueSchedules(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a partition's schedules that are due, and when the next one is; ``now_ms`` is the store's clock."""

    records: tuple[ScheduleRecord, ...]
    next_due_ms: int | None
    now_ms: int


class SchedulePage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one page of schedules, by name."""

    items: tuple[ScheduleRecord, ...]
    next: str | None


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Move a schedule on, unless somebody else did: it must stand at ``record.next_ms`` and ``record.revision``.

    ``fire`` are the planned times that start a job, ``missed`` counts those that do not; ``next_ms`` is its next tick.
    """

    record: ScheduleRecord
    fire: tuple[int, ...]
    missed: int
    next_ms: int | None


class Ticked(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a tick. ``moved`` is false when somebody else was first: nothing changed."""

    moved: bool
    fired: int = 0
    skipped: int = 0


def name_problem(name: str) -> str | None:
    """Say why a schedule cannot have this name, which is a part of URLs; None when it can."""
    if not 1 <= len(name) <= NAME_CHARACTERS:
        return f"must have 1 to {NAME_CHARACTERS} characters"
    if not name.isprintable():
        return "holds characters that cannot be printed"
    if "/" in name or name in {".", ".."}:
        return "is part of URLs: no '/', and not '.' or '..'"
    return None


def definition_of(schedule: Schedule) -> bytes:
    """Return a schedule as it is stored: JSON. Two that are written alike are equal."""
    return msgspec.json.encode(schedule)


def timing_of(schedule: Schedule) -> bytes:
    """Return what says when a schedule ticks, as it is stored: JSON."""
    return msgspec.json.encode(schedule.timing)


def read_definition(text: bytes) -> Schedule:
    """Return the schedule of a stored definition.

    Raises:
        ValueError: it is none.
    """
    return msgspec.json.decode(text, type=Schedule)


def home_of_schedule(name: str) -> int:
    """Return the home, 0 to 4095, that a schedule and its jobs share."""
    return home_of_digest(digest_of(name))


def job_id_of_tick(name: str, tick_ms: int) -> JobId:
    """Return the id of the one job that a tick starts: whoever computes it gets the same."""
    digest = hashlib.blake2b(f"{tick_ms} {name}".encode(), digest_size=8).digest()
    return make_job_id(unix_ms=tick_ms, home=home_of_schedule(name), random_bits=int.from_bytes(digest, "big") >> 2)


def options_of_tick(schedule: Schedule, tick_ms: int) -> JobOptions:
    """Return the options of a tick's job, which name the schedule and the planned time."""
    return msgspec.structs.replace(schedule.job.options, schedule=schedule.name, scheduled_for_ms=tick_ms)


def first_tick(timing: Timing, now_ms: int) -> int | None:
    """Return the first tick of a schedule that is made now; None when there is none."""
    return next(ticks_after(timing, now_ms), None)


def next_ticks(record: ScheduleRecord, count: int) -> tuple[int, ...]:
    """Return the next ticks, none while the schedule is paused."""
    if record.next_ms is None or record.paused_at_ms is not None:
        return ()
    later = ticks_after(record.schedule.timing, record.next_ms, phase_ms=record.next_ms)
    return (record.next_ms, *itertools.islice(later, count - 1))


def resumed_at(record: ScheduleRecord, now_ms: int) -> int | None:
    """Return the next tick of a schedule that is resumed: the one where it stood when that was missed, else the first
    after now, which also brings back a schedule that a clock once set wrong had sent far ahead.
    """
    if record.next_ms is not None and record.next_ms <= now_ms:
        return record.next_ms
    return next(ticks_after(record.schedule.timing, now_ms, phase_ms=record.next_ms), None)


def plan(record: ScheduleRecord, now_ms: int) -> Tick | None:
    """Decide what becomes of the ticks that are due; None when none is. One step looks at a bounded number of them.

    Of several due ticks all but the newest were missed, and the newest too when it is over a minute late.

    Raises:
        ValueError: the schedule's timing cannot be read (any more).
    """
    next_ms = record.next_ms
    if next_ms is None or next_ms > now_ms:
        return None
    timing, missed = record.schedule.timing, record.schedule.missed
    dropped = 0
    if timing.every_ms is not None:
        # What an interval missed is counted, not walked through.
        dropped = max(0, (now_ms - next_ms) // timing.every_ms + 1 - _most(missed))
        next_ms += dropped * timing.every_ms
    looked_at = MOST_MISSED + STEP_TICKS if missed is Missed.ALL else _LOOKED_AT
    ticks = itertools.chain((next_ms,), ticks_after(timing, next_ms, phase_ms=next_ms))
    due: list[int] = []
    following: int | None = None
    for tick_ms in ticks:
        if tick_ms > now_ms or len(due) == looked_at:
            following = tick_ms
            break
        due.append(tick_ms)
    if following is not None and following <= now_ms:
        # More are due than one step looks at, so that each of these has enough newer ones.
        keep = MOST_MISSED if missed is Missed.ALL else 0
        gone = len(due) - keep
        return Tick(record=record, fire=(), missed=dropped + gone, next_ms=due[gone] if gone < len(due) else following)
    fire, following = _chosen(due, following, missed, now_ms)
    gone = len([tick_ms for tick_ms in due if following is None or tick_ms < following]) - len(fire)
    return Tick(record=record, fire=fire, missed=dropped + gone, next_ms=following)


def _most(missed: Missed) -> int:
    return MOST_MISSED if missed is Missed.ALL else 1


def _chosen(due: list[int], following: int | None, missed: Missed, now_ms: int) -> tuple[tuple[int, ...], int | None]:
    """Return which of all due ticks start a job in this step, and where the schedule stands after it."""
    if missed is Missed.ALL:
        newest = due[-MOST_MISSED:]
        fire = tuple(newest[:STEP_TICKS])
        return fire, newest[STEP_TICKS] if len(newest) > STEP_TICKS else following
    if missed is Missed.SKIP and now_ms - due[-1] > MISSED_AFTER_MS:
        return (), following
    return (due[-1],), following
