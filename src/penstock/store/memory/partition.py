"""Hold the jobs of one partition, and the indexes that say where each of them is."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator

from penstock.core.ids import JobId, Token, WorkerName
from penstock.core.job import Attempt, ClaimRequest, Idempotency, JobOptions, Settle, Submitted
from penstock.core.limits import ATTEMPT_RECORDS, Limits
from penstock.core.schedule import ScheduleRecord
from penstock.core.states import FINAL_STATES, PLACES, AttemptOutcome, Place, Priority, Reason, State
from penstock.core.transitions import Event, next_state
from penstock.store.memory.audit import audit
from penstock.store.memory.index import Index
from penstock.store.memory.locks import Lock, UniqueHold
from penstock.store.memory.output import StoredOutput
from penstock.store.memory.signals import Signals

#: What is kept of a job whose retention is 0, so that its waiters still find it.
TOMBSTONE_MS = 60_000
#: A lease in use is noted again so seldom.
LEASE_NEWS_MS = 60_000
#: Events after which a job keeps its place in its queue; after any other it goes to the end.
_KEEP_PLACE = frozenset({Event.RELEASE, Event.LAPSE})
_COUNTED_AS = {
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.EXPIRED: "expired",
}


@dataclasses.dataclass(kw_only=True)
class StoredJob:
    """Hold one job; times are Unix ms."""

    id: JobId
    state: State
    task: str
    type: str
    queue: str
    priority: Priority
    input: bytes
    options: JobOptions
    created_at_ms: int
    expires_at_ms: int | None
    retention_ms: int | None
    attempt: int = 0
    #: The latest attempt that ran alone.
    alone: int = 0
    counted: int = 0
    lost: int = 0
    no_handler: int = 0
    seq: int = 0
    due_ms: int = 0
    deadline_ms: int = 0
    nonce: str = ""
    worker: WorkerName | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    redriven_at_ms: int = 0
    cancel_requested_at_ms: int | None = None
    result: bytes | None = None
    progress: bytes | None = None
    reason: Reason | None = None
    settled: str | None = None
    unique: UniqueHold | None = None
    attempts: dict[int, tuple[Attempt, bytes]] = dataclasses.field(default_factory=dict)
    output: StoredOutput = dataclasses.field(default_factory=StoredOutput)

    def is_held_by(self, token: Token) -> bool:
        """Tell whether a token is the one of the running attempt."""
        return self.state is State.RUNNING and self.matches(token)

    @property
    def is_bound(self) -> bool:
        """Tell whether the job holds its unique key whatever the time."""
        return self.unique is not None and self.unique.is_bound(self.state, self.attempt)

    def matches(self, token: Token) -> bool:
        """Tell whether a token is the one of the latest attempt, ended or not."""
        return self.attempt == token.attempt and self.nonce == token.nonce


class Partition:
    """Move jobs between places. ``move`` is the only way from one to another."""

    def __init__(self, number: int, limits: Limits, signals: Signals) -> None:
        self.number = number
        self.limits = limits
        self.signals = signals
        self.jobs: dict[JobId, StoredJob] = {}
        self.queues: defaultdict[tuple[str, Priority], Index] = defaultdict(Index)
        self.delayed = Index()
        self.running = Index()
        self.held: defaultdict[WorkerName, Index] = defaultdict(Index)
        self.final: defaultdict[tuple[State, str], Index] = defaultdict(Index)
        #: All completed, cancelled and expired jobs, by finish time.
        self.finished = Index()
        #: Final jobs by when they are pruned.
        self.expire = Index()
        #: Jobs never started that have an ``expires_at``, by it.
        self.expiry = Index()
        self.known_queues: set[str] = set()
        self.paused: set[str] = set()
        #: What idempotency keys of this partition were answered, and until when: by digest.
        self.once: dict[str, tuple[Idempotency, int, Submitted]] = {}
        #: Who holds which unique key: by digest.
        self.locks: dict[str, Lock] = {}
        self.schedules: dict[str, ScheduleRecord] = {}
        #: Schedules that tick, by the time of their next tick.
        self.schedule_due: dict[str, int] = {}
        self.counters: Counter[tuple[str, str]] = Counter()
        self.swept_at_ms: int | None = None
        self.reap_from_ms = 0
        #: The longest lease in use, 0 where none is known, and when it was last seen.
        self.lease_ms = 0
        self.lease_at_ms = 0
        self._seq = 0

    def create(self, job: StoredJob, event: Event) -> None:
        """Put a new job into its first place."""
        job.state = next_state(None, event)
        self.jobs[job.id] = job
        self.lock(job)
        self.counters["submitted", job.queue] += 1
        self._enter(job, event, job.created_at_ms)

    def move(self, job: StoredJob, event: Event, now_ms: int) -> None:
        """Take a job from its place to the next state's; ``due_ms``, ``deadline_ms`` and ``worker`` are set before."""
        state = next_state(job.state, event)
        self._leave(job)
        job.state = state
        self._enter(job, event, now_ms)
        self._let_go(job, now_ms)

    def remove(self, job: StoredJob) -> None:
        """Forget a job."""
        self._leave(job)
        del self.jobs[job.id]
        self.signals.changed()

    def forget(self, job: StoredJob) -> None:
        """Forget a job with its unique key."""
        self.remove(job)
        if job.unique is not None and self._holds(job):
            del self.locks[job.unique.key]

    def lock(self, job: StoredJob) -> None:
        """Give a job its unique key."""
        if job.unique is not None:
            self.locks[job.unique.key] = Lock(job_id=job.id, created_at_ms=job.created_at_ms, end_ms=job.unique.end_ms)

    def holder(self, key: str, now_ms: int) -> Lock | None:
        """Return whose a unique key is."""
        lock = self.locks.get(key)
        if lock is None:
            return None
        job = self.jobs.get(lock.job_id)
        if lock.end_ms > now_ms or (job is not None and job.is_bound):
            return lock
        return None

    def start(self, job: StoredJob, request: ClaimRequest, now_ms: int) -> None:
        """Begin the next attempt."""
        job.attempt += 1
        job.nonce = request.nonce
        job.worker = request.worker
        job.started_at_ms = now_ms
        job.deadline_ms = now_ms + request.lease_ms
        job.progress = None
        if request.alone:
            job.alone = job.attempt
        self.counters["started", job.queue] += 1
        self.move(job, Event.CLAIM, now_ms)

    def fail(self, job: StoredJob, reason: Reason, event: Event, now_ms: int) -> None:
        """Move a job to the dead letter."""
        job.reason = reason
        self.move(job, event, now_ms)

    def end_attempt(self, job: StoredJob, outcome: AttemptOutcome, now_ms: int, error: bytes = b"") -> None:
        """Record how the latest attempt ended."""
        ended = self.latest_attempt(job, outcome, now_ms)
        job.attempts[job.attempt] = (ended, error)
        while len(job.attempts) > ATTEMPT_RECORDS:
            del job.attempts[min(job.attempts)]

    def latest_attempt(
        self, job: StoredJob, outcome: AttemptOutcome | None = None, finished_at_ms: int | None = None
    ) -> Attempt:
        """Describe the latest attempt."""
        return Attempt(
            attempt=job.attempt,
            worker=job.worker or "",
            started_at_ms=job.started_at_ms,
            finished_at_ms=finished_at_ms,
            outcome=outcome,
        )

    def give_back(self, job: StoredJob, now_ms: int, item: Settle | None = None) -> None:
        """Put a running job back to its own place uncounted, or cancel it when that was requested."""
        error = item.value if item else b""
        if job.cancel_requested_at_ms is not None:
            self.end_attempt(job, AttemptOutcome.CANCELLED if item else AttemptOutcome.RELEASED, now_ms, error)
            self.move(job, Event.CANCEL, now_ms)
        else:
            self.end_attempt(job, AttemptOutcome.RELEASED, now_ms, error)
            self.move(job, Event.RELEASE, now_ms)

    def lose(self, job: StoredJob, now_ms: int) -> None:
        """Put a running job whose worker is gone back to its own place, or poison it, or do the requested cancel."""
        job.lost += 1
        self.counters["lost", job.queue] += 1
        self.end_attempt(job, AttemptOutcome.WORKER_LOST, now_ms)
        if job.cancel_requested_at_ms is not None:
            self.move(job, Event.CANCEL, now_ms)
        elif job.lost >= self.limits.max_lost and job.alone == job.attempt:
            self.counters["poisoned", job.queue] += 1
            self.fail(job, Reason.POISONED, Event.POISON, now_ms)
        else:
            self.move(job, Event.LAPSE, now_ms)

    def note_lease(self, lease_ms: int, now_ms: int) -> None:
        """Remember the longest lease in use: so long the reaper rests after a gap."""
        if lease_ms > self.lease_ms or (lease_ms == self.lease_ms and abs(now_ms - self.lease_at_ms) > LEASE_NEWS_MS):
            self.lease_ms, self.lease_at_ms = lease_ms, now_ms

    @property
    def last_place(self) -> int:
        """Return the newest place that was given out in the queues."""
        return self._seq

    def holds_work(self, queue: str) -> bool:
        """Tell whether a queue holds a job at any priority."""
        return any(self.queues[queue, priority] for priority in Priority)

    def waiting(self, queue: str) -> int:
        """Count a queue's jobs that are queued or delayed."""
        return sum(len(self.queues[queue, priority]) for priority in Priority) + self.gauge(self.delayed, queue)

    def is_claimable(self, queue: str) -> bool:
        """Tell whether a queue holds a job that a claim may hand out."""
        return queue not in self.paused and self.holds_work(queue)

    def mark(self, queue: str, *, holds_work: bool = True) -> None:
        """Keep: a queue is claimable just when its marker is set, until a waiter takes it."""
        self.signals.mark(self.number, queue, holds_work=holds_work and self.is_claimable(queue))

    def gauge(self, index: Index, queue: str) -> int:
        """Count a queue's jobs in an index of many queues."""
        return sum(self.jobs[job_id].queue == queue for job_id in index)

    def indexes(self) -> Iterator[tuple[str, Index, frozenset[State]]]:
        """Return each place's indexes with the states that may stand in it."""
        for (queue, priority), index in self.queues.items():
            yield f"queue:{queue}:{priority.value}", index, frozenset({State.QUEUED})
        yield "delayed", self.delayed, frozenset({State.SCHEDULED, State.RETRYING})
        yield "running", self.running, frozenset({State.RUNNING})
        for (state, queue), index in self.final.items():
            yield f"final:{state.value}:{queue}", index, frozenset({state})

    def audit(self) -> list[str]:
        """Name everything that is not as it must be; empty when all is well."""
        return audit(self)

    def _holds(self, job: StoredJob) -> bool:
        lock = self.locks.get(job.unique.key) if job.unique else None
        return lock is not None and lock.job_id == job.id

    def _let_go(self, job: StoredJob, now_ms: int) -> None:
        """Free the unique key of a job that has just changed its state, unless it holds it further."""
        if job.unique is None or job.is_bound or not self._holds(job):
            return
        key, called_off = job.unique.key, job.state in (State.CANCELLED, State.EXPIRED)
        if called_off or job.unique.end_ms <= now_ms:
            del self.locks[key]
        else:
            state = job.state if job.state.is_final else None
            self.locks[key] = dataclasses.replace(self.locks[key], state=state)

    def _leave(self, job: StoredJob) -> None:
        place = PLACES[job.state]
        if place is Place.QUEUE:
            self.queues[job.queue, job.priority].discard(job.id)
            self.mark(job.queue)
        elif place is Place.DELAYED:
            self.delayed.discard(job.id)
        elif place is Place.RUNNING:
            assert job.worker is not None
            self.running.discard(job.id)
            self.held[job.worker].discard(job.id)
        elif place is Place.FINAL:
            self.final[job.state, job.queue].discard(job.id)
            self.finished.discard(job.id)
            self.expire.discard(job.id)

    def _enter(self, job: StoredJob, event: Event, now_ms: int) -> None:
        place = PLACES[job.state]
        if place is Place.QUEUE:
            if event not in _KEEP_PLACE:
                self._seq += 1
                job.seq = self._seq
            self.queues[job.queue, job.priority].add(job.id, job.seq)
            self.mark(job.queue)
        elif place is Place.DELAYED:
            self.delayed.add(job.id, job.due_ms)
            if self.delayed.first_score() == job.due_ms:
                self.signals.due_changed()
        elif place is Place.RUNNING:
            assert job.worker is not None
            self.running.add(job.id, job.deadline_ms)
            self.held[job.worker].add(job.id, now_ms)
        elif place is Place.FINAL:
            self._finish(job, now_ms)
        if job.expires_at_ms is not None and job.attempt == 0 and job.state not in FINAL_STATES:
            self.expiry.add(job.id, job.expires_at_ms)
        else:
            self.expiry.discard(job.id)
        self.signals.changed()

    def _finish(self, job: StoredJob, now_ms: int) -> None:
        job.finished_at_ms = now_ms
        self.final[job.state, job.queue].add(job.id, now_ms)
        keep_ms = job.retention_ms
        if keep_ms is None:
            keep_ms = self.limits.failed_retention_ms if job.state is State.FAILED else self.limits.retention_ms
        self.expire.add(job.id, now_ms + (keep_ms or TOMBSTONE_MS))
        if job.state is not State.FAILED:
            self.finished.add(job.id, now_ms)
        self.counters[_COUNTED_AS[job.state], job.queue] += 1
