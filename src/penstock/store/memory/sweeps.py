"""Do what time does to the jobs of one partition: promote, reap and prune."""

from __future__ import annotations

from penstock.core.ids import JobId
from penstock.core.job import Promoted, Pruned, Purged, Reaped
from penstock.core.limits import SECOND_MS, TaskDefaults
from penstock.core.states import Priority, State
from penstock.core.transitions import Event
from penstock.store.memory.partition import Partition

REAP_GAP_MS = 5 * SECOND_MS
LEASE_KEPT_MS = 600 * SECOND_MS


def promote(partition: Partition, limit: int, now_ms: int) -> Promoted:
    """Queue what is due, then expire what was not started in time."""
    due = partition.delayed.up_to(now_ms, limit)
    for job_id in due:
        partition.move(partition.jobs[job_id], Event.DUE, now_ms)
    late = partition.expiry.up_to(now_ms, limit)
    for job_id in late:
        partition.move(partition.jobs[job_id], Event.EXPIRE, now_ms)
    return Promoted(queued=len(due), expired=len(late), next_due_ms=partition.delayed.first_score(), now_ms=now_ms)


def reap(partition: Partition, limit: int, now_ms: int) -> Reaped:
    """Give back what lapsed, and mark queues that hold work."""
    for queue in sorted(partition.known_queues):
        partition.mark(queue)
    gap_ms = None if partition.swept_at_ms is None else now_ms - partition.swept_at_ms
    partition.swept_at_ms = now_ms
    lease_ms = partition.lease_ms or TaskDefaults().lease_ms
    if gap_ms is None or not 0 <= gap_ms <= REAP_GAP_MS:
        partition.reap_from_ms = now_ms + lease_ms if partition.running else 0
        partition.lease_at_ms = now_ms
    elif now_ms > partition.lease_at_ms + 2 * lease_ms + LEASE_KEPT_MS:
        partition.lease_ms = 0
    if now_ms < partition.reap_from_ms:
        return Reaped()
    outcomes: dict[State, list[JobId]] = {State.QUEUED: [], State.FAILED: [], State.CANCELLED: []}
    lapsed = [partition.jobs[job_id] for job_id in partition.running.up_to(now_ms, len(partition.running))]
    for job in sorted(lapsed, key=lambda job: (job.deadline_ms, job.worker, job.id))[:limit]:
        partition.lose(job, now_ms)
        outcomes[job.state].append(job.id)
    return Reaped(
        requeued=tuple(outcomes[State.QUEUED]),
        poisoned=tuple(outcomes[State.FAILED]),
        cancelled=tuple(outcomes[State.CANCELLED]),
    )


def prune(partition: Partition, limit: int, *, dead_cap: int, finished_cap: int, now_ms: int) -> Pruned:
    """Remove final jobs past their retention, then the oldest above the caps."""
    partition.once = {key: kept for key, kept in partition.once.items() if kept[1] > now_ms}
    partition.locks = {
        key: lock for key, lock in partition.locks.items() if lock.end_ms > now_ms or partition.holder(key, now_ms)
    }
    aged = partition.expire.up_to(now_ms, limit)
    _remove(partition, aged, "pruned")
    dead: list[JobId] = []
    for queue in sorted(partition.known_queues):
        index = partition.final[State.FAILED, queue]
        dead += index.slice(0, min(max(0, len(index) - dead_cap), limit - len(dead)))
    _remove(partition, dead, "dead_dropped")
    finished = partition.finished.slice(0, min(max(0, len(partition.finished) - finished_cap), limit))
    _remove(partition, finished, "dropped")
    return Pruned(expired=len(aged), capped=len(dead) + len(finished))


def purge(partition: Partition, queue: str, up_to: int | None, limit: int, now_ms: int) -> Purged:
    """Cancel queued jobs up to a place in the queue, most urgent first."""
    last = partition.last_place if up_to is None else up_to
    chosen: list[JobId] = []
    for priority in Priority:
        chosen += partition.queues[queue, priority].up_to(last, limit - len(chosen))
    for job_id in chosen:
        job = partition.jobs[job_id]
        job.cancel_requested_at_ms = now_ms
        partition.move(job, Event.CANCEL, now_ms)
    return Purged(cancelled=len(chosen), up_to=last, more=len(chosen) == limit > 0)


def _remove(partition: Partition, ids: list[JobId], counted_as: str) -> None:
    for job_id in ids:
        job = partition.jobs[job_id]
        partition.counters[counted_as, job.queue] += 1
        partition.remove(job)
