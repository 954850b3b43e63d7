from __future__ import annotations

import itertools

import pytest

from penstock.core.errors import TransitionError
from penstock.core.states import FINAL_STATES, PLACES, Place, Priority, State
from penstock.core.transitions import RESERVED, TRANSITIONS, Event, next_state


@pytest.mark.parametrize(("state", "event"), list(itertools.product([None, *State], Event)))
def test_the_table_alone_says_what_may_happen(state: State | None, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(TransitionError) as caught:
            next_state(state, event)
        assert caught.value.state == (state.value if state else "none")
        assert caught.value.event == event.value


def test_only_a_redrive_leaves_a_final_state() -> None:
    leaving = {(state, event) for state, event in TRANSITIONS if state in FINAL_STATES}
    assert leaving == {(State.FAILED, Event.REDRIVE)}


def test_every_state_can_be_reached_and_left() -> None:
    reached = set(TRANSITIONS.values())
    assert reached == set(State)
    left = {state for state, _ in TRANSITIONS if state}
    assert left == set(State) - FINAL_STATES | {State.FAILED}


def test_from_every_state_an_end_can_be_reached() -> None:
    ending = set(FINAL_STATES)
    while True:
        more = {state for (state, _), after in TRANSITIONS.items() if state and after in ending} - ending
        if not more:
            break
        ending |= more
    assert ending == set(State)


def test_every_event_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_what_is_reserved_is_in_the_table() -> None:
    assert set(TRANSITIONS) >= RESERVED


def test_every_state_has_a_place() -> None:
    assert set(PLACES) == set(State)
    assert {state for state, place in PLACES.items() if place is Place.FINAL} == FINAL_STATES
    assert {state for state in State if state.is_final} == FINAL_STATES


def test_a_waiting_job_can_always_be_cancelled() -> None:
    for state in set(State) - FINAL_STATES:
        assert next_state(state, Event.CANCEL) is State.CANCELLED


def test_priorities_go_from_the_most_urgent_on() -> None:
    assert [priority.value for priority in Priority] == ["critical", "high", "normal", "low"]
