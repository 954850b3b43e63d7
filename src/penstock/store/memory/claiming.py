"""Hand out queued jobs of one partition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from penstock.core.ids import Token
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


@dataclasses.dataclass
class _Claim:
    partition: Partition
    request: ClaimRequest
    announced: Mapping[str, int]
    now_ms: int
    jobs: list[ClaimedJob] = dataclasses.field(default_factory=list)
    skipped: int = 0
    deferred: int = 0
    bytes_left: int = SCRIPT_BYTES

    def run(self) -> Claimed:
        for priority in Priority:
            for queue in self.request.queues:
                if queue not in self.partition.paused:
                    self._serve(self.partition.queues[queue, priority])
        for queue in self.request.queues:
            self.partition.mark(queue)
        return Claimed(
            jobs=tuple(self.jobs),
            skipped=self.skipped,
            deferred=self.deferred,
            remaining=any(self.partition.is_claimable(queue) for queue in self.request.queues),
            next_due_ms=self.partition.delayed.first_score(),
            now_ms=self.now_ms,
        )

    def _serve(self, index: Index) -> None:
        before = len(index)
        skipped = self._window(index, 0)
        # A full window of jobs for others hides those behind it: look once more, somewhere further on.
        if skipped >= WINDOW and len(index) == before > skipped:
            self._window(index, skipped + math.floor(self.request.window_start * (before - skipped)))

    def _window(self, index: Index, start: int) -> int:
        skipped = 0
        for job_id in index.slice(start, WINDOW):
            if len(self.jobs) >= min(self.request.limit, SCRIPT_ITEMS):
                break
            skipped += self._look(self.partition.jobs[job_id])
        self.skipped += skipped
        return skipped

    def _look(self, job: StoredJob) -> bool:
        """Claim, expire, defer or fail a job; return True when it stays for another worker."""
        tasks = self.request.tasks
        name = handler_name(job.type, job.task)
        if job.expires_at_ms is not None and job.expires_at_ms <= self.now_ms and job.attempt == 0:
            self.partition.move(job, Event.EXPIRE, self.now_ms)
        elif tasks is None or name in tasks:
            self._hand_out(job)
        elif self.now_ms - self.announced.get(name, -TASK_LIVE_MS) < TASK_LIVE_MS:
            return True
        elif self.now_ms - max(job.created_at_ms, job.redriven_at_ms) >= self.partition.limits.unknown_task_ms:
            self.partition.fail(job, Reason.UNKNOWN_TASK, Event.FAIL, self.now_ms)
        else:
            self._defer(job)
        return False

    def _hand_out(self, job: StoredJob) -> None:
        self.partition.start(job, self.request, self.now_ms)
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
