"""Run functions in child processes, with the next jobs at hand where they are short."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from penstock.core.outcome import Outcome
from penstock.core.output import OutputKind
from penstock.worker import outcomes
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.ahead import LOOK_S, Ahead
from penstock.worker.child import PROGRESS, ChildJob, run_in_child
from penstock.worker.executors import Attempts, Handlers, outcome_of_stop
from penstock.worker.output import AttemptOutput
from penstock.worker.pool import STOP_GRACE_S, Call, ChildDied, ChildStopped, ChildTimedOut, ProcessPool
from penstock.worker.to_loop import ToLoop


class ProcessExecutor:
    """Run functions in child processes; a cancel and the timeout tell the function, and kill a child that goes on.

    ``set_ahead`` is told how many jobs may be claimed beyond the pool's size. Those wait in the pool, in no child, and
    are handed back, uncounted, when their turn does not come within ``LOOK_S``.
    """

    def __init__(
        self, handlers: Handlers, pool: ProcessPool, set_ahead: Callable[[int], None] = lambda _jobs: None
    ) -> None:
        self.handlers = handlers
        self._pool = pool
        self._set_ahead = set_ahead
        self._loop = asyncio.get_running_loop()
        self._ahead = Ahead()
        #: Attempts that have not ended.
        self.unended = 0
        #: What no child may have taken up, oldest first.
        self._waiting: deque[_ProcessRun] = deque()
        self.returned = ToLoop(self._take_back)
        self._look: asyncio.TimerHandle | None = None

    def begin(self, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        """See ``JobExecutor.begin``."""
        run = _ProcessRun(self, job, text, attempts)
        self.unended += 1
        self._waiting.append(run)
        self._pool.put(run)
        if self.unended > self._pool.size:
            self._look_soon()

    def withdraw(self) -> None:
        """See ``JobExecutor.withdraw``."""
        self._hand_back_from(0)

    def abandon(self) -> None:
        """See ``JobExecutor.abandon``: what runs ends with the pool, and what waits need not begin."""
        self.withdraw()

    def _hand_back_from(self, first: int) -> None:
        self._set_ahead(0)
        for run in list(self._waiting)[first:]:
            if run.waits:
                run.job.stop(StopCause.DRAIN)

    def _look_soon(self) -> None:
        if self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_at_waiting)

    def _look_at_waiting(self) -> None:
        self._look = None
        self._waiting = deque(run for run in self._waiting if run.waits)
        # So many have a child of their own, which may be starting, or busy with what an async handler asked of it.
        own = max(0, self._pool.size - (self.unended - len(self._waiting)))
        now = time.monotonic()
        if len(self._waiting) > own and now - self._waiting[own].job.started_s > LOOK_S:
            # What runs takes longer than what ran: others may have room.
            self._ahead.forget(now)
            self._hand_back_from(own)
        if self._ahead.is_idle(now):
            self._set_ahead(0)
        if self.unended > self._pool.size or self._ahead.jobs:
            self._look_soon()

    def _take_back(self, returned: Iterator[tuple[_ProcessRun, Any, BaseException | None]]) -> None:
        now = time.monotonic()
        for run, value, error in returned:
            if run.begun_s:
                self._ahead.note(now - run.begun_s, now)
            run.returned(value, error)
        while self._waiting and not self._waiting[0].waits:
            self._waiting.popleft()
        self._set_ahead(self._ahead.jobs)
        if self._ahead.jobs:
            self._look_soon()


class _ProcessRun(Call):
    """Be one attempt in a child process, as the loop and the pool see it."""

    def __init__(self, executor: ProcessExecutor, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        claimed, handlers, timeout_ms = job.claimed, executor.handlers, job.policy.timeout_ms
        child_job = ChildJob(
            module=handlers.registry.module_of(job.task.name),
            name=job.task.name,
            input=text,
            id=claimed.token.job_id,
            task=claimed.task,
            queue=claimed.queue,
            attempt=claimed.token.attempt,
            counted=claimed.counted,
            previous_outcome=claimed.previous.value if claimed.previous else None,
            timeout_ms=timeout_ms,
            schedule=claimed.options.schedule,
            scheduled_for_ms=claimed.options.scheduled_for_ms,
            result_bytes=handlers.limits.result_bytes,
            error_bytes=handlers.limits.error_bytes,
        )
        super().__init__(run_in_child, (child_job,), None if timeout_ms is None else timeout_ms / 1000)
        self._executor = executor
        self.job = job
        self._attempts = attempts
        self._output: AttemptOutput | None = None
        self._ended = False
        self._killing: asyncio.TimerHandle | None = None
        job.stopper = self._stop

    @property
    def waits(self) -> bool:
        """Tell whether no child has taken it up yet."""
        return not self.begun_s and not self._ended

    def begins(self) -> None:
        """See ``Call.begins``: a job that has ended no longer has a place to be marked in."""
        self._attempts.mark_started(self.job)
        if self.job.task.binder.context_name is not None:
            self._output = self._executor.handlers.open_output(self.job)

    def told(self, what: str, value: bytes) -> None:
        """See ``Call.told``."""
        if what == PROGRESS:
            self.job.report(value)
        elif self._output is not None:
            self._output.add(OutputKind(what), value)

    def answer(self, value: Any, error: BaseException | None) -> None:
        """See ``Call.answer``."""
        self._executor.returned.put((self, value, error))

    def returned(self, value: Any, error: BaseException | None) -> None:
        """Take what came of it, on the loop."""
        if not self._ended:
            self._end(self._outcome(value, error))

    def _outcome(self, value: Outcome, error: BaseException | None) -> Outcome | None:
        job = self.job
        match error:
            case None:
                return None if job.cause is StopCause.STALE else value
            case ChildTimedOut():
                return outcomes.timed_out(job.policy.timeout_ms or 0)
            case ChildDied():
                return outcomes.child_died(error.exit_code)
            case ChildStopped():
                return outcome_of_stop(job.cause or StopCause.DRAIN, job)
            case _:
                # The pool's own trouble must end as a failed attempt.
                return outcomes.raised(error, limit=self._executor.handlers.limits.error_bytes)

    def _stop(self, job: ActiveJob, cause: StopCause) -> None:
        if self.withdraw():
            self._end(outcome_of_stop(cause, job))
        elif cause is StopCause.CANCEL:
            self.ask()
            self._killing = asyncio.get_running_loop().call_later(STOP_GRACE_S, self.kill)
        else:
            self.kill()

    def _end(self, outcome: Outcome | None) -> None:
        self._ended = True
        self.job.stopper = None
        if self._killing is not None:
            self._killing.cancel()
        self._executor.unended -= 1
        self._attempts.end(self.job, outcome)
