"""Say how a run of a handler can end: exceptions that it raises, and the closed union that a worker settles."""

from __future__ import annotations

import dataclasses

from penstock.core.limits import Over
from penstock.core.states import AttemptOutcome, Reason


class Retry(Exception):
    """Ask for another attempt; ``after`` (seconds or text such as "90s") replaces the backoff. Counts as an attempt."""

    def __init__(self, message: str = "", *, after: float | str | None = None) -> None:
        super().__init__(message or "retry requested")
        self.after = after


class Discard(Exception):
    """Send the job to the dead letter at once, without further attempts."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded by the handler")


class Snooze(Exception):
    """Run the job again ``after`` seconds (or text such as "15m"), without counting an attempt."""

    def __init__(self, after: float | str, message: str = "") -> None:
        super().__init__(message or "snoozed by the handler")
        self.after = after

    def __reduce__(self) -> tuple[type[Snooze], tuple[float | str, str]]:
        # Exceptions cross the process pool by pickling, which calls the class with ``args`` otherwise.
        return (Snooze, (self.after, str(self)))


class InvalidInput(Exception):
    """Say that the job's input does not fit the task; ``field`` names the argument. Not retried."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.field = field
        self.detail = detail

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, str]]:
        # Exceptions cross the process pool by pickling, which calls the class with ``args`` otherwise.
        return (InvalidInput, (self.field, self.detail))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Succeeded:
    """End with a result; ``result`` is JSON text."""

    result: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FailedAttempt:
    """End with an error; ``reason`` set means that no further attempt is made, whatever is left."""

    error: bytes
    outcome: AttemptOutcome = AttemptOutcome.FAILED
    reason: Reason | None = None
    after_ms: int | None = None
    over: Over | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snoozed:
    """End without counting, to run again after ``after_ms``."""

    after_ms: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """End without counting, back to the job's own place in its queue (drain, lost slot)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """End because a cancel was requested and the handler has stopped."""


Outcome = Succeeded | FailedAttempt | Snoozed | Released | Cancelled
