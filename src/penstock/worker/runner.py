"""Run one job: input, handler, decision, settle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from penstock.core import events
from penstock.core.errors import StoreError
from penstock.core.ids import Token, WorkerName
from penstock.core.job import Extension, JobError, Settle, SettleCode, Settled, Verb
from penstock.core.outcome import Cancelled, FailedAttempt, Outcome, Released, Succeeded
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
        # Asking for the running loop costs a system call each time.
        self._loop = asyncio.get_running_loop()
        #: What takes more than a step: inputs to fetch, output and progress to write.
        self._tasks: set[asyncio.Task[None]] = set()
        #: Attempts that have not ended, or whose ends are not written.
        self._count = 0
        self._idle: asyncio.Future[None] | None = None
        self._abandoned = False

    def start(self, job: ActiveJob) -> None:
        """Run a claimed job."""
        self._held.add(job)
        self._count += 1
        text = job.claimed.input
        if text is None:
            self._spawn(self._fetch(job))
        else:
            self._executors[job.task.executor].begin(job, text, self)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_idle(self) -> None:
        """Return when no job runs; one caller at a time."""
        while self._count:
            self._idle = self._loop.create_future()
            await self._idle

    def withdraw(self) -> None:
        """Hand back the jobs that wait for their turn."""
        for executor in self._executors.values():
            executor.withdraw()

    def abandon(self) -> None:
        """Cancel what still runs; its leases go back when the worker leaves."""
        self._abandoned = True
        for task in self._tasks:
            task.cancel()
        for executor in self._executors.values():
            executor.abandon()

    def mark_started(self, job: ActiveJob) -> None:
        """See ``Attempts.mark_started``."""
        self._held.mark_started(job)

    def detach(self, job: ActiveJob, handler: asyncio.Task[None], outcome: Outcome) -> None:
        """End an attempt whose handler does not stop; it holds its slot until it returns, and no drain waits for it."""
        job.detached = True
        place = job.place
        place.mark_stuck(1)
        give_back = job.keep_slot()
        log = self._bound(job)
        log.warning(events.HANDLER_STUCK, message="A handler outlived its timeout; its slot stays taken until it ends.")

        def returned(_handler: asyncio.Task[None]) -> None:
            place.mark_stuck(-1)
            log.warning(events.HANDLER_RETURNED, message="A handler ended after its attempt had; its slot is free.")
            give_back()

        handler.add_done_callback(returned)
        self.end(job, outcome)

    def let_go(self, job: ActiveJob) -> None:
        """See ``Attempts.let_go``."""
        if job.output is not None:
            job.output.abandon()
        self._held.drop(job)
        job.release_slot()
        self._count -= 1
        if not self._count and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def end(self, job: ActiveJob, outcome: Outcome | None) -> None:
        """See ``Attempts.end``."""
        if job.cause is StopCause.CANCEL and isinstance(outcome, FailedAttempt | Released):
            # A cancel wins over an end that would bring the job back, or into the dead letter.
            outcome = Cancelled()
        if outcome is None or self._abandoned:
            if not self._abandoned:
                self._tell_stale(job)
            self.let_go(job)
            return
        if isinstance(outcome, Succeeded):
            settle = Settle(token=job.claimed.token, verb=Verb.COMPLETE, value=outcome.result)
        else:
            settle = decide(job.claimed.token, outcome, job.policy, counted=job.claimed.counted, draw=random.random())
        self._release_early(job)
        if job.output is None and job.unwritten is None:
            self._settler.add(settle, self._settled, job)
        else:
            self._spawn(self._write_rest(job, settle))

    async def _write_rest(self, job: ActiveJob, settle: Settle) -> None:
        """Write what the handler logged, streamed and reported, and then its end."""
        try:
            if job.output is not None:
                await job.output.close()
            if (progress := job.unwritten) is not None:
                await self._write_progress(job.claimed.token, progress)
        except BaseException:
            self.let_go(job)
            raise
        self._settler.add(settle, self._settled, job)

    def _settled(self, job: ActiveJob, settle: Settle, answer: Settled | None) -> None:
        self.let_go(job)
        if answer is None:
            return
        if answer.code is SettleCode.STALE:
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
        if self._settler.unsettled < self._ahead and time.monotonic() - job.started_s < SHORT_S:
            job.release_slot()

    async def _fetch(self, job: ActiveJob) -> None:
        try:
            text = await self._fetch_input(job)
        except BaseException:
            self.let_go(job)
            raise
        if job.cause is not None:
            self.end(job, outcome_of_stop(job.cause, job))
        elif text is None:
            # Deleted between the claim and now; there is nothing to settle.
            self.end(job, None)
        else:
            self._executors[job.task.executor].begin(job, text, self)

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


def _short(error: bytes) -> str:
    try:
        read = msgspec.json.decode(error, type=JobError)
    except msgspec.MsgspecError:
        return ""
    return f"{read.type}: {read.message}"
