"""Declare query parameters once, for reading them and for documenting them."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from penstock.api.fields import Checker
from penstock.api.problems import field_error, invalid
from penstock.core.states import State

_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")
_INTEGER = re.compile(r"-?[0-9]{1,100}")
_WAIT = re.compile(r"\s*wait\s*=\s*\"?([^\";,\s]*)\"?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryParameter:
    """Declare one parameter; ``read`` gets its texts and notes what is wrong with them."""

    name: str
    description: str
    schema: Mapping[str, Any]
    read: Callable[[Checker, str, list[str]], Any]
    repeated: bool = False


def read_query(query: bytes, declared: tuple[QueryParameter, ...], checker: Checker) -> dict[str, Any]:
    """Return the parameters that are there; an unknown one, or one sent twice that may come once, is an error.

    Raises:
        ApiError: everything that is wrong with the query.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=1_000
        )
    except ValueError:
        raise invalid(field_error("", "wrong_type", "the query is not UTF-8, or has too many parameters")) from None
    texts: dict[str, list[str]] = {}
    for name, value in pairs:
        texts.setdefault(name, []).append(value)
    known = {parameter.name: parameter for parameter in declared}
    values: dict[str, Any] = {}
    for name, given in texts.items():
        parameter = known.get(name)
        if parameter is None:
            near = difflib.get_close_matches(name[:128], known, n=1, cutoff=0.7)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            checker.wrong(name[:128], "unknown_field", f"unknown query parameter{hint}")
        elif len(given) > 1 and not parameter.repeated:
            checker.wrong(name, "conflict", "may be there only once")
        else:
            values[name] = parameter.read(checker, name, given)
    if checker.errors:
        raise invalid(*checker.errors)
    return values


def read_wait_ms(checker: Checker, field: str, text: str, high_ms: int) -> int:
    """Return a wait in ms from seconds as text."""
    if not _NUMBER.fullmatch(text):
        checker.wrong(field, "wrong_type", "expected seconds, such as 10")
        return 0
    wait_ms = round(float(text) * 1_000)
    if wait_ms > high_ms:
        checker.wrong(field, "out_of_range", f"must be at most {high_ms / 1_000:.15g} s")
    return wait_ms


def prefer_wait(prefer: bytes | None) -> str | None:
    """Return the ``wait`` of a ``Prefer`` header (RFC 7240); other preferences are not ours to read."""
    if prefer is None:
        return None
    for preference in prefer.decode("latin-1").split(","):
        match = _WAIT.match(preference)
        if match:
            return match[1]
    return None


def wait_parameter(high_ms: int) -> QueryParameter:
    """Declare ``wait``, up to ``high_ms``."""
    return QueryParameter(
        name="wait",
        description="Wait up to this many seconds for the job to become final.",
        schema={"type": "number", "minimum": 0, "maximum": high_ms / 1_000},
        read=lambda checker, name, texts: read_wait_ms(checker, name, texts[0], high_ms),
    )


def _read_states(checker: Checker, name: str, texts: list[str]) -> tuple[State, ...]:
    names = [part for text in texts for part in text.split(",")]
    known = {state.value: state for state in State}
    for part in names:
        if part not in known:
            checker.wrong(name, "not_allowed", f"{part[:64]!r} is none of {', '.join(known)}")
    return tuple(dict.fromkeys(known[part] for part in names if part in known))


def _read_name(checker: Checker, name: str, texts: list[str]) -> str:
    checker.name(name, texts[0])
    return texts[0]


def _read_time(checker: Checker, name: str, texts: list[str]) -> int | None:
    # A '+' that was not escaped arrives as a space.
    return checker.time(name, texts[0].replace(" ", "+"))


def read_number(checker: Checker, field: str, text: str, low: int, high: int) -> int:
    """Return a whole number within bounds from text."""
    if not _INTEGER.fullmatch(text):
        checker.wrong(field, "wrong_type", "expected an integer")
        return low
    checker.number(field, int(text), low, high)
    return int(text)


_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}

STATUS = QueryParameter(
    name="status",
    description="Only jobs of these statuses: repeat it, or separate by commas.",
    schema={"type": "array", "items": {"type": "string", "enum": [state.value for state in State]}},
    read=_read_states,
    repeated=True,
)
QUEUE = QueryParameter(name="queue", description="Only jobs of this queue.", schema=_TEXT, read=_read_name)
TASK = QueryParameter(name="task", description="Only jobs of this task.", schema=_TEXT, read=_read_name)
TAG = QueryParameter(name="tag", description="Only jobs with this tag.", schema=_TEXT, read=_read_name)
CREATED_AFTER = QueryParameter(
    name="created_after", description="Only jobs created after this time.", schema=_TIME, read=_read_time
)
CREATED_BEFORE = QueryParameter(
    name="created_before", description="Only jobs created before this time.", schema=_TIME, read=_read_time
)
LIMIT = QueryParameter(
    name="limit",
    description="How many jobs a page has at most.",
    schema={"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    read=lambda checker, name, texts: read_number(checker, name, texts[0], 1, 200),
)
SCHEDULE_LIMIT = dataclasses.replace(LIMIT, description="How many schedules a page has at most.")
CURSOR = QueryParameter(
    name="cursor",
    description="The `next` of the page before.",
    schema=_TEXT,
    read=lambda _checker, _name, texts: texts[0],
)
