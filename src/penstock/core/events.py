"""Name the events that logs, metrics and dashboards tell of; a code never changes its meaning."""

from __future__ import annotations

WORKER_STARTED = "worker.started"
#: A module, a task or a setting cannot be used; the worker did not start.
WORKER_REFUSED = "worker.refused"
#: A task of this worker has a queue that the worker does not serve.
WORKER_UNSERVED = "worker.unserved"
WORKER_STOPPING = "worker.stopping"
WORKER_HASTENED = "worker.hastened"
WORKER_STOPPED = "worker.stopped"

#: A process under the supervisor has ended; what it held has gone back, and it is started again.
PROCESS_ENDED = "process.ended"
#: A process does not renew its leases, so the supervisor does.
PROCESS_UNRESPONSIVE = "process.unresponsive"
#: A process gave no sign of life for too long, or did not end after the drain; it is killed.
PROCESS_KILLED = "process.killed"

JOB_FAILED = "job.failed"
JOB_RETRYING = "job.retrying"
JOB_SNOOZED = "job.snoozed"
JOB_RELEASED = "job.released"
JOB_CANCELLED = "job.cancelled"
#: The lease of a lost worker lapsed; the job runs again, or is poisoned.
JOB_LOST = "job.lost"
#: The token was not the current one any more: another attempt owns the job, so this result is dropped.
JOB_STALE = "job.stale"
#: No timeout is set and the job has run for over an hour.
JOB_LONG = "job.long"
#: A thread went on after its job's timeout; its slot stays taken.
THREAD_STUCK = "thread.stuck"
THREAD_RETURNED = "thread.returned"
#: The same of an async handler that catches its cancellation.
HANDLER_STUCK = "handler.stuck"
HANDLER_RETURNED = "handler.returned"
#: So many slots are held by handlers that outlived their timeouts that the process drains and is replaced.
WORKER_WORN = "worker.worn"

#: Ticks of a schedule were missed: nothing ran, or it was paused.
TICKS_MISSED = "schedule.missed"
#: A schedule that a task module declares could not be stored.
SCHEDULE_REFUSED = "schedule.refused"

STORE_LOST = "store.lost"
STORE_BACK = "store.back"
#: A setting of the server makes the chosen durability weak.
STORE_ADVICE = "store.advice"
SETTLE_FAILED = "settle.failed"
#: The store is away and too many results wait for it: one is given up, and its job runs again.
RESULT_DROPPED = "result.dropped"
#: The store did not take what a job logged or streamed; the job goes on.
OUTPUT_REFUSED = "output.refused"
LOOP_FAILED = "loop.failed"

API_STARTED = "api.started"
API_STOPPING = "api.stopping"
API_STOPPED = "api.stopped"
REQUEST_FINISHED = "request.finished"
#: A request met an error that nobody expected; the line has its traceback.
REQUEST_CRASHED = "request.crashed"
#: One of several jobs could not be changed, a damaged one say; the others were.
CHANGE_FAILED = "change.failed"

EVENTS = frozenset(
    {
        WORKER_STARTED,
        WORKER_REFUSED,
        WORKER_UNSERVED,
        WORKER_STOPPING,
        WORKER_HASTENED,
        WORKER_STOPPED,
        PROCESS_ENDED,
        PROCESS_UNRESPONSIVE,
        PROCESS_KILLED,
        JOB_FAILED,
        JOB_RETRYING,
        JOB_SNOOZED,
        JOB_RELEASED,
        JOB_CANCELLED,
        JOB_LOST,
        JOB_STALE,
        JOB_LONG,
        THREAD_STUCK,
        THREAD_RETURNED,
        HANDLER_STUCK,
        HANDLER_RETURNED,
        WORKER_WORN,
        TICKS_MISSED,
        SCHEDULE_REFUSED,
        STORE_LOST,
        STORE_BACK,
        STORE_ADVICE,
        SETTLE_FAILED,
        RESULT_DROPPED,
        OUTPUT_REFUSED,
        LOOP_FAILED,
        API_STARTED,
        API_STOPPING,
        API_STOPPED,
        REQUEST_FINISHED,
        REQUEST_CRASHED,
        CHANGE_FAILED,
    }
)
