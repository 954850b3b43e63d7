"""Show jobs and queues."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import msgspec

from penstock.core.ids import JobId
from penstock.core.job import Attempt, JobError, JobFilter, JobRecord, Page, QueueInfo
from penstock.core.states import FINAL_STATES, PLACES, AttemptOutcome, Place, Priority, State
from penstock.store.memory.partition import Partition, StoredJob

EXAMINED_PER_PAGE = 1_000
LIST_ORDER = (
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
#: Orders a listing: state, partition, priority, queue, score, id; what a state is not ordered by is zero or empty.
Position = tuple[int, int, int, str, int, str]
_decode_error = msgspec.json.Decoder(JobError).decode
_decode_position = msgspec.json.Decoder(Position).decode


def record(job: StoredJob, partition: Partition, *, values: bool = True) -> JobRecord:
    """Describe a job, with input and result when ``values`` is set."""
    delayed = PLACES[job.state] is Place.DELAYED
    return JobRecord(
        id=job.id,
        state=job.state,
        task=job.task,
        type=job.type,
        queue=job.queue,
        priority=job.priority,
        attempt=job.attempt,
        counted=job.counted,
        lost=job.lost,
        created_at_ms=job.created_at_ms,
        options=job.options,
        input=job.input if values else None,
        result=job.result if values else None,
        progress=job.progress,
        worker=job.worker,
        started_at_ms=job.started_at_ms,
        finished_at_ms=job.finished_at_ms,
        run_at_ms=job.due_ms if delayed else None,
        expires_at_ms=job.expires_at_ms,
        deadline_ms=job.deadline_ms if job.state is State.RUNNING else None,
        cancel_requested_at_ms=job.cancel_requested_at_ms,
        retention_ms=job.retention_ms,
        reason=job.reason,
        no_handler=job.no_handler,
        attempts=tuple(_attempts(job, partition)),
    )


def _attempts(job: StoredJob, partition: Partition) -> Iterator[Attempt]:
    for _, (attempt, error) in sorted(job.attempts.items()):
        yield msgspec.structs.replace(attempt, error=_decode_error(error)) if error else attempt
    if job.state is State.RUNNING:
        yield partition.latest_attempt(job)
    elif job.state is State.COMPLETED:
        yield partition.latest_attempt(job, AttemptOutcome.COMPLETED, job.finished_at_ms)


def queue_info(partitions: Sequence[Partition], name: str) -> QueueInfo:
    """Count what a queue holds over all partitions."""
    return QueueInfo(
        name=name,
        depth={priority: sum(len(one.queues[name, priority]) for one in partitions) for priority in Priority},
        running=sum(one.gauge(one.running, name) for one in partitions),
        delayed=sum(one.gauge(one.delayed, name) for one in partitions),
        finished={
            state: sum(len(one.final[state, name]) for one in partitions) for state in State if state in FINAL_STATES
        },
        paused=all(name in one.paused for one in partitions),
    )


def list_page(partitions: Sequence[Partition], filters: JobFilter, limit: int, cursor: str | None) -> Page:
    """Return one page; the cursor is the position of the last entry examined."""
    after = _read_cursor(cursor)
    entries = sorted(entry for entry in _entries(partitions, filters) if after is None or entry[0] > after)
    items: list[JobRecord] = []
    for count, (position, partition, job_id) in enumerate(entries, start=1):
        job = partitions[partition].jobs[job_id]
        if _matches(job, filters):
            items.append(record(job, partitions[partition], values=False))
        if len(items) >= limit or count >= EXAMINED_PER_PAGE:
            return Page(items=tuple(items), next=_write_cursor(position))
    return Page(items=tuple(items), next=None)


def _entries(partitions: Sequence[Partition], filters: JobFilter) -> Iterator[tuple[Position, int, JobId]]:
    """Return the jobs of the wanted states and queue, each with its position in the listing."""
    for partition in partitions:
        for job in partition.jobs.values():
            if (not filters.states or job.state in filters.states) and filters.queue in (None, job.queue):
                yield _position(partition, job), partition.number, job.id


def _position(partition: Partition, job: StoredJob) -> Position:
    state = LIST_ORDER.index(job.state)
    if job.state is State.QUEUED:
        return (state, partition.number, list(Priority).index(job.priority), job.queue, job.seq, job.id)
    if job.state is State.RUNNING:
        return (state, partition.number, 0, "", job.deadline_ms, job.id)
    if job.state in FINAL_STATES:
        # Newest first: times and ids both run backwards.
        backwards = f"{(1 << 128) - 1 - int(job.id.replace('-', ''), 16):032x}"
        return (state, partition.number, 0, job.queue, -(job.finished_at_ms or 0), backwards)
    return (state, partition.number, 0, "", job.due_ms, job.id)


def _matches(job: StoredJob, filters: JobFilter) -> bool:
    after, before = filters.created_after_ms, filters.created_before_ms
    return (
        filters.task in (None, job.task)
        and (filters.tag is None or filters.tag in job.options.tags)
        and (after is None or job.created_at_ms >= after)
        and (before is None or job.created_at_ms < before)
    )


def _write_cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()


def _read_cursor(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        position: Position = _decode_position(base64.urlsafe_b64decode(cursor.encode()))
        return position
    except ValueError as error:
        raise ValueError("not a cursor of this listing") from error
