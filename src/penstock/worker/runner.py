"""Run one job: input, handler, decision, settle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from penstock.core import events
from penstock.core.errors import StoreError
from penstock.core.ids import Token, WorkerName
from penstock.core.job import Extension, JobError, Settle, SettleCode, Verb
from penstock.core.outcome import Cancelled, FailedAttempt, Outcome, Released
from penstock.handlers.registry import Executor
from penstock.store.protocol import Store
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.backoff import Outage
from penstock.worker.decide import decide
from penstock.worker.executors import JobExecutor, outcome_of_stop
from penstock.worker.leases import Held
from penstock.worker.settler import Settler

#: Jobs up to this length free their slot before their end is written.
SHORT_S = 0.05


class Runner:
    """Take each job from its claim to its settle; never raises, whatever the handler does."""

    def __init__(
        self,
        store: Store,
        held: Held,
        settler: Settler,
        executors: Mapping[Executor, JobExecutor],
        *,
        worker: WorkerName,
        lease_ms: int,
        ahead: int,
    ) -> None:
        self._worker = worker
        self._lease_ms = lease_ms
        self._ahead = ahead
        self._store = store
        self._held = held
        self._settler = settler
        self._executors = executors
        self._outage = Outage("input")
        self._log: Any = structlog.get_logger("penstock.worker")
        self._tasks: set[asyncio.Task[None]] = set()
        # Asking for the running loop costs a system call each time.
        self._loop = asyncio.get_running_loop()
        #: Handlers that go on after their attempt has ended.
        self._stuck: set[asyncio.Task[None]] = set()

    def start(self, job: ActiveJob) -> None:
        """Run a claimed job in a task of its own."""
        self._held.add(job)
        job.detach = self._detach
        running = self._loop.create_task(self._run(job))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    def _detach(self, job: ActiveJob, handler: asyncio.Task[None], outcome: Outcome) -> None:
        """End an attempt whose handler does not stop; it holds its slot until it returns, and no drain waits for it."""
        job.detached = True
        job.mark_stuck(1)
        release, job.release_slot = job.release_slot, None
        log = self._bound(job)
        log.warning(events.HANDLER_STUCK, message="A handler outlived its timeout; its slot stays taken until it ends.")
        self._tasks.discard(handler)
        self._stuck.add(handler)

        def returned(_handler: asyncio.Task[None]) -> None:
            self._stuck.discard(handler)
            job.mark_stuck(-1)
            log.warning(events.HANDLER_RETURNED, message="A handler ended after its attempt had; its slot is free.")
            if release is not None:
                release()

        handler.add_done_callback(returned)
        ending = self._loop.create_task(self._end_apart(job, _after_cancel(job, outcome)))
        self._tasks.add(ending)
        ending.add_done_callback(self._tasks.discard)

    async def wait_idle(self) -> None:
        """Return when no job runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def abandon(self) -> None:
        """Cancel what still runs; its leases go back when the worker leaves."""
        for running in (*self._tasks, *self._stuck):
            running.cancel()

    async def _run(self, job: ActiveJob) -> None:
        try:
            outcome = await self._execute(job)
            if not job.detached:
                await self._end(job, outcome)
        finally:
            if not job.detached:
                self._let_go(job)

    async def _end_apart(self, job: ActiveJob, outcome: Outcome | None) -> None:
        try:
            await self._end(job, outcome)
        finally:
            self._let_go(job)

    def _let_go(self, job: ActiveJob) -> None:
        if job.output is not None:
            job.output.abandon()
        self._held.drop(job)
        if job.release_slot is not None:
            job.release_slot()

    async def _end(self, job: ActiveJob, outcome: Outcome | None) -> None:
        if outcome is None:
            self._tell_stale(job)
            return
        settle = decide(job.claimed.token, outcome, job.policy, counted=job.claimed.counted, draw=random.random())
        self._release_early(job)
        if job.output is not None:
            await job.output.close()
        if (progress := job.unwritten) is not None:
            await self._write_progress(job.claimed.token, progress)
        settled = await self._settler.settle(settle)
        if settled is None:
            return
        if settled.code is SettleCode.STALE:
            self._tell_stale(job)
        elif settle.verb is not Verb.COMPLETE:
            self._tell(job, settle)

    async def _write_progress(self, token: Token, progress: bytes) -> None:
        """Write what a handler reported last, which may be a moment ago; only the end itself is worth repeating."""
        with contextlib.suppress(StoreError):
            await self._store.extend(self._worker, [Extension(token=token, progress=progress)], lease_ms=self._lease_ms)

    def _release_early(self, job: ActiveJob) -> None:
        """Free the slot of a short job before its end is written, so that claims and settles overlap.

        The worker then holds at most as many finished jobs as it has slots for running ones.
        """
        if (
            job.release_slot is not None
            and self._settler.unsettled < self._ahead
            and time.monotonic() - job.started_s < SHORT_S
        ):
            job.release_slot()

    async def _execute(self, job: ActiveJob) -> Outcome | None:
        text = job.claimed.input
        if text is None:
            text = await self._fetch_input(job)
        if job.cause is not None:
            return outcome_of_stop(job.cause, job)
        if text is None:
            # Deleted between the claim and now; there is nothing to settle.
            return None
        self._held.mark_started(job)
        return _after_cancel(job, await self._executors[job.task.executor].run(job, text))

    async def _fetch_input(self, job: ActiveJob) -> bytes | None:
        while job.cause is None:
            try:
                text = await self._store.input(job.claimed.token.job_id)
            except StoreError as error:
                await asyncio.sleep(self._outage.failed(error))
                continue
            self._outage.over()
            return text
        return None

    def _bound(self, job: ActiveJob) -> Any:
        claimed = job.claimed
        return self._log.bind(
            job_id=claimed.token.job_id, task=claimed.task, queue=claimed.queue, attempt=claimed.token.attempt
        )

    def _tell_stale(self, job: ActiveJob) -> None:
        self._bound(job).warning(events.JOB_STALE, message="The job is no longer ours; its result was dropped.")

    def _tell(self, job: ActiveJob, settle: Settle) -> None:
        log = self._bound(job)
        match settle.verb:
            case Verb.FAIL:
                error = _short(settle.value)
                reason = settle.reason.value if settle.reason else None
                log.error(events.JOB_FAILED, message=f"The job failed for good: {error}", reason=reason, error=error)
            case Verb.RETRY:
                error = _short(settle.value)
                log.warning(
                    events.JOB_RETRYING,
                    message=f"The attempt failed and will be repeated: {error}",
                    error=error,
                    outcome=settle.outcome.value,
                    delay_ms=settle.delay_ms,
                )
            case Verb.SNOOZE:
                log.info(events.JOB_SNOOZED, message="The handler asked to run later.", delay_ms=settle.delay_ms)
            case Verb.RELEASE:
                log.info(events.JOB_RELEASED, message="The job went back to its queue, uncounted.")
            case Verb.CANCEL:
                log.info(events.JOB_CANCELLED, message="The handler was stopped and the job is cancelled.")
            case Verb.COMPLETE:
                pass


def _after_cancel(job: ActiveJob, outcome: Outcome | None) -> Outcome | None:
    """Let a cancel win over an end that would bring the job back, or into the dead letter."""
    if job.cause is StopCause.CANCEL and isinstance(outcome, FailedAttempt | Released):
        return Cancelled()
    return outcome


def _short(error: bytes) -> str:
    try:
        read = msgspec.json.decode(error, type=JobError)
    except msgspec.MsgspecError:
        return ""
    return f"{read.type}: {read.message}"
