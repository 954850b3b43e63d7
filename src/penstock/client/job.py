"""Define what the client returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from penstock.client.errors import ApiError, JobCancelled, JobExpired, JobFailed, JobNotFinished, JobUnsuccessful

FINAL_STATUSES = frozenset({"completed", "failed", "cancelled", "expired"})


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Describe what went wrong; ``field`` names the argument when the input was wrong."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    field: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Record one attempt; ``outcome`` None means that it still runs."""

    attempt: int
    worker: str | None = None
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    outcome: str | None = None
    error: JobError | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Show a job as the server told it; after ``submit`` only some fields are known, the others are None or empty."""

    id: str
    status: str
    task: str = ""
    type: str = "task"
    queue: str = ""
    priority: str = ""
    input: Any = None
    result: Any = None
    error: JobError | None = None
    reason: str | None = None
    progress: Any = None
    attempt: int = 0
    counted: int = 0
    lost: int = 0
    no_handler: int = 0
    max_attempts: int | None = None
    #: What is in force: ``base``, ``max`` (seconds), ``factor``, ``jitter``.
    backoff: dict[str, Any] | None = None
    #: Seconds, as ``retention``.
    timeout: float | None = None
    retention: float | None = None
    attempts: tuple[Attempt, ...] = ()
    worker: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    created_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    run_at: dt.datetime | None = None
    #: The schedule whose tick submitted the job, and the tick's planned time.
    schedule: str | None = None
    scheduled_for: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    cancel_requested_at: dt.datetime | None = None
    unique_key: str | None = None
    #: This answer to a submit is the first one of its idempotency key.
    replayed: bool = False
    #: The job that a submit with ``return_existing`` found under its unique key.
    existing: bool = False

    @property
    def is_final(self) -> bool:
        """Tell whether only a redrive, a delete or retention can change the job any more."""
        return self.status in FINAL_STATUSES

    def result_or_raise(self) -> Any:
        """Return the result of a completed job.

        Raises:
            JobUnsuccessful: the job failed (JobFailed), was cancelled (JobCancelled), expired (JobExpired) or is not
                final yet (JobNotFinished).
        """
        if self.status == "completed":
            return self.result
        raise self._unsuccessful()

    def _unsuccessful(self) -> JobUnsuccessful:
        if self.status == "failed":
            why = f": {self.error.type}: {self.error.message}" if self.error else ""
            return JobFailed(self, f"job {self.id} failed{f' ({self.reason})' if self.reason else ''}{why}")
        if self.status == "cancelled":
            return JobCancelled(self, f"job {self.id} was cancelled")
        if self.status == "expired":
            return JobExpired(self, f"job {self.id} expired before it started")
        return JobNotFinished(self, f"job {self.id} is {self.status}")


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Answer one job of ``submit_many``: ``index`` counts from 0; either ``id`` and ``status`` or ``error`` is set."""

    index: int
    id: str | None = None
    status: str | None = None
    replayed: bool = False
    existing: bool = False
    error: ApiError | None = None


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one page of jobs; it may be short and still have a ``next`` cursor."""

    items: tuple[Job, ...]
    next: str | None = None


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a queue holds; ``depth`` is by priority, ``finished`` by status. A paused one hands no jobs out."""

    name: str
    paused: bool = False
    depth: dict[str, int] = {}
    waiting: int = 0
    running: int = 0
    delayed: int = 0
    dead_letters: int = 0
    finished: dict[str, int] = {}


class Ticks(msgspec.Struct, frozen=True, kw_only=True):
    """Count ticks: ``fired`` submitted a job, ``skipped`` met ``overlap`` or a full queue, ``missed`` came too late."""

    fired: int = 0
    skipped: int = 0
    missed: int = 0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Show a schedule; ``next`` are the next five ticks, ``every`` is seconds, ``job`` what each tick submits."""

    name: str
    cron: str | None = None
    timezone: str | None = None
    every: float | None = None
    start_at: dt.datetime | None = None
    missed: str = ""
    overlap: str = ""
    job: dict[str, Any] = {}
    source: str = ""
    paused: bool = False
    paused_at: dt.datetime | None = None
    next: tuple[dt.datetime, ...] = ()
    last_tick: dt.datetime | None = None
    last_job_id: str | None = None
    ticks: Ticks = Ticks()
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None


class SchedulePage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one page of schedules, by name."""

    items: tuple[Schedule, ...]
    next: str | None = None


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a purge cancelled; ``more`` says that it stopped before the end: call again."""

    queue: str
    purged: int = 0
    more: bool = False


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a redrive did; ``more`` says that it stopped before the end: call again."""

    redriven: int = 0
    skipped: int = 0
    more: bool = False


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a delete did; ``more`` says that it stopped before the end: call again."""

    deleted: int = 0
    skipped: int = 0
    more: bool = False
