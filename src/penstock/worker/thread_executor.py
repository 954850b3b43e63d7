"""Run plain functions on threads, with the next jobs at hand where they are short."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from penstock.core import events
from penstock.core.outcome import Cancelled, Outcome, Succeeded
from penstock.worker import outcomes
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.ahead import LOOK_S, Ahead
from penstock.worker.executors import Attempts, Handlers, outcome_of_stop
from penstock.worker.threads import Threads
from penstock.worker.to_loop import ToLoop


class ThreadExecutor:
    """Run plain functions on threads; none can be stopped, so its timeout ends the attempt and not the thread.

    ``set_ahead`` is told how many jobs may be claimed beyond the free threads. Those wait here, not started, and are
    handed back, uncounted, when their turn does not come within ``LOOK_S``.
    """

    def __init__(
        self, handlers: Handlers, threads: Threads, set_ahead: Callable[[int], None] = lambda _jobs: None
    ) -> None:
        self._handlers = handlers
        self._threads = threads
        self._set_ahead = set_ahead
        self._loop = asyncio.get_running_loop()
        self._log: Any = structlog.get_logger("penstock.worker")
        #: Threads whose attempt has ended without them.
        self.stuck = 0
        #: Held while a thread takes a job up, or the loop takes one back.
        self.lock = threading.Lock()
        self._returned = ToLoop(self._take_back)
        self._ahead = Ahead()
        #: What was begun and may not have been taken up, oldest first.
        self._waiting: deque[_ThreadRun] = deque()
        self._look: asyncio.TimerHandle | None = None

    def begin(self, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        """See ``JobExecutor.begin``."""
        run = _ThreadRun(self, job, attempts)
        call = contextvars.copy_context().run

        def work() -> None:
            if run.take_up():
                self._returned.put((run, call(self._call, job, text)))

        if not self._threads.begin(work):
            self._waiting.append(run)
            if self._look is None:
                self._look = self._loop.call_later(LOOK_S, self._look_at_waiting)

    def withdraw(self) -> None:
        """See ``JobExecutor.withdraw``."""
        self._set_ahead(0)
        waiting, self._waiting = self._waiting, deque()
        for run in waiting:
            run.withdraw()

    def abandon(self) -> None:
        """See ``JobExecutor.abandon``: a thread cannot be cancelled, but what waits need not begin."""
        self.withdraw()

    def _look_at_waiting(self) -> None:
        self._look = None
        while self._waiting and self._waiting[0].begun_s:
            self._waiting.popleft()
        now = time.monotonic()
        if self._waiting and now - self._waiting[0].job.started_s > LOOK_S:
            # What runs takes longer than what ran: others may have room.
            self._ahead.forget(now)
            self.withdraw()
        if self._ahead.is_idle(now):
            self._set_ahead(0)
        if self._waiting or self._ahead.jobs:
            self._look = self._loop.call_later(LOOK_S, self._look_at_waiting)

    def _call(self, job: ActiveJob, text: bytes) -> Outcome:
        limits = self._handlers.limits
        try:
            value = job.task.function(**self._handlers.arguments(job, text))
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, also sys.exit()
            return outcomes.raised(error, limit=limits.error_bytes)
        return outcomes.succeeded(value, limit=limits.result_bytes)

    def _take_back(self, returned: Iterator[tuple[_ThreadRun, Outcome]]) -> None:
        now = time.monotonic()
        for run, outcome in returned:
            self._ahead.note(now - run.begun_s, now)
            run.returned(outcome)
        while self._waiting and self._waiting[0].begun_s:
            self._waiting.popleft()
        self._set_ahead(self._ahead.jobs)
        if self._ahead.jobs and self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_at_waiting)

    def tell(self, event: str, message: str, job: ActiveJob) -> None:
        """Log about a thread."""
        self._log.warning(
            event, message=message, job_id=job.claimed.token.job_id, task=job.claimed.task, stuck_threads=self.stuck
        )


class _ThreadRun:
    """Be one attempt on a thread, as the loop sees it."""

    __slots__ = ("_attempts", "_ended", "_executor", "_give_back", "_timer", "begun_s", "job")

    def __init__(self, executor: ThreadExecutor, job: ActiveJob, attempts: Attempts) -> None:
        self._executor = executor
        self.job = job
        self._attempts = attempts
        self._ended = False
        #: When a thread took it up, 0 before.
        self.begun_s = 0.0
        self._give_back: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        job.stopper = self._interrupt
        if job.policy.timeout_ms is not None:
            self._begin_timer(job.policy.timeout_ms / 1000)

    def take_up(self) -> bool:
        """Begin on a thread; False when it was taken back."""
        with self._executor.lock:
            if self._ended:
                return False
            # Under the lock: a job that has ended no longer has a place to be marked in.
            self._attempts.mark_started(self.job)
            self.begun_s = time.monotonic()
            return True

    def withdraw(self) -> None:
        """Hand the job back if no thread has begun it."""
        if not self.begun_s and not self._ended:
            self.job.stop(StopCause.DRAIN)

    def returned(self, outcome: Outcome) -> None:
        """Take what the thread made."""
        job = self.job
        if not self._ended:
            if job.cause is StopCause.CANCEL and job.flag.seen and isinstance(outcome, Succeeded):
                outcome = Cancelled()
            self._end(outcome)
            return
        self._executor.stuck -= 1
        job.place.mark_stuck(-1)
        message = "A thread returned after its attempt had ended; its slot is free."
        self._executor.tell(events.THREAD_RETURNED, message, job)
        if self._give_back is not None:
            self._give_back()

    def _end(self, outcome: Outcome | None) -> None:
        self._ended = True
        self.job.stopper = None
        if self._timer is not None:
            self._timer.cancel()
        self._attempts.end(self.job, outcome)

    def _begin_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        timeout_s = (self.job.policy.timeout_ms or 0) / 1000
        left_s = self.begun_s + timeout_s - time.monotonic() if self.begun_s else timeout_s
        if left_s > 0:
            # The time counts from when a thread takes the job up.
            self._begin_timer(left_s)
            return
        # Not job.stop(): a cancel that came before would hide the timeout, and the handler is told through the flag.
        self.job.flag.requested = True
        self._interrupt(self.job, StopCause.TIMEOUT)

    def _interrupt(self, job: ActiveJob, cause: StopCause) -> None:
        with self._executor.lock:
            if self._ended:
                return
            if not self.begun_s:
                self._ended = True
        if self._ended:
            self._end(outcome_of_stop(cause, job))
            return
        # A cancel waits for the function: it sees ctx.cancelled and may end in order.
        if cause is StopCause.CANCEL:
            return
        self._executor.stuck += 1
        job.place.mark_stuck(1)
        self._give_back = job.keep_slot()
        self._end(outcome_of_stop(cause, job))
        if cause is StopCause.TIMEOUT:
            message = "A thread outlived its timeout; its slot stays taken until it returns."
            self._executor.tell(events.THREAD_STUCK, message, job)
