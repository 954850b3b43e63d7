"""Check that each job is in exactly one place and that every index agrees with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from penstock.core.ids import JobId
from penstock.core.states import FINAL_STATES, State

if TYPE_CHECKING:
    from penstock.store.memory.partition import Partition


def audit(partition: Partition) -> list[str]:
    """Name everything that is not as it must be; empty when all is well."""
    problems = []
    places: defaultdict[JobId, list[str]] = defaultdict(list)
    for name, index, states in partition.indexes():
        for job_id in index:
            places[job_id].append(name)
            job = partition.jobs.get(job_id)
            if job is None:
                problems.append(f"{job_id}: in {name} but there is no such job")
            elif job.state not in states:
                problems.append(f"{job_id}: {job.state.value} but in {name}")
    problems += [
        f"{job_id}: in {places[job_id] or 'no place'}" for job_id in partition.jobs if len(places[job_id]) != 1
    ]
    held = Counter(job_id for index in partition.held.values() for job_id in index)
    for job in partition.jobs.values():
        final = job.state in FINAL_STATES
        expected = {
            "held once": (held[job.id] == 1, job.state is State.RUNNING),
            "in expire": (job.id in partition.expire, final),
            "in finished": (job.id in partition.finished, final and job.state is not State.FAILED),
            "in expiry": (job.id in partition.expiry, not final and job.attempt == 0 and job.expires_at_ms is not None),
        }
        problems += [f"{job.id}: {what} is {found}" for what, (found, wanted) in expected.items() if found != wanted]
    for name, index in {"expire": partition.expire, "finished": partition.finished, "expiry": partition.expiry}.items():
        problems += [
            f"{job_id}: in {name} but there is no such job" for job_id in index if job_id not in partition.jobs
        ]
    now_bound = {job.unique.key: job.id for job in partition.jobs.values() if job.unique and job.is_bound}
    problems += [
        f"{job_id}: holds its unique key without a lock"
        for key, job_id in now_bound.items()
        if key not in partition.locks or partition.locks[key].job_id != job_id
    ]
    for lock in partition.locks.values():
        holder = partition.jobs.get(lock.job_id)
        if lock.end_ms == 0 and (holder is None or not holder.is_bound):
            problems.append(f"{lock.job_id}: has a lock but does not hold its unique key")
    problems += [f"{job_id}: held but there is no such job" for job_id in held if job_id not in partition.jobs]
    return problems
