"""Define what answers hold, and fill it from what the store gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from penstock.api.problems import ItemProblem
from penstock.core.durations import format_time
from penstock.core.job import JobError, JobRecord, QueueInfo, Submitted, TaskInfo, WorkerInfo, handler_name
from penstock.core.limits import Limits, TaskDefaults
from penstock.core.retry import DEFAULT_BACKOFF, Backoff
from penstock.core.schedule import Missed, Overlap, ScheduleRecord, Source, next_ticks
from penstock.core.states import AttemptOutcome, Priority, Reason, State

Time = Annotated[str, Meta(description="RFC 3339, UTC, milliseconds.", examples=["2030-01-31T12:00:00.000Z"])]
Seconds = Annotated[float, Meta(description="Seconds.")]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a submit."""

    id: str
    status: State
    queue: str
    priority: Priority
    created_at: Time
    run_at: Time | None = None
    expires_at: Time | None = None


class BatchItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Answer one item of a batch: `id` and `status`, or `error`. `replayed`: its `idempotency_key` was used before.

    `existing`: another job holds its `unique_key`, and `id` and `status` are of that one.
    """

    index: int
    id: str | None = None
    status: State | None = None
    replayed: bool = False
    existing: bool = False
    error: ItemProblem | None = None


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a batch, items in the order of the request."""

    accepted: int
    rejected: int
    items: list[BatchItem]


class BackoffView(msgspec.Struct, frozen=True, kw_only=True):
    """Show the wait before a retry, in seconds."""

    base: Seconds
    factor: float
    max: Seconds
    jitter: bool


class ErrorView(msgspec.Struct, frozen=True, kw_only=True):
    """Show what went wrong in an attempt; `field` names the argument when the input was wrong."""

    type: str
    message: str
    traceback: str
    field: str


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """Show one attempt."""

    attempt: int
    worker: str
    started_at: Time | None
    finished_at: Time | None
    outcome: AttemptOutcome | None
    error: ErrorView | None


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Show a job without its input, result and attempts.

    `attempt` counts all claims, `counted` those that `max_attempts` limits, `lost` those whose worker was lost.
    `max_attempts`, `backoff` and `timeout` are what is in force.
    """

    id: str
    status: State
    task: str
    type: str
    queue: str
    priority: Priority
    error: ErrorView | None
    reason: Reason | None
    attempt: int
    counted: int
    lost: int
    max_attempts: int
    backoff: BackoffView
    timeout: Seconds | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    run_at: Time | None
    expires_at: Time | None
    cancel_requested_at: Time | None
    worker: str | None
    progress: Any
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    retention: Seconds | None
    unique_key: str | None
    no_handler: int
    schedule: Annotated[str | None, Meta(description="Name of the schedule whose tick submitted the job.")]
    scheduled_for: Annotated[Time | None, Meta(description="The tick's planned time.")]


class JobView(JobSummary, frozen=True, kw_only=True):
    """Show all of a job."""

    input: Any
    result: Any
    attempts: list[AttemptView]


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """List jobs; a page may be short and still have a `next` cursor."""

    items: list[JobSummary]
    next: str | None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a cancel or retry."""

    id: str
    status: State
    cancel_requested_at: Time | None = None


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a queue holds: `depth` waits by priority, `finished` is kept by status, `dead_letters` failed.

    A `paused` queue takes jobs and hands none out.
    """

    name: str
    paused: bool
    depth: dict[str, int]
    waiting: int
    running: int
    delayed: int
    dead_letters: int
    finished: dict[str, int]


class QueueList(msgspec.Struct, frozen=True, kw_only=True):
    """List all queues."""

    items: list[QueueView]
    next: str | None = None


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a purge cancelled; `more` says that it stopped early because the server stops."""

    queue: str
    purged: int
    more: bool


class ScheduledJobView(msgspec.Struct, frozen=True, kw_only=True):
    """Show the job that each tick submits; null is what the task or the deployment says."""

    task: str
    input: Any
    type: str
    queue: str
    priority: Priority
    max_attempts: int | None
    backoff: BackoffView | None
    timeout: Seconds | None
    expires_in: Seconds | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    retention: Seconds | None


class TickCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Count ticks: `fired` submitted a job, `skipped` met an `overlap` or a full queue, `missed` came too late."""

    fired: int
    skipped: int
    missed: int


class ScheduleView(msgspec.Struct, frozen=True, kw_only=True):
    """Show a schedule. `next` are the next five ticks, none while it is paused; `source` says who wrote it last."""

    name: str
    cron: str | None
    timezone: str | None
    every: Seconds | None
    start_at: Time | None
    missed: Missed
    overlap: Overlap
    job: ScheduledJobView
    source: Source
    paused: bool
    paused_at: Time | None
    next: list[Time]
    last_tick: Time | None
    last_job_id: str | None
    ticks: TickCounts
    created_at: Time
    updated_at: Time


class SchedulePage(msgspec.Struct, frozen=True, kw_only=True):
    """List schedules by name."""

    items: list[ScheduleView]
    next: str | None


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """Show a worker that was seen in the last 60 s.

    It tells about itself every ten seconds, so `running` is what ran at `seen_at`. `concurrency` sums its slots: those
    of async tasks, and those of threads and of the pool where it has tasks for them. `stuck` counts the slots that are
    held by handlers which outlived their timeouts.
    """

    name: str
    hostname: str
    pid: int
    version: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int
    running: int
    stuck: int
    started_at: Time
    seen_at: Time
    last_claim_at: Time | None


class WorkerList(msgspec.Struct, frozen=True, kw_only=True):
    """List the workers."""

    items: list[WorkerView]
    next: str | None = None


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a redrive did; `more` says that it stopped at `limit` or because the server stops."""

    redriven: int
    skipped: int
    more: bool


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a delete did; `more` says that it stopped at `limit` or because the server stops."""

    deleted: int
    skipped: int
    more: bool


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say that all is well; `store_latency_ms` is how long the store took to answer."""

    status: str
    version: str
    store_latency_ms: float | None = None


def _time(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else format_time(unix_ms)


def _seconds(duration_ms: int | None) -> float | None:
    return None if duration_ms is None else duration_ms / 1_000


def _json(text: bytes | None) -> Any:
    """Pass stored JSON text on as it is."""
    return msgspec.Raw(text) if text else None


def accepted(answer: Submitted, *, queue: str, priority: Priority, state: State | None = None) -> Accepted:
    """Show a submitted job."""
    return Accepted(
        id=answer.id,
        status=state or answer.state,
        queue=queue,
        priority=priority,
        created_at=format_time(answer.created_at_ms),
        run_at=_time(answer.run_at_ms),
        expires_at=_time(answer.expires_at_ms),
    )


class JobRenderer:
    """Show jobs with what is in force for them."""

    def __init__(self, tasks: Mapping[str, TaskInfo], defaults: TaskDefaults, limits: Limits) -> None:
        self._tasks = tasks
        self._defaults = defaults
        self._limits = limits

    def job(self, record: JobRecord) -> JobView:
        """Show all of a job."""
        return JobView(
            **self._common(record),
            input=_json(record.input),
            result=_json(record.result),
            attempts=[
                AttemptView(
                    attempt=attempt.attempt,
                    worker=attempt.worker,
                    started_at=_time(attempt.started_at_ms),
                    finished_at=_time(attempt.finished_at_ms),
                    outcome=attempt.outcome,
                    error=_error(attempt.error),
                )
                for attempt in record.attempts
            ],
        )

    def summary(self, record: JobRecord) -> JobSummary:
        """Show a job for a list."""
        return JobSummary(**self._common(record))

    def _common(self, record: JobRecord) -> dict[str, Any]:
        options = record.options
        known = self._tasks.get(handler_name(record.type, record.task)) or TaskInfo(name=record.task)
        timeout_ms = options.timeout_ms if options.timeout_ms is not None else known.timeout_ms
        return {
            "id": record.id,
            "status": record.state,
            "task": record.task,
            "type": record.type,
            "queue": record.queue,
            "priority": record.priority,
            "error": _last_error(record),
            "reason": record.reason,
            "attempt": record.attempt,
            "counted": record.counted,
            "lost": record.lost,
            "max_attempts": options.max_attempts or known.max_attempts or self._defaults.max_attempts,
            "backoff": _backoff(options.backoff or known.backoff or DEFAULT_BACKOFF),
            "timeout": _seconds(timeout_ms),
            "created_at": format_time(record.created_at_ms),
            "started_at": _time(record.started_at_ms),
            "finished_at": _time(record.finished_at_ms),
            "run_at": _time(record.run_at_ms),
            "expires_at": _time(record.expires_at_ms),
            "cancel_requested_at": _time(record.cancel_requested_at_ms),
            "worker": record.worker or None,
            "progress": _json(record.progress),
            "tags": options.tags,
            "metadata": options.metadata,
            "retention": _seconds(self._retention_ms(record)),
            "unique_key": options.unique_key,
            "no_handler": record.no_handler,
            "schedule": options.schedule,
            "scheduled_for": _time(options.scheduled_for_ms),
        }

    def _retention_ms(self, record: JobRecord) -> int | None:
        """Return what is in force; before the end that depends on how the job ends."""
        if record.retention_ms is not None or not record.state.is_final:
            return record.retention_ms
        return self._limits.failed_retention_ms if record.state is State.FAILED else self._limits.retention_ms


def _last_error(record: JobRecord) -> ErrorView | None:
    """Show the newest attempt's error; a completed job has none, whatever its first attempts did."""
    if record.state is State.COMPLETED or not record.attempts:
        return None
    return _error(record.attempts[-1].error)


def _error(error: JobError | None) -> ErrorView | None:
    if error is None:
        return None
    return ErrorView(type=error.type, message=error.message, traceback=error.traceback, field=error.field)


def _backoff(backoff: Backoff) -> BackoffView:
    return BackoffView(
        base=backoff.base_ms / 1_000, factor=backoff.factor, max=backoff.max_ms / 1_000, jitter=backoff.jitter
    )


def queue(info: QueueInfo) -> QueueView:
    """Show a queue."""
    return QueueView(
        name=info.name,
        paused=info.paused,
        depth={priority.value: info.depth.get(priority, 0) for priority in Priority},
        waiting=sum(info.depth.values()),
        running=info.running,
        delayed=info.delayed,
        dead_letters=info.finished.get(State.FAILED, 0),
        finished={state.value: info.finished.get(state, 0) for state in State if state.is_final},
    )


def schedule(record: ScheduleRecord) -> ScheduleView:
    """Show a schedule."""
    written, timing, job = record.schedule, record.schedule.timing, record.schedule.job
    return ScheduleView(
        name=written.name,
        cron=timing.cron,
        timezone=timing.timezone if timing.cron is not None else None,
        every=_seconds(timing.every_ms),
        start_at=_time(timing.start_at_ms),
        missed=written.missed,
        overlap=written.overlap,
        job=ScheduledJobView(
            task=job.task,
            input=_json(bytes(job.input)),
            type=job.type,
            queue=job.queue,
            priority=job.priority,
            max_attempts=job.options.max_attempts,
            backoff=None if job.options.backoff is None else _backoff(job.options.backoff),
            timeout=_seconds(job.options.timeout_ms),
            expires_in=_seconds(job.expires_in_ms),
            tags=job.options.tags,
            metadata=job.options.metadata,
            retention=_seconds(job.retention_ms),
        ),
        source=written.source,
        paused=record.paused_at_ms is not None,
        paused_at=_time(record.paused_at_ms),
        next=[format_time(at) for at in next_ticks(record, 5)],
        last_tick=_time(record.last_tick_ms),
        last_job_id=record.last_job_id,
        ticks=TickCounts(fired=record.fired, skipped=record.skipped, missed=record.missed),
        created_at=format_time(record.created_at_ms),
        updated_at=format_time(record.updated_at_ms),
    )


def worker(info: WorkerInfo) -> WorkerView:
    """Show a worker."""
    return WorkerView(
        name=info.name,
        hostname=info.hostname,
        pid=info.pid,
        version=info.version,
        queues=info.queues,
        tasks=info.tasks,
        concurrency=info.concurrency,
        running=info.running,
        stuck=info.stuck,
        started_at=format_time(info.started_at_ms),
        seen_at=format_time(info.seen_at_ms),
        last_claim_at=_time(info.last_claim_at_ms),
    )
