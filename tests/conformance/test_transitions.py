"""Walk every transition of the table, and compare the table with what the stores say they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from penstock.core.ids import JobId, Token
from penstock.core.job import Verb
from penstock.core.limits import Limits
from penstock.core.states import State
from penstock.core.transitions import RESERVED, TRANSITIONS, Event, next_state
from penstock.store.memory import MemoryStore
from penstock.store.redis.scripts import load_scripts
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import WORKER, Subject
from tests.conformance.test_change import job_in

PERFORMED = {key: state for key, state in TRANSITIONS.items() if key not in RESERVED}
Step = Callable[[Subject, JobId], Awaitable[object]]


def _settle(verb: Verb) -> Step:
    async def step(subject: Subject, job_id: JobId) -> None:
        record = await subject.get(job_id)
        await subject.settle(Token(job_id, record.attempt, "nonce-1"), verb, delay_ms=5)

    return step


async def _promote(subject: Subject, job_id: JobId) -> None:
    await subject.advance(60_000)
    await subject.store.promote(0)


async def _expire(subject: Subject, job_id: JobId) -> None:
    await subject.advance(40)
    await subject.store.promote(0)


async def _lapse(subject: Subject, job_id: JobId) -> None:
    for _ in range(17):
        await subject.advance(1_000)
        await subject.store.reap(0)


async def _poison(subject: Subject, job_id: JobId) -> None:
    # The first death was not alone, so that it shows nothing about the job.
    await _lapse(subject, job_id)
    await subject.claim_one(alone=True)
    await subject.store.release_worker(WORKER, lost=True)


async def _cancel(subject: Subject, job_id: JobId) -> None:
    await subject.store.cancel([job_id])
    await subject.store.release_worker((await subject.get(job_id)).worker or "")  # type: ignore[arg-type]


async def _claim(subject: Subject, job_id: JobId) -> None:
    await subject.claim(1)


async def _claim_nothing_known(subject: Subject, job_id: JobId) -> None:
    await subject.claim(1, tasks=("other",))


async def _redrive(subject: Subject, job_id: JobId) -> None:
    await subject.store.redrive([job_id])


STEPS: dict[Event, Step] = {
    Event.DUE: _promote,
    Event.CLAIM: _claim,
    Event.COMPLETE: _settle(Verb.COMPLETE),
    Event.RETRY: _settle(Verb.RETRY),
    Event.FAIL: _settle(Verb.FAIL),
    Event.RELEASE: _settle(Verb.RELEASE),
    Event.SNOOZE: _settle(Verb.SNOOZE),
    Event.DEFER: _claim_nothing_known,
    Event.LAPSE: _lapse,
    Event.POISON: _poison,
    Event.CANCEL: _cancel,
    Event.EXPIRE: _expire,
    Event.REDRIVE: _redrive,
}


@pytest.mark.parametrize(
    ("key", "after"),
    PERFORMED.items(),
    ids=[f"{state.value if state else 'none'}-{event.value}" for state, event in PERFORMED],
)
async def test_each_transition_is_walked(
    make_subject: MakeSubject, key: tuple[State | None, Event], after: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, event = key
    seen = _record_transitions(monkeypatch)
    unknown_task_ms = 0 if key == (State.QUEUED, Event.FAIL) else 50_000
    subject = await make_subject(1, Limits(max_lost=1 if event is Event.POISON else 3, unknown_task_ms=unknown_task_ms))
    if state is None:
        job_id = await subject.submit(delay_ms=5 if event is Event.SCHEDULE else None)
    elif event is Event.EXPIRE:
        job_id = await subject.submit(expires_in_ms=40, delay_ms=70_000 if state is State.SCHEDULED else None)
        if state is State.RETRYING:
            await subject.claim(1, tasks=("other",))
    else:
        job_id = await job_in(subject, state)
    if state is not None:
        assert await subject.state(job_id) is state
        step = _claim_nothing_known if key == (State.QUEUED, Event.FAIL) else STEPS[event]
        await step(subject, job_id)
    assert await subject.state(job_id) is after
    if isinstance(subject.store, MemoryStore):
        assert key in seen


def _record_transitions(monkeypatch: pytest.MonkeyPatch) -> set[tuple[State | None, Event]]:
    seen: set[tuple[State | None, Event]] = set()

    def recorded(state: State | None, event: Event) -> State:
        seen.add((state, event))
        return next_state(state, event)

    monkeypatch.setattr("penstock.store.memory.partition.next_state", recorded)
    return seen


def test_the_scripts_claim_exactly_the_table() -> None:
    claimed = {
        ((State(before) if before else None, Event(event)), State(after))
        for script in load_scripts().values()
        for before, event, after in script.transitions
    }
    assert claimed == set(PERFORMED.items())
