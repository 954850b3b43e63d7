"""Define the values that the store, the API and workers exchange."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from penstock.core.ids import JobId, Token, WorkerName
from penstock.core.limits import Over
from penstock.core.retry import Backoff
from penstock.core.states import AttemptOutcome, Priority, Reason, State


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold what a submit says beyond the fields that scripts read; stored packed, opaque to scripts.

    A job that a schedule's tick started carries the ``schedule``'s name and the tick's planned time, Unix ms.
    """

    max_attempts: int | None = None
    backoff: Backoff | None = None
    timeout_ms: int | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    traceparent: str | None = None
    #: What the user sent; scripts know its digest (``NewJob.unique``).
    unique_key: str | None = None
    schedule: str | None = None
    scheduled_for_ms: int | None = None


#: What most jobs have.
NO_OPTIONS = JobOptions()


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """Make a submit safe to repeat: the same key with the same fingerprint answers as the first time, for ``keep_ms``.

    ``key`` is the digest of what the user sent (``core.ids.digest_of``), ``fingerprint`` that of the body: hexadecimal.
    """

    key: str
    fingerprint: str
    keep_ms: int


class HeldUntil(enum.Enum):
    """Name the event up to which a job holds its unique key."""

    STARTED = "started"
    FINISHED = "finished"


class OnConflict(enum.Enum):
    """Name what becomes of a submit whose unique key another job holds."""

    REJECT = "reject"
    RETURN_EXISTING = "return_existing"
    REPLACE = "replace"


class Unique(msgspec.Struct, frozen=True, kw_only=True):
    """Let no second job hold the same key: up to an event, for a time from the submit on, or to the later of both.

    ``key`` is the digest of what the user sent (``core.ids.digest_of``). Without ``for_ms`` there is an ``until``.
    """

    key: str
    until: HeldUntil | None = HeldUntil.FINISHED
    for_ms: int | None = None
    on_conflict: OnConflict = OnConflict.REJECT


class NewJob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Describe one job to submit; ``input`` is JSON text.

    ``run_at_ms`` is Unix ms, ``delay_ms`` counts from the store's clock; at most one of the two. The same for
    ``expires_at_ms`` and ``expires_in_ms``. ``retention_ms`` None means the store's default for the final state.
    """

    id: JobId
    task: str
    input: bytes
    type: str = "task"
    queue: str = "default"
    priority: Priority = Priority.NORMAL
    options: JobOptions = NO_OPTIONS
    run_at_ms: int | None = None
    delay_ms: int | None = None
    expires_at_ms: int | None = None
    expires_in_ms: int | None = None
    retention_ms: int | None = None
    idempotency: Idempotency | None = None
    unique: Unique | None = None


class Submitted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Answer one submit. ``created`` is false when a job of that id already stood (a repeated submit).

    ``replayed`` says that the idempotency key was used before: the rest is the first answer, whatever came of the job.
    ``existing`` says that another job holds the unique key: the rest tells of that one.
    """

    id: JobId
    state: State
    created: bool
    created_at_ms: int
    run_at_ms: int | None = None
    expires_at_ms: int | None = None
    replayed: bool = False
    existing: bool = False


#: Of high, normal and low in weighted service: of 21 jobs started, 16, 4 and 1 while all three wait.
PRIORITY_WEIGHTS = (16, 4, 1)


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for up to ``limit`` jobs of one partition.

    Without weights each priority goes before the next, and within one the queues in the order given. With
    ``priority_weights`` (of high, normal and low; critical still goes first) the slots are split over all queues and
    these priorities by the product of the two weights; ``queue_weights`` alone splits within each priority, and where
    they are missing they are 1. ``draw`` in [0, 1) settles the fractions. ``queue_limits`` bounds the jobs of each
    queue as ``limit`` does those of all; a queue that has reached its own counts for nothing in ``Claimed.remaining``.
    ``tasks`` None means any task. ``nonce`` is the claimer's secret. ``alone`` asks for one job whose worker was lost
    so often that it must run alone (``Limits.alone_from``); other claims leave such jobs where they are.
    ``window_start`` in [0, 1) places the second look into a queue whose first jobs are all for other workers.
    """

    worker: WorkerName
    nonce: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...] | None = None
    limit: int = 1
    lease_ms: int = 15_000
    window_start: float = 0.0
    priority_weights: tuple[int, int, int] | None = None
    queue_weights: tuple[int, ...] | None = None
    queue_limits: tuple[int, ...] | None = None
    draw: float = 0.0
    alone: bool = False


class ClaimedJob(msgspec.Struct, frozen=True, kw_only=True):
    """Hand one job to a worker. ``input`` None means: too large for the call, fetch it with ``Store.input``.

    ``previous`` says how the attempt before this one ended, None at the first.
    """

    token: Token
    task: str
    type: str
    queue: str
    priority: Priority
    counted: int
    lost: int
    created_at_ms: int
    deadline_ms: int
    options: JobOptions
    input: bytes | None
    previous: AttemptOutcome | None = None


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a claim.

    ``skipped`` counts jobs left in place because only other workers know their task; ``remaining`` says whether
    any of the
    served queues still holds a job; ``apart`` counts jobs left for a claim that takes them ``alone``, which are neither
    skipped nor remaining; ``next_due_ms`` is the earliest due time of the partition's delayed jobs;
    ``now_ms`` is the store's clock.
    """

    jobs: tuple[ClaimedJob, ...]
    skipped: int
    deferred: int
    remaining: bool
    next_due_ms: int | None
    now_ms: int
    apart: int = 0


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """Ask to extend one lease; ``progress`` (JSON text, at most 1 KiB) is stored with it when given."""

    token: Token
    progress: bytes | None = None


class Extended(msgspec.Struct, frozen=True, kw_only=True):
    """Answer one extension. ``deadline_ms`` None means that the token is stale."""

    deadline_ms: int | None
    cancel_requested: bool = False


class Verb(enum.Enum):
    """Name the ways to settle an attempt."""

    COMPLETE = "complete"
    RETRY = "retry"
    FAIL = "fail"
    RELEASE = "release"
    SNOOZE = "snooze"
    CANCEL = "cancel"


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """Settle one attempt under its token.

    ``value`` is the result (JSON text) of ``COMPLETE``, else the error (JSON text of a JobError, may be empty).
    ``delay_ms`` belongs to ``RETRY`` and ``SNOOZE``, ``reason`` to ``FAIL``, ``outcome`` to ``RETRY`` and ``FAIL``.
    ``over`` says what was over its limit, and is counted.
    """

    token: Token
    verb: Verb
    value: bytes = b""
    delay_ms: int = 0
    reason: Reason | None = None
    outcome: AttemptOutcome = AttemptOutcome.FAILED
    over: Over | None = None


class SettleCode(enum.Enum):
    """Say what became of a settle."""

    DONE = "done"
    #: The same token settled the same way before; nothing changed.
    REPEATED = "repeated"
    #: The token is not the current one; nothing changed.
    STALE = "stale"


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Answer one settle; ``state`` is the job's state now, None when the job is gone."""

    code: SettleCode
    state: State | None


class ChangeCode(enum.Enum):
    """Say what became of a cancel, redrive or delete."""

    DONE = "done"
    #: A running handler is being told (cancel only).
    REQUESTED = "requested"
    #: The job's state does not allow it; nothing changed.
    CONFLICT = "conflict"
    #: Another job holds the job's unique key (redrive only); nothing changed.
    HELD = "held"
    MISSING = "missing"


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer one cancel, redrive or delete; ``state`` is the state after it, ``holder`` goes with ``HELD``."""

    code: ChangeCode
    state: State | None = None
    cancel_requested_at_ms: int | None = None
    holder: JobId | None = None


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a promote: how many became queued, how many expired, when the next is due."""

    queued: int
    expired: int
    next_due_ms: int | None
    now_ms: int


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """Answer one step of a purge.

    ``up_to`` is the last place in the queue that the purge takes; hand it to the next step when there is ``more``.
    """

    cancelled: int
    up_to: int
    more: bool


class Reaped(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a reap: the jobs whose lease lapsed, by what became of them."""

    requeued: tuple[JobId, ...] = ()
    poisoned: tuple[JobId, ...] = ()
    cancelled: tuple[JobId, ...] = ()


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """Answer a prune: jobs removed by age and by cap."""

    expired: int = 0
    capped: int = 0


class JobError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describe what went wrong in one attempt; ``field`` names the argument when the input was wrong."""

    type: str
    message: str
    traceback: str = ""
    field: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Record one attempt; times are Unix ms of the store's clock."""

    attempt: int
    worker: str
    started_at_ms: int | None
    finished_at_ms: int | None
    outcome: AttemptOutcome | None
    error: JobError | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that is stored of a job; ``input``, ``result`` and ``progress`` are JSON text. Times are Unix ms."""

    id: JobId
    state: State
    task: str
    type: str
    queue: str
    priority: Priority
    attempt: int
    counted: int
    lost: int
    created_at_ms: int
    options: JobOptions
    input: bytes | None = None
    result: bytes | None = None
    progress: bytes | None = None
    worker: str | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    run_at_ms: int | None = None
    expires_at_ms: int | None = None
    deadline_ms: int | None = None
    cancel_requested_at_ms: int | None = None
    retention_ms: int | None = None
    reason: Reason | None = None
    no_handler: int = 0
    attempts: tuple[Attempt, ...] = ()


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Publish a task's options in the registry so that submits and readers know what is in force."""

    name: str
    queue: str | None = None
    max_attempts: int | None = None
    backoff: Backoff | None = None
    timeout_ms: int | None = None
    executor: str = "async"


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a worker in the registry."""

    name: WorkerName
    hostname: str
    pid: int
    version: str
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int
    running: int
    started_at_ms: int
    seen_at_ms: int = 0
    last_claim_at_ms: int | None = None
    #: Slots held by handlers that outlived their timeouts.
    stuck: int = 0


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a queue holds; ``finished`` counts retained final jobs by state. A paused queue hands out nothing."""

    name: str
    depth: dict[Priority, int]
    running: int
    delayed: int
    finished: dict[State, int]
    paused: bool = False


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """Say how much memory the store uses; ``max_bytes`` 0 means that it has no limit."""

    used_bytes: int
    max_bytes: int

    def is_above(self, percent: int) -> bool:
        """Tell whether it uses at least this part of its limit."""
        return 0 < self.max_bytes * percent <= self.used_bytes * 100


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Choose jobs to list; None and empty mean any. Times are Unix ms of creation."""

    states: tuple[State, ...] = ()
    queue: str | None = None
    task: str | None = None
    tag: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one page of jobs; a page may be short and still have a ``next`` cursor."""

    items: tuple[JobRecord, ...]
    next: str | None


def handler_name(job_type: str, task: str) -> str:
    """Return the name under which workers announce and claim: the task, or ``@<type>`` for other types.

    The API refuses task names that start with ``@``, so the two cannot meet.
    """
    return task if job_type == "task" else f"@{job_type}"
