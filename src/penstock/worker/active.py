"""Hold one claimed job while it runs: what stops it, and where its progress waits to be written."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from typing import Any

from penstock.core.job import ClaimedJob
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


class Place:
    """Hold what the jobs of one executor share: how a slot goes back, and whom they tell."""

    __slots__ = ("give_back", "mark_stuck", "on_progress")

    def __init__(
        self,
        give_back: Callable[[], None],
        *,
        on_progress: Callable[[], None] = lambda: None,
        mark_stuck: Callable[[int], None] = lambda _change: None,
    ) -> None:
        self.give_back = give_back
        self.on_progress = on_progress
        #: Counts a slot that its ended attempt still holds (1), and one that came back (-1).
        self.mark_stuck = mark_stuck


class ActiveJob:
    """Be one attempt in this worker.

    ``stop`` belongs to the loop's thread; ``report`` and ``take_progress`` are safe from any.
    """

    __slots__ = (
        "_progress",
        "_unwritten",
        "cause",
        "claimed",
        "detached",
        "flag",
        "handler",
        "has_slot",
        "lease_entry",
        "long_warned",
        "output",
        "place",
        "policy",
        "started_s",
        "stopper",
        "task",
    )

    def __init__(self, claimed: ClaimedJob, task: Task[..., Any], policy: Policy, place: Place) -> None:
        self.claimed = claimed
        self.task = task
        self.policy = policy
        self.place = place
        #: It holds one of its place's slots.
        self.has_slot = True
        #: Its attempt has ended while its handler goes on, which no longer matters to the attempt.
        self.detached = False
        self.flag = CancelFlag()
        self.cause: StopCause | None = None
        #: Set by the executor while there is something to stop.
        self.stopper: Callable[[ActiveJob, StopCause], None] | None = None
        #: What runs an async handler.
        self.handler: asyncio.Task[None] | None = None
        self.started_s = time.monotonic()
        self.long_warned = False
        #: Where the lease is written down for the supervisor, 0 for nowhere.
        self.lease_entry = 0
        #: Where a handler that takes a context logs and streams to.
        self.output: AttemptOutput | None = None
        self._progress: bytes | None = None
        #: The newest progress until the store is known to have it.
        self._unwritten: bytes | None = None

    def release_slot(self) -> None:
        """Give the slot back, once however often it is called."""
        if self.has_slot:
            self.has_slot = False
            self.place.give_back()

    def keep_slot(self) -> Callable[[], None]:
        """Keep the slot beyond the attempt's end; return what gives it back."""
        if not self.has_slot:
            return lambda: None
        self.has_slot = False
        return self.place.give_back

    def stop(self, cause: StopCause) -> None:
        """Tell the handler to stop; the first cause holds, but for STALE, which outranks the others."""
        if self.cause is StopCause.STALE or (self.cause is not None and cause is not StopCause.STALE):
            # A drain must end a handler that was told of a cancel and went on.
            if cause is StopCause.DRAIN and self.stopper is not None:
                self.stopper(self, cause)
            return
        self.cause = cause
        self.flag.requested = True
        if self.stopper is not None:
            self.stopper(self, cause)

    def report(self, progress: bytes) -> None:
        """Keep the newest progress until it is written, which the first one sets going."""
        self._unwritten = progress
        waiting, self._progress = self._progress, progress
        if waiting is None:
            self.place.on_progress()

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
