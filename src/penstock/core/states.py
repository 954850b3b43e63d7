"""Name the states of a job and the places that hold a job in each of them."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Name where a job stands; users see it as ``status``."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Tell whether nothing but a redrive, a delete or retention can change the job any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})


class Place(enum.Enum):
    """Name the one index of a partition that holds a job."""

    QUEUE = "queue"
    DELAYED = "delayed"
    BLOCKED = "blocked"
    RUNNING = "running"
    FINAL = "final"


PLACES = {
    State.SCHEDULED: Place.DELAYED,
    State.RETRYING: Place.DELAYED,
    State.BLOCKED: Place.BLOCKED,
    State.QUEUED: Place.QUEUE,
    State.RUNNING: Place.RUNNING,
    State.COMPLETED: Place.FINAL,
    State.FAILED: Place.FINAL,
    State.CANCELLED: Place.FINAL,
    State.EXPIRED: Place.FINAL,
}


class Priority(enum.Enum):
    """Name the four levels of a queue, most urgent first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Reason(enum.Enum):
    """Say why a job failed for good."""

    EXHAUSTED = "exhausted"
    DISCARDED = "discarded"
    POISONED = "poisoned"
    TIMED_OUT = "timed_out"
    INVALID_INPUT = "invalid_input"
    UNKNOWN_TASK = "unknown_task"


class AttemptOutcome(enum.Enum):
    """Say how one attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    WORKER_LOST = "worker_lost"
    RELEASED = "released"
    CANCELLED = "cancelled"
