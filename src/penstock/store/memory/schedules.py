"""Keep schedules in memory, each in the partition of its name."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.core.errors import QueueFull, SchedulesFull
from penstock.core.job import NewJob, Submitted
from penstock.core.schedule import (
    DueSchedules,
    Overlap,
    PutCode,
    PutSchedule,
    Schedule,
    SchedulePage,
    ScheduleRecord,
    Tick,
    Ticked,
    definition_of,
    first_tick,
    home_of_schedule,
    job_id_of_tick,
    options_of_tick,
    resumed_at,
    timing_of,
)
from penstock.store import name_cursor
from penstock.store.memory.partition import Partition

PUT_OFF_MS = 60_000


class Schedules:
    """Keep the schedules of all partitions; ``submit`` creates a job."""

    def __init__(self, parts: list[Partition], most: int, submit: Callable[[NewJob], Submitted]) -> None:
        self._parts = parts
        self._most = most
        self._submit = submit

    def _part(self, name: str) -> Partition:
        return self._parts[home_of_schedule(name) % len(self._parts)]

    def put(self, schedule: Schedule, now_ms: int) -> PutSchedule:
        """Create or replace a schedule."""
        first_ms = first_tick(schedule.timing, now_ms)
        if first_ms is None:
            raise ValueError("never ticks")
        part = self._part(schedule.name)
        stands = part.schedules.get(schedule.name)
        if stands is None:
            if sum(len(other.schedules) for other in self._parts) >= self._most:
                raise SchedulesFull(self._most)
            record = ScheduleRecord(
                schedule=schedule, revision=now_ms, next_ms=first_ms, created_at_ms=now_ms, updated_at_ms=now_ms
            )
            return PutSchedule(code=PutCode.CREATED, record=self._keep(record))
        if definition_of(stands.schedule) == definition_of(schedule):
            return PutSchedule(code=PutCode.UNCHANGED, record=self._keep(stands))
        same = timing_of(stands.schedule) == timing_of(schedule) and stands.next_ms is not None
        record = msgspec.structs.replace(
            stands,
            schedule=schedule,
            revision=max(now_ms, stands.revision + 1),
            next_ms=stands.next_ms if same else first_ms,
            updated_at_ms=now_ms,
        )
        return PutSchedule(code=PutCode.REPLACED, record=self._keep(record))

    def _keep(self, record: ScheduleRecord) -> ScheduleRecord:
        part, name = self._part(record.schedule.name), record.schedule.name
        part.schedules[name] = record
        if record.paused_at_ms is not None or record.next_ms is None:
            part.schedule_due.pop(name, None)
        else:
            part.schedule_due[name] = record.next_ms
            part.signals.due_changed()
        return record

    def delete(self, name: str) -> bool:
        """Remove a schedule."""
        part = self._part(name)
        part.schedule_due.pop(name, None)
        return part.schedules.pop(name, None) is not None

    def pause(self, name: str, now_ms: int) -> ScheduleRecord | None:
        """Stop a schedule."""
        stands = self._part(name).schedules.get(name)
        if stands is None or stands.paused_at_ms is not None:
            return stands
        return self._keep(msgspec.structs.replace(stands, paused_at_ms=now_ms))

    def resume(self, name: str, now_ms: int) -> ScheduleRecord | None:
        """Let a schedule go on."""
        stands = self._part(name).schedules.get(name)
        if stands is None or stands.paused_at_ms is None:
            return stands
        return self._keep(msgspec.structs.replace(stands, paused_at_ms=None, next_ms=resumed_at(stands, now_ms)))

    def get(self, name: str) -> ScheduleRecord | None:
        """Return a schedule."""
        return self._part(name).schedules.get(name)

    def page(self, limit: int, cursor: str | None) -> SchedulePage:
        """Return a page of schedules by name."""
        after = "" if cursor is None else name_cursor.read(cursor)
        records = {name: record for part in self._parts for name, record in part.schedules.items()}
        names = [name for name in sorted(records) if name > after]
        last = names[limit - 1 : limit] if len(names) > limit else []
        items = tuple(records[name] for name in names[:limit])
        return SchedulePage(items=items, next=name_cursor.write(last[0]) if last else None)

    def due(self, part: Partition, limit: int, now_ms: int) -> DueSchedules:
        """Return what is due."""
        order = sorted((at, name) for name, at in part.schedule_due.items())
        for _, name in order:
            record = part.schedules[name]
            # What was put off has a later time in the index than its own.
            if record.next_ms is not None and part.schedule_due[name] <= now_ms < record.next_ms:
                part.schedule_due[name] = record.next_ms
        records = tuple(part.schedules[name] for at, name in order if at <= now_ms)[:limit]
        return DueSchedules(
            records=tuple(record for record in records if record.next_ms is not None and record.next_ms <= now_ms),
            next_due_ms=min(part.schedule_due.values(), default=None),
            now_ms=now_ms,
        )

    def put_off(self, name: str, now_ms: int) -> None:
        """Look at a schedule again in a minute."""
        part = self._part(name)
        if name in part.schedule_due:
            part.schedule_due[name] = now_ms + PUT_OFF_MS

    def tick(self, part: Partition, tick: Tick) -> Ticked:
        """Start a tick's jobs and move its schedule on."""
        read, name = tick.record, tick.record.schedule.name
        stands = part.schedules.get(name)
        if (
            stands is None
            or (stands.revision, stands.next_ms) != (read.revision, read.next_ms)
            or stands.paused_at_ms is not None
        ):
            return Ticked(moved=False)
        fired = skipped = 0
        last_job_id, last_tick_ms = stands.last_job_id, stands.last_tick_ms
        for planned_ms in tick.fire:
            last = part.jobs.get(last_job_id) if last_job_id else None
            if read.schedule.overlap is Overlap.SKIP and last is not None and not last.state.is_final:
                skipped += 1
                continue
            try:
                last_job_id = self._submit(_new_job(read.schedule, planned_ms)).id
            except QueueFull:
                skipped += 1
            else:
                fired, last_tick_ms = fired + 1, planned_ms
        self._keep(
            msgspec.structs.replace(
                stands,
                next_ms=tick.next_ms,
                last_job_id=last_job_id,
                last_tick_ms=last_tick_ms,
                fired=stands.fired + fired,
                skipped=stands.skipped + skipped,
                missed=stands.missed + tick.missed,
            )
        )
        counted = {"ticks_fired": fired, "ticks_skipped": skipped, "ticks_missed": tick.missed}
        for counter, amount in counted.items():
            if amount:
                part.counters[counter, read.schedule.job.queue] += amount
        return Ticked(moved=True, fired=fired, skipped=skipped)


def _new_job(schedule: Schedule, planned_ms: int) -> NewJob:
    job = schedule.job
    return NewJob(
        id=job_id_of_tick(schedule.name, planned_ms),
        task=job.task,
        input=bytes(job.input),
        type=job.type,
        queue=job.queue,
        priority=job.priority,
        options=options_of_tick(schedule, planned_ms),
        expires_at_ms=None if job.expires_in_ms is None else planned_ms + job.expires_in_ms,
        retention_ms=job.retention_ms,
    )
