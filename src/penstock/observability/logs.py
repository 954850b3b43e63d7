"""Write the log: JSON lines for machines, one readable line each for people on a terminal.

A caller gives the event's code first and the sentence as ``message``::

    get_logger().info("job.failed", message="Job 0192… failed: no such file", job_id="0192…", task="resize")

A line has ``timestamp`` (RFC 3339 UTC with ms), ``level``, ``message``, ``event`` and what was bound: ``job_id``,
``task``, ``queue``, ``attempt``. What libraries log through ``logging`` takes the same form; their ``event`` is the
logger's name unless ``extra={"event": …}`` says otherwise.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from penstock.core import events

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FIRST = ("timestamp", "level", "message", "event", "job_id", "task", "queue", "attempt")
#: Libraries that tell of each request or connection; their warnings are enough.
_CHATTY = ("asyncio", "hpack", "httpcore", "httpx", "redis", "uvicorn.access")
#: What the sentence of an event has too.
_SAID = {
    events.REQUEST_FINISHED: ("method", "path", "status_code", "job_id"),
    events.JOB_FAILED: ("error",),
    events.JOB_RETRYING: ("error",),
}

EventDict = MutableMapping[str, Any]


def configure_logging(*, json: bool | None, level: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process to ``stream`` (stderr).

    ``json`` None means: JSON unless the stream is a terminal. ``level`` is debug, info, warning or error.
    """
    target = stream if stream is not None else sys.stderr
    is_terminal = target.isatty()
    as_json = not is_terminal if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _add_timestamp,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _name_foreign, structlog.stdlib.ExtraAdder(), _drop_coloured_copy],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_processors() if as_json else _console_processors(colors=is_terminal)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, _LEVELS[level]))
    # uvicorn brings handlers of its own, which would write each line twice.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "litestar"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)


def get_logger(name: str = "penstock", **bound: Any) -> structlog.typing.FilteringBoundLogger:
    """Return a logger; ``bound`` goes into each of its lines."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger.bind(**bound) if bound else logger


def _json_processors() -> list[Any]:
    return [structlog.processors.format_exc_info, _complete, structlog.processors.JSONRenderer(serializer=_dumps)]


def _console_processors(*, colors: bool) -> list[Any]:
    return [_complete, _for_people, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, sort_keys=False)]


def _add_timestamp(_: Any, __: str, event: EventDict) -> EventDict:
    # structlog's own stamper writes microseconds.
    import datetime as dt

    now = dt.datetime.now(dt.UTC)
    event["timestamp"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _name_foreign(_: Any, __: str, event: EventDict) -> EventDict:
    """Give a library's line our form: its text is the message, its logger's name the event unless ``extra`` has one."""
    event["message"] = event["event"]
    event["event"] = event["_record"].name
    return event


def _drop_coloured_copy(_: Any, __: str, event: EventDict) -> EventDict:
    # uvicorn sends its text a second time, with escape codes.
    event.pop("color_message", None)
    return event


def _complete(_: Any, __: str, event: EventDict) -> EventDict:
    """Order the keys for the eye; a line without a sentence shows its code."""
    event.setdefault("message", event.get("event", ""))
    first = {key: event[key] for key in _FIRST if key in event}
    return first | {key: value for key, value in event.items() if key not in first}


def _for_people(_: Any, __: str, event: EventDict) -> EventDict:
    """Put the sentence where the console renderer expects it, and leave out what it already says."""
    event = dict(event)
    left_out = _SAID.get(event.get("event", ""), ())
    event = {key: value for key, value in event.items() if key not in left_out}
    event["event"] = event.pop("message")
    event["timestamp"] = str(event.get("timestamp", ""))[11:23]
    return event


def _dumps(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
