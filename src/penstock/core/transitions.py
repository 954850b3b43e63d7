"""Hold the one transition table; scripts, the memory store, the docs and the API are checked against it."""

from __future__ import annotations

import enum

from penstock.core.errors import TransitionError
from penstock.core.states import State


class Event(enum.Enum):
    """Name what moves a job from one state to another."""

    SUBMIT = "submit"
    SCHEDULE = "schedule"
    BLOCK = "block"
    UNBLOCK = "unblock"
    DUE = "due"
    CLAIM = "claim"
    COMPLETE = "complete"
    RETRY = "retry"
    FAIL = "fail"
    RELEASE = "release"
    DEFER = "defer"
    SNOOZE = "snooze"
    LAPSE = "lapse"
    POISON = "poison"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REDRIVE = "redrive"


_S = State
_E = Event

#: (state, event) -> next state. ``None`` stands for a job that does not exist yet.
TRANSITIONS: dict[tuple[State | None, Event], State] = {
    (None, _E.SUBMIT): _S.QUEUED,
    (None, _E.SCHEDULE): _S.SCHEDULED,
    (None, _E.BLOCK): _S.BLOCKED,
    (_S.BLOCKED, _E.UNBLOCK): _S.QUEUED,
    (_S.BLOCKED, _E.CANCEL): _S.CANCELLED,
    (_S.SCHEDULED, _E.DUE): _S.QUEUED,
    (_S.SCHEDULED, _E.CANCEL): _S.CANCELLED,
    (_S.SCHEDULED, _E.EXPIRE): _S.EXPIRED,
    (_S.RETRYING, _E.DUE): _S.QUEUED,
    (_S.RETRYING, _E.CANCEL): _S.CANCELLED,
    (_S.RETRYING, _E.EXPIRE): _S.EXPIRED,
    (_S.QUEUED, _E.CLAIM): _S.RUNNING,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    (_S.QUEUED, _E.EXPIRE): _S.EXPIRED,
    (_S.QUEUED, _E.DEFER): _S.RETRYING,
    (_S.QUEUED, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.COMPLETE): _S.COMPLETED,
    (_S.RUNNING, _E.RETRY): _S.RETRYING,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.RELEASE): _S.QUEUED,
    (_S.RUNNING, _E.SNOOZE): _S.SCHEDULED,
    (_S.RUNNING, _E.LAPSE): _S.QUEUED,
    (_S.RUNNING, _E.POISON): _S.FAILED,
    (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
    (_S.FAILED, _E.REDRIVE): _S.QUEUED,
}

#: Transitions that no store verb performs yet; workflows will.
RESERVED: frozenset[tuple[State | None, Event]] = frozenset(
    {(None, _E.BLOCK), (_S.BLOCKED, _E.UNBLOCK), (_S.BLOCKED, _E.CANCEL)}
)


def next_state(state: State | None, event: Event) -> State:
    """Return the state after ``event``.

    Raises:
        TransitionError: the table does not allow ``event`` in ``state``.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(state.value if state else "none", event.value) from None
