"""Judge the end of a run: the store against what was written down outside it, job by job."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from penstock.core.ids import JobId
from penstock.core.job import JobRecord
from penstock.core.states import AttemptOutcome, State
from penstock.store import StoreOptions
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore
from tests.chaos.ledger import Accepted, Runs, Submitters
from tests.chaos.stack import NAMESPACE
from tests.waiting import in_time

END_S = 240.0
_KEPT_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Gap:
    """Be a time whose writes the server may forget: what was accepted, or finished, in it."""

    from_s: float
    to_s: float


@dataclasses.dataclass(kw_only=True)
class Verdict:
    """Say how a run ended."""

    accepted: int = 0
    stored: int = 0
    #: Accepted, not there, and nothing excuses it.
    lost: list[str] = dataclasses.field(default_factory=list)
    #: Accepted in a time that the server was made to forget.
    lost_in_gaps: int = 0
    unfinished: list[str] = dataclasses.field(default_factory=list)
    wrong_results: list[str] = dataclasses.field(default_factory=list)
    #: Jobs whose record does not show exactly one accepted completion, or that were not run to their end.
    not_once: list[str] = dataclasses.field(default_factory=list)
    #: Completions of each job in the server's whole history; None where there is no such history.
    history: dict[int, int] | None = None
    completions_counted: int = 0
    keyed: int = 0
    repeated: int = 0
    doubles: list[str] = dataclasses.field(default_factory=list)
    doubles_in_gaps: int = 0
    findings: list[str] = dataclasses.field(default_factory=list)
    foreign_keys: list[str] = dataclasses.field(default_factory=list)
    runs_per_job: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def doubly_finished(self) -> int:
        """Return how many jobs finished more than once, each counted for itself."""
        return sum(jobs for times, jobs in (self.history or {}).items() if times > 1)

    def wrong(self) -> list[str]:
        """Return each broken promise."""
        found = []
        names = ("lost", "unfinished", "wrong_results", "not_once", "doubles", "findings", "foreign_keys")
        found += [f"{name}: {len(things)}: {things[:5]}" for name in names if (things := getattr(self, name))]
        if self.history is not None and set(self.history) - {1}:
            found.append(f"completions per job (times: jobs): {self.history}")
        if self.completions_counted != self.stored:
            found.append(f"the counter says {self.completions_counted} completions of {self.stored} jobs")
        if not self.accepted:
            found.append("nothing was accepted")
        return found


async def judge(
    url: str,
    submitters: Submitters,
    runs: Runs,
    *,
    history: Mapping[str, int] | None,
    gaps: tuple[Gap, ...] = (),
) -> Verdict:
    """Compare the store, in which nothing waits or runs any more, with what was written down outside it."""
    store = RedisStore(StoreOptions(redis_url=url, namespace=NAMESPACE))
    try:
        verdict = Verdict(accepted=len(submitters.accepted), keyed=submitters.keyed, repeated=submitters.repeated)
        ended = {(run.job, run.attempt) for run in runs.read() if not run.starts}
        for taken in submitters.accepted.values():
            _judge_job(verdict, taken, await store.get(JobId(taken.id)), ended, gaps)
        for first, second, at_s in submitters.doubles:
            taken = submitters.accepted[first]
            if any(gap.from_s <= taken.answered_s and taken.asked_s <= gap.to_s < at_s for gap in gaps):
                verdict.doubles_in_gaps += 1
            else:
                verdict.doubles.append(f"{first} and {second}")
        report = await audit(store.connection.options)
        verdict.findings = [f"{found.code} {found.subject} {found.detail}" for found in report.findings]
        verdict.stored = report.jobs
        verdict.foreign_keys = await _foreign_keys(store)
        counters = await store.counters()
        verdict.completions_counted = sum(count for (name, _), count in counters.items() if name == "completed")
        if history is not None:
            verdict.history = dict(sorted(collections.Counter(history.values()).items()))
            stored = verdict.stored - len(history)
            if stored:
                verdict.history[0] = stored
        started = collections.Counter(run.job for run in runs.read() if run.starts)
        verdict.runs_per_job = dict(sorted(collections.Counter(started[job] for job in submitters.accepted).items()))
        return verdict
    finally:
        await store.close()


def _judge_job(
    verdict: Verdict, taken: Accepted, record: JobRecord | None, ended: set[tuple[str, int]], gaps: tuple[Gap, ...]
) -> None:
    if record is None:
        if any(gap.from_s <= taken.answered_s and taken.asked_s <= gap.to_s for gap in gaps):
            verdict.lost_in_gaps += 1
        else:
            verdict.lost.append(taken.id)
    elif record.state is not State.COMPLETED:
        verdict.unfinished.append(f"{taken.id} {record.state.value}")
    else:
        if record.result != str(taken.number).encode():
            verdict.wrong_results.append(f"{taken.id} {record.result!r}")
        problem = _not_once(record, ended)
        if problem:
            verdict.not_once.append(f"{taken.id} {problem}")


def _not_once(record: JobRecord, ended: set[tuple[str, int]]) -> str:
    """Say what contradicts that exactly one attempt, the last, was completed, and by a run that came to its end."""
    outcomes = {attempt.attempt: attempt.outcome for attempt in record.attempts}
    completed = [number for number, outcome in outcomes.items() if outcome is AttemptOutcome.COMPLETED]
    if completed != [record.attempt]:
        return f"completed by attempts {completed} of {record.attempt}"
    # Each earlier attempt has its record of another end: one that was completed and undone would have none.
    missing = [
        number
        for number in range(max(1, record.attempt - _KEPT_ATTEMPTS + 1), record.attempt)
        if outcomes.get(number) is None
    ]
    if missing:
        return f"no end is recorded of attempts {missing}"
    if (record.id, record.attempt) not in ended:
        return f"attempt {record.attempt} is completed, and no run of it came to its end"
    return ""


async def _foreign_keys(store: RedisStore) -> list[str]:
    """Return keys outside the namespace; those inside are the audit's."""
    cursor, found = 0, []
    while True:
        cursor, names = await store.connection.command("SCAN", cursor, "COUNT", 1_000)
        found += [name.decode() for name in names if not name.startswith(f"{NAMESPACE}:".encode())]
        if cursor == 0:
            return found


async def settled(url: str, *, patience_s: float = END_S) -> None:
    """Wait until nothing waits or runs any more."""
    store = RedisStore(StoreOptions(redis_url=url, namespace=NAMESPACE))
    idle = 0

    async def is_twice_idle() -> bool:
        nonlocal idle
        idle = idle + 1 if await _is_idle(store) else 0
        return idle == 2

    try:
        # What is not final in time, the verdict names.
        await in_time(is_twice_idle, patience_s, pause_s=0.1)
    finally:
        await store.close()


async def _is_idle(store: RedisStore) -> bool:
    queues = await store.queues()
    if any(sum(queue.depth.values()) + queue.running + queue.delayed for queue in queues):
        return False
    # A job that moves while the queues are read is in none of them; the counts are read at one moment.
    totals: collections.Counter[str] = collections.Counter()
    for (name, _), count in (await store.counters()).items():
        totals[name] += count
    return totals["completed"] + totals["failed"] + totals["cancelled"] + totals["expired"] >= totals["submitted"]
