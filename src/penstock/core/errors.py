"""Define every error that Penstock raises.

::

    PenstockError
    ├── TransitionError         the state machine does not allow the event
    ├── ConfigError             a setting is wrong; names the key
    ├── InvalidRequest          a request's fields are wrong; lists them
    ├── KeyReused               an idempotency key came with another body
    ├── KeyHeld                 another job holds the unique key
    ├── StoreError
    │   ├── StoreUnavailable    no answer, or the server says "not now"; the call may or may not have happened
    │   │   ├── NotDurable      neither disk nor replicas have confirmed in time what was written
    │   │   └── NotSent         the store gave no answer before this was sent; nothing was written
    │   ├── StoreFull           the server is at its memory limit; nothing was written
    │   ├── QueueFull           the queue holds as many jobs as it may; this job was not taken
    │   ├── SchedulesFull       there are as many schedules as there may be; this one was not stored
    │   └── StoreMismatch       the data belongs to another format or number of partitions
    │       └── StoreUnfit      the server lacks what this release or the settings need
    └── TaskError               a task is defined wrongly (two of one name, unusable signature)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


class PenstockError(Exception):
    """Be the root of all errors that Penstock raises on purpose."""


class TransitionError(PenstockError):
    """Say that the transition table does not allow an event in a state."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"no transition for event {event!r} in state {state!r}")
        self.state = state
        self.event = event


class ConfigError(PenstockError):
    """Say that a setting is wrong; ``key`` is the name the user gave it."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.key = key
        self.detail = detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldError:
    """Say what is wrong with one field; ``field`` is a dotted path, empty for the whole body."""

    field: str
    code: str
    detail: str


class InvalidRequest(PenstockError):
    """Say which fields of a request are wrong."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field or 'body'}: {error.detail}" for error in errors))
        self.errors = tuple(errors)


class KeyReused(PenstockError):
    """Say that an idempotency key was used with another body before; ``job_id`` is the job of that time."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the idempotency key was used with another body, for job {job_id}")
        self.job_id = job_id


class KeyHeld(PenstockError):
    """Say that another job holds the unique key; ``job_id`` is that job, ``status`` its status."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"the unique key is held by job {job_id}, which is {status}")
        self.job_id = job_id
        self.status = status


class StoreError(PenstockError):
    """Be the root of errors of the store."""


class StoreUnavailable(StoreError):
    """Say that the store gave no answer or asked to come back later."""


class NotDurable(StoreUnavailable):
    """Say that the disk or the replicas did not confirm in time what was written; it may stand all the same."""


class NotSent(StoreUnavailable):
    """Say that the store stopped answering before this was sent, so that it did not happen."""

    def __init__(self) -> None:
        super().__init__("the store stopped answering before this was sent")


class StoreFull(StoreError):
    """Say that the store is at its memory limit and refused to write."""


class QueueFull(StoreError):
    """Say that a queue holds as many waiting jobs as it may, and that this job was not taken."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"the queue {queue!r} holds as many waiting jobs as it may")
        self.queue = queue


class SchedulesFull(StoreError):
    """Say that there are as many schedules as there may be, and that this one was not stored."""

    def __init__(self, most: int) -> None:
        super().__init__(f"there are {most} schedules, as many as there may be")
        self.most = most


class StoreMismatch(StoreError):
    """Say that the stored data has another format or number of partitions than the settings."""


class StoreUnfit(StoreMismatch):
    """Say that the server lacks what this release or the settings need; the text names it."""


class TaskError(PenstockError):
    """Say that a task is defined wrongly."""
