"""Renew the leases of running jobs, apart from the loop that runs them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import PenstockError, StoreUnavailable
from penstock.core.ids import WorkerName
from penstock.core.job import Extended, Extension
from penstock.store.protocol import Store
from penstock.worker.active import ActiveJob, StopCause
from penstock.worker.backoff import Outage
from penstock.worker.lease_table import LeaseWriter

StoreFactory = Callable[[], Awaitable[Store]]
PROGRESS_GAP_S = 0.5
LONG_S = 3_600.0
BEAT_S = 1.0


class Held:
    """Hold the jobs of a worker; each method is one step for the interpreter, so threads need no lock.

    With a ``writer`` a supervisor sees them too.
    """

    def __init__(self, writer: LeaseWriter | None = None) -> None:
        # By themselves: a token takes longer to hash.
        self._jobs: dict[ActiveJob, None] = {}
        self._writer = writer

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: ActiveJob) -> None:
        """Hold a job from its claim on."""
        self._jobs[job] = None
        if self._writer is not None:
            job.lease_entry = self._writer.put(job.claimed.token, job.started_s)

    def mark_started(self, job: ActiveJob) -> None:
        """Show that a job's handler starts now: should the process die, it counts as lost."""
        if self._writer is not None and job.lease_entry:
            self._writer.start(job.lease_entry)

    def drop(self, job: ActiveJob) -> None:
        """Let a job go; twice is fine."""
        self._jobs.pop(job, None)
        if self._writer is not None and job.lease_entry:
            self._writer.drop(job.lease_entry)
            job.lease_entry = 0

    def mark_round(self) -> None:
        """Show that the store has answered a round of renewals."""
        if self._writer is not None:
            self._writer.mark_round()

    def holds(self, job: ActiveJob) -> bool:
        """Tell whether a job is still held."""
        return job in self._jobs

    def all(self) -> list[ActiveJob]:
        """Return the jobs held now."""
        return list(self._jobs)


class LeaseKeeper:
    """Extend every held lease each third of its length, and once more at each ``poke``.

    ``stop_job`` is called from the keeper's thread, when a cancel was requested or a token went stale.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerName,
        held: Held,
        *,
        lease_ms: int,
        stop_job: Callable[[ActiveJob, StopCause], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._held = held
        self._lease_ms = lease_ms
        self._stop_job = stop_job
        self._poked = asyncio.Event()
        self._poke_all = False
        self._stopping = False
        self._outage = Outage("extend")
        self._log: Any = structlog.get_logger("penstock.worker")
        #: ``time.monotonic`` of the last round that the store answered; read by other threads.
        self.last_round_s: float | None = None

    def poke(self) -> None:
        """Make a round now (from the keeper's own loop)."""
        self._poke_all = True
        self._poked.set()

    def poke_progress(self) -> None:
        """Write waiting progress soon (from the keeper's own loop)."""
        self._poked.set()

    def stop(self) -> None:
        """End ``run`` soon (from the keeper's own loop)."""
        self._stopping = True
        self._poked.set()

    async def run(self) -> None:
        """Make rounds until stopped."""
        interval_s = self._lease_ms / 3_000
        next_round = time.monotonic() + interval_s
        last_progress = 0.0
        while True:
            await self._sleep(next_round - time.monotonic())
            if self._stopping:
                return
            now = time.monotonic()
            if self._poke_all or now >= next_round:
                self._poke_all = False
                next_round = now + await self._try(self._round, interval_s)
            elif now - last_progress < PROGRESS_GAP_S:
                # Progress came soon after progress; what comes meanwhile replaces it.
                await asyncio.sleep(PROGRESS_GAP_S - (now - last_progress))
                self._poked.set()
            else:
                last_progress = now
                await self._try(self._write_progress, 0.0)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._poked.wait()
        except TimeoutError:
            return
        self._poked.clear()

    async def _try(self, step: Callable[[], Awaitable[None]], interval_s: float) -> float:
        """Return after how many seconds to go on: the interval, or sooner after a failure."""
        try:
            await step()
        except StoreUnavailable as error:
            return min(self._outage.failed(error), interval_s)
        except Exception as error:  # noqa: BLE001 - without renewals every job would run twice
            self._log.error(
                events.LOOP_FAILED, message="Renewing leases failed; trying again.", loop="extend", error=repr(error)
            )
            return min(1.0, interval_s)
        self._outage.over()
        return interval_s

    async def _round(self) -> None:
        jobs = self._held.all()
        await self._extend(jobs, complete=True)
        self.last_round_s = time.monotonic()
        self._held.mark_round()
        for job in jobs:
            if job.policy.timeout_ms is None and not job.long_warned and self.last_round_s - job.started_s > LONG_S:
                job.long_warned = True
                self._log.warning(
                    events.JOB_LONG,
                    message="A job without a timeout has run for over an hour.",
                    job_id=job.claimed.token.job_id,
                    task=job.claimed.task,
                    queue=job.claimed.queue,
                    attempt=job.claimed.token.attempt,
                )

    async def _write_progress(self) -> None:
        if jobs := [job for job in self._held.all() if job.has_progress]:
            await self._extend(jobs, complete=False)

    async def _extend(self, jobs: list[ActiveJob], *, complete: bool) -> None:
        items = [Extension(token=job.claimed.token, progress=job.take_progress()) for job in jobs]
        try:
            answers = await self._store.extend(self._worker, items, lease_ms=self._lease_ms, complete=complete)
        except BaseException:
            for job, item in zip(jobs, items, strict=True):
                job.put_back(item.progress)
            raise
        for job, item, answer in zip(jobs, items, answers, strict=True):
            job.confirm(item.progress)
            self._heed(job, answer)

    def _heed(self, job: ActiveJob, answer: Extended) -> None:
        # A job that was settled meanwhile has no lease any more either, which is as it should be.
        if not self._held.holds(job):
            return
        if answer.deadline_ms is None:
            self._stop_job(job, StopCause.STALE)
        elif answer.cancel_requested and job.cause is None:
            self._stop_job(job, StopCause.CANCEL)


class LeaseThread:
    """Run a keeper on a thread with a loop and a connection of its own.

    So a handler that blocks the worker's loop keeps its lease. One that holds the interpreter's lock stops this thread
    too: then the supervisor renews, until the thread has given no sign of life for too long. ``beat`` gives one.
    """

    def __init__(
        self,
        connect: StoreFactory,
        make_keeper: Callable[[Store], LeaseKeeper],
        *,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._connect = connect
        self._make_keeper = make_keeper
        self._thread = threading.Thread(target=self._run, name="penstock-leases", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: LeaseKeeper | None = None
        self._stop_requested = threading.Event()

    def start(self) -> None:
        """Start the thread; it connects by itself, as often as needed."""
        self._thread.start()

    @property
    def last_round_s(self) -> float | None:
        """Return ``time.monotonic`` of the last round that the store answered."""
        return self._keeper.last_round_s if self._keeper else None

    def poke(self) -> None:
        """Make a round now; from any thread."""
        self._call("poke")

    def poke_progress(self) -> None:
        """Write waiting progress soon; from any thread."""
        self._call("poke_progress")

    async def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop_requested.set()
        self._call("stop")
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)

    def _call(self, method: str) -> None:
        loop, keeper = self._loop, self._keeper
        if loop is None or keeper is None:
            return
        try:
            loop.call_soon_threadsafe(getattr(keeper, method))
        except RuntimeError:
            # The loop has ended, and with it what there was to say.
            return

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        beating = asyncio.create_task(self._beat_on(), name="penstock-beat")
        try:
            await self._keep()
        finally:
            beating.cancel()

    async def _beat_on(self) -> None:
        while True:
            self._beat()
            await asyncio.sleep(BEAT_S)

    async def _keep(self) -> None:
        outage = Outage("extend")
        while not self._stop_requested.is_set():
            try:
                store = await self._connect()
                break
            except PenstockError as error:
                await asyncio.to_thread(self._stop_requested.wait, outage.failed(error))
        else:
            return
        outage.over()
        try:
            keeper = self._make_keeper(store)
            self._loop, self._keeper = asyncio.get_running_loop(), keeper
            if not self._stop_requested.is_set():
                await keeper.run()
        finally:
            await store.close()


class LeaseTask:
    """Run a keeper on the worker's own loop and store; for tests and stores that live in one loop."""

    def __init__(self, keeper: LeaseKeeper) -> None:
        self._keeper = keeper
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._keeper.run(), name="penstock-leases")

    @property
    def last_round_s(self) -> float | None:
        """Return ``time.monotonic`` of the last round that the store answered."""
        return self._keeper.last_round_s

    def poke(self) -> None:
        """Make a round now."""
        self._keeper.poke()

    def poke_progress(self) -> None:
        """Write waiting progress soon; threads may call."""
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._keeper.poke_progress)

    async def stop(self) -> None:
        """End the task and wait for it."""
        self._keeper.stop()
        if self._task is not None:
            await self._task
