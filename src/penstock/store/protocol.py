"""Define the verbs of the store. Two implementations: Redis scripts, and the in-memory reference model.

Rules that hold for all verbs:

* A verb takes many items and answers each, in order. An item stands for itself: one item's error does not stop the
rest.
* A job is in exactly one place (``core.states.PLACES``); each transition is atomic. Time is the store's own.
* ``submit`` repeats safely by id, ``settle`` and ``output`` by token, ``claim`` must not be repeated.
* Every call may raise ``StoreUnavailable`` (it may have happened), ``StoreFull`` (submit and output only; it did not)
  or ``StoreMismatch``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from penstock.core.ids import JobId, WorkerName
from penstock.core.job import (
    Changed,
    Claimed,
    ClaimRequest,
    Extended,
    Extension,
    JobFilter,
    JobRecord,
    MemoryUse,
    NewJob,
    Page,
    Promoted,
    Pruned,
    Purged,
    QueueInfo,
    Reaped,
    Settle,
    Settled,
    Submitted,
    TaskInfo,
    WorkerInfo,
)
from penstock.core.limits import SCRIPT_ITEMS
from penstock.core.output import Followed, Output, OutputCode
from penstock.core.schedule import DueSchedules, PutSchedule, Schedule, SchedulePage, ScheduleRecord, Tick, Ticked
from penstock.core.states import State


class JobStore(Protocol):
    """Change jobs."""

    partitions: int

    async def submit(self, jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
        """Create each job unless its id already stands, in which case the answer describes the standing one.

        The state is ``scheduled`` when its due time lies after the store's now, else ``queued`` at the end of its
        queue and priority. ``expires_at`` at or before now, or at or before the due time: still accepted
        (it expires in its turn).
        With an idempotency key that was used within its time: the same fingerprint answers as the first time
        (``replayed``), another one is ``KeyReused``; nothing is created. A key whose job was never created (its
        submitter died in between) creates it now, under the id of the first time.
        With a unique key that another job holds (``NewJob.unique``): ``reject`` is ``KeyHeld``, ``return_existing``
        answers with that job (``existing``), ``replace`` cancels it in the same step where it is queued or delayed,
        and is ``KeyHeld`` where not. A job holds its key up to its first claim (``started``) or until it is final
        (``finished``), in any case to the end of ``for_ms`` if that is later; a cancel, an expiry and a delete free it
        at once. ``KeyHeld`` leaves an idempotency key free.
        Answers when the jobs are as safe as ``StoreOptions.durability`` wants them, else with ``NotDurable``: they may
        stand all the same, and submitting them again is safe and waits again.
        Many jobs take several calls. Where all fail, the error is raised; else that of a call stands in the places of
        its jobs: of ``StoreUnavailable`` they may stand, of ``NotSent`` and ``StoreFull`` they do not.
        An item's own exception stands in its place too: ``QueueFull`` when the queue holds ``max_depth`` waiting jobs,
        queued and delayed ones (of each partition its even part). What redrives, retries and releases bring back is
        never refused.
        """

    async def claim(self, partition: int, request: ClaimRequest) -> Claimed:
        """Hand out up to ``limit`` queued jobs: by priority and queue, strictly or by weights, then by arrival.

        The weights of the request split the slots over what holds jobs (``ClaimRequest``); what a share cannot use,
        because there are fewer jobs or they are not for this worker, goes to the others.
        Nothing comes from a paused queue. Looks at the first 200 jobs of a queue and priority. A job past
        ``expires_at`` that never started becomes ``expired``. A job whose task is not among ``tasks``: when a live
        worker (announced in the last 60 s) knows it, it stays and counts as ``skipped``, and when only such jobs stand
        in the first 200, one more window of 200 at ``window_start`` of the queue is looked at; when none knows it, it
        is deferred: ``retrying``, uncounted, ``no_handler`` + 1, due after 1 s doubling to 30 s, and fails with reason
        ``unknown_task`` once 24 h have passed since it was created (or last redriven).
        A job that was lost ``Limits.alone_from`` times goes only to a claim ``alone``, which takes one such job and no
        other; whatever is left but these wakes the next worker.
        Each claim raises ``attempt`` by one. Large inputs (over 16 KiB, or beyond 1 MiB a call) come as None.
        """

    async def input(self, job_id: JobId) -> bytes | None:
        """Return a job's input, None when the job is gone."""

    async def extend(
        self, worker: WorkerName, items: Sequence[Extension], *, lease_ms: int, complete: bool = False
    ) -> list[Extended]:
        """Extend each lease to ``lease_ms`` from the store's now, unless its token is stale.

        ``complete`` says that the items name all that the worker holds: jobs that the store counts as held by it for
        over 10 s and that are not named go back to their queue uncounted (their claim's answer was lost).
        """

    async def settle(self, items: Sequence[Settle]) -> list[Settled | Exception]:
        """End attempts. Checks the token first.

        The job's latest token, settled by the same verb before, answers ``REPEATED`` (until a redrive or a
        new claim); any other is ``STALE``.

        ``COMPLETE``: completed, ``value`` is the result. ``RETRY``: counted + 1, retrying, due after ``delay_ms``
        (0: queued at once through the delayed place). ``FAIL``: counted + 1, failed with ``reason``.
        ``RELEASE``: back to its own place in its queue,
        uncounted. ``SNOOZE``: scheduled, due after ``delay_ms``, uncounted. ``CANCEL``: cancelled (only
        with a cancel requested, else ``STALE``).
        When a cancel was requested, ``RETRY``, ``RELEASE`` and ``SNOOZE`` end in cancelled: counted stays,
        the record's outcome is
        ``cancelled``, its error the given value. All but ``COMPLETE``
        leave a record of the attempt (the newest 20 are kept).
        """

    async def output(self, items: Sequence[Output]) -> list[OutputCode | Exception]:
        """Store what running attempts log and stream, each under its token (at most ``OUTPUT_ENTRIES`` an item).

        A repeat stores nothing twice. Of each job the newest lines and chunks are kept, to the limits; what goes is
        counted. Raises ``StoreFull`` at the memory limit: output must not take the room that finishing needs.
        """

    async def cancel(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """Cancel each job: at once where it waits (DONE), by a stored request where it runs (REQUESTED,
        with the first
        request's time), CONFLICT where it is final.

        A job that cannot be changed, as a damaged one, has its error in its place, here and in the next two; an error
        of the store itself is raised, and what it was asked before may have happened.
        """

    async def redrive(self, ids: Sequence[JobId], *, early: bool = True) -> list[Changed | Exception]:
        """Queue failed jobs again (at the end, counted, lost and no_handler back to 0, attempts kept,
        result and reason cleared); with
        ``early`` also start scheduled and retrying ones now. Otherwise CONFLICT. A job that would hold its unique key
        again takes it, or is left failed where another one holds it: HELD. Waits as ``submit`` does.
        """

    async def delete(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """Remove final jobs with all their keys; CONFLICT where not final."""

    async def pause(self, queue: str) -> None:
        """Hand out nothing of a queue and wake nobody for it until ``resume``; makes the queue known.

        Submits are taken and what runs goes on. Harmless to repeat, which is what to do after an error.
        """

    async def resume(self, queue: str) -> None:
        """Hand out a paused queue's jobs again; harmless where it is not paused."""

    async def purge(self, partition: int, queue: str, *, up_to: int | None = None, limit: int = SCRIPT_ITEMS) -> Purged:
        """Cancel up to ``limit`` queued jobs of a queue, most urgent first, then by arrival.

        ``up_to`` None takes the newest place for the last; a later step passes on what the first one answered, so
        that what came meanwhile stays. Running, scheduled and retrying jobs stay too.
        """

    async def promote(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Promoted:
        """Queue delayed jobs that are due (oldest due first), expire jobs past ``expires_at`` that never
        started; up to ``limit`` of each.
        """

    async def reap(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Reaped:
        """Give back jobs whose lease lapsed, and set wake-ups again where work waits.

        lost + 1 each; requeued at its own place, or failed as ``poisoned`` at ``max_lost`` if it ran alone, or
        cancelled
        when a cancel was
        requested. After a gap of over 5 s between reaps of the partition, or a clock that went back,
        nothing is reaped for the longest lease in use (the
        store was away, or its clock stepped: workers get time to renew); at once where nothing runs.
        """

    async def release_worker(
        self, worker: WorkerName, *, lost: bool = False, started: Sequence[JobId] | None = None
    ) -> int:
        """Give back all that a worker holds that has ended; return how many.

        Uncounted as ``released``, or with ``lost`` as ``reap`` does: ``worker_lost``, lost + 1, poisoned at
        ``max_lost`` if it ran alone; ``started`` names the jobs that it had started (None: all), and only these are
        lost.
        """

    async def prune(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Pruned:
        """Remove final jobs past their retention; then dead letters above the cap of a queue, then other final jobs
        above the cap of all queues, those that finished first; at most ``limit`` of each kind.
        """

    async def announce(self, worker: WorkerInfo, tasks: Sequence[TaskInfo]) -> None:
        """Put a worker and its tasks into the registry, or refresh them."""

    async def forget_worker(self, worker: WorkerName) -> None:
        """Take a stopped worker out of the registry."""


class JobReader(Protocol):
    """Look at jobs; never changes one."""

    async def ping(self) -> None:
        """Return when the store answers."""

    async def now_ms(self) -> int:
        """Return the store's clock, Unix ms."""

    async def memory(self) -> MemoryUse:
        """Return how much memory the server uses, and may."""

    async def get(self, job_id: JobId) -> JobRecord | None:
        """Return a job with input and result."""

    async def list_jobs(self, filters: JobFilter, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Return a page of jobs without input and result.

        Places come in a fixed order: running, queued, retrying, scheduled, blocked, failed, completed, cancelled,
        expired; within one, the next to run first, of final ones the newest first. At most 1,000 entries
        are examined a page.

        Raises:
            ValueError: the cursor is not one of ours.
        """

    async def queues(self) -> list[QueueInfo]:
        """Return all known queues by name."""

    async def counters(self) -> Mapping[tuple[str, str], int]:
        """Return ever-growing counts by (name, queue): submitted, started, completed, failed, retried,
        cancelled, expired, lost, poisoned, redriven, deferred, pruned, dropped, dead_dropped, refused,
        log_dropped, stream_dropped, and what ``core.limits.Over`` names;
        of unique keys that were held: conflicts, existing, replaced; ticks_fired, ticks_skipped and ticks_missed of
        schedules, by the queue of their jobs.
        """

    async def tasks(self) -> dict[str, TaskInfo]:
        """Return the registry of tasks, announced in the last 24 h."""

    async def workers(self) -> list[WorkerInfo]:
        """Return workers announced in the last 60 s."""


class ScheduleStore(Protocol):
    """Keep schedules and move them on. A schedule and its jobs share a partition, so that one step does both."""

    async def put_schedule(self, schedule: Schedule) -> PutSchedule:
        """Create or replace the schedule of that name.

        The same again changes nothing. Where only other things than its timing change, the next tick stays; a new
        timing counts from now. A pause outlives it. Waits as ``submit`` does.

        Raises:
            SchedulesFull: it would be one more than ``Limits.schedules``.
            ValueError: the timing cannot be read, or never ticks.
        """

    async def delete_schedule(self, name: str) -> bool:
        """Remove a schedule, whatever its state; return whether there was one. Its jobs stay."""

    async def pause_schedule(self, name: str) -> ScheduleRecord | None:
        """Let a schedule start nothing until it is resumed; None when there is none. Harmless to repeat."""

    async def resume_schedule(self, name: str) -> ScheduleRecord | None:
        """Let a paused schedule tick again: what it missed is treated as ``missed`` says; None when there is none."""

    async def get_schedule(self, name: str) -> ScheduleRecord | None:
        """Return a schedule.

        Raises:
            StoreError: it is damaged.
        """

    async def list_schedules(self, *, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """Return a page of schedules by name; damaged ones are left out.

        Raises:
            ValueError: the cursor is not one of ours.
        """

    async def due_schedules(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> DueSchedules:
        """Return schedules whose next tick has come, longest due first, at most about 1 MiB of them.

        One that is damaged is put off for a minute, so that it neither stops the others nor is met again at once.
        """

    async def tick(self, partition: int, ticks: Sequence[Tick]) -> list[Ticked | Exception]:
        """Start the jobs of each tick and move its schedule on, in one step, unless it moved before or was paused.

        A job's id follows from the schedule's name and the planned time; one that stands counts as fired and is left
        alone. With ``Overlap.SKIP`` a planned time counts as skipped while the last job is not final; in any case where
        the queue is full.

        Raises:
            StoreFull: there is no memory; nothing happened.
        """

    async def put_off_schedule(self, name: str) -> None:
        """Look at a schedule that cannot be understood again in a minute."""


class JobWaiter(Protocol):
    """Wait for what happens."""

    async def wait_final(self, job_id: JobId, *, timeout_ms: int) -> State | None:
        """Return the state once the job is final or the time is over; None when there is no such job. Wakes
        by signal.
        """

    async def follow(
        self,
        job_id: JobId,
        *,
        log_after: int | None = 0,
        stream_after: int | None = 0,
        rev: str = "",
        limit: int = 200,
        timeout_ms: int = 0,
    ) -> Followed | None:
        """Return how a job stands and what output comes after the given positions; None when there is no such job.

        Answers at once when there is such output, or the job is final, or ``rev`` is not the job's; else at the next
        change, or when the time is over. ``log_after`` or ``stream_after`` None leaves that kind out. A position beyond
        what was ever stored brings all that is kept.
        """

    async def wait_work(self, worker: WorkerName, queues: Sequence[str], *, timeout_ms: int) -> frozenset[str]:
        """Return when one of the queues holds work, the worker is woken, or the time is over (then empty).

        Items: ``"queue:<name>"``, ``"due"`` (an earlier due time was set: promote and ask anew) and
        ``"wake"`` (a cancel was requested
        for a job of this worker, or ``wake`` was called). An empty ``queues`` waits for the wake alone.
        Never cancel this call: what it took would be lost; call ``wake``.
        """

    async def wake(self, worker: WorkerName) -> None:
        """Make ``wait_work`` of that worker return now."""


class Store(JobStore, JobReader, ScheduleStore, JobWaiter, Protocol):
    """Be all of it."""

    async def check(self) -> None:
        """Check that the server can do what this release and the options ask of it.

        Raises:
            StoreMismatch: it holds data of another form, or (StoreUnfit) lacks what is named.
            StoreUnavailable: it is away; to be asked again.
        """

    def observe_waits(self, observer: Callable[[float, bool], None]) -> None:
        """Tell an observer of each wait for disk or replicas: its seconds, and whether it was confirmed."""

    async def close(self) -> None:
        """Close connections; waiting calls end with ``StoreUnavailable``."""
