"""Look at jobs for people; never on the path of a submit, claim or settle."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from penstock.core.errors import StoreError, StoreUnavailable
from penstock.core.ids import JobId, partition_of
from penstock.core.job import JobFilter, JobRecord, MemoryUse, Page, QueueInfo, TaskInfo, WorkerInfo
from penstock.core.states import FINAL_STATES, Priority, State
from penstock.store.keys import PartitionKeys
from penstock.store.redis.clock import ServerClock
from penstock.store.redis.codec import ItemError, job_record
from penstock.store.redis.connection import Connection
from penstock.store.redis.jobs import TASK_KEPT_MS, WORKER_LIVE_MS
from penstock.store.redis.primary import Primary

LISTING_ORDER = (
    State.RUNNING,
    State.QUEUED,
    State.RETRYING,
    State.SCHEDULED,
    State.BLOCKED,
    State.FAILED,
    State.COMPLETED,
    State.CANCELLED,
    State.EXPIRED,
)
_EXAMINED = 1_000
_CHUNK = 100
#: Workers whose leases a listing reads at the same time.
_WORKERS_AT_ONCE = 100


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Say where the next page starts: an index (by number) and a rank in it, with the last entry seen as a check."""

    index: int
    score: float
    id: str


def _encode_cursor(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _decode_cursor(text: str) -> _Cursor:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Cursor)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise ValueError("not a cursor of this listing") from error


class _Index(msgspec.Struct, frozen=True):
    partition: int
    key: str
    states: tuple[State, ...]
    newest_first: bool


class RedisReader(ServerClock):
    """Implement ``JobReader``."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._partitions = connection.options.partitions

    async def ping(self) -> None:
        """See ``JobReader.ping``."""
        await self._connection.everywhere("PING")

    async def memory(self) -> MemoryUse:
        """See ``JobReader.memory``."""
        answers = await self._connection.everywhere("INFO", "memory")
        uses = [_memory_use(answer) for answer in answers if not isinstance(answer, StoreError)]
        # The fullest server counts: a job may belong to it.
        return max(uses, key=lambda use: (use.used_bytes / use.max_bytes if use.max_bytes else 0.0, use.used_bytes))

    async def get(self, job_id: JobId) -> JobRecord | None:
        """See ``JobReader.get``."""
        keys = self._connection.keys[partition_of(job_id, self._partitions)]
        # Only the job tells whose lease it has: one that runs is read again, at one moment with its deadline.
        worker: str | None = None
        while True:
            text, ended, big_input, big_result, deadline = await self._connection.together(
                [
                    ("GET", keys.key("job", job_id)),
                    ("HGETALL", keys.key("attempts", job_id)),
                    ("GET", keys.key("input", job_id)),
                    ("GET", keys.key("result", job_id)),
                    ("ZSCORE", keys.key("running", worker or ""), job_id),
                ],
                atomic=True,
            )
            if text is None:
                return None
            record = job_record(
                job_id, text, attempts=as_dict(ended), big_input=big_input, big_result=big_result, deadline=deadline
            )
            if record.state is not State.RUNNING or record.worker in (None, worker):
                return record
            worker = record.worker

    async def _queue_names(self) -> list[str]:
        commands = [("SMEMBERS", keys.key("queues")) for keys in self._connection.keys]
        found = await self._connection.together(commands)
        return sorted({name.decode() for names in found for name in names})

    def _indexes(self, filters: JobFilter, queues: list[str]) -> Iterator[_Index]:
        wanted = filters.states or LISTING_ORDER
        names = queues if filters.queue is None else [filters.queue]
        for state in LISTING_ORDER:
            if state not in wanted:
                continue
            for partition, keys in enumerate(self._connection.keys):
                if state is State.RUNNING:
                    yield _Index(partition, keys.key("leases"), (state,), newest_first=False)
                elif state in (State.RETRYING, State.SCHEDULED):
                    yield _Index(partition, keys.key("delayed"), (state,), newest_first=False)
                elif state is State.QUEUED:
                    for priority, name in itertools.product(Priority, names):
                        yield _Index(partition, keys.key("queue", name, priority.value), (state,), newest_first=False)
                elif state is State.FAILED:
                    for name in names:
                        yield _Index(partition, keys.key("dead", name), (state,), newest_first=True)
                elif state in FINAL_STATES:
                    for name in names:
                        yield _Index(partition, keys.key("final", state.value, name), (state,), newest_first=True)

    async def list_jobs(self, filters: JobFilter, *, limit: int = 50, cursor: str | None = None) -> Page:
        """See ``JobReader.list_jobs``.

        A cursor holds the score and id of the last entry seen, so that entries which leave in between shift nothing.
        """
        queues = await self._queue_names() if filters.queue is None else []
        position = _decode_cursor(cursor) if cursor else None
        items: list[JobRecord] = []
        examined = 0
        for number, index in enumerate(self._indexes(filters, queues)):
            if position is not None and number < position.index:
                continue
            after = position if position is not None and number == position.index else None
            while True:
                read = self._running_entries if State.RUNNING in index.states else self._entries
                entries = await read(index, after)
                records = await self._records(index, entries)
                for (job_id, score), record in zip(entries, records, strict=True):
                    examined += 1
                    after = _Cursor(number, score, job_id)
                    if record is not None and _matches(record, index, filters):
                        items.append(record)
                    if len(items) == limit or examined == _EXAMINED:
                        return Page(items=tuple(items), next=_encode_cursor(after))
                if len(entries) < _CHUNK:
                    break
        return Page(items=tuple(items), next=None)

    async def _entries(self, index: _Index, after: _Cursor | None) -> list[tuple[str, float]]:
        """Return up to ``_CHUNK`` entries of an index after a cursor; ties of the score are settled by id."""
        low = "-inf" if after is None or index.newest_first else repr(after.score)
        high = "+inf" if after is None or not index.newest_first else repr(after.score)
        verb, first, last = ("ZREVRANGEBYSCORE", high, low) if index.newest_first else ("ZRANGEBYSCORE", low, high)
        fresh: list[tuple[str, float]] = []
        for offset in itertools.count(0, _CHUNK):
            flat = await self._connection.command(verb, index.key, first, last, "WITHSCORES", "LIMIT", offset, _CHUNK)
            entries = [(job_id.decode(), float(score)) for job_id, score in _pairs(flat)]
            fresh += [
                entry for entry in entries if after is None or _is_after(entry, after, newest_first=index.newest_first)
            ]
            if len(fresh) >= _CHUNK or len(entries) < _CHUNK:
                break
        return fresh[:_CHUNK]

    async def _running_entries(self, index: _Index, after: _Cursor | None) -> list[tuple[str, float]]:
        """Return what ``_entries`` would if all that run stood in one index, by deadline, and not in one a worker."""
        keys = self._connection.keys[index.partition]
        flat = await self._connection.command("ZRANGE", index.key, "0", "-1", "WITHSCORES")
        workers = [(name.decode(), float(bound)) for name, bound in _pairs(flat)]
        found: list[tuple[str, float]] = []
        for start in range(0, len(workers), _WORKERS_AT_ONCE):
            chunk = workers[start : start + _WORKERS_AT_ONCE]
            # No worker has a lease that lapses before its score in `leases`: the rest of them cannot come first.
            if len(found) == _CHUNK and found[-1][1] < chunk[0][1]:
                break
            indexes = [msgspec.structs.replace(index, key=keys.key("running", name)) for name, _ in chunk]
            low = "-inf" if after is None else repr(after.score)
            reads = [
                ("ZRANGEBYSCORE", one.key, low, "+inf", "WITHSCORES", "LIMIT", "0", str(_CHUNK)) for one in indexes
            ]
            for one, flat in zip(indexes, await self._connection.together(reads), strict=True):
                entries = [(job_id.decode(), float(score)) for job_id, score in _pairs(flat)]
                fresh = [entry for entry in entries if after is None or _is_after(entry, after, newest_first=False)]
                # A full read that began before the cursor may lack what comes next.
                found += await self._entries(one, after) if len(fresh) < len(entries) == _CHUNK else fresh
            found = sorted(found, key=lambda entry: (entry[1], entry[0]))[:_CHUNK]
        return found

    async def _records(self, index: _Index, entries: list[tuple[str, float]]) -> list[JobRecord | None]:
        keys = self._connection.keys[index.partition]
        if not entries:
            return []
        reads: list[tuple[str, ...]] = [("MGET", *(keys.key("job", job_id) for job_id, _ in entries))]
        reads += [("HGETALL", keys.key("attempts", job_id)) for job_id, _ in entries]
        try:
            texts, *answers = await self._connection.together(reads)
        except StoreUnavailable:
            raise
        except StoreError:
            # A key of another type: then each job by itself.
            singly = [await self._records(index, [entry]) for entry in entries] if len(entries) > 1 else [[None]]
            return [record for records in singly for record in records]
        records: list[JobRecord | None] = []
        for (job_id, score), text, ended in zip(entries, texts, answers, strict=True):
            record = None
            # A damaged job keeps no other from being listed; the auditor names it.
            with contextlib.suppress(ItemError):
                if text is not None:
                    # Of a job that runs the score is its deadline; of another the record has no use for one.
                    record = job_record(JobId(job_id), text, attempts=as_dict(ended), deadline=b"%d" % int(score))
                    record = msgspec.structs.replace(record, input=None, result=None)
            records.append(record)
        return records

    async def queues(self) -> list[QueueInfo]:
        """See ``JobReader.queues``."""
        names = await self._queue_names()
        commands: list[tuple[str, ...]] = []
        for keys in self._connection.keys:
            commands.append(("HGETALL", keys.key("gauges")))
            commands.append(("ZRANGE", keys.key("ready"), "0", "-1", "WITHSCORES"))
            commands.append(("SMEMBERS", keys.key("paused")))
            for name in names:
                commands.append(("ZCARD", keys.key("dead", name)))
                commands += [
                    ("ZCARD", keys.key("final", state.value, name))
                    for state in (State.COMPLETED, State.CANCELLED, State.EXPIRED)
                ]
        answers = iter(await self._connection.together(commands))
        depth = {name: dict.fromkeys(Priority, 0) for name in names}
        gauges = {name: {"running": 0, "delayed": 0} for name in names}
        finished = {
            name: dict.fromkeys((State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED), 0) for name in names
        }
        # A pause that reached only some of the partitions failed, and its caller was told so.
        paused = set(names)
        for _ in self._connection.keys:
            for field, value in as_dict(next(answers)).items():
                gauge, _, name = field.decode().partition(":")
                if name in gauges and gauge in gauges[name]:
                    gauges[name][gauge] += int(value)
            for member, score in _pairs(next(answers)):
                name, _, priority = member.decode().rpartition(":")
                if name in depth:
                    depth[name][Priority(priority)] += int(float(score))
            paused &= {name.decode() for name in next(answers)}
            for name in names:
                for state in (State.FAILED, State.COMPLETED, State.CANCELLED, State.EXPIRED):
                    finished[name][state] += next(answers)
        return [
            QueueInfo(
                name=name,
                depth=depth[name],
                running=gauges[name]["running"],
                delayed=gauges[name]["delayed"],
                finished=finished[name],
                paused=name in paused,
            )
            for name in names
        ]

    async def counters(self) -> Mapping[tuple[str, str], int]:
        """See ``JobReader.counters``."""
        totals: dict[tuple[str, str], int] = {}
        for flat in await self._connection.together(
            [("HGETALL", keys.key("counters")) for keys in self._connection.keys]
        ):
            for field, value in as_dict(flat).items():
                name, separator, queue = field.decode().partition(":")
                if separator:
                    totals[name, queue] = totals.get((name, queue), 0) + int(value)
        return totals

    async def tasks(self) -> dict[str, TaskInfo]:
        """See ``JobReader.tasks``. Every partition holds the same registry; one on each server is asked."""
        found: dict[str, TaskInfo] = {}
        seen: dict[str, int] = {}
        for live, flat in await self._registries("tasks", "task_options", TASK_KEPT_MS):
            for name, options in as_dict(flat).items():
                if live.get(name, -1) > seen.get(name.decode(), -1):
                    seen[name.decode()] = live[name]
                    found[name.decode()] = msgspec.json.decode(options, type=TaskInfo)
        return found

    async def workers(self) -> list[WorkerInfo]:
        """See ``JobReader.workers``. Every partition holds the same registry; one on each server is asked."""
        found: dict[str, WorkerInfo] = {}
        for live, flat in await self._registries("workers", "worker_info", WORKER_LIVE_MS):
            for name, description in as_dict(flat).items():
                if name not in live:
                    continue
                info = msgspec.structs.replace(msgspec.json.decode(description, type=WorkerInfo), seen_at_ms=live[name])
                known = found.get(info.name)
                if known is None or (known.seen_at_ms or 0) < live[name]:
                    found[info.name] = info
        return sorted(found.values(), key=lambda worker: worker.name)

    async def _registries(self, index: str, hash_kind: str, max_age_ms: int) -> list[tuple[dict[bytes, int], Any]]:
        """Read a registry from one partition of each server; those that are away are left out while one answers."""
        partitions: dict[Primary, PartitionKeys] = {}
        last: StoreError | None = None
        for partition, keys in enumerate(self._connection.keys):
            try:
                partitions.setdefault(await self._connection.server_of(partition), keys)
            except StoreError as error:
                last = error
        if last is not None and not partitions:
            raise last

        async def read(keys: PartitionKeys) -> tuple[dict[bytes, int], Any]:
            live, flat = await asyncio.gather(
                self._live(keys, index, max_age_ms), self._connection.command("HGETALL", keys.key(hash_kind))
            )
            return live, flat

        answers = await asyncio.gather(*(read(keys) for keys in partitions.values()), return_exceptions=True)
        return [answer for answer in self._connection.tolerate(answers) if not isinstance(answer, StoreError)]

    async def _live(self, keys: PartitionKeys, index: str, max_age_ms: int) -> dict[bytes, int]:
        now_ms = await self._clock(keys)
        flat = await self._connection.command(
            "ZRANGEBYSCORE", keys.key(index), f"({now_ms - max_age_ms}", "+inf", "WITHSCORES"
        )
        return {name: int(float(score)) for name, score in _pairs(flat)}


def _memory_use(answer: Any) -> MemoryUse:
    if not isinstance(answer, dict):
        lines = (line.partition(b":") for line in answer.splitlines() if b":" in line)
        answer = {name.decode(): value for name, _, value in lines}
    return MemoryUse(used_bytes=int(answer.get("used_memory", 0)), max_bytes=int(answer.get("maxmemory", 0)))


def _is_after(entry: tuple[str, float], after: _Cursor, *, newest_first: bool) -> bool:
    job_id, score = entry
    return (score, job_id) < (after.score, after.id) if newest_first else (score, job_id) > (after.score, after.id)


def _matches(record: JobRecord, index: _Index, filters: JobFilter) -> bool:
    return (
        record.state in index.states
        and (filters.queue is None or record.queue == filters.queue)
        and (filters.task is None or record.task == filters.task)
        and (filters.tag is None or filters.tag in record.options.tags)
        and (filters.created_after_ms is None or record.created_at_ms >= filters.created_after_ms)
        and (filters.created_before_ms is None or record.created_at_ms < filters.created_before_ms)
    )


def _pairs(flat: list[Any]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def as_dict(flat: Any) -> dict[bytes, bytes]:
    """Return a hash as a dict, whether the client library has already made one."""
    return dict(flat) if isinstance(flat, dict) else dict(_pairs(flat))
