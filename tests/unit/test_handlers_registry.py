"""Declare and collect tasks."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

import penstock
from penstock.core.errors import TaskError
from penstock.core.retry import Backoff
from penstock.handlers.ai import AISettings
from penstock.handlers.builtin import add_builtin
from penstock.handlers.registry import Registry, Task, find_tasks, task


def plain(width: int) -> int:
    """Double it."""
    return width * 2


async def later(width: int) -> int:
    return width * 2


def test_a_task_stays_callable_and_keeps_its_name_and_docstring() -> None:
    declared = task(plain)
    assert declared(3) == 6
    assert (declared.name, declared.__name__, declared.__doc__) == ("plain", "plain", "Double it.")
    assert asyncio.run(task(later)(2)) == 4


def test_the_executor_follows_from_the_function_unless_named() -> None:
    assert task(plain).executor == "thread"
    assert task(later).executor == "async"
    assert task(executor="process")(plain).executor == "process"
    assert task(executor="process")(later).executor == "process"


def test_options_are_published() -> None:
    declared = task(
        name="other", queue="slow", max_attempts=5, backoff={"base": "2s", "max": 60, "factor": 3}, timeout="1m"
    )(plain)
    info = declared.info
    assert (info.name, info.queue, info.max_attempts, info.timeout_ms) == ("other", "slow", 5, 60_000)
    assert info.backoff == Backoff(base_ms=2_000, factor=3.0, max_ms=60_000)
    assert task(backoff=5)(plain).info.backoff == Backoff(base_ms=5_000)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "@ai"},
        {"name": "a\nb"},
        {"name": "x" * 129},
        {"queue": ""},
        {"max_attempts": 0},
        {"max_attempts": True},
        {"max_attempts": 1_001},
        {"timeout": "soon"},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"backoff": {"bases": 1}},
        {"backoff": {"factor": "two"}},
        {"backoff": "often"},
        {"executor": "gpu"},
        {"executor": "async"},
    ],
)
def test_wrong_options_name_the_place(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="plain"):
        task(**options)(plain)


def test_an_async_function_does_not_run_on_a_thread() -> None:
    with pytest.raises(TaskError, match="not on a thread"):
        task(executor="thread")(later)


def module_of(source: str, name: str = "made_up") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def test_two_tasks_of_one_name_name_both_places() -> None:
    registry = Registry()
    registry.add_module(module_of("from penstock import task\n@task(name='same')\ndef first(): pass\n", "one"))
    with pytest.raises(TaskError, match=r"named 'same': one\.first \(one\.py:2\) and two\.second \(two\.py:2\)"):
        registry.add_module(module_of("from penstock import task\n@task(name='same')\ndef second(): pass\n", "two"))


def test_a_second_definition_in_one_module_is_found_too() -> None:
    with pytest.raises(TaskError, match=r"same\.py:2.*same\.py:4"):
        module_of("from penstock import task\n@task\ndef a(): pass\n@task\ndef a(): pass\n", "same")


def test_a_task_imported_by_another_module_is_the_same_one() -> None:
    first = module_of("from penstock import task\n@task\ndef a(): pass\n", "one")
    second = types.ModuleType("two")
    second.borrowed = first.a  # type: ignore[attr-defined]
    registry = Registry()
    assert registry.add_module(first) == registry.add_module(second) == 1
    assert registry.names() == ("a",)
    assert registry.module_of("a") == "one"
    assert find_tasks(second) == find_tasks(first)


def test_an_unusable_signature_stops_the_boot() -> None:
    registry = Registry()
    with pytest.raises(TaskError, match=r"bad\.py"):
        registry.add_module(module_of("from penstock import task\n@task\ndef bad(*all): pass\n", "bad"))


def test_the_built_in_tasks_are_there_and_cannot_be_replaced() -> None:
    async def run_in_process(*_: Any) -> object:
        raise AssertionError

    registry = Registry()
    add_builtin(registry, ai=AISettings(), run_in_process=run_in_process)
    assert set(registry.names()) == {"echo", "sleep", "fail", "@ai"}
    assert set(registry.names(["async"])) == set(registry.names())
    with pytest.raises(TaskError, match="echo"):
        registry.add(Task(plain, name="echo"), module="mine")


def test_submit_goes_through_the_packages_client(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def send(name: str, value: Any, **options: Any) -> None:
        sent.append((name, value, options))

    monkeypatch.setattr(penstock, "submit_task", send)
    declared = task(plain)
    declared.submit(width=3)
    declared.options(delay="5s", priority="high").submit(width=4)
    assert sent == [
        ("plain", {"width": 3}, {}),
        ("plain", {"width": 4}, {"delay": "5s", "priority": "high"}),
    ]


def test_everything_exported_is_there() -> None:
    assert sorted(penstock.__all__) == penstock.__all__
    for name in penstock.__all__:
        assert getattr(penstock, name) is not None
    with pytest.raises(AttributeError):
        penstock.nothing_of_this_name  # noqa: B018
