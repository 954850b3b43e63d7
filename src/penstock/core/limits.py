"""Hold the bounds on sizes, counts and times, with their defaults."""

from __future__ import annotations

import dataclasses
import enum

KIB = 1024
MIB = 1024 * KIB
SECOND_MS = 1_000
HOUR_MS = 3_600 * SECOND_MS
DAY_MS = 24 * HOUR_MS

NAME_CHARACTERS = 128
KEY_CHARACTERS = 255
NESTING_LEVELS = 100
SCRIPT_ITEMS = 100
SCRIPT_BYTES = MIB
#: A value up to this size stays in the job's own text; a longer one has a key of its own.
INLINE_BYTES = 256
ATTEMPT_RECORDS = 20
#: Entries of output that one attempt hands over in one call.
OUTPUT_ENTRIES = 500
#: The longest line of a log, and the largest chunk of a stream, as JSON.
LINE_BYTES = 8 * KIB
CHUNK_BYTES = 64 * KIB
RUN_AT_HORIZON_MS = 3_660 * DAY_MS
MAX_ATTEMPTS = 1_000
#: Largest input of a schedule's job: many schedules are read in one call.
SCHEDULE_INPUT_BYTES = 64 * KIB
SHORTEST_INTERVAL_MS = SECOND_MS


class Over(enum.Enum):
    """Say what of an ended attempt was over its limit; the values are the names of the store's counters."""

    #: The result was not kept, and the job failed.
    RESULT = "result_refused"
    #: The error was kept in part.
    ERROR = "error_cut"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bound what users may send and what is kept. Sizes in bytes, times in ms.

    ``max_depth`` bounds the jobs that wait in a queue, queued and delayed ones; 0 is no bound. ``queue_max_depth`` says
    it for single queues. A job whose worker was lost ``alone_after`` times runs in a process of its own, and one that
    was lost ``max_lost`` times, the last time alone, is poisoned. Above ``memory_percent`` of the server's memory
    limit the API takes no submits; 100 leaves it to the server. ``log_…`` and ``stream_…`` bound what is kept of the
    output of each job; the oldest goes. ``schedules`` bounds how many there may be.
    """

    payload_bytes: int = MIB
    result_bytes: int = MIB
    error_bytes: int = 16 * KIB
    log_bytes: int = 256 * KIB
    log_lines: int = 1_000
    stream_bytes: int = MIB
    stream_chunks: int = 10_000
    batch_items: int = 10_000
    batch_bytes: int = 64 * MIB
    wait_ms: int = 60 * SECOND_MS
    retention_ms: int = DAY_MS
    failed_retention_ms: int = 30 * DAY_MS
    finished_jobs: int = 1_000_000
    dead_letters: int = 100_000
    max_lost: int = 3
    alone_after: int = 2
    unknown_task_ms: int = DAY_MS
    idempotency_ms: int = DAY_MS
    max_depth: int = 0
    queue_max_depth: tuple[tuple[str, int], ...] = ()
    memory_percent: int = 90
    schedules: int = 10_000

    @property
    def alone_from(self) -> int:
        """Return from how many losses on a job runs alone: at the last one before it can be poisoned at the latest."""
        return max(1, min(self.alone_after, self.max_lost - 1))

    def depth_bound(self, queue: str, partitions: int) -> int | None:
        """Return how many jobs may wait in each partition of a queue; None without a bound."""
        bound = next((depth for name, depth in self.queue_max_depth if name == queue), self.max_depth)
        return max(1, bound // partitions) if bound else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """Fill what neither the submit nor the task says."""

    queue: str = "default"
    max_attempts: int = 3
    lease_ms: int = 15 * SECOND_MS
