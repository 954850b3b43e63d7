"""Bind inputs to arguments."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any, Literal

import msgspec
import pytest

from penstock.core.errors import TaskError
from penstock.core.outcome import InvalidInput
from penstock.handlers.binding import Binder, WholeInput
from penstock.handlers.context import Context


class Size(msgspec.Struct):
    width: int
    height: int = 1


@dataclasses.dataclass
class Point:
    x: float


def bind(function: Any, value: Any) -> dict[str, Any]:
    return Binder(function, where="here").bind(msgspec.json.encode(value))


def two(width: int, height: int = 2) -> None: ...
def one(number: int) -> None: ...
def nothing() -> None: ...
def loose(anything, other=None): ...  # type: ignore[no-untyped-def]
def rich(size: Size, when: dt.datetime, mode: Literal["a", "b"] = "a") -> None: ...
def point(point: Point) -> None: ...
def numbers(values: list[int]) -> None: ...
def optional(value: int | None = 3) -> None: ...
def mutable(values: list[int] = [], names: dict[str, int] = {"a": 1}) -> None: ...  # noqa: B006
def with_context(ctx: Context, width: int) -> None: ...
def with_named_context(ctx, width):  # type: ignore[no-untyped-def]
    ...


def context_elsewhere(width: int, *, where: Context) -> None: ...


@pytest.mark.parametrize(
    ("function", "value", "arguments"),
    [
        (two, {"width": 1}, {"width": 1}),
        (two, {"height": 3, "width": 1}, {"width": 1, "height": 3}),
        (one, 5, {"number": 5}),
        (one, {"number": 5}, {"number": 5}),
        (nothing, None, {}),
        (nothing, {}, {}),
        (loose, {"anything": [1, {"a": 2}]}, {"anything": [1, {"a": 2}]}),
        (numbers, [1, 2], {"values": [1, 2]}),
        (optional, None, {}),
        (optional, {"value": None}, {"value": None}),
        (optional, 4, {"value": 4}),
        (mutable, {}, {}),
        (point, {"point": {"x": 1}}, {"point": Point(x=1.0)}),
        (with_context, {"width": 1}, {"width": 1}),
        (with_context, 1, {"width": 1}),
        (
            rich,
            {"size": {"width": 3}, "when": "2030-01-01T00:00:00Z", "mode": "b"},
            {"size": Size(width=3), "when": dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "mode": "b"},
        ),
    ],
)
def test_fitting_inputs_are_bound(function: Any, value: Any, arguments: dict[str, Any]) -> None:
    assert bind(function, value) == arguments


@pytest.mark.parametrize(
    ("function", "value", "field", "detail"),
    [
        (two, {}, "input.width", "is missing"),
        (two, {"width": "1"}, "input.width", "expected int, got str"),
        (two, {"width": 1, "height": "2"}, "input.height", "expected int, got str"),
        (two, {"width": True}, "input.width", "expected int, got bool"),
        (two, {"width": 1.5}, "input.width", "expected int, got float"),
        (two, {"width": 1, "depth": 1}, "input.depth", "is unknown; the task takes width, height"),
        (two, {"width": 1, "ctx": 1}, "input.ctx", "is unknown; the task takes width, height"),
        (two, 3, "input", "expected an object with width, height"),
        (one, None, "input.number", "is missing"),
        (one, "3", "input.number", "expected int, got str"),
        (one, {}, "input.number", "is missing"),
        (nothing, 3, "input", "this task takes no input"),
        (nothing, {"a": 1}, "input.a", "is unknown; the task takes nothing"),
        (numbers, [1, "x"], "input.values[1]", "expected int, got str"),
        (numbers, {"values": [1, "x"]}, "input.values[1]", "expected int, got str"),
        (rich, {"size": {}, "when": "2030-01-01T00:00:00Z"}, "input.size.width", "is missing"),
        (point, {"point": {"x": "far"}}, "input.point.x", "expected float, got str"),
        (with_context, {"width": 1, "ctx": {}}, "input.ctx", "is unknown; the task takes width"),
    ],
)
def test_unfit_inputs_name_the_argument(function: Any, value: Any, field: str, detail: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        bind(function, value)
    assert (caught.value.field, caught.value.detail) == (field, detail)


def test_what_is_not_json_is_invalid_input() -> None:
    for text in (b"", b"{", b"nope", b'{"a": NaN}', b"[" * 100_000):
        with pytest.raises(InvalidInput):
            Binder(one, where="here").bind(text)
        with pytest.raises(InvalidInput):
            WholeInput("value").bind(text)


def test_the_context_is_found_by_type_or_by_name() -> None:
    assert Binder(with_context, where="").context_name == "ctx"
    assert Binder(with_named_context, where="").context_name == "ctx"
    assert Binder(context_elsewhere, where="").context_name == "where"
    assert Binder(two, where="").context_name is None


def stars(*values: int) -> None: ...
def double_stars(**values: int) -> None: ...
def positional(value: int, /) -> None: ...
def unknown_name(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [stars, double_stars, positional, unknown_name])
def test_signatures_that_json_cannot_fill_are_refused(function: Any) -> None:
    with pytest.raises(TaskError, match="this place"):
        Binder(function, where="this place")


def test_progress_is_bounded_and_json() -> None:
    written: list[bytes] = []
    context = Context(id="1", task="t", queue="q", attempt=1, counted=0, report=written.append)
    context.progress({"percent": 1})
    assert written == [b'{"percent":1}']
    with pytest.raises(ValueError, match="at most 1024"):
        context.progress("x" * 2_000)
    with pytest.raises(TypeError):
        context.progress(object())
    Context(id="1", task="t", queue="q", attempt=1, counted=0).progress(1)
