"""Hand out queued jobs of one partition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from penstock.core.ids import JobId, Token
from penstock.core.job import Claimed, ClaimedJob, ClaimRequest, handler_name
from penstock.core.limits import INLINE_BYTES, KIB, SCRIPT_BYTES, SCRIPT_ITEMS
from penstock.core.states import Priority, Reason
from penstock.core.transitions import Event
from penstock.store.memory.index import Index
from penstock.store.memory.partition import Partition, StoredJob

WINDOW = 200
TASK_LIVE_MS = 60_000
SMALL_INPUT_BYTES = 16 * KIB
_FIRST_DEFER_MS = 1_000
_LAST_DEFER_MS = 30_000


def claim(partition: Partition, request: ClaimRequest, announced: Mapping[str, int], now_ms: int) -> Claimed:
    """Claim for one worker; ``announced`` says when each task was last announced."""
    return _Claim(partition, request, announced, now_ms).run()


@dataclasses.dataclass(eq=False)
class _Class:
    """Hold what waits in one queue at one priority, and what this claim gives it."""

    queue: str
    index: Index
    weight: int
    #: Jobs that it holds, at most as many as its queue may still give.
    depth: int
    share: int = 0
    #: Jobs at the front that were looked at and left.
    stayed: int = 0
    #: Tells that there is nothing more for this worker.
    dry: bool = False


def split(slots: int, classes: list[_Class], draw: float) -> None:
    """Set the share of each class: by weight, at most what it holds, fractions settled by ``draw``."""
    left = list(classes)
    while slots > 0 and left:
        total = sum(one.weight for one in left)
        full = [one for one in left if one.depth * total <= slots * one.weight]
        if not full:
            reached = given = 0
            for one in left:
                reached += one.weight
                marks = math.ceil(reached * slots / total - draw)
                one.share, given = marks - given, marks
            return
        for one in full:
            one.share = one.depth
        left = [one for one in left if one not in full]
        slots -= sum(one.share for one in full)


@dataclasses.dataclass
class _Claim:
    partition: Partition
    request: ClaimRequest
    announced: Mapping[str, int]
    now_ms: int
    jobs: list[ClaimedJob] = dataclasses.field(default_factory=list)
    skipped: int = 0
    deferred: int = 0
    #: Jobs left for a claim that takes them alone.
    apart: dict[JobId, StoredJob] = dataclasses.field(default_factory=dict)
    bytes_left: int = SCRIPT_BYTES
    bound: int = 0
    #: How many more jobs may come from each queue, where there is a bound.
    room: dict[str, int] = dataclasses.field(default_factory=dict)
    _limit: int = 0

    def run(self) -> Claimed:
        self.bound = self._limit = min(self.request.limit, 1 if self.request.alone else SCRIPT_ITEMS)
        if self.request.queue_limits is not None:
            self.room = dict(zip(self.request.queues, self.request.queue_limits, strict=True))
        for level in self._levels():
            self._serve_level(level)
        remaining = {queue: self._remains(queue) for queue in self.request.queues}
        for queue, remains in remaining.items():
            self.partition.mark(queue, holds_work=remains)
        if self.jobs:
            self.partition.note_lease(self.request.lease_ms, self.now_ms)
        return Claimed(
            jobs=tuple(self.jobs),
            skipped=self.skipped,
            deferred=self.deferred,
            remaining=any(remains and self.room.get(queue) != 0 for queue, remains in remaining.items()),
            next_due_ms=self.partition.delayed.first_score(),
            now_ms=self.now_ms,
            apart=len(self.apart),
        )

    def _remains(self, queue: str) -> bool:
        """Tell whether a queue holds more than jobs that run alone elsewhere."""
        depth = sum(len(self.partition.queues[queue, priority]) for priority in Priority)
        apart = sum(job.queue == queue for job in self.apart.values())
        return depth > apart and self.partition.is_claimable(queue)

    def _levels(self) -> list[list[_Class]]:
        """Return what holds jobs, in the order in which it is served; a level's classes share the slots."""
        request = self.request
        queue_weights = request.queue_weights or (1,) * len(request.queues)
        levels: list[list[_Class]] = [[] for _ in Priority]
        for number, priority in enumerate(Priority):
            weight = request.priority_weights[number - 1] if request.priority_weights and number else 1
            for queue, queue_weight in zip(request.queues, queue_weights, strict=True):
                index = self.partition.queues[queue, priority]
                if index and queue not in self.partition.paused:
                    level = min(number, 1) if request.priority_weights else number
                    depth = min(len(index), self.room.get(queue, len(index)))
                    levels[level].append(_Class(queue, index, queue_weight * weight, depth))
        return levels

    def _serve_level(self, classes: list[_Class]) -> None:
        if self.request.priority_weights or self.request.queue_weights:
            split(self._limit - len(self.jobs), classes, self.request.draw)
            for one in classes:
                if one.share > 0:
                    self._serve(one, one.share)
        for one in classes:
            if not one.dry and len(self.jobs) < self._limit:
                self._serve(one, self._limit - len(self.jobs))

    def _serve(self, one: _Class, share: int) -> None:
        index, depth, held = one.index, len(one.index), len(self.jobs)
        self.bound = min(self._limit, held + min(share, self.room.get(one.queue, share)))
        stayed = self._window(index, one.stayed)
        one.stayed += stayed
        # A full window of jobs for others hides those behind it: look once more, somewhere further on.
        if stayed >= WINDOW and len(index) == depth > one.stayed:
            self._window(index, one.stayed + math.floor(self.request.window_start * (depth - one.stayed)))
        one.dry = len(self.jobs) - held < share

    def _window(self, index: Index, start: int) -> int:
        stayed = 0
        for job_id in index.slice(start, WINDOW):
            if len(self.jobs) >= self.bound:
                break
            stayed += self._look(self.partition.jobs[job_id])
        return stayed

    def _look(self, job: StoredJob) -> bool:
        """Claim, expire, defer or fail a job; return True when it stays for another claim."""
        tasks = self.request.tasks
        name = handler_name(job.type, job.task)
        if job.expires_at_ms is not None and job.expires_at_ms <= self.now_ms and job.attempt == 0:
            self.partition.move(job, Event.EXPIRE, self.now_ms)
        elif tasks is None or name in tasks:
            if (job.lost >= self.partition.limits.alone_from) is not self.request.alone:
                if not self.request.alone:
                    self.apart[job.id] = job
                return True
            self._hand_out(job)
        elif self.now_ms - self.announced.get(name, -TASK_LIVE_MS) < TASK_LIVE_MS:
            self.skipped += 1
            return True
        elif self.now_ms - max(job.created_at_ms, job.redriven_at_ms) >= self.partition.limits.unknown_task_ms:
            self.partition.fail(job, Reason.UNKNOWN_TASK, Event.FAIL, self.now_ms)
        else:
            self._defer(job)
        return False

    def _hand_out(self, job: StoredJob) -> None:
        before = job.attempts.get(job.attempt)
        self.partition.start(job, self.request, self.now_ms)
        if job.queue in self.room:
            self.room[job.queue] -= 1
        self.jobs.append(
            ClaimedJob(
                token=Token(job.id, job.attempt, job.nonce),
                task=job.task,
                type=job.type,
                queue=job.queue,
                priority=job.priority,
                counted=job.counted,
                lost=job.lost,
                created_at_ms=job.created_at_ms,
                deadline_ms=job.deadline_ms,
                options=job.options,
                input=self._input(job),
                previous=before[0].outcome if before else None,
            )
        )

    def _defer(self, job: StoredJob) -> None:
        job.due_ms = self.now_ms + min(_FIRST_DEFER_MS * 2**job.no_handler, _LAST_DEFER_MS)
        job.no_handler += 1
        self.deferred += 1
        self.partition.counters["deferred", job.queue] += 1
        self.partition.move(job, Event.DEFER, self.now_ms)

    def _input(self, job: StoredJob) -> bytes | None:
        size = len(job.input)
        if size <= INLINE_BYTES:
            return job.input
        if size > SMALL_INPUT_BYTES or size > self.bytes_left:
            return None
        self.bytes_left -= size
        return job.input
