"""Keep schedules: a hash each, an index by name and one by the next tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.core.errors import SchedulesFull, StoreError, StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS
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
    read_definition,
    resumed_at,
    timing_of,
)
from penstock.store import name_cursor
from penstock.store.redis.clock import ServerClock
from penstock.store.redis.codec import ItemError, number, pack
from penstock.store.redis.connection import Connection

PUT_OFF_MS = 60_000
_ITEM_BYTES = 500
_TICK_BYTES = 300
#: How often a resume is computed anew because the schedule was written meanwhile.
_RESUMES = 5


class RedisSchedules(ServerClock):
    """Implement ``ScheduleStore``."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._partitions = connection.options.partitions

    def _partition(self, name: str) -> int:
        return home_of_schedule(name) % self._partitions

    async def put_schedule(self, schedule: Schedule) -> PutSchedule:
        """See ``ScheduleStore.put_schedule``. Of many partitions the bound is exact but for puts at the same moment."""
        partition, most = self._partition(schedule.name), self._connection.options.limits.schedules
        first_ms = first_tick(schedule.timing, await self._clock(self._connection.keys[partition]))
        if first_ms is None:
            raise ValueError("never ticks")
        others = [keys.key("schedules") for index, keys in enumerate(self._connection.keys) if index != partition]
        room = most - sum(await self._connection.together([("ZCARD", key) for key in others]))
        code, *flat = await self._connection.script(
            "put_schedule",
            partition,
            schedule.name,
            definition_of(schedule),
            timing_of(schedule),
            str(first_ms),
            max(0, room),
            durable=True,
        )
        if code == b"full":
            raise SchedulesFull(most)
        return PutSchedule(code=PutCode(code.decode()), record=record_of(flat))

    async def delete_schedule(self, name: str) -> bool:
        """See ``ScheduleStore.delete_schedule``."""
        return bool(await self._connection.script("delete_schedule", self._partition(name), name))

    async def pause_schedule(self, name: str) -> ScheduleRecord | None:
        """See ``ScheduleStore.pause_schedule``."""
        code, *flat = await self._connection.script("pause_schedule", self._partition(name), name, 1, "", "", "")
        return None if code == b"missing" else record_of(flat)

    async def resume_schedule(self, name: str) -> ScheduleRecord | None:
        """See ``ScheduleStore.resume_schedule``."""
        for _ in range(_RESUMES):
            record = await self.get_schedule(name)
            if record is None:
                return None
            at = resumed_at(record, await self._clock(self._connection.keys[self._partition(name)]))
            code, *flat = await self._connection.script(
                "pause_schedule", self._partition(name), name, 0, str(record.revision), _text(record.next_ms), _text(at)
            )
            if code != b"moved":
                return None if code == b"missing" else record_of(flat)
        raise StoreUnavailable(f"the schedule {name!r} is written all the time; try again")

    async def get_schedule(self, name: str) -> ScheduleRecord | None:
        """See ``ScheduleStore.get_schedule``."""
        keys = self._connection.keys[self._partition(name)]
        flat = await self._connection.command("HGETALL", keys.key("schedule", name))
        return record_of(flat) if flat else None

    async def list_schedules(self, *, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """See ``ScheduleStore.list_schedules``."""
        after = "-" if cursor is None else f"({name_cursor.read(cursor)}"
        found = await self._connection.together(
            [
                ("ZRANGEBYLEX", keys.key("schedules"), after, "+", "LIMIT", 0, limit + 1)
                for keys in self._connection.keys
            ]
        )
        names = sorted(name.decode() for part in found for name in part)
        shown, more = names[:limit], len(names) > limit
        flats = await self._connection.together(
            [("HGETALL", self._connection.keys[self._partition(name)].key("schedule", name)) for name in shown]
        )
        records = [record for flat in flats if (record := _readable(flat)) is not None]
        return SchedulePage(items=tuple(records), next=name_cursor.write(shown[-1]) if more else None)

    async def due_schedules(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> DueSchedules:
        """See ``ScheduleStore.due_schedules``."""
        now_ms, next_due, found = await self._connection.script("due_schedules", partition, limit, SCRIPT_BYTES)
        records = []
        for name, flat in found:
            record = _readable(flat)
            if record is None:
                await self._put_off(partition, name, now_ms)
            else:
                records.append(record)
        return DueSchedules(records=tuple(records), next_due_ms=_rounded(next_due), now_ms=now_ms)

    async def put_off_schedule(self, name: str) -> None:
        """See ``ScheduleStore.put_off_schedule``."""
        partition = self._partition(name)
        await self._put_off(partition, name, await self._clock(self._connection.keys[partition]))

    async def _put_off(self, partition: int, name: str | bytes, now_ms: int) -> None:
        key = self._connection.keys[partition].key("schedule_due")
        await self._connection.command("ZADD", key, "XX", now_ms + PUT_OFF_MS, name)

    async def tick(self, partition: int, ticks: Sequence[Tick]) -> list[Ticked | Exception]:
        """See ``ScheduleStore.tick``. In calls bounded by jobs and bytes."""
        answers: list[Ticked | Exception] = []
        batch: list[Tick] = []
        jobs = size = 0
        for tick in ticks:
            weight = len(tick.record.schedule.job.input) + _ITEM_BYTES + _TICK_BYTES * len(tick.fire)
            if batch and (
                len(batch) >= SCRIPT_ITEMS or jobs + len(tick.fire) > SCRIPT_ITEMS or size + weight > SCRIPT_BYTES
            ):
                answers += await self._tick(partition, batch)
                batch, jobs, size = [], 0, 0
            batch.append(tick)
            jobs, size = jobs + len(tick.fire), size + weight
        return answers + (await self._tick(partition, batch) if batch else [])

    async def _tick(self, partition: int, ticks: Sequence[Tick]) -> list[Ticked | Exception]:
        limits = self._connection.options.limits
        bounds = {
            queue: limits.depth_bound(queue, self._partitions) for queue in {t.record.schedule.job.queue for t in ticks}
        }
        replies = await self._connection.script(
            "tick",
            partition,
            pack([_item(tick) for tick in ticks]),
            pack({queue: bound for queue, bound in bounds.items() if bound is not None}),
        )
        return [_ticked(reply) for reply in replies]


def _item(tick: Tick) -> list[Any]:
    record, schedule = tick.record, tick.record.schedule
    job = schedule.job
    return [
        schedule.name,
        str(record.revision),
        _text(record.next_ms),
        _text(tick.next_ms),
        tick.missed,
        int(schedule.overlap is Overlap.ALLOW),
        [job.task, job.type, job.queue, job.priority.value, bytes(job.input).decode(), job.retention_ms],
        [
            [
                job_id_of_tick(schedule.name, planned_ms),
                msgspec.json.encode(options_of_tick(schedule, planned_ms)).decode(),
                planned_ms,
                None if job.expires_in_ms is None else planned_ms + job.expires_in_ms,
            ]
            for planned_ms in tick.fire
        ],
    ]


def _ticked(reply: Sequence[Any]) -> Ticked | Exception:
    if reply[0] == b"error":
        return ItemError(reply[1].decode(errors="replace"))
    if reply[0] == b"moved":
        return Ticked(moved=False)
    return Ticked(moved=True, fired=reply[1], skipped=reply[2])


def _text(unix_ms: int | None) -> str:
    return "" if unix_ms is None else str(unix_ms)


def _rounded(score: bytes) -> int | None:
    """Return a score as a time; the server may write it as a float."""
    return int(float(score)) if score else None


def _readable(flat: Any) -> ScheduleRecord | None:
    try:
        return record_of(flat) if flat else None
    except StoreError:
        return None


def record_of(flat: Any) -> ScheduleRecord:
    """Read a schedule from its hash.

    Raises:
        StoreError: it is damaged.
    """
    fields: Mapping[bytes, bytes] = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    try:
        last_job = fields.get(b"last_job")
        return ScheduleRecord(
            schedule=read_definition(fields[b"definition"]),
            revision=int(fields[b"revision"]),
            next_ms=number(fields.get(b"next")),
            created_at_ms=int(fields[b"created"]),
            updated_at_ms=int(fields[b"updated"]),
            paused_at_ms=number(fields.get(b"paused")),
            last_tick_ms=number(fields.get(b"last_tick")),
            last_job_id=JobId(last_job.decode()) if last_job else None,
            fired=number(fields.get(b"fired")) or 0,
            skipped=number(fields.get(b"skipped")) or 0,
            missed=number(fields.get(b"missed")) or 0,
        )
    except (KeyError, ValueError) as error:
        raise StoreError(f"the schedule is damaged ({error!r}): put it anew, or delete it") from error


def record_or_damage(flat: Any) -> tuple[ScheduleRecord | None, str]:
    """Return a schedule, or None and what is wrong with its hash."""
    try:
        return record_of(flat), ""
    except StoreError as error:
        return None, f"{error}"
