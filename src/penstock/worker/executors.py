"""Say what an executor is and what handlers are called with, and run those that live on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from penstock.core.limits import Limits
from penstock.core.outcome import Cancelled, Outcome, Released
from penstock.handlers.context import Context, deadline_of
from penstock.handlers.registry import Registry
from penstock.worker import outcomes
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.output import AttemptOutput, OutputWriter
from penstock.worker.pool import STOP_GRACE_S


class Attempts(Protocol):
    """Take how attempts go; all of it is called on the loop, but ``mark_started``."""

    def mark_started(self, job: ActiveJob) -> None:
        """Note that the handler starts now."""

    def end(self, job: ActiveJob, outcome: Outcome | None) -> None:
        """End an attempt; None means that the token is stale and there is nothing to settle."""

    def detach(self, job: ActiveJob, handler: asyncio.Task[None], outcome: Outcome) -> None:
        """End an attempt while its handler goes on."""

    def let_go(self, job: ActiveJob) -> None:
        """Leave an attempt to its lease."""


class JobExecutor(Protocol):
    """Run jobs, each of which ends once, in ``attempts``."""

    def begin(self, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        """Run a job from the loop's next turn on."""

    def withdraw(self) -> None:
        """Hand back the jobs that wait for their turn here."""

    def abandon(self) -> None:
        """Cancel what still runs, as far as it can be."""


def outcome_of_stop(cause: StopCause, job: ActiveJob) -> Outcome | None:
    """Return how a handler that was stopped has ended."""
    match cause:
        case StopCause.CANCEL:
            return Cancelled()
        case StopCause.DRAIN:
            return Released()
        case StopCause.TIMEOUT:
            return outcomes.timed_out(job.policy.timeout_ms or 0)
        case StopCause.STALE:
            return None


class Handlers:
    """Know what a handler is called with: its arguments, its context and its module's resources."""

    def __init__(self, registry: Registry, resources: Mapping[str, Any], limits: Limits, outputs: OutputWriter) -> None:
        self.registry = registry
        self._outputs = outputs
        self._resources = resources
        self.limits = limits

    def arguments(self, job: ActiveJob, text: bytes) -> dict[str, Any]:
        """Bind the input and make the context.

        Raises:
            InvalidInput: the input does not fit.
        """
        binder = job.task.binder
        arguments = binder.bind(text)
        if binder.context_name is not None:
            arguments[binder.context_name] = self._context(job)
        return arguments

    def open_output(self, job: ActiveJob) -> AttemptOutput:
        """Let a job log and stream."""
        job.output = self._outputs.open(job.claimed.token, lambda: job.stop(StopCause.STALE))
        return job.output

    def _context(self, job: ActiveJob) -> Context:
        claimed = job.claimed
        return Context(
            id=claimed.token.job_id,
            task=claimed.task,
            queue=claimed.queue,
            attempt=claimed.token.attempt,
            counted=claimed.counted,
            previous_outcome=claimed.previous.value if claimed.previous else None,
            deadline=deadline_of(job.policy.timeout_ms),
            schedule=claimed.options.schedule,
            scheduled_for_ms=claimed.options.scheduled_for_ms,
            resources=self._resources.get(self.registry.module_of(job.task.name)),
            flag=job.flag,
            report=job.report,
            write=self.open_output(job).add,
        )


class LoopExecutor:
    """Run async functions on the worker's loop, each in a task of its own; a stop and the timeout cancel it."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        # Asking for the running loop costs a system call each time.
        self._loop = asyncio.get_running_loop()
        # The loop itself does not keep them alive.
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        """See ``JobExecutor.begin``."""
        job.handler = handler = self._loop.create_task(self._run(job, text, attempts))
        self._running.add(handler)

    def withdraw(self) -> None:
        """See ``JobExecutor.withdraw``: none waits here."""

    def abandon(self) -> None:
        """See ``JobExecutor.abandon``."""
        for handler in self._running:
            handler.cancel()

    async def _run(self, job: ActiveJob, text: bytes, attempts: Attempts) -> None:
        handler = job.handler
        assert handler is not None
        outcome: Outcome | None
        clock: _LoopClock | None = None
        try:
            cause = job.cause
            if cause is not None:
                outcome = outcome_of_stop(cause, job)
            else:
                attempts.mark_started(job)
                job.stopper = _cancel_handler
                if job.policy.timeout_ms is not None:
                    clock = _LoopClock(job, handler, attempts)
                value = await job.task.function(**self._handlers.arguments(job, text))
                if job.cause is StopCause.STALE:
                    outcome = None
                elif clock is not None and clock.expired:
                    # It caught its cancellation; what it made came too late, as on the other executors.
                    outcome = clock.outcome
                else:
                    outcome = outcomes.succeeded(value, limit=self._handlers.limits.result_bytes)
        except GeneratorExit:
            # The loop is being torn down.
            if not job.detached:
                attempts.let_go(job)
            raise
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, also sys.exit()
            if job.cause is not None and not job.detached:
                outcome = outcome_of_stop(job.cause, job)
            elif clock is not None and clock.expired:
                outcome = clock.outcome
            else:
                outcome = outcomes.raised(error, limit=self._handlers.limits.error_bytes)
        finally:
            job.stopper = None
            self._running.discard(handler)
            if clock is not None:
                clock.stop()
        if not job.detached:
            attempts.end(job, outcome)


def _cancel_handler(job: ActiveJob, _cause: StopCause) -> None:
    if job.handler is not None:
        job.handler.cancel()


class _LoopClock:
    """Cancel an async handler at its timeout, and end the attempt without it when it goes on in spite of that."""

    def __init__(self, job: ActiveJob, handler: asyncio.Task[None], attempts: Attempts) -> None:
        self._job = job
        self._handler = handler
        self._attempts = attempts
        self._loop = asyncio.get_running_loop()
        timeout_ms = job.policy.timeout_ms or 0
        self.expired = False
        self.outcome = outcomes.timed_out(timeout_ms)
        self._timer = self._loop.call_later(timeout_ms / 1000, self._expire)

    def stop(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._job.flag.requested = True
        self._handler.cancel()
        self._timer = self._loop.call_later(STOP_GRACE_S, self._attempts.detach, self._job, self._handler, self.outcome)
