"""Run a handler on the loop, on a thread or in a child process, and say how it ended."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from penstock.core import events
from penstock.core.limits import Limits
from penstock.core.outcome import Cancelled, Outcome, Released, Succeeded
from penstock.core.output import OutputKind
from penstock.handlers.context import Context, deadline_of
from penstock.handlers.registry import Executor, Registry
from penstock.worker import outcomes
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.child import PROGRESS, ChildJob, run_in_child
from penstock.worker.output import AttemptOutput, OutputWriter
from penstock.worker.pool import STOP_GRACE_S, ChildDied, ChildStopped, ChildTimedOut, ProcessPool
from penstock.worker.threads import Threads


class JobExecutor(Protocol):
    """Run one job to its outcome; None means that the token is stale and there is nothing to settle."""

    async def run(self, job: ActiveJob, text: bytes) -> Outcome | None: ...


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
    """Run async functions on the worker's loop; a stop and the timeout cancel them."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        # Asking for the running loop costs a system call each time.
        self._loop = asyncio.get_running_loop()

    async def run(self, job: ActiveJob, text: bytes) -> Outcome | None:
        me = asyncio.current_task(self._loop)
        assert me is not None
        limits = self._handlers.limits
        clock = _LoopClock(job, me) if job.policy.timeout_ms is not None else None

        def cancel(_cause: StopCause) -> None:
            me.cancel()

        job.stopper = cancel
        try:
            value = await job.task.function(**self._handlers.arguments(job, text))
        except GeneratorExit:
            # The loop is being torn down; awaiting anything more is not allowed.
            raise
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, also sys.exit()
            if job.cause is not None and not job.detached:
                while me.uncancel():
                    pass
                return outcome_of_stop(job.cause, job)
            if clock is not None and clock.expired:
                while me.uncancel():
                    pass
                return clock.outcome
            return outcomes.raised(error, limit=limits.error_bytes)
        finally:
            job.stopper = None
            if clock is not None:
                clock.stop()
        if job.cause is StopCause.STALE:
            return None
        if clock is not None and clock.expired:
            # It caught its cancellation; what it made came too late, as on the other executors.
            while me.uncancel():
                pass
            return clock.outcome
        return outcomes.succeeded(value, limit=limits.result_bytes)


class _LoopClock:
    """Cancel an async handler at its timeout, and end the attempt without it when it goes on in spite of that."""

    def __init__(self, job: ActiveJob, handler: asyncio.Task[Any]) -> None:
        self._job = job
        self._handler = handler
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
        self._timer = self._loop.call_later(STOP_GRACE_S, self._job.detach, self._job, self._handler, self.outcome)


class ThreadExecutor:
    """Run plain functions on threads; none can be stopped, so its timeout ends the attempt and not the thread."""

    def __init__(self, handlers: Handlers, threads: Threads) -> None:
        self._handlers = handlers
        self._threads = threads
        self._log: Any = structlog.get_logger("penstock.worker")
        #: Threads whose attempt has ended without them.
        self.stuck = 0

    async def run(self, job: ActiveJob, text: bytes) -> Outcome | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome | None] = loop.create_future()
        run = contextvars.copy_context().run

        def work() -> None:
            outcome = run(self._call, job, text)
            try:
                loop.call_soon_threadsafe(returned, outcome)
            except RuntimeError:
                # The worker is gone; its lease has gone back or will lapse.
                return

        def returned(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)
                return
            self.stuck -= 1
            job.mark_stuck(-1)
            self._tell(events.THREAD_RETURNED, "A thread returned after its attempt had ended; its slot is free.", job)
            if release is not None:
                release()

        release = job.release_slot

        def interrupt(cause: StopCause) -> None:
            # A cancel waits for the function: it sees ctx.cancelled and may end in order.
            if cause is StopCause.CANCEL or answer.done():
                return
            self.stuck += 1
            job.mark_stuck(1)
            job.release_slot = None
            answer.set_result(outcome_of_stop(cause, job))
            if cause is StopCause.TIMEOUT:
                self._tell(
                    events.THREAD_STUCK, "A thread outlived its timeout; its slot stays taken until it returns.", job
                )

        job.stopper = interrupt
        timer = None
        if job.policy.timeout_ms is not None:
            timer = loop.call_later(job.policy.timeout_ms / 1000, self._time_out, job, interrupt)
        self._threads.begin(work)
        try:
            outcome = await answer
        finally:
            job.stopper = None
            if timer is not None:
                timer.cancel()
        if job.cause is StopCause.CANCEL and job.flag.seen and isinstance(outcome, Succeeded):
            return Cancelled()
        return outcome

    @staticmethod
    def _time_out(job: ActiveJob, interrupt: Any) -> None:
        # Not job.stop(): a cancel that came before would hide the timeout, and the handler is told through the flag.
        job.flag.requested = True
        interrupt(StopCause.TIMEOUT)

    def _call(self, job: ActiveJob, text: bytes) -> Outcome:
        limits = self._handlers.limits
        try:
            value = job.task.function(**self._handlers.arguments(job, text))
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, also sys.exit()
            return outcomes.raised(error, limit=limits.error_bytes)
        return outcomes.succeeded(value, limit=limits.result_bytes)

    def _tell(self, event: str, message: str, job: ActiveJob) -> None:
        self._log.warning(
            event, message=message, job_id=job.claimed.token.job_id, task=job.claimed.task, stuck_threads=self.stuck
        )


class ProcessExecutor:
    """Run functions in child processes; a cancel and the timeout tell the function, and kill a child that goes on."""

    def __init__(self, handlers: Handlers, pool: ProcessPool) -> None:
        self._handlers = handlers
        self._pool = pool

    async def run(self, job: ActiveJob, text: bytes) -> Outcome | None:
        claimed, limits, timeout_ms = job.claimed, self._handlers.limits, job.policy.timeout_ms
        child_job = ChildJob(
            module=self._handlers.registry.module_of(job.task.name),
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
            result_bytes=limits.result_bytes,
            error_bytes=limits.error_bytes,
        )
        call = self._pool.begin(
            run_in_child,
            child_job,
            timeout_s=None if timeout_ms is None else timeout_ms / 1000,
            on_told=self._listener(job) if job.task.binder.context_name is not None else None,
        )
        killing: list[asyncio.TimerHandle] = []

        def stop(cause: StopCause) -> None:
            if cause is StopCause.CANCEL:
                call.ask()
                killing.append(asyncio.get_running_loop().call_later(STOP_GRACE_S, call.kill))
            else:
                call.kill()

        job.stopper = stop
        try:
            outcome: Outcome = await call.future
        except ChildTimedOut:
            return outcomes.timed_out(timeout_ms or 0)
        except ChildDied as error:
            return outcomes.child_died(error.exit_code)
        except ChildStopped:
            return outcome_of_stop(job.cause or StopCause.DRAIN, job)
        except Exception as error:  # noqa: BLE001 - the pool's own trouble must end as a failed attempt
            return outcomes.raised(error, limit=limits.error_bytes)
        finally:
            job.stopper = None
            for timer in killing:
                timer.cancel()
        return None if job.cause is StopCause.STALE else outcome

    def _listener(self, job: ActiveJob) -> Callable[[str, bytes], None]:
        output = self._handlers.open_output(job)

        def told(what: str, value: bytes) -> None:
            if what == PROGRESS:
                job.report(value)
            else:
                output.add(OutputKind(what), value)

        return told


def make_executors(handlers: Handlers, threads: Threads, pool: ProcessPool) -> dict[Executor, JobExecutor]:
    """Return the three executors by name."""
    return {
        "async": LoopExecutor(handlers),
        "thread": ThreadExecutor(handlers, threads),
        "process": ProcessExecutor(handlers, pool),
    }
