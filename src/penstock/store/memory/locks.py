"""Say which job holds a unique key, and decide what a submit of another one does."""

from __future__ import annotations

import dataclasses

from penstock.core.ids import JobId
from penstock.core.job import HeldUntil
from penstock.core.states import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniqueHold:
    """Hold a job's own word on its unique key: ``end_ms`` 0 without a time."""

    key: str
    until: HeldUntil | None
    end_ms: int

    def is_bound(self, state: State, attempt: int) -> bool:
        """Tell whether an event is still to come up to which a job holds the key."""
        if state.is_final or self.until is None:
            return False
        return self.until is HeldUntil.FINISHED or attempt == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lock:
    """Say whom to ask about a key; the job itself tells whether it still holds it.

    ``state`` is set once the job is final.
    """

    job_id: JobId
    created_at_ms: int
    end_ms: int
    state: State | None = None
