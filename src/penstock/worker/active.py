"""Hold one claimed job while it runs: what stops it, and where its progress waits to be written."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from typing import Any

from penstock.core.job import ClaimedJob
from penstock.core.outcome import Outcome
from penstock.handlers.context import CancelFlag
from penstock.handlers.registry import Task
from penstock.worker.decide import Policy
from penstock.worker.output import AttemptOutput


class StopCause(enum.Enum):
    """Say why a handler is told to stop."""

    #: A cancel was requested.
    CANCEL = "cancel"
    #: The worker stops and the drain time is over.
    DRAIN = "drain"
    #: Its timeout passed (a thread is told so; the others are ended).
    TIMEOUT = "timeout"
    #: The token is no longer the current one: the result will be dropped.
    STALE = "stale"


def _detach_nothing(_job: ActiveJob, _handler: asyncio.Task[Any], _outcome: Outcome) -> None:
    return None


class ActiveJob:
    """Be one attempt in this worker.

    ``stop`` belongs to the loop's thread; ``report`` and ``take_progress`` are safe from any.
    """

    __slots__ = (
        "_on_progress",
        "_progress",
        "_unwritten",
        "cause",
        "claimed",
        "detach",
        "detached",
        "flag",
        "lease_entry",
        "long_warned",
        "mark_stuck",
        "output",
        "policy",
        "release_slot",
        "started_s",
        "stopper",
        "task",
    )

    def __init__(
        self,
        claimed: ClaimedJob,
        task: Task[..., Any],
        policy: Policy,
        release_slot: Callable[[], None],
        on_progress: Callable[[], None],
        mark_stuck: Callable[[int], None] = lambda _change: None,
    ) -> None:
        #: Counts a slot that its ended attempt still holds (1), and one that came back (-1).
        self.mark_stuck = mark_stuck
        #: Ends the attempt while its handler goes on and keeps the slot; set by the runner.
        self.detach: Callable[[ActiveJob, asyncio.Task[Any], Outcome], None] = _detach_nothing
        self.detached = False
        self.claimed = claimed
        self.task = task
        self.policy = policy
        #: Frees the job's slot; an executor that goes on after the attempt's end takes it over and puts None.
        self.release_slot: Callable[[], None] | None = release_slot
        self.flag = CancelFlag()
        self.cause: StopCause | None = None
        #: Set by the executor while there is something to stop.
        self.stopper: Callable[[StopCause], None] | None = None
        self.started_s = time.monotonic()
        self.long_warned = False
        #: Where the lease is written down for the supervisor, 0 for nowhere.
        self.lease_entry = 0
        #: Where a handler that takes a context logs and streams to.
        self.output: AttemptOutput | None = None
        self._progress: bytes | None = None
        #: The newest progress until the store is known to have it.
        self._unwritten: bytes | None = None
        self._on_progress = on_progress

    def stop(self, cause: StopCause) -> None:
        """Tell the handler to stop; the first cause holds, but for STALE, which outranks the others."""
        if self.cause is StopCause.STALE or (self.cause is not None and cause is not StopCause.STALE):
            # A drain must end a handler that was told of a cancel and went on.
            if cause is StopCause.DRAIN and self.stopper is not None:
                self.stopper(cause)
            return
        self.cause = cause
        self.flag.requested = True
        if self.stopper is not None:
            self.stopper(cause)

    def report(self, progress: bytes) -> None:
        """Keep the newest progress until it is written, which the first one sets going."""
        self._unwritten = progress
        waiting, self._progress = self._progress, progress
        if waiting is None:
            self._on_progress()

    def take_progress(self) -> bytes | None:
        """Return progress not yet written, and forget it."""
        progress, self._progress = self._progress, None
        return progress

    def put_back(self, progress: bytes | None) -> None:
        """Keep progress whose writing failed, unless newer came."""
        if self._progress is None:
            self._progress = progress

    def confirm(self, progress: bytes | None) -> None:
        """Note that the store has this progress."""
        if self._unwritten is progress:
            self._unwritten = None

    @property
    def unwritten(self) -> bytes | None:
        """Return the newest progress where the store may not have it, also while it is being written."""
        return self._unwritten

    @property
    def has_progress(self) -> bool:
        """Tell whether progress waits to be written."""
        return self._progress is not None
