"""What ``@task(unique=…)`` makes of the arguments of a submit, and what it refuses when the module is loaded."""

from __future__ import annotations

from typing import Any

import pytest

import penstock
from penstock import Context, task
from penstock.core.errors import TaskError


def report(customer: int, kind: str = "pdf", ctx: Context | None = None) -> None:
    """Stand for a function that a user writes."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(penstock, "submit_task", lambda name, value, **options: calls.append((name, value, options)))
    return calls


def by_function(given: dict[str, Any]) -> str:
    return f"{given['kind']} of {given['customer']}"


@pytest.mark.parametrize(
    ("unique", "fields"),
    [
        ("report:{customer}", {"unique_key": "report:7"}),
        ("{kind}:{customer:03}", {"unique_key": "pdf:007"}),
        ("nightly", {"unique_key": "nightly"}),
        (by_function, {"unique_key": "pdf of 7"}),
        ({"key": "{customer}"}, {"unique_key": "7"}),
        ({"key": "{customer}", "until": None}, {"unique_key": "7"}),
        (
            {"key": by_function, "until": "started", "for": "10m", "on_conflict": "return_existing"},
            {"unique": {"key": "pdf of 7", "until": "started", "for": "10m", "on_conflict": "return_existing"}},
        ),
    ],
)
def test_the_key_is_made_of_the_arguments_and_the_defaults(
    sent: list[tuple[str, dict[str, Any], dict[str, Any]]], unique: Any, fields: dict[str, Any]
) -> None:
    task(unique=unique)(report).submit(customer=7)
    task(unique=unique)(report).options(priority="high").submit(customer=7)
    # The input is what the caller gave, without the defaults.
    assert sent == [("report", {"customer": 7}, fields), ("report", {"customer": 7}, {"priority": "high", **fields})]


def test_an_argument_wins_over_its_default(sent: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    task(unique="{kind}")(report).submit(customer=7, kind="csv")
    assert sent[0][2] == {"unique_key": "csv"}


@pytest.mark.parametrize(
    "options", [{"unique_key": "mine"}, {"unique": {"key": "mine", "for": 60}}, {"unique_key": None}, {"unique": None}]
)
def test_what_a_submit_says_takes_its_place(
    sent: list[tuple[str, dict[str, Any], dict[str, Any]]], options: dict[str, Any]
) -> None:
    task(unique="report:{customer}")(report).options(**options).submit(customer=7)
    assert sent[0][2] == options


@pytest.mark.parametrize(
    ("unique", "words"),
    [
        ("report:{client}", r"names 'client'; the task takes customer, kind"),
        ("report:{}", r"names ''"),
        ("report:{0}", r"names '0'"),
        ("report:{customer", r"expected '}'"),
        (7, "takes a key"),
        ({}, "takes a key"),
        ({"until": "started"}, "takes a key"),
        ({"key": "a", "untill": "started"}, "has no 'untill'; it takes for, key, on_conflict, until"),
        ({"key": "a", "until": "done"}, r"unique\.until must be one of started, finished, not 'done'"),
        ({"key": "a", "on_conflict": "wait"}, r"unique\.on_conflict must be one of reject, .*, not 'wait'"),
        ({"key": "a", "for": "soon"}, r"unique\.for: expected seconds"),
        ({"key": "a", "for": 0}, r"unique\.for must be at least one millisecond"),
    ],
)
def test_what_cannot_be_a_key_is_refused_when_the_module_is_loaded(unique: Any, words: str) -> None:
    with pytest.raises(TaskError, match=rf"report.*{words}"):
        task(unique=unique)(report)


def test_arguments_that_make_no_key_are_refused_before_anything_is_sent(
    sent: list[tuple[str, dict[str, Any], dict[str, Any]]],
) -> None:
    with pytest.raises(TaskError, match=r"'report:\{customer\}' cannot be filled: KeyError\('customer'\)"):
        task(unique="report:{customer}")(report).submit(kind="csv")
    with pytest.raises(TaskError, match="the key must be a text, not 7"):
        task(unique=lambda given: given["customer"])(report).submit(customer=7)
    assert sent == []
