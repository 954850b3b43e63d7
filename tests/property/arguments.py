"""Draw what the verbs of the stores are called with, so that all that they know comes up within a few dozen steps."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from penstock.core.cron import Timing
from penstock.core.ids import WorkerName
from penstock.core.job import (
    HeldUntil,
    JobFilter,
    JobOptions,
    OnConflict,
    Unique,
)
from penstock.core.limits import Limits, Over
from penstock.core.output import NewEntry, OutputKind
from penstock.core.schedule import Missed, Overlap
from penstock.core.states import AttemptOutcome, Priority, Reason, State

#: Small enough that 50 steps reach every bound.
LIMITS = Limits(
    retention_ms=30_000,
    failed_retention_ms=60_000,
    finished_jobs=6,
    dead_letters=4,
    max_lost=2,
    log_lines=3,
    log_bytes=150,
    stream_chunks=2,
    unknown_task_ms=20_000,
    queue_max_depth=(("b", 8),),
    schedules=2,
)
WORKERS = (WorkerName("worker-1"), WorkerName("worker-2"))
QUEUES = ("a", "b")
SCHEDULES = ("hourly", "daily", "often")

#: Real time passes too, and with it what the server forgets by itself: so no short times.
UNIQUE = [
    Unique(key=f"00{number}{0:029}", until=until, for_ms=for_ms, on_conflict=mode)
    for mode in OnConflict
    for number, until, for_ms in [
        (0, HeldUntil.FINISHED, None),
        (0, HeldUntil.STARTED, None),
        (1, HeldUntil.FINISHED, 60_000),
        (1, HeldUntil.STARTED, 60_000),
        (1, None, 30_000),
    ]
]

new_jobs = st.fixed_dictionaries(
    {
        "home": st.integers(0, 3),
        "task": st.sampled_from(["echo", "echo", "other", "nobody"]),
        "type": st.sampled_from(["task", "task", "ai"]),
        "queue": st.sampled_from(QUEUES),
        "priority": st.sampled_from(Priority),
        "input": st.sampled_from([b"{}", b'"' + b"i" * 63 + b'"', b'"' + b"i" * 17_000 + b'"']),
        "options": st.sampled_from([JobOptions(), JobOptions(tags=("red",))]),
        "delay_ms": st.sampled_from([None, None, 0, 1_000, 7_000]),
        "expires_in_ms": st.sampled_from([None, None, None, 0, 3_000, 20_000]),
        "retention_ms": st.sampled_from([None, None, 0, 5_000, 100_000]),
        "unique": st.sampled_from([*UNIQUE, *[None] * len(UNIQUE)]),
        "once": st.sampled_from([None, None, (0, "a"), (0, "b"), (1, "a"), (1, "a"), (2, "a"), (3, "a")]),
    }
)
#: Chooses among what is there; a wrong choice is part of the game.
CHOICE = st.integers(0, 11)
CHOSEN = st.lists(CHOICE, min_size=1, max_size=2)
LIMIT = st.sampled_from([200, 200, 2, 1])
ERROR = st.sampled_from([b"", b'{"type":"E","message":"m|n"}'])
_ARGUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "submit": {
        "many": st.lists(new_jobs, min_size=1, max_size=3),
        "repeat": st.sampled_from([False, False, True]),
        "choice": CHOICE,
        "ms": st.sampled_from([0, 1]),
    },
    "claim": {
        "choice": CHOICE,
        "limit": st.sampled_from([2, 2, 5, 1, 0]),
        "queues": st.sampled_from([QUEUES, QUEUES[::-1], ("b",)]),
        "tasks": st.sampled_from([None, None, ("echo", "@ai"), ("echo", "other")]),
        "lease_ms": st.sampled_from([1_000, 8_000, 30_000]),
        "window_start": st.sampled_from([0.0, 0.3]),
        "priority_weights": st.sampled_from([None, (16, 4, 1), (1, 1, 1)]),
        "weighted_queues": st.booleans(),
        "queue_limit": st.sampled_from([None, None, 0, 1, 2]),
        "draw": st.sampled_from([0.0, 0.37, 0.81, 0.999]),
        "alone": st.sampled_from([False, False, True]),
    },
    "extend": {
        "chosen": st.lists(CHOICE, max_size=3),
        "worker": st.sampled_from(WORKERS),
        "lease_ms": st.sampled_from([1_000, 20_000]),
        "complete": st.booleans(),
        "progress": st.sampled_from([None, b'{"done":1}', b'{"text":"' + b"p" * 100 + b'"}']),
    },
    "output": {
        "chosen": CHOSEN,
        "repeat": st.sampled_from([0, 0, 0, 1, 2]),
        "dropped": st.sampled_from([0, 0, 0, 2]),
        "entries": st.lists(
            st.builds(
                NewEntry,
                kind=st.sampled_from(OutputKind),
                value=st.sampled_from([b"1", b'"' + b"l" * 40 + b'"', b'"' + b"l" * 200 + b'"']),
            ),
            max_size=4,
        ),
    },
    "complete": {
        "chosen": CHOSEN,
        "value": st.sampled_from([b"", b"1", b'"' + b"o" * 62 + b'"', b'"' + b"o" * 63 + b'"']),
    },
    "retry": {
        "chosen": CHOSEN,
        "delay_ms": st.sampled_from([0, 500, 4_000]),
        "value": ERROR,
        "outcome": st.sampled_from([AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT]),
        "over": st.sampled_from([None, None, Over.ERROR]),
    },
    "fail": {
        "chosen": CHOSEN,
        "value": ERROR,
        "reason": st.sampled_from([None, Reason.DISCARDED]),
        "over": st.sampled_from([None, None, *Over]),
    },
    "release": {"chosen": CHOSEN, "value": ERROR},
    "snooze": {"chosen": CHOSEN, "value": ERROR, "delay_ms": st.sampled_from([0, 2_000])},
    "acknowledge": {"choice": CHOICE, "ask": st.booleans()},
    "cancel": {"choice": CHOICE, "running": st.booleans()},
    "redrive": {"chosen": CHOSEN, "early": st.booleans()},
    "delete": {"choice": CHOICE},
    "promote": {"choice": CHOICE, "ms": st.sampled_from([0, 1_000, 3_000, 30_000]), "limit": LIMIT},
    "reap": {
        "choice": CHOICE,
        "times": st.sampled_from([1, 1, 4, 5]),
        "ms": st.sampled_from([4_000, 5_000, 5_001]),
        "limit": LIMIT,
    },
    "release_worker": {
        "worker": st.sampled_from(WORKERS),
        "lost": st.sampled_from([True, True, False]),
        "all_started": st.sampled_from([True, True, False]),
    },
    "prune": {"choice": CHOICE, "ms": st.sampled_from([0, 0, 5_000, 30_000])},
    "announce": {
        "worker": st.sampled_from(WORKERS),
        "tasks": st.sampled_from([("other",), ("echo",), ()]),
        "forget": st.booleans(),
    },
    "pause": {"queue": st.sampled_from(QUEUES), "resume": st.sampled_from([True, True, False])},
    "purge": {"queue": st.sampled_from(QUEUES), "choice": CHOICE, "limit": st.sampled_from([200, 2])},
    "schedule": {
        "name": st.sampled_from(SCHEDULES),
        "timing": st.sampled_from([Timing(every_ms=1_000), Timing(every_ms=7_000), Timing(cron="* * * * *")]),
        "queue": st.sampled_from(QUEUES),
        "missed": st.sampled_from(Missed),
        "overlap": st.sampled_from(Overlap),
        "expires_in_ms": st.sampled_from([None, None, 3_000]),
        "what": st.sampled_from(["put", "put", "put", "pause", "resume", "delete", "list"]),
    },
    "tick": {
        "choice": CHOICE,
        "ms": st.sampled_from([0, 1_000, 3_000, 70_000, -2_000]),
        "limit": st.sampled_from([200, 1]),
        "times": st.sampled_from([1, 1, 2]),
        "put_off": st.sampled_from([False, False, False, True]),
    },
    #: A server whose clock is set, or that another one takes over.
    "clock": {"ms": st.sampled_from([-3_600_000, -20_000, -1_000, -1, 1, 5_001, 20_000, 3_600_000])},
    "look": {
        "choice": CHOICE,
        "page": st.sampled_from([1, 2, 50]),
        "filters": st.builds(
            JobFilter,
            states=st.sampled_from([(), (State.QUEUED, State.RETRYING), (State.FAILED, State.EXPIRED)]),
            queue=st.sampled_from([None, None, "a"]),
            tag=st.sampled_from([None, None, "red"]),
        ),
    },
}
ARGUMENTS = {verb: st.fixed_dictionaries(arguments) for verb, arguments in _ARGUMENTS.items()}
#: Without jobs and leases the other verbs have nothing to do.
WEIGHED = (*ARGUMENTS, "submit", "submit", "claim", "claim")
