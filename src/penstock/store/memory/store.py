"""Keep jobs in memory behind the verbs of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from penstock.core.errors import KeyHeld, KeyReused, QueueFull, StoreUnavailable
from penstock.core.ids import JobId, Token, WorkerName, home_of_digest, partition_of
from penstock.core.job import (
    ChangeCode,
    Changed,
    Claimed,
    ClaimRequest,
    Extended,
    Extension,
    JobFilter,
    JobRecord,
    MemoryUse,
    NewJob,
    OnConflict,
    Page,
    Promoted,
    Pruned,
    Purged,
    QueueInfo,
    Reaped,
    Settle,
    SettleCode,
    Settled,
    Submitted,
    TaskInfo,
    Unique,
    Verb,
    WorkerInfo,
)
from penstock.core.limits import DAY_MS, SCRIPT_ITEMS, SECOND_MS, Limits
from penstock.core.output import Followed, Output, OutputCode
from penstock.core.schedule import DueSchedules, PutSchedule, Schedule, SchedulePage, ScheduleRecord, Tick, Ticked
from penstock.core.states import PLACES, AttemptOutcome, Place, Reason, State
from penstock.core.transitions import Event
from penstock.store.memory import claiming, reading, sweeps
from penstock.store.memory.locks import Lock, UniqueHold
from penstock.store.memory.output import DROPPED
from penstock.store.memory.partition import Partition, StoredJob
from penstock.store.memory.schedules import Schedules
from penstock.store.memory.signals import Signals

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

WORKER_LIVE_MS = 60 * SECOND_MS
TASK_KEPT_MS = DAY_MS
UNNAMED_MS = 10 * SECOND_MS


class MemoryStore:
    """Implement ``penstock.store.protocol.Store`` for one process; ``clock`` returns Unix ms.

    No verb but the waiting ones gives up control, so each is atomic.
    """

    def __init__(self, clock: Callable[[], int], partitions: int = 1, limits: Limits | None = None) -> None:
        self.partitions = partitions
        self.limits = limits or Limits()
        self._clock = clock
        self._signals = Signals()
        self._closed = False
        self._parts = [Partition(number, self.limits, self._signals) for number in range(partitions)]
        self._schedules = Schedules(self._parts, self.limits.schedules, self._submit)
        self._tasks: dict[str, tuple[int, TaskInfo]] = {}
        self._workers: dict[WorkerName, WorkerInfo] = {}

    # Changing jobs.

    async def submit(self, jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
        """Create jobs."""
        return [self._guarded(self._submit_once, job) for job in jobs]

    async def claim(self, partition: int, request: ClaimRequest) -> Claimed:
        """Hand out jobs."""
        announced = {name: seen for name, (seen, _) in self._tasks.items()}
        return claiming.claim(self._parts[partition], request, announced, self._now())

    async def input(self, job_id: JobId) -> bytes | None:
        """Return a job's input."""
        found = self._find(job_id)
        return found[1].input if found else None

    async def extend(
        self, worker: WorkerName, items: Sequence[Extension], *, lease_ms: int, complete: bool = False
    ) -> list[Extended]:
        """Extend leases."""
        answers = [self._extend(item, lease_ms) for item in items]
        for part in self._parts:
            if any(partition_of(item.token.job_id, self.partitions) == part.number for item in items):
                part.note_lease(lease_ms, self._now())
        if complete:
            self._give_back_held(worker, named={item.token.job_id for item in items}, min_age_ms=UNNAMED_MS)
        return answers

    async def settle(self, items: Sequence[Settle]) -> list[Settled | Exception]:
        """End attempts."""
        return [self._guarded(self._settle, item) for item in items]

    async def output(self, items: Sequence[Output]) -> list[OutputCode | Exception]:
        """Store output."""
        return [self._guarded(self._output, item) for item in items]

    async def cancel(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """Cancel jobs."""
        return [self._change(job_id, self._cancel) for job_id in ids]

    async def redrive(self, ids: Sequence[JobId], *, early: bool = True) -> list[Changed | Exception]:
        """Queue failed jobs again."""
        return [self._change(job_id, lambda part, job: self._redrive(part, job, early=early)) for job_id in ids]

    async def delete(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """Remove final jobs."""
        return [self._change(job_id, self._delete) for job_id in ids]

    async def pause(self, queue: str) -> None:
        """Hand out nothing of a queue."""
        self._check_open()
        for part in self._parts:
            part.known_queues.add(queue)
            part.paused.add(queue)
            part.mark(queue)

    async def resume(self, queue: str) -> None:
        """Hand out a queue's jobs again."""
        self._check_open()
        for part in self._parts:
            part.known_queues.add(queue)
            part.paused.discard(queue)
            part.mark(queue)

    async def purge(self, partition: int, queue: str, *, up_to: int | None = None, limit: int = SCRIPT_ITEMS) -> Purged:
        """Cancel what is queued."""
        return sweeps.purge(self._parts[partition], queue, up_to, limit, self._now())

    async def promote(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Promoted:
        """Queue what is due, expire what is late."""
        return sweeps.promote(self._parts[partition], limit, self._now())

    async def reap(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Reaped:
        """Give back what lapsed."""
        return sweeps.reap(self._parts[partition], limit, self._now())

    async def release_worker(
        self, worker: WorkerName, *, lost: bool = False, started: Sequence[JobId] | None = None
    ) -> int:
        """Give back what a worker holds."""
        return self._give_back_held(worker, named=set(), min_age_ms=None, lost=lost, started=started)

    async def prune(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Pruned:
        """Remove old final jobs."""
        return sweeps.prune(
            self._parts[partition],
            limit,
            dead_cap=max(1, self.limits.dead_letters // self.partitions),
            finished_cap=max(1, self.limits.finished_jobs // self.partitions),
            now_ms=self._now(),
        )

    async def announce(self, worker: WorkerInfo, tasks: Sequence[TaskInfo]) -> None:
        """Refresh a worker and its tasks in the registry."""
        now_ms = self._now()
        self._workers[worker.name] = msgspec.structs.replace(worker, seen_at_ms=now_ms)
        for task in tasks:
            self._tasks[task.name] = (now_ms, task)

    async def forget_worker(self, worker: WorkerName) -> None:
        """Take a worker out of the registry."""
        self._check_open()
        self._workers.pop(worker, None)

    # Schedules.

    async def put_schedule(self, schedule: Schedule) -> PutSchedule:
        """Create or replace a schedule."""
        return self._schedules.put(schedule, self._now())

    async def delete_schedule(self, name: str) -> bool:
        """Remove a schedule."""
        self._check_open()
        return self._schedules.delete(name)

    async def pause_schedule(self, name: str) -> ScheduleRecord | None:
        """Stop a schedule."""
        return self._schedules.pause(name, self._now())

    async def resume_schedule(self, name: str) -> ScheduleRecord | None:
        """Let a schedule go on."""
        return self._schedules.resume(name, self._now())

    async def get_schedule(self, name: str) -> ScheduleRecord | None:
        """Return a schedule."""
        self._check_open()
        return self._schedules.get(name)

    async def list_schedules(self, *, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """Return a page of schedules."""
        self._check_open()
        return self._schedules.page(limit, cursor)

    async def due_schedules(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> DueSchedules:
        """Return what is due."""
        return self._schedules.due(self._parts[partition], limit, self._now())

    async def tick(self, partition: int, ticks: Sequence[Tick]) -> list[Ticked | Exception]:
        """Move schedules on."""
        self._check_open()
        return [self._schedules.tick(self._parts[partition], tick) for tick in ticks]

    async def put_off_schedule(self, name: str) -> None:
        """Look at a schedule again in a minute."""
        self._schedules.put_off(name, self._now())

    # Looking at jobs.

    async def now_ms(self) -> int:
        """Return the clock."""
        return self._now()

    async def ping(self) -> None:
        """Return."""
        self._check_open()

    async def memory(self) -> MemoryUse:
        """Return no limit."""
        self._check_open()
        return MemoryUse(used_bytes=0, max_bytes=0)

    async def get(self, job_id: JobId) -> JobRecord | None:
        """Return a job."""
        found = self._find(job_id)
        return reading.record(found[1], found[0]) if found else None

    async def list_jobs(self, filters: JobFilter, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Return a page of jobs."""
        self._check_open()
        return reading.list_page(self._parts, filters, limit, cursor)

    async def queues(self) -> list[QueueInfo]:
        """Return all known queues by name."""
        self._check_open()
        names = sorted(set().union(*(part.known_queues for part in self._parts)))
        return [reading.queue_info(self._parts, name) for name in names]

    async def counters(self) -> Mapping[tuple[str, str], int]:
        """Return the counts."""
        self._check_open()
        return dict(sum((part.counters for part in self._parts), Counter()))

    async def tasks(self) -> dict[str, TaskInfo]:
        """Return the registry of tasks."""
        oldest_ms = self._now() - TASK_KEPT_MS
        return {name: task for name, (seen_ms, task) in sorted(self._tasks.items()) if seen_ms > oldest_ms}

    async def workers(self) -> list[WorkerInfo]:
        """Return live workers by name."""
        oldest_ms = self._now() - WORKER_LIVE_MS
        return [worker for _, worker in sorted(self._workers.items()) if worker.seen_at_ms > oldest_ms]

    def audit(self) -> list[str]:
        """Name everything that is not as it must be; empty when all is well."""
        return [problem for part in self._parts for problem in part.audit()]

    # Waiting.

    async def wait_final(self, job_id: JobId, *, timeout_ms: int) -> State | None:
        """Return the state once it is final or the time is over."""

        def check() -> tuple[State | None] | None:
            found = self._find(job_id)
            return (found[1].state if found else None,) if found is None or found[1].state.is_final else None

        answer = await self._signals.until(check, timeout_ms=timeout_ms)
        if answer is not None:
            return answer[0]
        found = self._find(job_id)
        return found[1].state if found else None

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
        """Return how a job stands and what came after."""

        def look() -> Followed | None:
            found = self._find(job_id)
            if found is None:
                return None
            shown = reading.record(found[1], found[0], values=False)
            return found[1].output.follow(shown, log_after=log_after, stream_after=stream_after, limit=limit)

        def news() -> bool | None:
            found = look()
            is_same = found is not None and not found.entries and not found.state.is_final and found.rev == rev
            return None if is_same else True

        if timeout_ms > 0:
            await self._signals.until(news, timeout_ms=timeout_ms)
        return look()

    async def wait_work(self, worker: WorkerName, queues: Sequence[str], *, timeout_ms: int) -> frozenset[str]:
        """Return what there is to do."""
        found = await self._signals.until(lambda: self._signals.take(worker, queues), timeout_ms=timeout_ms)
        return found or frozenset()

    async def wake(self, worker: WorkerName) -> None:
        """Make the worker's wait return."""
        self._check_open()
        self._signals.wake(worker)

    async def check(self) -> None:
        """See ``Store.check``."""

    def observe_waits(self, observer: Callable[[float, bool], None]) -> None:
        """See ``Store.observe_waits``: there is nothing to wait for."""

    async def close(self) -> None:
        """End waiting calls, and all later ones, with ``StoreUnavailable``."""
        self._closed = True
        self._signals.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _now(self) -> int:
        self._check_open()
        return self._clock()

    # One item of each verb.

    def _guarded(self, one: Callable[[_Item], _Answer], item: _Item) -> _Answer | Exception:
        try:
            return one(item)
        except (UnicodeDecodeError, KeyHeld, KeyReused, QueueFull) as error:
            return error

    def _find(self, job_id: JobId) -> tuple[Partition, StoredJob] | None:
        self._check_open()
        part = self._parts[partition_of(job_id, self.partitions)]
        job = part.jobs.get(job_id)
        return (part, job) if job else None

    def _submit_once(self, new: NewJob) -> Submitted:
        key = new.idempotency
        if key is None:
            return self._submit(new)
        new.input.decode()
        once = self._parts[home_of_digest(key.key) % self.partitions].once
        if key.key in once:
            first, until_ms, answer = once[key.key]
            if until_ms > self._now():
                if first.fingerprint != key.fingerprint:
                    raise KeyReused(answer.id)
                return msgspec.structs.replace(answer, created=False, replayed=True)
        answer = self._submit(new)
        once[key.key] = (key, self._now() + key.keep_ms, answer)
        return answer

    def _submit(self, new: NewJob) -> Submitted:
        # Values are JSON text; one that is not UTF-8 is refused before anything is written.
        new.input.decode()
        part = self._parts[partition_of(new.id, self.partitions)]
        found = self._find(new.id)
        if found:
            return _submitted(found[1], created=False)
        part.known_queues.add(new.queue)
        now_ms = self._now()
        lock = part.holder(new.unique.key, now_ms) if new.unique else None
        standing = part.jobs.get(lock.job_id) if lock else None
        if lock is not None and new.unique is not None:
            if new.unique.on_conflict is OnConflict.RETURN_EXISTING:
                part.counters["existing", new.queue] += 1
                return _existing(lock, standing)
            if new.unique.on_conflict is OnConflict.REJECT or standing is None or not _waits(standing):
                part.counters["conflicts", new.queue] += 1
                raise KeyHeld(lock.job_id, _existing(lock, standing).state.value)
        bound = self.limits.depth_bound(new.queue, self.partitions)
        full = bound is not None and part.waiting(new.queue) >= bound
        if full and not (standing is not None and standing.queue == new.queue):
            part.counters["refused", new.queue] += 1
            raise QueueFull(new.queue)
        if standing is not None:
            part.counters["replaced", standing.queue] += 1
            standing.cancel_requested_at_ms = now_ms
            part.move(standing, Event.CANCEL, now_ms)
        job = StoredJob(
            id=new.id,
            state=State.QUEUED,
            task=new.task,
            type=new.type,
            queue=new.queue,
            priority=new.priority,
            input=new.input,
            options=new.options,
            created_at_ms=now_ms,
            expires_at_ms=_moment(new.expires_at_ms, new.expires_in_ms, now_ms),
            retention_ms=new.retention_ms,
            unique=_hold(new.unique, now_ms),
        )
        due_ms = _moment(new.run_at_ms, new.delay_ms, now_ms)
        if due_ms is not None and due_ms > now_ms:
            job.due_ms = due_ms
        part.create(job, Event.SCHEDULE if job.due_ms else Event.SUBMIT)
        return _submitted(job, created=True)

    def _extend(self, item: Extension, lease_ms: int) -> Extended:
        found = self._find(item.token.job_id)
        if found is None or not found[1].is_held_by(item.token):
            return Extended(deadline_ms=None)
        part, job = found
        job.deadline_ms = self._now() + lease_ms
        part.running.add(job.id, job.deadline_ms)
        if item.progress:
            job.progress = item.progress
            self._signals.changed()
        return Extended(deadline_ms=job.deadline_ms, cancel_requested=job.cancel_requested_at_ms is not None)

    def _output(self, item: Output) -> OutputCode:
        for entry in item.entries:
            entry.value.decode()
        found = self._find(item.token.job_id)
        if found is None or not found[1].is_held_by(item.token):
            return OutputCode.STALE
        part, job = found
        for kind, count in job.output.add(item, self.limits, self._now()).items():
            if count:
                part.counters[DROPPED[kind], job.queue] += count
        self._signals.changed()
        return OutputCode.DONE

    def _settle(self, item: Settle) -> Settled:
        item.value.decode()
        found = self._find(item.token.job_id)
        if found is None:
            return Settled(code=SettleCode.STALE, state=None)
        part, job = found
        mark = _mark(item.token, item.verb)
        if not job.is_held_by(item.token):
            repeated = job.matches(item.token) and job.settled == mark
            return Settled(code=SettleCode.REPEATED if repeated else SettleCode.STALE, state=job.state)
        if item.verb is Verb.CANCEL and job.cancel_requested_at_ms is None:
            return Settled(code=SettleCode.STALE, state=job.state)
        job.settled = mark
        self._end(part, job, item)
        if item.over is not None:
            part.counters[item.over.value, job.queue] += 1
        return Settled(code=SettleCode.DONE, state=job.state)

    def _end(self, part: Partition, job: StoredJob, item: Settle) -> None:
        now_ms = self._now()
        if item.verb is Verb.COMPLETE:
            job.result = item.value
            part.move(job, Event.COMPLETE, now_ms)
        elif item.verb is Verb.FAIL:
            job.counted += 1
            part.end_attempt(job, item.outcome, now_ms, item.value)
            part.fail(job, item.reason or Reason.EXHAUSTED, Event.FAIL, now_ms)
        elif item.verb in (Verb.RELEASE, Verb.CANCEL) or job.cancel_requested_at_ms is not None:
            part.give_back(job, now_ms, item)
        elif item.verb is Verb.RETRY:
            job.counted += 1
            job.due_ms = now_ms + item.delay_ms
            part.counters["retried", job.queue] += 1
            part.end_attempt(job, item.outcome, now_ms, item.value)
            part.move(job, Event.RETRY, now_ms)
        else:
            job.due_ms = now_ms + item.delay_ms
            part.end_attempt(job, AttemptOutcome.RELEASED, now_ms, item.value)
            part.move(job, Event.SNOOZE, now_ms)

    def _change(self, job_id: JobId, one: Callable[[Partition, StoredJob], Changed]) -> Changed:
        found = self._find(job_id)
        return one(*found) if found else Changed(code=ChangeCode.MISSING)

    def _cancel(self, part: Partition, job: StoredJob) -> Changed:
        if job.state.is_final:
            return Changed(code=ChangeCode.CONFLICT, state=job.state)
        now_ms = self._now()
        first = job.cancel_requested_at_ms is None
        if first:
            job.cancel_requested_at_ms = now_ms
        if job.state is not State.RUNNING:
            part.move(job, Event.CANCEL, now_ms)
            return Changed(code=ChangeCode.DONE, state=job.state, cancel_requested_at_ms=now_ms)
        if first and job.worker is not None:
            self._signals.wake(job.worker)
            self._signals.changed()
        return Changed(code=ChangeCode.REQUESTED, state=job.state, cancel_requested_at_ms=job.cancel_requested_at_ms)

    def _redrive(self, part: Partition, job: StoredJob, *, early: bool) -> Changed:
        now_ms = self._now()
        if job.state is State.FAILED:
            bound = job.unique is not None and job.unique.is_bound(State.QUEUED, job.attempt)
            holder = part.holder(job.unique.key, now_ms) if job.unique and bound else None
            if holder is not None and holder.job_id != job.id:
                return Changed(code=ChangeCode.HELD, state=job.state, holder=holder.job_id)
            if bound:
                part.lock(job)
            job.counted = job.lost = job.no_handler = 0
            job.reason = job.settled = job.progress = job.cancel_requested_at_ms = job.finished_at_ms = None
            job.redriven_at_ms = now_ms
            part.counters["redriven", job.queue] += 1
            part.move(job, Event.REDRIVE, now_ms)
        elif early and PLACES[job.state] is Place.DELAYED:
            part.move(job, Event.DUE, now_ms)
        else:
            return Changed(code=ChangeCode.CONFLICT, state=job.state)
        return Changed(code=ChangeCode.DONE, state=job.state)

    def _delete(self, part: Partition, job: StoredJob) -> Changed:
        if not job.state.is_final:
            return Changed(code=ChangeCode.CONFLICT, state=job.state)
        part.forget(job)
        return Changed(code=ChangeCode.DONE, state=job.state)

    def _give_back_held(
        self,
        worker: WorkerName,
        *,
        named: set[JobId],
        min_age_ms: int | None,
        lost: bool = False,
        started: Sequence[JobId] | None = None,
    ) -> int:
        now_ms = self._now()
        given_back = 0
        for part in self._parts:
            held = part.held[worker]
            for job_id in list(held):
                if job_id not in named and (min_age_ms is None or now_ms - held.score(job_id) >= min_age_ms):
                    if lost and (started is None or job_id in started):
                        part.lose(part.jobs[job_id], now_ms)
                    else:
                        part.give_back(part.jobs[job_id], now_ms)
                    given_back += 1
        return given_back


def _moment(at_ms: int | None, in_ms: int | None, now_ms: int) -> int | None:
    if at_ms is not None:
        return at_ms
    return None if in_ms is None else now_ms + in_ms


def _hold(unique: Unique | None, now_ms: int) -> UniqueHold | None:
    if unique is None:
        return None
    end_ms = 0 if unique.for_ms is None else now_ms + unique.for_ms
    return UniqueHold(key=unique.key, until=unique.until, end_ms=end_ms)


def _waits(job: StoredJob) -> bool:
    return PLACES[job.state] in (Place.QUEUE, Place.DELAYED)


def _existing(lock: Lock, job: StoredJob | None) -> Submitted:
    """Tell of the job that holds a unique key; of one that retention removed what its lock remembers."""
    if job is not None:
        return msgspec.structs.replace(_submitted(job, created=False), existing=True)
    assert lock.state is not None
    return Submitted(id=lock.job_id, state=lock.state, created=False, created_at_ms=lock.created_at_ms, existing=True)


def _mark(token: Token, verb: Verb) -> str:
    return f"{token.attempt} {verb.value}"


def _submitted(job: StoredJob, *, created: bool) -> Submitted:
    return Submitted(
        id=job.id,
        state=job.state,
        created=created,
        created_at_ms=job.created_at_ms,
        run_at_ms=job.due_ms if PLACES[job.state] is Place.DELAYED else None,
        expires_at_ms=job.expires_at_ms,
    )
