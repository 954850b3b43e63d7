"""Hand a running handler what it may know and do."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from typing import Any

import msgspec

from penstock.core.limits import CHUNK_BYTES
from penstock.core.output import OutputKind
from penstock.handlers.job_log import make_job_log

PROGRESS_BYTES = 1024
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def deadline_of(timeout_ms: int | None) -> dt.datetime | None:
    """Return when a handler that starts now is told to end."""
    return None if timeout_ms is None else dt.datetime.now(dt.UTC) + dt.timedelta(milliseconds=timeout_ms)


class CancelFlag:
    """Tell a handler that it should stop, and remember whether it looked; plain attributes, safe across threads."""

    __slots__ = ("requested", "seen")

    def __init__(self) -> None:
        self.requested = False
        self.seen = False


class Context:
    """Describe the running attempt and take its progress, log and stream; injected as ``ctx``.

    ``attempt`` rises with each claim, ``counted`` says how many earlier attempts count against ``max_attempts``.
    ``previous_outcome`` says how the attempt before this one ended, such as ``worker_lost``; None at the first one.
    ``schedule`` and ``scheduled_for`` name the schedule whose tick submitted the job and the tick's planned time.
    ``deadline`` is when the timeout ends the attempt, None without one. ``resources`` is what the module's
    ``lifespan()`` yielded; None in the process executor, whose children do not enter it.
    """

    __slots__ = (
        "_flag",
        "_log",
        "_report",
        "_write",
        "attempt",
        "counted",
        "deadline",
        "id",
        "previous_outcome",
        "queue",
        "resources",
        "schedule",
        "scheduled_for",
        "task",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the name that users read
        task: str,
        queue: str,
        attempt: int,
        counted: int,
        previous_outcome: str | None = None,
        deadline: dt.datetime | None = None,
        schedule: str | None = None,
        scheduled_for_ms: int | None = None,
        resources: Any = None,
        flag: CancelFlag | None = None,
        report: Callable[[bytes], None] | None = None,
        write: Callable[[OutputKind, bytes], None] | None = None,
    ) -> None:
        self.id = id
        self.task = task
        self.queue = queue
        self.attempt = attempt
        self.counted = counted
        self.previous_outcome = previous_outcome
        self.deadline = deadline
        self.schedule = schedule
        self.scheduled_for = None if scheduled_for_ms is None else _EPOCH + dt.timedelta(milliseconds=scheduled_for_ms)
        self.resources = resources
        self._flag = flag or CancelFlag()
        self._report = report
        self._write = write
        self._log: Any = None

    @property
    def cancelled(self) -> bool:
        """Tell whether the handler should stop: a cancel was requested, time is over, or the job is no longer ours.

        A handler on a thread cannot be stopped from outside, so it should look here now and then. One that saw true
        and then returns ends as cancelled when a cancel was requested.
        """
        if self._flag.requested:
            self._flag.seen = True
            return True
        return False

    def progress(self, value: Any) -> None:
        """Store any small JSON value as the job's progress; safe to call often and from any thread.

        Only the newest value is kept, written at most about twice a second.

        Raises:
            ValueError: the value takes more than 1 KiB as JSON.
            TypeError: the value is not JSON.
        """
        encoded = msgspec.json.encode(value)
        if len(encoded) > PROGRESS_BYTES:
            raise ValueError(f"progress takes {len(encoded)} bytes as JSON; at most {PROGRESS_BYTES} are stored")
        if self._report is not None:
            self._report(encoded)

    @property
    def log(self) -> Any:
        """Return a structlog logger that carries the job's id, task, queue and attempt.

        Its lines, from ``info`` up (``debug`` where the worker logs it), are also kept with the job: the newest of
        them, a line of over 8 KiB cut. Safe from any thread.
        """
        if self._log is None:
            write = self._write
            self._log = make_job_log(
                None if write is None else functools.partial(write, OutputKind.LOG),
                job_id=self.id,
                task=self.task,
                queue=self.queue,
                attempt=self.attempt,
            )
        return self._log

    def stream(self, chunk: Any) -> None:
        """Add a chunk, text or any JSON value, to the job's stream; who follows the job gets it within about 0.1 s.

        Never waits, and is safe from any thread. The newest chunks are kept with the job.

        Raises:
            ValueError: the chunk takes more than 64 KiB as JSON.
            TypeError: the chunk is not JSON.
        """
        encoded = msgspec.json.encode(chunk)
        if len(encoded) > CHUNK_BYTES:
            raise ValueError(f"the chunk takes {len(encoded)} bytes as JSON; at most {CHUNK_BYTES} go at once")
        if self._write is not None:
            self._write(OutputKind.STREAM, encoded)
