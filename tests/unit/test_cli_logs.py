"""Check the form of log lines."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from penstock.observability.logs import configure_logging, get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_what_machines_look_for_in_this_order() -> None:
    stream = io.StringIO()
    configure_logging(json=None, level="info", stream=stream)
    log = get_logger(job_id="j1", task="resize", queue="default", attempt=2)
    log.warning("job.failed", message="Job j1 failed: no such file", error="OSError", size_bytes=3)
    (line,) = lines(stream)
    assert list(line)[:8] == ["timestamp", "level", "message", "event", "job_id", "task", "queue", "attempt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "warning",
        "message": "Job j1 failed: no such file",
        "event": "job.failed",
        "job_id": "j1",
        "task": "resize",
        "queue": "default",
        "attempt": 2,
        "error": "OSError",
        "size_bytes": 3,
    }


def test_levels_below_the_wanted_one_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="warning", stream=stream)
    get_logger().info("quiet", message="not seen")
    logging.getLogger("x").info("not seen")
    get_logger().error("loud", message="seen")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_lines_of_libraries_take_the_same_form() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="info", stream=stream)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "x"})
    logging.getLogger("penstock.embedded").warning(
        "%s stopped", "api", extra={"event": "child_restarted", "delay_s": 1}
    )
    logging.getLogger("httpx").info("HTTP Request: …")
    first, second = lines(stream)
    assert (first["event"], first["message"]) == ("uvicorn.error", "Started server process [7]")
    assert "color_message" not in first
    assert (second["event"], second["message"], second["delay_s"]) == ("child_restarted", "api stopped", 1)


def test_bound_context_reaches_every_line() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="info", stream=stream)
    with structlog.contextvars.bound_contextvars(job_id="j1"):
        get_logger().info("a", message="one")
        logging.getLogger("library").warning("two")
    assert [line["job_id"] for line in lines(stream)] == ["j1", "j1"]


def test_an_exception_is_one_line() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="info", stream=stream)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        get_logger().exception("loop.failed", message="The loop failed")
        logging.getLogger("library").exception("it failed")
    first, second = lines(stream)
    assert first["exception"].endswith("in two")
    assert "Traceback" in second["exception"]


def test_what_json_does_not_have_is_shown_as_text() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="info", stream=stream)
    get_logger().info("x", message="y", value=object, nothing=None)
    assert lines(stream)[0]["value"] == "<class 'object'>"


def test_people_on_a_terminal_get_colours_and_the_sentence() -> None:
    stream = Terminal()
    configure_logging(json=None, level="info", stream=stream)
    get_logger().info("job.failed", message="Job j1 failed", job_id="j1")
    text = stream.getvalue()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[info *\] Job j1 failed +job_id=j1\n", plain)


def test_people_are_not_told_twice_what_the_sentence_says() -> None:
    shown, written = io.StringIO(), io.StringIO()
    for stream, as_json in ((shown, False), (written, True)):
        configure_logging(json=as_json, level="info", stream=stream)
        get_logger().info("request.finished", message="GET /x answered 200.", method="GET", path="/x", status_code=200)
        get_logger().error("job.failed", message="The job failed for good: no", job_id="j1", error="no")
    first, second = shown.getvalue().splitlines()
    assert first.endswith("] GET /x answered 200.")
    assert second.endswith("] The job failed for good: no job_id=j1")
    assert [line.get("path") or line.get("error") for line in lines(written)] == ["/x", "no"]


def test_console_without_a_terminal_has_no_colours() -> None:
    stream = io.StringIO()
    configure_logging(json=False, level="info", stream=stream)
    get_logger().info("x", message="a sentence")
    assert "\x1b[" not in stream.getvalue()
    assert "a sentence" in stream.getvalue()


def test_warnings_and_repeated_set_up() -> None:
    stream = io.StringIO()
    configure_logging(json=True, level="info", stream=io.StringIO())
    configure_logging(json=True, level="info", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", stacklevel=1)
    (line,) = lines(stream)
    assert "old thing" in line["message"]
    assert line["event"] == "py.warnings"
