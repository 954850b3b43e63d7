"""The page about states says what the transition table says, and so does the API."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import msgspec

from penstock.api import views
from penstock.core.states import PLACES, AttemptOutcome, Place, Reason, State
from penstock.core.transitions import RESERVED, TRANSITIONS, Event

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/states.md"
OPENAPI = Path(__file__).resolve().parents[2] / "openapi.json"


def diagram() -> str:
    """Return the Mermaid diagram of the transition table; arrows between the same two states share a line."""
    events: dict[tuple[State | None, State], list[str]] = defaultdict(list)
    for (state, event), target in TRANSITIONS.items():
        if (state, event) not in RESERVED:
            events[state, target].append(event.value)
    lines = ["```mermaid", "stateDiagram-v2"]
    for (state, target), names in events.items():
        lines.append(f"    {state.value if state else '[*]'} --> {target.value}: {', '.join(names)}")
    lines += [f"    {state.value} --> [*]" for state in State if state.is_final]
    return "\n".join([*lines, "```"])


def table(heading: str) -> dict[str, str]:
    """Return first and last cell of the rows of the table below a heading; names that share a row come apart."""
    text = PAGE.read_text()
    section = text[text.index(heading) :].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$|^\| (`.+?) \| (.+?) \|$", section, re.MULTILINE)
    found = {}
    for first, last, only, meaning in rows:
        for name in re.findall(r"`([a-z_]+)`", first or only):
            found[name] = last or meaning
    return found


def test_the_diagram_is_that_of_the_transition_table() -> None:
    assert diagram() in PAGE.read_text(), f"put this into {PAGE.name}:\n{diagram()}"


def test_every_state_is_explained_with_its_place() -> None:
    explained = table("# States of a job")
    assert set(explained) == {state.value for state in State}
    for state in State:
        place = PLACES[state]
        if place is not Place.BLOCKED:
            wanted = {Place.FINAL: f"final:{state.value}"}.get(place, place.value)
            wanted = "dead" if state is State.FAILED else wanted
            assert explained[state.value].startswith(f"`{wanted}"), state


def test_every_event_and_every_reason_is_explained() -> None:
    assert set(table("## What the events mean")) == {event.value for event in Event}
    assert set(table("## Why a job failed")) == {reason.value for reason in Reason}


def test_the_outcomes_of_attempts_are_named() -> None:
    section = PAGE.read_text().split("## Attempts", 1)[1]
    assert set(re.findall(r"`([a-z_]+)`", section)) >= {outcome.value for outcome in AttemptOutcome}


def test_the_api_knows_the_same_states_and_reasons() -> None:
    _, components = msgspec.json.schema_components([views.JobView])
    assert set(components["State"]["enum"]) == {state.value for state in State}
    assert set(components["Reason"]["enum"]) == {reason.value for reason in Reason}
    assert set(components["AttemptOutcome"]["enum"]) == {outcome.value for outcome in AttemptOutcome}


def test_the_committed_api_description_knows_the_same_states() -> None:
    schemas = msgspec.json.decode(OPENAPI.read_bytes())["components"]["schemas"]
    enums = [set(schema["enum"]) for schema in schemas.values() if "enum" in schema]
    assert {state.value for state in State} in enums
    assert {reason.value for reason in Reason} in enums
