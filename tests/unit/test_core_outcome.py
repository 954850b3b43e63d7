from __future__ import annotations

import dataclasses
import pickle
from typing import get_args

import pytest

from penstock.core.job import handler_name
from penstock.core.outcome import (
    Cancelled,
    Discard,
    FailedAttempt,
    InvalidInput,
    Outcome,
    Released,
    Retry,
    Snooze,
    Snoozed,
    Succeeded,
)
from penstock.core.states import AttemptOutcome


def test_exceptions_carry_what_the_handler_said() -> None:
    assert (str(Retry("busy", after="90s")), Retry("busy", after="90s").after) == ("busy", "90s")
    assert (str(Retry()), Retry().after) == ("retry requested", None)
    assert str(Discard("no use")) == "no use"
    assert str(Discard()) == "discarded by the handler"
    assert (str(Snooze(5)), Snooze(5).after) == ("snoozed by the handler", 5)
    assert str(Snooze("1h", "too early")) == "too early"
    error = InvalidInput("width", "must be positive")
    assert (str(error), error.field, error.detail) == ("width: must be positive", "width", "must be positive")
    assert str(InvalidInput("", "must be an object")) == "must be an object"


@pytest.mark.parametrize(
    "error",
    [
        Retry("busy", after=2.5),
        Retry(),
        Discard("no"),
        Discard(),
        Snooze("15m"),
        Snooze(3, "later"),
        InvalidInput("width", "bad"),
        InvalidInput("", "bad"),
    ],
)
def test_exceptions_cross_the_process_pool_whole(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_outcomes_are_closed_and_frozen() -> None:
    assert set(get_args(Outcome)) == {Succeeded, FailedAttempt, Snoozed, Released, Cancelled}
    failed = FailedAttempt(error=b"{}")
    assert (failed.outcome, failed.reason, failed.after_ms) == (AttemptOutcome.FAILED, None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        failed.error = b""  # type: ignore[misc]


def test_a_handler_is_named_by_task_or_type() -> None:
    assert handler_name("task", "echo") == "echo"
    assert handler_name("ai", "summarize") == "@ai"
