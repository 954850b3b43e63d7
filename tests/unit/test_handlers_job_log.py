"""The logger of a job: what is stored of each line, whatever a handler puts into it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog

from penstock.core.limits import CHUNK_BYTES, LINE_BYTES
from penstock.core.output import OutputKind
from penstock.handlers.context import Context
from penstock.observability.logs import configure_logging


@pytest.fixture
def written() -> list[tuple[OutputKind, bytes]]:
    return []


@pytest.fixture
def context(written: list[tuple[OutputKind, bytes]]) -> Context:
    return Context(
        id="1", task="t", queue="q", attempt=1, counted=0, write=lambda kind, value: written.append((kind, value))
    )


@pytest.fixture
def worker_log() -> Iterator[io.StringIO]:
    """Log as a worker does at the level warning."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(json=True, level="warning", stream=stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    logging.captureWarnings(False)


def lines(written: list[tuple[OutputKind, bytes]]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for kind, value in written if kind is OutputKind.LOG]


def test_a_line_has_level_message_and_fields(context: Context, written: list[tuple[OutputKind, bytes]]) -> None:
    context.log.info("resized", width=3, size={"w": 1})
    context.log.bind(part=2).error("no %s", "space")
    context.log.warning("file.bad", message="The file is bad.", file=None)
    assert lines(written) == [
        {"level": "info", "message": "resized", "fields": {"width": 3, "size": {"w": 1}}},
        {"level": "error", "message": "no space", "fields": {"part": 2}},
        {"level": "warning", "message": "The file is bad.", "fields": {"file": None, "event": "file.bad"}},
    ]


def test_the_level_of_the_workers_log_takes_nothing_from_the_job(
    worker_log: io.StringIO, context: Context, written: list[tuple[OutputKind, bytes]]
) -> None:
    context.log.debug("too small")
    context.log.info("for the job")
    context.log.warning("for both")
    assert [line["message"] for line in lines(written)] == ["for the job", "for both"]
    shown = [msgspec.json.decode(line) for line in worker_log.getvalue().splitlines()]
    assert [(line["message"], line["job_id"]) for line in shown] == [("for both", "1")]


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("broken")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("m" * 100_000, {}),
        ("\x00" * 100_000, {}),
        ("m", {"big": "x" * 100_000}),
        ("lone \ud800", {}),
        ("m", {"bad": "lone \ud800"}),
        ("m", {"bad": _Broken()}),
        ("m", {"bad": {object(): 1}}),
        (_Broken(), {}),
        (7, {}),
    ],
    ids=["long", "escapes", "long field", "surrogate", "surrogate field", "broken", "keys", "broken message", "number"],
)
def test_nothing_in_a_line_fails_a_job(
    message: Any, fields: dict[str, Any], context: Context, written: list[tuple[OutputKind, bytes]]
) -> None:
    structlog.configure(processors=[lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
    try:
        context.log.info(message, **fields)
    finally:
        structlog.reset_defaults()
    (line,) = lines(written)
    assert line["level"] == "info"
    assert len(written[0][1]) <= LINE_BYTES


def test_a_cut_line_says_so_and_keeps_the_end_of_a_traceback(
    context: Context, written: list[tuple[OutputKind, bytes]]
) -> None:
    structlog.configure(processors=[lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
    try:
        raise ValueError("x" * 20_000 + " the end")
    except ValueError:
        context.log.exception("failed")
    finally:
        structlog.reset_defaults()
    (line,) = lines(written)
    assert (line["message"], line["cut"]) == ("failed", True)
    assert line["exception"].rstrip().endswith("the end")


def test_a_chunk_is_text_or_any_json_value(context: Context, written: list[tuple[OutputKind, bytes]]) -> None:
    for chunk in ("text", {"a": [1, None]}, 7, None):
        context.stream(chunk)
    assert [msgspec.json.decode(value) for _, value in written] == ["text", {"a": [1, None]}, 7, None]
    with pytest.raises(ValueError, match="at most 65536"):
        context.stream("x" * CHUNK_BYTES)
    with pytest.raises(TypeError):
        context.stream(object())
    assert len(written) == 4


def test_without_a_worker_it_goes_nowhere() -> None:
    context = Context(id="1", task="t", queue="q", attempt=1, counted=0)
    context.stream("x")
    assert context.log is context.log
